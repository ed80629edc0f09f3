"""A training step as one CUDA graph: it waits for nothing, and its replays are eager steps."""

import copy
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import HAS_GPU
from readback import NothingIsReadBack
from torch import nn

from fastebm import (
    ContrastiveDivergence,
    GraphedTrainStep,
    ImprovedContrastiveDivergence,
    LangevinDynamics,
    LossOutput,
    PersistentContrastiveDivergence,
    ReplayBuffer,
)
from fastebm.rng import ChainRNG, DeviceRNG
from fastebm.train_step import train_step


class ByGraph(LangevinDynamics):
    """With a last step of its own, so that a CPU computes losses as a device does."""

    def last_step(self, *args, **kwargs):
        return super().last_step(*args, **kwargs)


def setup(kind, device="cpu", capturable=False, **options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU())
    model.append(nn.Linear(16, 1)).to(device)
    sampler = ByGraph(model, 0.001, clamp=(-2, 2), graph=False, **options)
    buffer = ReplayBuffer(64, (2,), 0.1, value_range=(-2, 2), seed=3, device=device)
    common = {"k_steps": 4, "energy_reg_weight": 0.1, "on_nonfinite": "count"}
    loss = {
        "cd": lambda: ContrastiveDivergence(model, sampler, **common),
        "pcd": lambda: PersistentContrastiveDivergence(model, sampler, buffer, **common),
        "icd": lambda: ImprovedContrastiveDivergence(model, sampler, buffer, **common),
        "icd, some references": lambda: ImprovedContrastiveDivergence(
            model, sampler, buffer, n_entropy_refs=20, **common
        ),
    }[kind]()
    kwargs = {"capturable": True} if capturable else {"fused": True}
    return model, loss, torch.optim.Adam(model.parameters(), 0.01, **kwargs)


KINDS = ["cd", "pcd", "icd", "icd, some references"]


