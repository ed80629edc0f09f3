"""A training step as one CUDA graph: it waits for nothing, and its replays are eager steps."""

import copy
import functools
import sys
import warnings
from contextlib import nullcontext

import pytest
import torch
from conftest import HAS_GPU
from readback import NothingIsReadBack
from recorded_capture import RecordedCaptures
from torch import nn

from fastebm import (
    ContrastiveDivergence,
    GraphedTrainStep,
    GraphWarning,
    ImprovedContrastiveDivergence,
    LangevinDynamics,
    LossOutput,
    PersistentContrastiveDivergence,
    ReplayBuffer,
)
from fastebm.chains.mlp_chain import MLPChain
from fastebm.chains.waits import NoWaits
from fastebm.losses.train_step import train_step
from fastebm.rng import ChainRNG, DeviceRNG


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
            with pytest.raises(RuntimeError):
                waits()
    _, loss, optimizer = setup("icd")
    loss.on_nonfinite = "raise"
    with NothingIsReadBack(), pytest.raises(RuntimeError, match="_local_scalar_dense"):
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
def captures(monkeypatch):
    """As on a device: a capture bakes in all numbers, a replay runs no Python of a step."""
    module, runtime = sys.modules["fastebm.losses.train_step"], RecordedCaptures()
    monkeypatch.setattr(module, "_check", lambda loss, optimizer: torch.device("cpu"))
    for name in ("warm_up", "capture", "ordered"):
        monkeypatch.setattr(module, name, getattr(runtime, name))
    return runtime


def watched_warm_up(body, device, may_wait=False):
    with nullcontext() if may_wait else NoWaits(device):
        body()


