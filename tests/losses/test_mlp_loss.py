"""Losses of small perceptrons by formulas: those of the graph, and where they do not run."""

import copy
import math
import warnings

import pytest
import torch
from mlp_networks import UNIT
from torch import nn

from fastebm.energies import MLPEnergy
from fastebm.losses import mlp_loss
from fastebm.losses.contrastive import ContrastiveDivergence
from fastebm.losses.improved import ImprovedContrastiveDivergence
from fastebm.losses.nonfinite import NonFiniteError
from fastebm.losses.persistent import PersistentContrastiveDivergence
from fastebm.replay.buffer import ReplayBuffer
from fastebm.samplers.langevin import LangevinDynamics

N, DIM = 40, 16
SAMPLERS = {
    "plain": {},
    "one step": {"k_steps": 1},
    "clamp": {"clamp": (-1.0, 0.8)},
    "clip": {"grad_clip": 0.3, "noise_first": True},
    "one clipped step": {"k_steps": 1, "grad_clip": 0.3, "clamp": (None, 1.0)},
    "norm clip": {"grad_norm_clip": 0.7, "clamp": (-1.0, None)},
    "per chain": {"step_size": torch.linspace(0.05, 0.2, N)},
    "schedule": {"step_size": lambda k: 0.2 / (k + 1)},
}
LOSSES = {
    "cd": (ContrastiveDivergence, False, {}),
    "cd reg": (ContrastiveDivergence, False, {"energy_reg_weight": 0.3}),
    "pcd": (PersistentContrastiveDivergence, True, {"energy_reg_weight": 0.1}),
    "icd": (ImprovedContrastiveDivergence, False, {}),
    "icd kl": (ImprovedContrastiveDivergence, False, {"kl_weight": -1.0, "entropy_weight": 0.0}),
    "icd reg": (ImprovedContrastiveDivergence, True, {"energy_reg_weight": 0.2}),
    "icd refs": (ImprovedContrastiveDivergence, True, {"kl_weight": 0.5, "n_entropy_refs": 9}),
}


def sequential():
    """A layer without a bias, one used twice, a constant weight."""
    tied = nn.Linear(20, 20)
    model = nn.Sequential(
        *(nn.Linear(DIM, 20, bias=False), nn.SiLU(), tied, nn.SiLU(), tied, nn.SiLU()),
        nn.Linear(20, 1),
    )
    for layer in (model[0], tied, model[6]):  # steeper than torch makes them
        nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
    model[0].weight.requires_grad_(False)
    return model, torch.randn(N, DIM)


def energy():
    return MLPEnergy(DIM, (20, 9), "softplus"), torch.randn(N, 1, 4, 4)


@pytest.fixture
def formulas(monkeypatch):
    """Counts the losses that were computed by formulas."""
    calls, real = [], mlp_loss.mlp_contrastive_divergence

    def spy(*args, **options):
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(mlp_loss, "mlp_contrastive_divergence", spy)
    return calls


