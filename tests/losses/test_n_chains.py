"""Losses whose chains are fewer or more than the data, against definitions written out."""

import copy

import pytest
import torch
from loss_reference import EPS, K, assert_same, gradients, langevin, mlp, naive
from torch import nn

from fastebm import (
    RBM,
    ChainRNG,
    ContrastiveDivergence,
    GibbsSampler,
    ImprovedContrastiveDivergence,
    LangevinDynamics,
    MaximumLikelihood,
    NonFiniteError,
    PersistentContrastiveDivergence,
    ReplayBuffer,
)
from fastebm.losses.nonfinite import counts_of_ranks, report
from fastebm.losses.ranks import left_of
from fastebm.losses.terms import Batch

N = 12  # data
COUNTS = [1, 5, 9, 12, 20, 30]  # 1: as 4 and 12 divide, but k_steps=3 times are too few


def buffers(n=2, capacity=30, **options):
    return [ReplayBuffer(capacity, 2, 0.3, "slot", "normal", seed=3, **options) for _ in range(n)]


@pytest.mark.parametrize("n_chains", COUNTS)
def test_pcd_is_the_mean_over_the_ends(n_chains):
    model, x = mlp(), torch.randn(N, 2, dtype=torch.float64)
    sampler, (buffer, other) = langevin(model), buffers()
    loss = PersistentContrastiveDivergence(
        model, sampler, buffer, K, energy_reg_weight=0.7, n_chains=n_chains
    )
    start, slots = other.sample(n_chains)
    out = loss(x, seed=5)
    assert out.x_neg.shape == (n_chains, 2)
    assert_same(out, naive(model, sampler, x, start.double(), 5, K, 0.0, 0.0, 0.7), model)
    assert torch.equal(buffer.data[slots], out.x_neg.float())


@pytest.mark.parametrize("n_chains", COUNTS)
def test_icd_takes_kl_and_entropy_as_means_over_the_chains(n_chains):
    model, x = mlp(3), torch.randn(N, 2, dtype=torch.float64)
    sampler, (buffer, other) = langevin(model), buffers()
    loss = ImprovedContrastiveDivergence(
        *(model, sampler, buffer, K),
        kl_weight=0.5,
        entropy_weight=0.3,
        entropy_eps=EPS,
        energy_reg_weight=0.7,
        n_chains=n_chains,
    )
    start, slots = other.sample(n_chains)
    references = other.references(slots)
    out = loss(x, seed=5)
    expected = naive(
        *(model, sampler, x, start.double(), 5, K, 0.5, 0.3, 0.7),
        *(references.y.double(), references.own.tolist()),
    )
    assert out.x_neg.shape == (n_chains, 2)
    assert_same(out, expected, model)


