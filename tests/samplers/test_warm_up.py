"""Warm-ups: what they find, that they freeze it, and that they can be resumed."""

import pytest
import torch

from fastebm import HMC, MALA, ChainRNG, GibbsWithGradients, LangevinDynamics, UnderdampedLangevin
from fastebm.samplers.adaptation import ROUND
from fastebm.samplers.dual_averaging import DualAveraging

SCALES = torch.tensor([0.02, 1.0, 30.0])


def ellipse(x):
    return (x / SCALES).square().sum(1) / 2


MAKERS = {
    "langevin": lambda step=1e-3: LangevinDynamics(ellipse, step),
    "mala": lambda step="auto": MALA(ellipse, step),
    "hmc": lambda step="auto": HMC(ellipse, step, n_leapfrog=4),
    "underdamped": lambda step=1e-2: UnderdampedLangevin(ellipse, step),
}


def start(n=200):
    return SCALES * torch.randn(n, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MAKERS)
def test_scales_and_acceptance_are_found(name):
    sampler = MAKERS[name]()
    x = sampler.warm_up(start(), 400, seed=1)
    # 200 chains for 160 steps and more: a tenth is several standard errors
    assert ((sampler.preconditioner / SCALES - 1).abs() < 0.15).all()
    kin = sampler._adjusted_kin()
    kin.step_size, kin.preconditioner = float(sampler.step_size), sampler.preconditioner
    _, found = kin.sample(x, 50, seed=2, return_diagnostics=True)
    assert abs(found["acceptance"] - sampler.target_acceptance) < 0.05


@pytest.mark.parametrize("name", MAKERS)
def test_what_was_found_is_frozen(name):
    sampler = MAKERS[name]()
    x = sampler.warm_up(start(50), 100, seed=1)
    step, scale = float(sampler.step_size), sampler.preconditioner.clone()
    sampler.sample(x, 50, seed=2)
    assert float(sampler.step_size) == step
    assert torch.equal(sampler.preconditioner, scale)


@pytest.mark.parametrize("name", MAKERS)
def test_a_warm_up_goes_on_from_its_state(name):
    whole, part, other = (MAKERS[name]() for _ in range(3))
    rng = ChainRNG(3)
    x = whole.warm_up(start(30), 230, seed=rng)
    stream = ChainRNG(3)
    y = part.warm_up(start(30), 95, seed=stream)
    other.load_state_dict(part.state_dict())
    y = other.warm_up(y, 135, seed=stream)
    assert torch.equal(x, y)
    assert float(whole.step_size) == float(other.step_size)
    assert torch.equal(whole.preconditioner, other.preconditioner)
    assert rng.state_dict() == stream.state_dict()
    resumed = MAKERS[name]()
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(resumed.sample(x, 5, seed=4), whole.sample(x, 5, seed=4))


def test_the_step_of_heavy_chains_is_longer():
    """Of mass m a step h is one of h / sqrt(m) at unit mass, so it is found sqrt(m) times as long;
    of several masses by the least."""
    light = UnderdampedLangevin(ellipse, 0.01)
    light.warm_up(start(50), 100, seed=1)
    for mass in (4.0, torch.tensor([4.0, 9.0, 16.0])):
        heavy = UnderdampedLangevin(ellipse, 0.02, mass=mass)
        heavy.warm_up(start(50), 100, seed=1)
        assert heavy.step_size == pytest.approx(2 * light.step_size)
        assert torch.equal(heavy.preconditioner, light.preconditioner)


def test_without_a_preconditioner_only_the_step_is_found():
    sampler = MAKERS["mala"]()
    sampler.warm_up(start(20), 50, precondition=False, target_acceptance=0.5, seed=0)
    assert sampler.preconditioner is None
    assert sampler.step_size.frozen


def test_dual_averaging_solves_for_the_target():
    """Of an acceptance exp(-step): the average goes to -log target."""
    dual = DualAveraging(1e-3, 0.7)
    for _ in range(1000):
        dual.update(torch.tensor(-dual.step, dtype=torch.float64).exp())
    assert dual.average == pytest.approx(-torch.tensor(0.7).log().item(), rel=0.05)
    dual.update(float("nan"))  # counts as a refusal
    assert dual.step < dual.average


def test_wrong_calls_run_nothing():
    sampler, calls = MAKERS["mala"](), []
    sampler.model = lambda x: calls.append(x) or ellipse(x)
    x, rng = start(5), ChainRNG(0)
    for match, options in {
        "n_steps must be an integer >= 1, got 0": {"n_steps": 0},
        r"target_acceptance must be in \[0, 1\], got 2": {"target_acceptance": 2},
        r"sample_ids must be an int64 tensor \(5,\)": {"sample_ids": torch.arange(3)},
    }.items():
        with pytest.raises(ValueError, match=match):
            sampler.warm_up(x, seed=rng, **options)
    with pytest.raises(TypeError, match="GibbsWithGradients has no step size to find"):
        GibbsWithGradients(sampler.model).warm_up(torch.zeros(2, 3), seed=rng)
    with pytest.raises(TypeError, match="step_size must be a number or 'auto' for a warm-up"):
        MALA(sampler.model, lambda k: 0.1).warm_up(x, seed=rng)
    assert not calls
    assert rng.t == 0
    assert ROUND == 5  # as the docstring of warm_up says


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (3.0, TypeError, "preconditioner must be a floating-point tensor"),
        (torch.tensor([1.0, 0.0, 1.0]), ValueError, "preconditioner must be finite and > 0, got 0"),
        (torch.tensor([1, 2, 3]), TypeError, "got torch.int64"),
    ],
)
def test_wrong_scales_are_refused(value, error, match):
    with pytest.raises(error, match=match):
        MALA(ellipse, 0.1, preconditioner=value)


def test_scales_of_another_shape_are_refused():
    sampler = MALA(ellipse, 0.1, preconditioner=torch.ones(2))
    with pytest.raises(ValueError, match=r"preconditioner must be of the event's shape \(3,\)"):
        sampler.sample(start(4), 2)