class Twins:
    """A graphed step, and the same steps taken eagerly."""

    def __init__(self, kind="icd", **options):
        self.model, self.loss, self.optimizer = setup(kind, **options)
        self.twin, self.plain, self.other = setup(kind, **options)
        self.step = GraphedTrainStep(self.loss, self.optimizer, seed=4)
        self.rng = DeviceRNG(ChainRNG(4), "cpu")

    def change(self, put):
        put(self.model, self.loss, self.optimizer)
        put(self.twin, self.plain, self.other)

    def take(self, n):
        for _ in range(n):
            x = torch.randn(40, 2)
            out, expected = self.step(x), train_step(self.plain, self.other, x, self.rng)
            assert isinstance(out, LossOutput) and out.metrics.keys() == expected.metrics.keys()
            for name, value in expected.metrics.items():
                torch.testing.assert_close(out.metrics[name], value, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(out.x_neg, expected.x_neg)
            torch.testing.assert_close(
                list(self.model.parameters()), list(self.twin.parameters()), rtol=1e-5, atol=1e-6
            )
        assert self.loss.calls == self.plain.calls
        if self.loss.buffer is not None:
            assert self.loss.buffer.n_pushed == self.plain.buffer.n_pushed
            torch.testing.assert_close(self.loss.buffer.data, self.plain.buffer.data)


@pytest.mark.parametrize("kind", KINDS)
def test_replays_on_a_recording_are_eager_steps(captures, kind):
    twins = Twins(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twins.take(7)
    assert (captures.captured, captures.replayed) == (1, 4)
    with pytest.raises(ValueError, match=r"float32 \(40, 2\) as at first, got torch.float32 \(39"):
        twins.step(torch.randn(39, 2))


def test_the_chain_of_a_perceptron_is_one_operator_in_a_graph_too(captures, monkeypatch):
    chains, run = [], MLPChain.run
    monkeypatch.setattr(MLPChain, "run", lambda *a, **o: chains.append(1) or run(*a, **o))
    monkeypatch.setattr(sys.modules["fastebm.losses.train_step"], "warm_up", watched_warm_up)
    _, loss, optimizer = setup("icd")
    step = GraphedTrainStep(loss, optimizer)
    for _ in range(6):
        step(torch.randn(40, 2))
    assert (captures.captured, len(chains)) == (1, 4)  # three warm-ups and a capture


def put(path, value):
    """Sets loss.<path>."""

    def change(model, loss, optimizer):
        *owners, name = path.split(".")
        setattr(functools.reduce(getattr, owners, loss), name, value)

    return change


CHANGES = {
    "mode": lambda model, loss, optimizer: model.eval(),
    "parameters": lambda model, loss, optimizer: model.load_state_dict(
        {k: 0.5 * v for k, v in model.state_dict().items()}, assign=True
    ),
    "frozen": lambda model, loss, optimizer: model[0].weight.requires_grad_(False),
    "stored samples": lambda model, loss, optimizer: setattr(
        loss.buffer, "data", loss.buffer.data.flip(0)
    ),
    "optimiser's state": lambda model, loss, optimizer: optimizer.load_state_dict(
        copy.deepcopy(optimizer.state_dict())
    ),
    "learning rate": lambda model, loss, optimizer: optimizer.param_groups[0].update(lr=0.5),
    "weight of a term": put("kl_weight", 3.0),
    "no term": put("entropy_weight", 0.0),
    "references": put("n_entropy_refs", 20),
    "energy penalty": put("energy_reg_weight", 1.0),
    "steps": put("k_steps", 2),
    "step size": put("sampler.step_size", 0.01),
    "schedule": put("sampler.step_size", lambda k: 0.01 / (k + 1)),
    "noise": put("sampler.noise_std", 0.3),
    "temperature": put("sampler.temperature", 0.5),
    "box": put("sampler.clamp", (-1, 1)),
    "restarts": put("buffer.reinit_prob", 0.9),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_value_gives_the_new_result(captures, change):
    twins = Twins()
    twins.take(6)
    with pytest.warns(GraphWarning, match="captured anew, since it changed: "):
        twins.change(change)
        twins.take(1)
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        twins.take(3)
        assert (captures.captured, captures.replayed) == (2, 6)
        twins.change(change if change is CHANGES["parameters"] else put("k_steps", 3))
        twins.take(3)
    assert captures.captured == 3


def test_settings_of_torch(captures):
    twins = Twins()
    twins.take(5)
    try:
        torch.use_deterministic_algorithms(True)
        with pytest.warns(GraphWarning, match="settings of torch"):
            twins.take(3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert captures.captured == 2


def test_a_step_without_gradients_is_refused(captures):
    twins = Twins()
    for off in (torch.no_grad, torch.inference_mode):
        with off(), pytest.raises(RuntimeError, match="needs gradients"):
            twins.take(1)
    twins.take(1)


def test_a_tensor_learning_rate_needs_no_new_graph(captures):
    twins = Twins()
    rate = torch.tensor(0.01)
    for optimizer in (twins.optimizer, twins.other):
        optimizer.param_groups[0]["lr"] = rate
    twins.take(5)
    for _ in range(3):
        rate.mul_(0.5)
        twins.take(1)
    assert captures.captured == 1


def test_a_change_to_what_cannot_be_captured(captures, monkeypatch):
    twins = Twins()
    twins.take(5)

    def refuse(loss, optimizer):
        raise ValueError('loss must have on_nonfinite="count"')

    monkeypatch.setattr(sys.modules["fastebm.losses.train_step"], "_check", refuse)
    twins.loss.on_nonfinite = "raise"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            with pytest.raises(ValueError, match="on_nonfinite"):
                twins.step(torch.randn(40, 2))


@pytest.mark.parametrize("reads_first", [False, True])
def test_tensors_that_a_step_replaces(captures, reads_first):
    class Keeps(nn.Module):
        """Sets a tensor in each call, as torch's older spectral norm does."""

        def __init__(self, net):
            super().__init__()
            self.net, self.last = net, torch.zeros(2)

        def forward(self, x):
            if reads_first:
                x = x + self.last
            self.last = x.detach().mean(0)
            return self.net(x).squeeze(1)

    _, loss, optimizer = setup("cd")
    model = loss.sampler.model = loss.__dict__["model"] = Keeps(loss.model)
    step = GraphedTrainStep(loss, optimizer)
    for _ in range(3):
        step(torch.randn(40, 2))
    if reads_first:
        with pytest.raises(RuntimeError, match="it changes what it reads, loss.model.last"):
            step(torch.randn(40, 2))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            step(torch.randn(40, 2))
    assert captures.captured == 1 and model.last.shape == (2,)


def test_a_step_that_counts_is_told(captures):
    _, loss, optimizer = setup("cd")
    loss.sampler.n = 0
    sample = type(loss.sampler).sample

    def counting(*args, **kwargs):
        loss.sampler.n += 1
        return sample(loss.sampler, *args, **kwargs)

    loss.sampler.sample = counting
    step = GraphedTrainStep(loss, optimizer)
    for _ in range(3):
        step(torch.randn(40, 2))
    with pytest.raises(RuntimeError, match="it changes what it reads, loss.sampler.n: 3 -> 4"):
        step(torch.randn(40, 2))


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
    loss.k_steps = plain.k_steps = 3
    with pytest.warns(GraphWarning, match="captured anew, since it changed: loss.k_steps: 4 -> 3"):
        for _ in range(3):
            x = torch.randn(40, 2, device="cuda")
            out, expected = step(x), train_step(plain, other, x, rng, 1.0)
            torch.testing.assert_close(out.x_neg, expected.x_neg, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("capturable", [pytest.param(False, marks=gpu)])
def test_optimizer_must_be_capturable(capturable):
    _, loss, optimizer = setup("cd", "cuda", capturable)
    with pytest.raises(ValueError, match="capturable=True"):
        GraphedTrainStep(loss, optimizer)