@pytest.mark.parametrize("n_chains", [5, 12, 30])
@pytest.mark.parametrize("kind", ["pcd", "icd"])
def test_with_and_without_formulas(kind, n_chains):
    """As many chains as data have a formula; the others go by a graph, with the same chains."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(N, 2)
    outs = []
    for backend, buffer in zip(("auto", "eager"), buffers(), strict=True):
        sampler = LangevinDynamics(model, 0.1, noise_std=0.2, backend=backend)
        of = PersistentContrastiveDivergence if kind == "pcd" else ImprovedContrastiveDivergence
        loss = of(model, sampler, buffer, k_steps=K, n_chains=n_chains)
        outs.append(loss(x, seed=5))
    a, b = outs
    assert (type(a.loss.grad_fn) is not type(b.loss.grad_fn)) == (n_chains == N)
    torch.testing.assert_close(a.x_neg, b.x_neg, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.loss, b.loss, rtol=1e-3, atol=1e-5)
    assert a.metrics.keys() == b.metrics.keys()


@pytest.mark.parametrize("n_chains", [7, 40])
def test_adjusted_chains(n_chains):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(N, 2)
    buffer, other = buffers(capacity=40)
    sampler = LangevinDynamics(model, 0.2, adjusted=True, clamp=(-4.0, 4.0))
    loss = PersistentContrastiveDivergence(
        model, sampler, buffer, 10, energy_reg_weight=0.1, n_chains=n_chains, jumps=2
    )
    start, population = other.sample(n_chains)[0], other.all().clone()
    out = loss(x, seed=1)
    ends = sampler.sample(start, 10, seed=1, jumps=2, population=population)
    assert torch.equal(out.x_neg, ends)
    e_pos, e_neg = model(x), model(ends)
    wanted = e_pos.mean() - e_neg.mean() + 0.1 * (e_pos.square().mean() + e_neg.square().mean())
    torch.testing.assert_close(out.loss, wanted)


@pytest.mark.parametrize("n_chains, times", [(5, (7,)), (4, (5, 6, 7)), (6, (5, 7)), (30, (7,))])
def test_gibbs_chains(n_chains, times):
    """Those of which the batch is a multiple are seen at several times, others in the end."""
    torch.manual_seed(0)
    machine, x = RBM(6, 4), torch.bernoulli(torch.full((N, 6), 0.5))
    pair = [ReplayBuffer(30, 6, 0.0, "slot", lambda n: torch.ones(n, 6), seed=3) for _ in "ab"]
    sampler, rng = GibbsSampler(machine), ChainRNG(1)
    loss = PersistentContrastiveDivergence(machine, sampler, pair[0], 8, n_chains=n_chains)
    out = loss(x, seed=rng)
    assert rng.t == 8
    start, slots = pair[1].sample(n_chains)
    path = sampler.sample(start, 8, seed=1, return_trajectory=True)
    assert torch.equal(out.x_neg, torch.cat([path[:, k] for k in times]))
    torch.testing.assert_close(out.loss, machine(x).mean() - machine(out.x_neg).mean())
    assert torch.equal(pair[0].data[slots], path[:, -1])


@pytest.mark.parametrize("n_chains", [5, 20])
def test_maximum_likelihood_from_noise(n_chains):
    model, x = mlp(), torch.randn(N, 2, dtype=torch.float64)
    sampler = langevin(model)
    settings = {"k_steps": K, "init": "normal"}
    whole = MaximumLikelihood(model, sampler, **settings)
    few = MaximumLikelihood(model, sampler, n_chains=n_chains, **settings)
    rows = min(N, n_chains)
    out = few(x, seed=5)
    assert out.x_neg.shape == (n_chains, 2)
    assert torch.equal(out.x_neg[:rows], whole(x, seed=5).x_neg[:rows])  # by their ids
    wanted = model(x).mean() - model(out.x_neg).mean()
    torch.testing.assert_close(out.loss, wanted)
    mine, theirs = (gradients(v, model) for v in (out.loss, wanted))
    for a, b in zip(mine[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(a, b)


class Holed(nn.Module):
    """NaN beyond 3."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return torch.where(x[:, 0] > 3, torch.nan, self.net(x).squeeze(1))


