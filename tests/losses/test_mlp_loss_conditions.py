"""Losses by formulas of perceptrons with a condition and a base: those of the graph."""

import copy

import process_group
import pytest
import torch
from conditional import Columns, Fused, OwnMap
from test_mlp_loss import DIM, LOSSES, N, assert_as_good_as_the_graph, compute, formulas
from torch.nn.parallel import DistributedDataParallel

from fastebm import ChainRNG, ContrastiveDivergence, PersistentContrastiveDivergence, ReplayBuffer
from fastebm.distributed import world
from fastebm.losses import contrastive, mlp_loss
from fastebm.losses.terms import Batch

assert formulas  # a fixture
C = 3
OPTIONS = {
    "plain": {},
    "clip": {"grad_norm_clip": 0.7, "clamp": (-1.0, None), "noise_first": True},
    "one step": {"k_steps": 1, "clamp": (-1.0, 0.8)},
}


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    monkeypatch.setattr("test_mlp_loss.LangevinDynamics", Fused)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("make", [Columns, OwnMap])
def test_as_by_a_graph(formulas, make, kind, options):
    model, x, c = make(DIM, C), torch.randn(N, 1, 4, 4), torch.randn(N, C)
    assert_as_good_as_the_graph(kind, model, x, **options, model_kwargs={"c": c})
    assert len(formulas) == 1
    assert_as_good_as_the_graph(kind, model, x, **options, model_kwargs={"c": c[0]})


class OtherCondition(ContrastiveDivergence):
    """Chains have the condition of the row before."""

    def _batch(self, x, start, slots, kwargs):
        return Batch(x, start, kwargs, {"c": kwargs["c"].roll(1, 0)})


def test_data_and_chains_of_other_conditions(formulas):
    model, x, c = Columns(DIM, C), torch.randn(N, DIM), torch.randn(N, C, requires_grad=True)
    found = []
    for backend in ("auto", "eager"):
        sampler = Fused(model, 0.1, noise_std=0.2, backend=backend)
        out = OtherCondition(model, sampler, 4, energy_reg_weight=0.1)(x, {"c": c}, seed=1)
        own = [c, *(p for p in model.parameters() if p.requires_grad)]
        found.append([out.x_neg, out.loss, *torch.autograd.grad(out.loss, own)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    assert len(formulas) == 1 and found[0][2].abs().min() > 0  # a condition may be learnt


@pytest.mark.parametrize("kind", ["cd", "icd"])
def test_a_base_that_is_learnt_is_for_the_graph(formulas, kind):
    model, x, c = Columns(DIM, C, learnt_base=True), torch.randn(N, DIM), torch.randn(N, C)
    found = [compute(kind, model, x, way, model_kwargs={"c": c})[1] for way in ("auto", "eager")]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert not formulas and found[0][: 2 * DIM].abs().min() > 0  # that of the base


@pytest.mark.parametrize("n_chains", [None, 10])
@pytest.mark.parametrize("make", [Columns, OwnMap])
def test_adjusted_chains_as_step_by_step(make, n_chains, monkeypatch):
    first, data, found, calls = make(5, C), torch.randn(40, 5), [], []
    condition = torch.randn(40, C) if n_chains is None else torch.randn(C)
    real = mlp_loss.mlp_adjusted_contrastive_divergence
    spy = lambda *args, **options: calls.append(args) or real(*args, **options)  # noqa: E731
    monkeypatch.setattr(mlp_loss, "mlp_adjusted_contrastive_divergence", spy)
    for _ in range(2):
        model = copy.deepcopy(first)
        sampler = Fused(model, 0.2, adjusted=True, clamp=(-4.0, 4.0))
        buffer = ReplayBuffer(300, 5, 0.1, value_range=(-2.5, 2.5), seed=3)
        options = {"k_steps": 10, "jumps": 2, "energy_reg_weight": 0.01, "n_chains": n_chains}
        loss = PersistentContrastiveDivergence(model, sampler, buffer, **options)
        out = loss(data, {"c": condition}, seed=ChainRNG(5))
        own = [p for p in model.parameters() if p.requires_grad]
        found.append([out.x_neg, out.loss, *torch.autograd.grad(out.loss, own)])
        monkeypatch.setattr(contrastive, "points_by_formulas", lambda *_: None)
    assert len(calls) == 1 and torch.equal(found[0][0], found[1][0])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def gradients_of_ranks():
    torch.manual_seed(3)
    net = OwnMap(4, C)
    ddp = DistributedDataParallel(net) if world().size > 1 else net
    x, c = torch.randn(16, 4), torch.randn(16, C)
    x, c = (v[world().part(16)] for v in (x, c))
    loss = ContrastiveDivergence(ddp, Fused(net, 0.05), 3)
    loss(x, {"c": c}).loss.backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad]).tolist()


def test_ranks_reduce_the_gradients_of_conditions_too():
    one = torch.tensor(gradients_of_ranks())
    for found in process_group.run(2, gradients_of_ranks):
        torch.testing.assert_close(torch.tensor(found), one, rtol=1e-4, atol=1e-6)
