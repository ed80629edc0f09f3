"""Block Gibbs sampling: its stationary law by enumeration, its conventions, and its losses."""

import math

import pytest
import torch
from torch.nn.functional import softplus

from fastebm import (
    RBM,
    ChainRNG,
    ContrastiveDivergence,
    GaussianRBM,
    GibbsSampler,
    ImprovedContrastiveDivergence,
    LangevinDynamics,
    NonFiniteError,
    PersistentContrastiveDivergence,
    ReplayBuffer,
)

V, H = 4, 3


def machine(kind=RBM, n_visible=V, n_hidden=H, scale=0.8):
    """A machine with weights of a size that makes its units depend on each other."""
    model = kind(n_visible, n_hidden)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape))
    return model


def states(n):
    """All binary states, (2^n, n)."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).float()


def law(model, beta=1.0):
    """p(v) of exp(-beta E) for every state v, float64."""
    v, h = states(model.n_visible), states(model.n_hidden)
    pairs = v.repeat_interleave(len(h), 0), h.repeat(len(v), 1)
    energies = beta * model.energy(*pairs).double().view(len(v), len(h))
    return torch.softmax(torch.logsumexp(-energies, 1), 0)


def chi_square(v, p):
    """Of the counts of binary samples (n, V) against p(v) for every state."""
    index = (v.long() << torch.arange(v.shape[1])).sum(1)
    counts = torch.bincount(index, minlength=len(p)).double()
    return ((counts - len(v) * p) ** 2 / (len(v) * p)).sum().item()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_chains_have_the_law_of_the_machine(temperature):
    """40 000 independent chains after 60 steps: chi-square over all states."""
    model = machine()
    sampler = GibbsSampler(model, temperature)
    v = sampler.sample(n_samples=40_000, n_steps=60, seed=1)
    p = law(model, 1 / temperature).detach()
    assert (len(v) * p > 5).all()
    dof = len(p) - 1
    assert abs(chi_square(v, p) - dof) < 5 * math.sqrt(2 * dof)
    assert chi_square(v, law(model, 1.0 if temperature > 1 else 0.5).detach()) > 20 * dof


def test_cooling_ends_at_the_law_of_the_last_temperature():
    model = machine(scale=1.5)
    sampler = GibbsSampler(model, lambda k: max(1.0, 4.0 - 0.1 * k))
    assert sampler.effective_temperature == 4.0
    v = sampler.sample(n_samples=40_000, n_steps=90, seed=1)
    p = law(model).detach()
    keep = len(v) * p > 5
    counts = torch.bincount((v.long() << torch.arange(V)).sum(1), minlength=len(p)).double()
    chi2 = ((counts - len(v) * p) ** 2 / (len(v) * p))[keep].sum().item()
    assert abs(chi2 - int(keep.sum())) < 5 * math.sqrt(2 * int(keep.sum()))


def test_gaussian_chains_have_the_moments_of_the_mixture():
    """p(v) = sum_h p(h) N(v; b + h W, sigma^2): mean and covariance by enumeration."""
    model = machine(GaussianRBM, 3, 3, 0.6)
    n = 60_000
    v = GibbsSampler(model).sample(n_samples=n, n_steps=60, seed=3).double()
    h = states(3)
    with torch.no_grad():
        means = model.visible_mean(h).double()
        variance = model.log_var.double().exp()
        # the normalisation of exp(-E(v, h)) over v is the same Gaussian integral for every h
        log_p = h.double() @ model.c.double()
        log_p += ((means**2 - model.b.double() ** 2) / (2 * variance)).sum(1)
        p = torch.softmax(log_p, 0)
    mean = p @ means
    covariance = (p[:, None] * (means - mean)).T @ (means - mean) + variance.diag()
    spread = covariance.diag().sqrt()
    assert ((v.mean(0) - mean).abs() < 5 * spread / math.sqrt(n)).all()
    assert ((v.T.cov() - covariance).abs() < 8 * spread[:, None] * spread / math.sqrt(n)).all()


def test_sample_is_gibbs_steps_in_a_row():
    for kind in (RBM, GaussianRBM):
        model = machine(kind)
        start = torch.rand(7, V)
        kept = start.clone()
        out = GibbsSampler(model, 2.0).sample(start, 5, seed=ChainRNG(4, 9, 100))
        v, rng = start, ChainRNG(4, 9, 100)
        for _ in range(5):
            v, _ = model.gibbs_step(v, rng, beta=0.5)
        assert torch.equal(out, v) and torch.equal(start, kept) and rng.t == 14


def test_chains_go_on_where_they_were():
    sampler, start = GibbsSampler(machine()), torch.zeros(6, V)
    whole = sampler.sample(start, 8, seed=ChainRNG(2))
    rng = ChainRNG(2)
    parts = sampler.sample(sampler.sample(start, 3, seed=rng), 5, seed=rng)
    assert torch.equal(parts, whole) and rng.t == 8
    last, grad = sampler.last_step(sampler.sample(start, 7, seed=1), 7, seed=ChainRNG(1, 7))
    assert torch.equal(last, sampler.sample(start, 8, seed=1)) and grad is None
    ids = torch.tensor([3, 4])
    named = sampler.sample(start[:2], 8, seed=ChainRNG(2), sample_ids=ids)
    assert torch.equal(named, whole[3:5])


def test_start_is_the_law_given_no_hidden_unit():
    model = machine()
    start = GibbsSampler(model).sample(n_samples=50_000, n_steps=0, seed=1)
    p = model.b.detach().sigmoid()
    z = (start.mean(0) - p) / (p * (1 - p) / 50_000).sqrt()
    assert z.abs().max() < 5
    torch.manual_seed(5)
    a = GibbsSampler(model).sample(n_samples=9, n_steps=3)
    torch.manual_seed(5)
    assert torch.equal(GibbsSampler(model).sample(n_samples=9, n_steps=3), a)


@pytest.mark.parametrize("event", [(V,), (1, 2, 2)])
def test_trajectory_and_diagnostics(event):
    model, start = machine(), torch.zeros(5, *event)
    sampler = GibbsSampler(model)
    options = {"burn_in": 2, "thin": 3, "seed": 1}
    path, found = sampler.sample(
        start, 7, return_trajectory=True, return_diagnostics=True, **options
    )
    assert path.shape == (5, 2, *event)
    every = sampler.sample(start, 9, return_trajectory=True, seed=1)
    assert torch.equal(path, every[:, [4, 7]])
    assert torch.equal(sampler.sample(start, 7, **options), every[:, 8])
    torch.testing.assert_close(found["mean"], path.mean(0))
    torch.testing.assert_close(found["var"], path.var(0, correction=0))
    torch.testing.assert_close(found["energy"], torch.stack([model(path[:, i]) for i in (0, 1)]))
    moved = torch.stack([(every[:, i] != every[:, i - 1]).float().mean() for i in (4, 7)])
    torch.testing.assert_close(found["change"], moved)
    assert found["n_nonfinite"] == 0 and found["effective_temperature"] == 1.0
    path, found = sampler.sample(start, 0, return_trajectory=True, return_diagnostics=True)
    assert path.shape == (5, 0, *event) and found["mean"].shape == (0, *event)


def test_chains_that_are_not_finite_are_counted():
    model = machine()
    with torch.no_grad():
        model.c[0] = math.nan
    out, found = GibbsSampler(model).sample(torch.zeros(5, V), 2, return_diagnostics=True, seed=1)
    assert found["n_nonfinite"] == 5 and out.isnan().all()
    with pytest.raises(NonFiniteError, match="5 of 5 chains"):
        ContrastiveDivergence(model, GibbsSampler(model), 1)(torch.zeros(5, V))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda s: s.sample(), ValueError, "give x or n_samples"),
        (lambda s: s.sample(torch.zeros(2, V), n_samples=2), ValueError, "not both"),
        (lambda s: s.sample(torch.zeros(2, V), -1), ValueError, "n_steps must be an integer"),
        (lambda s: s.sample(torch.zeros(2, V), thin=0), ValueError, "thin must be an integer >= 1"),
        (lambda s: s.sample(n_samples=1.5), ValueError, "n_samples must be an integer"),
        (lambda s: s.sample(torch.zeros(2, V + 1)), ValueError, rf"v must be \(B, {V}\)"),
        (lambda s: s.sample(torch.full((2, V), 1.5)), ValueError, r"in \[0, 1\], got values from"),
        (lambda s: s.sample(torch.full((2, V), math.nan)), ValueError, r"in \[0, 1\], got NaN"),
        (lambda s: s.sample(torch.zeros(2, V), model_kwargs={"y": 1}), ValueError, "got y"),
        (lambda s: s.sample(torch.zeros(2, V), seed=1, generator=1), ValueError, "not both"),
        (lambda s: s.last_step(torch.zeros(2, V), create_graph=True), TypeError, "no derivative"),
        (lambda s: GibbsSampler(torch.nn.Linear(2, 1)), TypeError, "conditional laws"),
        (lambda s: GibbsSampler(s.model, 0.0), ValueError, "temperature must be finite and > 0"),
        (lambda s: GibbsSampler(s.model, "1"), TypeError, "temperature must be a number"),
        (
            lambda s: GibbsSampler(s.model, lambda k: 1 - k).sample(torch.zeros(2, V), 2),
            ValueError,
            r"temperature\(1\) must be finite and > 0",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(GibbsSampler(machine()))


def closed_form(model, data, x_neg):
    """The gradients of mean F(data) - mean F(x_neg): differences of means of -h v and the like."""
    with torch.no_grad():
        h, h_neg = (model.hidden_logits(v).sigmoid() for v in (data, x_neg))
        return {
            "W": -(h.T @ data / len(data) - h_neg.T @ x_neg / len(x_neg)),
            "b": -(data.mean(0) - x_neg.mean(0)),
            "c": -(h.mean(0) - h_neg.mean(0)),
        }


@pytest.mark.parametrize("persistent", [False, True])
def test_losses_take_gibbs_chains(persistent):
    model = machine()
    sampler, data = GibbsSampler(model), torch.rand(32, V).round()
    if persistent:
        init = torch.zeros(40, V)
        buffer = ReplayBuffer(40, (V,), reinit_prob=0.0, init=lambda n: init[:n], seed=1)
        loss = PersistentContrastiveDivergence(model, sampler, buffer, k_steps=3)
    else:
        loss = ContrastiveDivergence(model, sampler, k_steps=3)
    out = loss(data, seed=ChainRNG(7))
    start = torch.zeros(32, V) if persistent else data
    assert torch.equal(out.x_neg, sampler.sample(start, 3, seed=ChainRNG(7)))
    assert not {"grad_norm", "clamp_share"} & out.metrics.keys()
    assert out.metrics["n_nonfinite"] == 0
    torch.testing.assert_close(out.metrics["energy_neg"], softplus_free_energy(model, out.x_neg))
    out.loss.backward()
    for name, expected in closed_form(model, data, out.x_neg).items():
        torch.testing.assert_close(getattr(model, name).grad, expected)
    if persistent:
        stored = sorted(map(tuple, buffer.all().tolist()))
        chains = [*map(tuple, out.x_neg.tolist()), *[(0.0,) * V] * 8]
        assert stored == sorted(chains)


def softplus_free_energy(model, v):
    with torch.no_grad():
        return -(v @ model.b).mean() - softplus(v @ model.W.T + model.c).sum(1).mean()


def test_losses_check_the_data_and_the_buffer():
    model = machine()
    sampler = GibbsSampler(model)
    buffer = ReplayBuffer(8, (V,), seed=1)
    for loss in (
        ContrastiveDivergence(model, sampler),
        PersistentContrastiveDivergence(model, sampler, buffer),
    ):
        with pytest.raises(ValueError, match=r"in \[0, 1\], got values from 0 to 255"):
            loss(torch.tensor([[0.0, 255.0, 3.0, 4.0]]))
        with pytest.raises(ValueError, match=r"in \[0, 1\], got NaN"):
            loss(torch.tensor([[0.0, math.nan, 0.0, 0.0]]))
        with pytest.raises(ValueError, match="must"):
            loss(torch.zeros(3, V + 1))
    with pytest.raises(ValueError, match="uint8 would dither"):
        PersistentContrastiveDivergence(
            model, sampler, ReplayBuffer(8, (V,), dtype=torch.uint8, seed=1)
        )


def test_icd_needs_a_derivative_and_takes_langevin_on_the_free_energy():
    model, data = machine(), torch.rand(32, V)
    with pytest.raises(TypeError, match="LangevinDynamics of the RBM's free energy"):
        ImprovedContrastiveDivergence(model, GibbsSampler(model))
    langevin = LangevinDynamics(model, 0.01, clamp=(0.0, 1.0))
    out = ImprovedContrastiveDivergence(model, langevin, k_steps=4)(data, seed=1)
    out.loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