@pytest.mark.parametrize("kind", ["pcd", "icd"])
def test_what_is_not_finite_is_left_out_of_both_means(kind):
    model, x = Holed(), torch.randn(N, 2, dtype=torch.float64).clamp(-1, 1)
    start = torch.randn(30, 2).clamp(-1, 1)
    first = ReplayBuffer(30, 2, 0.0, "slot", lambda n: start[:n].clone(), seed=3).sample(7)[1]
    start[first[2]] = 9.0
    x[4, 0] = 9.0
    found = {}
    for way in ("raise", "skip"):
        buffer = ReplayBuffer(30, 2, 0.0, "slot", lambda n: start[:n].clone(), seed=3)
        of = PersistentContrastiveDivergence if kind == "pcd" else ImprovedContrastiveDivergence
        more = {} if kind == "pcd" else {"kl_weight": 0.5, "entropy_weight": 0.0}
        sampler = LangevinDynamics(model, 0.01, noise_std=0.02)
        loss = of(model, sampler, buffer, k_steps=K, on_nonfinite=way, n_chains=7, **more)
        said = "1 of 12 energies of the data and 1 of 7 chains"
        if way == "raise":
            with pytest.raises(NonFiniteError, match=said):
                loss(x, seed=5)
        else:
            with pytest.warns(UserWarning, match=said):
                found[way] = loss(x, seed=5)
    out, rows = found["skip"], torch.arange(7) != 2
    assert out.metrics["n_nonfinite"] == 2 and out.x_neg.shape == (7, 2)
    mean_neg = model(out.x_neg[rows]).mean()
    wanted = model(x[torch.arange(N) != 4]).mean() - mean_neg
    wanted = wanted if kind == "pcd" else wanted + 0.5 * mean_neg.detach()
    torch.testing.assert_close(out.loss, wanted)
    assert buffer.all().isfinite().all() and (buffer.data[first[2]] == 9).all()


def test_counts_of_data_and_chains_are_their_own():
    counts = counts_of_ranks(1, 2, 12, 5)
    assert counts == (1, 2, 12, 5, [[11, 3]])
    assert counts_of_ranks(0, 0, 4) == (0, 0, 4, 4, [[4, 4]])
    with pytest.raises(NonFiniteError, match="12 of 12 energies of the data and 0 of 5 chains"):
        report("call 1", "skip", counts_of_ranks(12, 0, 12, 5))
    with pytest.raises(NonFiniteError, match="0 of 12 energies of the data and 5 of 5 chains"):
        report("call 1", "skip", counts_of_ranks(0, 5, 12, 5))


def test_weights_of_ranks_make_the_mean_of_all_rows():
    """Rank 0 of three, of 4 data and 3 chains each, of which some are left out."""
    kept = [[3, 1], [4, 3], [1, 2]]
    batch = Batch(torch.randn(4, 2), torch.randn(3, 2), {}, {})
    pos = torch.tensor([True, True, False, True])
    left = left_of(batch, pos, torch.tensor([False, True, False]), 10, kept)
    assert left.weights == (3 * 3 / 8, 3 * 1 / 6) and left.sample_ids.tolist() == [11]
    assert left.chains_of_ranks == [1, 3, 2]
    assert torch.equal(left.x, batch.x[pos]) and torch.equal(left.chains, batch.chains[1:2])


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda m, s: ContrastiveDivergence(m, s), "n_chains=5 needs chains that start in a"),
        (lambda m, s: ImprovedContrastiveDivergence(m, s), "n_chains=5 needs chains that start"),
        (
            lambda m, s: PersistentContrastiveDivergence(m, s, ReplayBuffer(4, 2)),
            "ReplayBuffer where they start, 4, got n_chains=5",
        ),
    ],
)
def test_errors(make, said):
    model = mlp()
    loss = make(model, langevin(model))
    loss.n_chains = 5
    with pytest.raises(ValueError, match=said):
        loss(torch.randn(3, 2, dtype=torch.float64), seed=0)
    assert loss.calls == 0
    with pytest.raises(ValueError, match="n_chains must be an integer >= 1"):
        loss.n_chains = 0


def test_arguments_with_a_row_for_each_sample_are_refused():
    buffer = buffers(1)[0]
    model = lambda x, shift: (x - shift).square().sum(1)  # noqa: E731
    sampler = LangevinDynamics(model, 0.1)
    loss = ImprovedContrastiveDivergence(model, sampler, buffer, entropy_weight=0.0, n_chains=20)
    before = copy.deepcopy(buffer.state_dict())
    with pytest.raises(ValueError, match="model_kwargs has 12 rows of 'shift'"):
        loss(torch.randn(N, 2), model_kwargs={"shift": torch.zeros(N, 2)}, seed=1)
    assert torch.equal(buffer.data, before["data"])
