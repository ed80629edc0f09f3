"""Settings of HMC and underdamped Langevin dynamics: boxes, masses, velocities, wrong ones."""

import pytest
import torch

from fastebm import (
    HMC,
    ChainRNG,
    GibbsWithGradients,
    ParallelTempering,
    UnderdampedLangevin,
)
from fastebm.energies import MLPEnergy


def bowl(x):
    return x.square().sum(1) / 2


def start(n=40, d=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", [bowl, MLPEnergy(3, (8, 8))], ids=["bowl", "mlp"])
@pytest.mark.parametrize("kind", ["hmc", "underdamped"])
def test_chains_stay_in_their_box(kind, model):
    make = {"hmc": HMC, "underdamped": UnderdampedLangevin}[kind]
    sampler = make(model, 0.8, clamp=(-0.5, 1.0))
    x = sampler.sample(start().clamp(-0.5, 1.0), 20, seed=1)
    assert x.min() >= -0.5
    assert x.max() <= 1.0
    assert x.std() > 0.1


def test_a_mass_is_a_unit_of_time():
    """Of mass m, a step h is one of h / sqrt(m) at unit mass, and friction the same per time."""
    heavy = UnderdampedLangevin(bowl, 0.4, friction=0.5, mass=4.0)
    light = UnderdampedLangevin(bowl, 0.2, friction=1.0)
    x = start()
    torch.testing.assert_close(
        heavy.sample(x, 10, seed=2), light.sample(x, 10, seed=2), rtol=1e-4, atol=1e-5
    )
    each = UnderdampedLangevin(bowl, 0.4, friction=0.5, mass=torch.full((3,), 4.0))
    torch.testing.assert_close(
        heavy.sample(x, 10, seed=2), each.sample(x, 10, seed=2), rtol=1e-4, atol=1e-5
    )


def test_chains_go_on_with_their_velocities():
    sampler, x = UnderdampedLangevin(bowl, 0.3, friction=0.2, mass=2.0), start()
    whole = sampler.sample(x, 14, seed=ChainRNG(3))
    rng = ChainRNG(3)
    half, found = sampler.sample(x, 6, seed=rng, return_diagnostics=True)
    rest = sampler.sample(half, 8, seed=rng, velocity=found["velocity"])
    torch.testing.assert_close(rest, whole, rtol=1e-5, atol=1e-5)


def test_without_noise_and_friction_energy_is_kept():
    """Verlet's scheme: the energy's error is bounded by h^2."""
    sampler = UnderdampedLangevin(bowl, 0.05, friction=1e-9, temperature=0.0)
    x, v = start(), torch.ones(40, 3)
    y, found = sampler.sample(x, 200, seed=4, velocity=v, return_diagnostics=True)
    before = bowl(x) + v.square().sum(1) / 2
    after = bowl(y) + found["velocity"].square().sum(1) / 2
    assert ((after - before).abs() < 0.05**2 * before).all()
    assert (y - x).abs().max() > 0.5


def test_watched_chains_are_the_same():
    for sampler in (HMC(bowl, 0.5, n_leapfrog=3), UnderdampedLangevin(bowl, 0.3)):
        out = sampler.sample(start(), 9, thin=2, burn_in=1, seed=5, return_trajectory=True)
        assert torch.equal(out[:, -1], sampler.sample(start(), 9, seed=5))


@pytest.mark.parametrize("kind", ["hmc", "underdamped"])
def test_chains_of_a_perceptron_are_the_same_by_any_way(kind):
    torch.manual_seed(0)
    model = MLPEnergy(3, (16, 16))
    make = {"hmc": lambda e: HMC(e, 0.2, 3), "underdamped": lambda e: UnderdampedLangevin(e, 0.2)}
    fused = make[kind](model).sample(start(), 10, seed=6)
    eager = make[kind](lambda x: model(x)).sample(start(), 10, seed=6)
    torch.testing.assert_close(fused, eager, rtol=1e-3, atol=1e-4)


def test_divergent_trajectories_are_counted_and_refused():
    def wall(x):
        return x.pow(4).sum(1)

    x, found = HMC(wall, 1.5, n_leapfrog=5, jitter=0.0).sample(
        4 * start(), 3, seed=7, return_diagnostics=True
    )
    assert found["n_divergent"] > 40
    assert x.isfinite().all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: HMC(bowl, -1.0), "step_size must be finite and > 0, got -1"),
        (lambda: HMC(bowl, 0.1, n_leapfrog=0), "n_leapfrog must be an integer >= 1, got 0"),
        (lambda: HMC(bowl, 0.1, jitter=1.0), r"jitter must be in \[0, 1\), got 1"),
        (lambda: HMC(bowl, 0.1, temperature=0.0), "temperature must be finite and > 0"),
        (lambda: UnderdampedLangevin(bowl, 0.1, friction=0.0), "friction must be finite and > 0"),
        (lambda: UnderdampedLangevin(bowl, 0.1, mass=0.0), "mass must be finite and > 0"),
        (lambda: UnderdampedLangevin(bowl, 0.0), "step_size must be finite and > 0"),
    ],
)
def test_wrong_settings(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_wrong_dtypes_run_nothing():
    calls, rng = [], ChainRNG(0)
    for sampler, x, match in (
        (HMC(calls.append, 0.1), start().half(), "x must be float32 or float64 for HMC"),
        (
            GibbsWithGradients(calls.append),
            torch.zeros(3, 2).double(),
            "x must be float32 for Gibbs",
        ),
        (
            ParallelTempering(HMC(calls.append, 0.1), (1, 2)),
            start().half(),
            "for ParallelTempering",
        ),
    ):
        with pytest.raises(TypeError, match=match):
            sampler.sample(x, 2, seed=rng)
    assert not calls
    assert rng.t == 0


def test_wrong_velocities():
    sampler, rng = UnderdampedLangevin(bowl, 0.1), ChainRNG(0)
    with pytest.raises(
        ValueError, match=r"velocity must be of the shape of x \(40, 3\), got \(3,\)"
    ):
        sampler.sample(start(), 2, velocity=torch.zeros(3), seed=rng)
    with pytest.raises(ValueError, match="velocity must be given with x"):
        sampler.sample(None, 2, velocity=torch.zeros(3), n_samples=2, dim=3, seed=rng)
    with pytest.raises(ValueError, match="jumps need a sampler with adjusted=True"):
        HMC(bowl, 0.1).sample(start(), 4, jumps=1, seed=rng)
    assert rng.t == 0
