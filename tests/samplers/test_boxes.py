"""Boxes of tensors, and the bound on how far a step goes, in chains of every way."""

import math

import pytest
import torch
from torch import nn

from fastebm import ImprovedContrastiveDivergence, LangevinDynamics, ReplayBuffer, Standardized
from fastebm.ops.langevin import langevin_step_
from fastebm.rng import ChainRNG
from fastebm.samplers.mala import MALA
from fastebm.samplers.parallel_tempering import ParallelTempering
from fastebm.samplers.units import uniform_share, units_of

B, D = 6, 3
BOXES = {
    "numbers": (-0.5, 0.7),
    "dimension": (torch.tensor([-0.5, -0.1, -math.inf]), torch.tensor([0.5, 0.2, 0.9])),
    "one face": (None, torch.tensor([0.5, 0.2, 0.9])),
    "chain": (-torch.linspace(0.1, 1, B)[:, None], torch.linspace(0.1, 1, B)[:, None]),
    "element": (-torch.rand(B, D).add(0.05), 0.6),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 1))


def bowl(x):
    return x.square().flatten(1).sum(1) / 2


def faces(box):
    return tuple(s * math.inf if c is None else c for c, s in zip(box, (-1, 1), strict=True))


def inside(x, box, slack=0.0):
    lo, hi = faces(box)
    return ((x >= lo - slack) & (x <= hi + slack)).all()


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_every_step_ends_in_the_box(box, backend):
    model, x = net(), torch.randn(B, D)
    sampler = LangevinDynamics(model, 0.1, noise_std=0.3, clamp=box, backend=backend)
    path, found = sampler.sample(x, 4, seed=1, return_trajectory=True, return_diagnostics=True)
    for k in range(4):
        free = LangevinDynamics(model, 0.1, noise_std=0.3, backend=backend)
        one = free.sample(x if k == 0 else path[:, k - 1], 1, seed=ChainRNG(1, k))
        lo, hi = faces(box)
        wanted = torch.minimum(torch.maximum(one, torch.as_tensor(lo)), torch.as_tensor(hi))
        torch.testing.assert_close(path[:, k], wanted, rtol=1e-6, atol=1e-6)
        assert inside(path[:, k], box)
    on_face = (path[:, -1] == lo) | (path[:, -1] == hi)
    assert found["clamp_share"] == pytest.approx(on_face.float().mean().item())
    assert 0 < on_face.sum() < on_face.numel()


@pytest.mark.parametrize("box", ["chain", "element"])
def test_a_box_a_chain_is_no_fused_one(box):
    sampler = LangevinDynamics(net(), 0.1, clamp=BOXES[box], backend="fused")
    with pytest.raises(ValueError, match="each chain has a clamp of its own"):
        sampler.sample(torch.randn(B, D), 2)


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
@pytest.mark.parametrize("model", ["net", "bowl", "units", "tempered"])
def test_adjusted_chains_never_leave_it(model, box):
    lo, hi = faces(box)
    x = torch.zeros(B, D)
    if model == "units":
        of = Standardized(net(), torch.randn(50, D) * torch.tensor([1.0, 3.0, 0.2]))
    else:
        of = net() if model == "net" else bowl
    sampler = MALA(of, 0.3, clamp=box)
    if model == "tempered":
        sampler = ParallelTempering(sampler, (1.0, 3.0))
    path = sampler.sample(x, 40, seed=1, return_trajectory=True)
    assert inside(path.transpose(0, 1), box) and (path[:, 1:] != path[:, :-1]).any()
    if model == "tempered":
        _, found = sampler.sample(x, 10, seed=1, return_diagnostics=True)
        assert inside(found["replicas"], box)


def test_a_truncated_gaussian_in_its_box_a_dimension():
    """Moments of N(0, 1) on [lo, hi] in closed form."""
    lo, hi = torch.tensor([-0.5, 0.2]), torch.tensor([1.5, 0.8])
    n = torch.distributions.Normal(0.0, 1.0)
    z = n.cdf(hi) - n.cdf(lo)
    mean = (n.log_prob(lo).exp() - n.log_prob(hi).exp()) / z
    x = MALA(bowl, 0.3, clamp=(lo, hi)).sample((lo + hi).expand(20_000, 2) / 2, 60, seed=1)
    assert ((x.mean(0) - mean).abs() < 4 * (hi - lo) / math.sqrt(12 * 20_000)).all()


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_unadjusted_chains_in_units_of_each_coordinate(box, backend):
    """The box of the user's units, up to the rounding of the way back, which is clamped."""
    units = Standardized(net(), torch.randn(50, D) * torch.tensor([1.0, 3.0, 0.2]) + 0.1)
    sampler = LangevinDynamics(units, 0.2, noise_std=0.4, clamp=box, backend=backend)
    out = sampler.sample(torch.randn(B, D), 5, seed=1)
    assert inside(out, box)
    z, rng = units.standardize(torch.randn(B, D)), ChainRNG(1)
    before = units.restore(z)
    after, grad = sampler.last_step(before, seed=rng.copy())
    assert inside(after, box, 1e-5)
    by_units = units.bounds(tuple(box))
    step = langevin_step_(
        units.standardize(before), grad.detach(), 0.2, 0.4, rng.state("cpu", B), clamp=by_units
    )
    torch.testing.assert_close(after, units.restore(step))


def test_a_start_lies_in_its_box():
    box = (torch.tensor([0.1, -2.0]), torch.tensor([0.2, 2.0]))
    x = LangevinDynamics(bowl, 0.1, clamp=box).sample(n_samples=50, dim=2, n_steps=0, seed=1)
    assert inside(x, box) and x[:, 0].unique().numel() > 1