@pytest.mark.parametrize(
    "options", [{}, {"noise_first": True, "noise_std": lambda k: 0.1 / (k + 1)}]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_for_nothing(kind, options):
    _, loss, optimizer = setup(kind, **options)
    rng, x = DeviceRNG(ChainRNG(4), "cpu"), torch.randn(40, 2)
    train_step(loss, optimizer, x, rng, 1.0)  # checks the step size, and makes Adam's state
    with NothingIsReadBack():
        train_step(loss, optimizer, x, rng, 1.0)
    assert rng.host().t == 2 * loss.k_steps


def test_what_would_wait_is_found():
    with NothingIsReadBack():
        for waits in (
            lambda: torch.ones(()).item(),
            lambda: bool(torch.ones(()) > 0),
            lambda: torch.ones(3)[torch.tensor([True, False, True])],
        ):
            with pytest.raises(AssertionError):
                waits()
    _, loss, optimizer = setup("icd")
    loss.on_nonfinite = "raise"
    with NothingIsReadBack(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        train_step(loss, optimizer, torch.randn(8, 2), DeviceRNG(ChainRNG(4), "cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_on_the_device_gives_the_same_training(kind):
    weights = []
    for rng in (DeviceRNG(ChainRNG(4, 2), "cpu"), ChainRNG(4, 2)):
        model, loss, optimizer = setup(kind)
        for _ in range(3):
            train_step(loss, optimizer, torch.randn(40, 2), rng)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_errors():
    model, loss, optimizer = setup("pcd")
    with pytest.raises(ValueError, match="needs a model on a CUDA device, it is on cpu"):
        GraphedTrainStep(loss, optimizer)
    with pytest.raises(TypeError, match="loss must be a loss of fastebm, got Sequential"):
        GraphedTrainStep(model, optimizer)
    sampler = loss.sampler
    with pytest.raises(ValueError, match="on_nonfinite=\"count\", got 'raise'"):
        GraphedTrainStep(ContrastiveDivergence(model, sampler), optimizer)
    function = LangevinDynamics(lambda x: x.square().sum(1), 0.1)
    with pytest.raises(TypeError, match="must be an nn.Module, got function"):
        GraphedTrainStep(
            ContrastiveDivergence(function.model, function, on_nonfinite="count"), optimizer
        )
    for options, match in [
        ({"mode": "fifo"}, "mode \"slot\", got 'fifo'"),
        ({"init": lambda n: torch.zeros(n, 2)}, "got a function"),
    ]:
        buffer = ReplayBuffer(8, (2,), **options)
        other = PersistentContrastiveDivergence(model, sampler, buffer, on_nonfinite="count")
        with pytest.raises(ValueError, match=match):
            GraphedTrainStep(other, optimizer)


@pytest.fixture
def replays(monkeypatch):
    """As on a device: a capture runs the Python of a step, a replay does not. What was captured,
    and how often it was replayed."""
    module, seen = sys.modules["fastebm.train_step"], SimpleNamespace(captured=[], replayed=0)

    def capture(body, device, share_memory):
        seen.captured.append(share_memory)
        body()

        def replay():
            seen.replayed += 1

        return replay

    monkeypatch.setattr(module, "_check", lambda loss, optimizer: torch.device("cpu"))
    monkeypatch.setattr(module, "warm_up", lambda body, device, may_wait: body())
    monkeypatch.setattr(module, "capture", capture)
    monkeypatch.setattr(module, "ordered", lambda device: nullcontext())
    return seen


def test_what_the_host_counts_goes_on_under_replay(replays):
    model, loss, optimizer = setup("icd")
    step = GraphedTrainStep(loss, optimizer)
    pushed = loss.buffer.n_pushed
    for i in range(1, 7):
        assert isinstance(step(torch.randn(40, 2)), LossOutput)
        assert loss.calls == i and loss.buffer.n_pushed == pushed + 40 * i
    assert replays.captured == [False] and replays.replayed == 3
    with pytest.raises(ValueError, match=r"float32 \(40, 2\) as at first, got torch.float32 \(39"):
        step(torch.randn(39, 2))


CHANGES = {
    "mode": lambda model, loss, optimizer: model.eval(),
    "parameters": lambda model, loss, optimizer: model.load_state_dict(
        {k: v.clone() for k, v in model.state_dict().items()}, assign=True
    ),
    "stored samples": lambda model, loss, optimizer: setattr(
        loss.buffer, "data", loss.buffer.data.clone()
    ),
    "optimiser's state": lambda model, loss, optimizer: optimizer.load_state_dict(
        copy.deepcopy(optimizer.state_dict())
    ),
    "learning rate": lambda model, loss, optimizer: optimizer.param_groups[0].update(lr=0.5),
    "settings": lambda model, loss, optimizer: torch.use_deterministic_algorithms(True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_a_graph_has_baked_in_may_not_change(replays, change):
    model, loss, optimizer = setup("icd")
    step = GraphedTrainStep(loss, optimizer)
    for _ in range(5):
        step(torch.randn(40, 2))
    try:
        change(model, loss, optimizer)
        with pytest.raises(RuntimeError, match="make a new GraphedTrainStep"):
            step(torch.randn(40, 2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert replays.replayed == 2


gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")]


@pytest.mark.parametrize("kind", [pytest.param(k, marks=gpu) for k in KINDS])
def test_replays_are_eager_steps(kind):
    model, loss, optimizer = setup(kind, "cuda", capturable=True)
    twin, plain, other = setup(kind, "cuda", capturable=True)
    step = GraphedTrainStep(loss, optimizer, seed=4, max_grad_norm=1.0)
    rng = DeviceRNG(ChainRNG(4), "cuda")
    for i in range(8):
        x = torch.randn(40, 2, device="cuda")
        out = step(x)
        expected = train_step(plain, other, x, rng, 1.0)
        for name, value in expected.metrics.items():
            torch.testing.assert_close(out.metrics[name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out.x_neg, expected.x_neg, rtol=1e-4, atol=1e-5)
        assert loss.calls == i + 1
    torch.testing.assert_close(
        [p.detach() for p in model.parameters()],
        [p.detach() for p in twin.parameters()],
        rtol=1e-4,
        atol=1e-5,
    )
    assert step.rng.host().t == 8 * 4
    if loss.buffer is not None:
        assert loss.buffer.n_pushed == plain.buffer.n_pushed
        torch.testing.assert_close(loss.buffer.data, plain.buffer.data, rtol=1e-4, atol=1e-5)
        assert torch.equal(loss.buffer.stream, plain.buffer.stream)
    with pytest.raises(ValueError, match="as at first"):
        step(torch.randn(39, 2, device="cuda"))
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    with pytest.raises(RuntimeError, match="make a new GraphedTrainStep"):
        step(torch.randn(40, 2, device="cuda"))


@pytest.mark.parametrize("capturable", [pytest.param(False, marks=gpu)])
def test_optimizer_must_be_capturable(capturable):
    _, loss, optimizer = setup("cd", "cuda", capturable)
    with pytest.raises(ValueError, match="capturable=True"):
        GraphedTrainStep(loss, optimizer)