def compute(
    kind, model, x, backend, k_steps=3, mode="raise", wrapped=False, model_kwargs=None, **options
):
    """The loss from the same start each time, and the gradient of 3 of it."""
    make, buffered, terms = LOSSES[kind]
    options = {"noise_std": 0.2, "step_size": 0.1} | options
    sampler = LangevinDynamics(model, backend=backend, **options)
    if buffered:
        buffer = ReplayBuffer(2 * N, x.shape[1:], 0.2, "fifo", seed=3)
        buffer.push(torch.randn(60, *x.shape[1:], generator=torch.Generator().manual_seed(1)))
        terms = terms | {"buffer": buffer}
    energy = (lambda x: model(x)) if wrapped else model
    loss = make(energy, sampler, k_steps=k_steps, on_nonfinite=mode, **terms)
    out = loss(x, model_kwargs, seed=5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return out, torch.cat([g.flatten() for g in torch.autograd.grad(3 * out.loss, parameters)])


def assert_as_good_as_the_graph(kind, model, x, **options):
    """From a graph in float64 the formulas may be 3 times as far as a graph in float32 is, and 16
    roundings more, as that may be right by luck."""
    in_double = {n: c.double() for n, c in options.get("model_kwargs", {}).items()}
    exact = compute(
        *(kind, copy.deepcopy(model).double(), x.double(), "eager"),
        **options | {"model_kwargs": in_double},
    )
    graph, mine = (compute(kind, model, x, way, **options) for way in ("eager", "auto"))

    def check(name, mine, graph, exact):
        mine, graph, exact = (torch.as_tensor(v).detach().double() for v in (mine, graph, exact))
        size = exact.abs().max().clamp(min=1)
        errors = [(v - exact).square().mean().sqrt() for v in (mine, graph)]
        assert errors[0] <= 3 * errors[1] + 16 * UNIT * size, name

    assert not mine[0].x_neg.requires_grad and mine[0].x_neg.shape == x.shape
    check("loss", mine[0].loss, graph[0].loss, exact[0].loss)
    check("x_neg", mine[0].x_neg, graph[0].x_neg, exact[0].x_neg)
    assert mine[0].metrics.keys() == exact[0].metrics.keys()
    for name, value in mine[0].metrics.items():
        check(name, value, graph[0].metrics[name], exact[0].metrics[name])
    check("gradients", mine[1], graph[1], exact[1])
    assert exact[1].abs().max() > 0.1


@pytest.mark.parametrize("options", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("make", [sequential, energy])
def test_as_by_a_graph(formulas, make, kind, options):
    model, x = make()
    assert_as_good_as_the_graph(kind, model, x, **options)
    assert len(formulas) == 1  # not in float64, and not with backend="eager"


@pytest.mark.parametrize("kind", ["cd", "icd", "icd reg"])
def test_data_of_any_strides(formulas, kind):
    model, x = sequential()
    x = x.T.contiguous().T
    assert_as_good_as_the_graph(kind, model, x, k_steps=1)
    assert len(formulas) == 1


@pytest.mark.parametrize("kind", LOSSES)
def test_where_they_do_not_run(formulas, kind, monkeypatch):
    model, x = sequential()
    _, expected = compute(kind, model, x, "auto")
    compute(kind, model, x, "fused")
    assert len(formulas) == 2
    others = [compute(kind, model, x, "auto", wrapped=True)]  # loss.model is not sampler.model
    handle = model[1].register_forward_hook(lambda *_: None)
    others.append(compute(kind, model, x, "auto"))
    handle.remove()
    with monkeypatch.context() as patch:
        patch.setattr(model[1], "forward", model[1].forward)
        others.append(compute(kind, model, x, "auto"))
    with torch.autocast("cpu"):
        compute(kind, model, x, "auto")
    assert len(formulas) == 2
    for _, gradient in others:
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_no_grad_and_no_parameters(formulas):
    model, x = energy()
    loss = ImprovedContrastiveDivergence(model, LangevinDynamics(model, 0.1), k_steps=2)
    out = loss(x, seed=1)
    with torch.no_grad():
        quiet = loss(x, seed=1)
    assert torch.equal(quiet.loss, out.loss.detach()) and not quiet.loss.requires_grad
    model.requires_grad_(False)
    assert not loss(x, seed=1).loss.requires_grad and len(formulas) == 3


@pytest.mark.parametrize("mode", ["warn", "count", "skip"])
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("make", [sequential, energy])
def test_samples_that_are_not_finite(formulas, make, kind, mode):
    model, x = make()
    x[7].view(-1)[3] = math.nan
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (mine, found), (graph, expected) = (
            compute(kind, model, x, way, mode=mode) for way in ("auto", "eager")
        )
    messages = [str(w.message) for w in caught if "of 40 energies" in str(w.message)]
    assert len(messages) == (0 if mode == "count" else 2) and len(set(messages)) <= 1
    assert len(formulas) == 1 and mine.loss.isfinite() == (mode == "skip")
    assert mine.metrics["n_nonfinite"] == (1 if LOSSES[kind][1] else 2)
    torch.testing.assert_close(mine.x_neg, graph.x_neg, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(mine.loss, graph.loss, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert mine.metrics.keys() == graph.metrics.keys()
    for name, value in graph.metrics.items():
        pair = (torch.as_tensor(v, dtype=torch.float32) for v in (mine.metrics[name], value))
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("kind", LOSSES)
def test_raises_as_by_a_graph(kind):
    model, x = energy()
    x[7] = math.inf
    messages = []
    for backend in ("auto", "eager"):
        with pytest.raises(NonFiniteError) as caught:
            compute(kind, model, x, backend)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("kind", ["cd", "icd refs"])
def test_a_long_chain_is_no_one_call_that_ctrl_c_waits_for(kind, formulas, monkeypatch):
    model, x = energy()
    options = {"k_steps": 11, **SAMPLERS["schedule"]}
    whole = compute(kind, model, x, "auto", **options)
    for steps, n_before in ((4, 3), (1, 0)):
        monkeypatch.setattr(mlp_loss, "steps_of_a_call", lambda *_, n=steps: n)
        parts = compute(kind, model, x, "auto", **options)
        assert formulas[0][3] == 10 and formulas[-1][3] == n_before
        assert torch.equal(parts[0].x_neg, whole[0].x_neg) and torch.equal(parts[1], whole[1])
        assert parts[0].loss == whole[0].loss and parts[0].metrics == whole[0].metrics