def test_losses_with_a_box_a_dimension():
    model, x = net(), torch.randn(B, D)
    outs = []
    for backend in ("auto", "eager"):
        sampler = LangevinDynamics(
            model, 0.1, noise_std=0.3, clamp=BOXES["dimension"], backend=backend
        )
        buffer = ReplayBuffer(20, D, value_range=(-1.0, 1.0), seed=1)
        outs.append(ImprovedContrastiveDivergence(model, sampler, buffer, k_steps=3)(x, seed=1))
    assert inside(outs[0].x_neg, BOXES["dimension"])
    torch.testing.assert_close(outs[0].x_neg, outs[1].x_neg, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outs[0].loss, outs[1].loss, rtol=1e-4, atol=1e-5)


def test_uniform_jumps_of_boxes_of_tensors():
    box = (torch.tensor([-4.0, -0.1, -1.0]), torch.tensor([4.0, 0.1, 1.0]))
    sampler = LangevinDynamics(lambda x: 0 * x.sum(1), 0.01, clamp=box, adjusted=True)
    start, population = torch.zeros(4000, D), torch.randn(50, D) * 0.01
    x = sampler.sample(start, 10, seed=1, jumps=10, population=population)
    far = (x.abs() > 0.5 * box[1]).any(1).float().mean()
    assert 0.3 < far < 0.8 and inside(x, box)  # one of ten of the jumps
    wide = Standardized(net(), torch.randn(50, D) * torch.tensor([1.0, 0.01, 1.0]))
    assert uniform_share(units_of(wide), box) == 0.1
    assert uniform_share(units_of(wide), (box[0], torch.tensor([4.0, 4.0, 1.0]))) == 0.0
    assert uniform_share(None, (box[0], torch.tensor([math.inf, 1, 1]))) == 0.0
    each = LangevinDynamics(bowl, 0.1, clamp=BOXES["chain"], adjusted=True)
    with pytest.raises(ValueError, match="jumps need one clamp for all chains"):
        each.sample(torch.zeros(B, D), 4, jumps=2, population=population)


@pytest.mark.parametrize(
    "clamp, said",
    [
        ((torch.ones(2), torch.zeros(2)), "clamp must have lo <= hi"),
        ((torch.ones(2), 0.0), "clamp must have lo <= hi"),
        ((torch.ones(2), torch.ones(3)), r"faces of one shape, got \(2,\) and \(3,\)"),
        ((torch.tensor([0.0, math.nan]), None), "real tensors without NaN"),
        ((torch.zeros(2, requires_grad=True), None), "without a gradient"),
        ((torch.zeros(2, dtype=torch.cfloat), None), "real tensors without NaN"),
        (("low", 1.0), "must be a pair .* of numbers or tensors"),
        ((math.nan, 1.0), "clamp must have lo <= hi"),
    ],
)
def test_a_box_is_checked_when_it_is_set(clamp, said):
    with pytest.raises(ValueError, match=said):
        LangevinDynamics(bowl, 0.1, clamp=clamp)


def test_a_box_that_does_not_fit_runs_nothing():
    calls = []
    sampler = LangevinDynamics(lambda x: calls.append(0), 0.1, clamp=(torch.zeros(2), None))
    for call in (sampler.sample, sampler.last_step):
        with pytest.raises(ValueError, match=r"event's shape \(3,\), or of the chains' \(6, 3\)"):
            call(torch.randn(B, D))
    assert not calls


def test_a_box_is_the_samplers_own():
    lo = torch.zeros(D)
    sampler = LangevinDynamics(bowl, 0.1, clamp=(lo, None))
    lo.add_(5)
    assert torch.equal(sampler.clamp[0], torch.zeros(D))


@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_no_step_goes_further_than_the_displacement(backend):
    model, x = net(), torch.randn(B, D)
    settings = {"noise_std": 0.3, "backend": backend}
    sampler = LangevinDynamics(model, 0.1, displacement_clip=0.2, **settings)
    path = sampler.sample(x, 5, seed=1, return_trajectory=True)
    for k in range(5):
        start = x if k == 0 else path[:, k - 1]
        free = LangevinDynamics(model, 0.1, **settings).sample(start, 1, seed=ChainRNG(1, k))
        wanted = start + (free - start).clamp(-0.2, 0.2)
        torch.testing.assert_close(path[:, k], wanted, rtol=1e-6, atol=1e-6)
        assert ((free - start).abs() > 0.2).any()
    out, _ = sampler.last_step(x, seed=1)
    torch.testing.assert_close(out, path[:, 0])


def test_losses_with_a_displacement():
    model, x = net(), torch.randn(B, D)
    outs = []
    for backend in ("auto", "eager"):
        sampler = LangevinDynamics(
            model, 0.1, noise_std=0.3, displacement_clip=0.2, backend=backend
        )
        loss = ImprovedContrastiveDivergence(model, sampler, k_steps=3)
        outs.append(loss(x, seed=1))
    torch.testing.assert_close(outs[0].x_neg, outs[1].x_neg, rtol=1e-4, atol=1e-5)
    both = [torch.autograd.grad(out.loss, list(model.parameters())) for out in outs]
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"noise_first": True}, "displacement_clip bounds a step with its noise"),
        ({"adjusted": True}, "displacement_clip must be None with adjusted=True, got 0.2"),
    ],
)
def test_a_displacement_is_of_whole_unadjusted_steps(settings, said):
    with pytest.raises(ValueError, match=said):
        LangevinDynamics(bowl, 0.1, displacement_clip=0.2, **settings)
    with pytest.raises(ValueError, match="displacement_clip must be finite and > 0, got 0.0"):
        LangevinDynamics(bowl, 0.1, displacement_clip=0.0)
