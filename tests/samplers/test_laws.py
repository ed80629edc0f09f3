"""Chains that start in the law they should leave as it is, or whose law is known in closed form."""

import math

import pytest
import torch

from fastebm import HMC, MALA, ChainRNG, LangevinDynamics, ParallelTempering, UnderdampedLangevin

N = 40_000
COVARIANCE = torch.tensor([[1.0, 0.6, -0.3], [0.6, 2.0, 0.5], [-0.3, 0.5, 0.7]])
PRECISION = COVARIANCE.double().inverse()
MEAN = torch.tensor([0.5, -1.0, 2.0])
SCALE = torch.tensor([0.5, 3.0, 1.2])


def gaussian(x):
    z = x - MEAN
    return ((z @ PRECISION.to(x.dtype)) * z).sum(1) / 2


def exact(n, temperature=1.0, seed=0):
    noise = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return MEAN + math.sqrt(temperature) * noise @ torch.linalg.cholesky(COVARIANCE).T


def check_moments(x, mean, covariance):
    """z scores of all means and covariances of independent rows, |z| < 4.5."""
    x, covariance = x.double(), covariance.double()
    variances = covariance.diagonal()
    z = (x.mean(0) - mean) / (variances / len(x)).sqrt()
    assert z.abs().max() < 4.5
    found = (x - mean).T @ (x - mean) / len(x)
    spread = (variances[:, None] * variances + covariance.square()) / len(x)
    assert ((found - covariance) / spread.sqrt()).abs().max() < 4.5


def double_well(x):
    return (x.square() - 1).square().sum(1) + 0.3 * x.sum(1)


GRID = torch.linspace(-3, 3, 2001, dtype=torch.float64)


def grid_density(energy, temperature=1.0):
    p = (-energy(GRID[:, None]) / temperature).exp()
    return p / p.sum()


def of_density(p, n, seed=1):
    """Points of a density on GRID, by its inverse distribution function."""
    u = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cdf = p.cumsum(0) - p / 2
    i = torch.searchsorted(cdf, u).clamp(1, len(p) - 1)
    share = (u - cdf[i - 1]) / (cdf[i] - cdf[i - 1])
    return (GRID[i - 1] + share.clamp(0, 1) * (GRID[1] - GRID[0]))[:, None]


SAMPLERS = {
    "mala": lambda **more: MALA(gaussian, 0.4, **more),
    "hmc": lambda **more: HMC(gaussian, 0.7, n_leapfrog=3, **more),
    "hmc_fixed": lambda **more: HMC(gaussian, 0.7, n_leapfrog=2, jitter=0.0, **more),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("preconditioner", [None, SCALE])
def test_moments_of_a_gaussian_stay(name, temperature, preconditioner):
    sampler = SAMPLERS[name](temperature=temperature, preconditioner=preconditioner)
    x, found = sampler.sample(exact(N, temperature), 12, seed=3, return_diagnostics=True)
    check_moments(x, MEAN, temperature * COVARIANCE)
    assert 0.3 < found["acceptance"] < 0.99  # neither trivial: refusals matter


@pytest.mark.parametrize("base", ["mala", "hmc", "underdamped"])
def test_moments_stay_in_a_ladder(base):
    sampler = UnderdampedLangevin(gaussian, 0.5) if base == "underdamped" else SAMPLERS[base]()
    ladder = (1.0, 1.7, 3.0)
    replicas = torch.stack([exact(N, t, seed=int(10 * t)) for t in ladder])
    tempering = ParallelTempering(sampler, ladder, swap_every=2)
    x, found = tempering.sample(replicas=replicas, n_steps=12, seed=4, return_diagnostics=True)
    torch.testing.assert_close(x, found["replicas"][0], rtol=0, atol=0)
    for t, of_t in zip(ladder, found["replicas"], strict=True):
        check_moments(of_t, MEAN, t * COVARIANCE)
    assert (found["swap_rates"] > 0.3).all()


def test_positions_of_baoab_are_exact_for_a_gaussian_and_velocities_are_known():
    """Of a harmonic oscillator of frequency w, BAOAB has <x^2> = T / w^2 at any stable step, and
    <v^2> = T (1 - (h w)^2 / 4): Leimkuhler and Matthews 2013, section 4."""
    w2 = torch.tensor([0.25, 1.0, 4.0])
    h, t, mass = 0.9, 1.7, 2.0

    def oscillators(x):
        return (x.square() @ w2) / 2

    sampler = UnderdampedLangevin(oscillators, h, friction=0.8, mass=mass, temperature=t)
    start = (t / w2).sqrt() * torch.randn(N, 3, generator=torch.Generator().manual_seed(5))
    x, found = sampler.sample(start, 60, seed=6, return_diagnostics=True)
    check_moments(x, torch.zeros(3), torch.diag(t / w2))
    v2 = t / mass * (1 - h**2 * w2 / mass / 4)
    check_moments(found["velocity"], torch.zeros(3), torch.diag(v2))
    kinetic = (1 - h**2 * w2 / mass / 4).mean().item() * t
    assert abs(found["kinetic_temperature"] - kinetic) < 4.5 * kinetic * math.sqrt(2 / 3 / N) * 1.5


def test_the_error_of_baoab_in_positions_of_a_quartic_is_of_second_order():
    """Halving h divides the error of <x^2> by four; of Euler's scheme by two. By the densities that
    the linearised chains have there is no closed form, so a fine step is the reference."""

    def quartic(x):
        return x.pow(4).sum(1) / 4

    exact_m2 = (grid_density(quartic) * GRID.square()).sum().item()
    start = of_density(grid_density(quartic), 400_000).float()

    def error(h):
        sampler = UnderdampedLangevin(quartic, h, friction=1.0)
        x = sampler.sample(start, round(12 / h), seed=7)
        return x.square().mean().item() - exact_m2

    sigma = start.square().var().item() ** 0.5 / len(start) ** 0.5
    coarse, fine = error(0.8), error(0.4)
    assert abs(coarse) > 6 * sigma  # there is an error to look at
    assert abs(fine - coarse / 4) < 4.5 * sigma * math.sqrt(1 + 1 / 16)


def test_acceptance_of_mala_is_that_of_quadrature():
    step = 0.1
    sigma = math.sqrt(2 * step)
    p = grid_density(double_well)
    x = GRID[:, None]
    grad = 4 * x * (x.square() - 1) + 0.3
    move = torch.minimum(torch.full_like(grad, step), sigma / grad.abs()) * grad
    centre = (x - move)[:, 0]
    log_q = -(GRID[None] - centre[:, None]).square() / (2 * sigma**2)
    q = log_q.exp() * (GRID[1] - GRID[0]) / math.sqrt(2 * math.pi * sigma**2)
    e = double_well(x)
    r = ((e[:, None] - e[None]) + log_q.T - log_q).exp().clamp(max=1)
    expected = (p[:, None] * q * r).sum().item()
    start = of_density(p, 200_000).float()
    _, found = MALA(double_well, step).sample(start, 1, seed=8, return_diagnostics=True)
    spread = math.sqrt(expected * (1 - expected) / len(start))  # at most, of numbers in [0, 1]
    assert abs(found["acceptance"].item() - expected) < 4.5 * spread


def test_acceptance_of_hmc_is_that_of_quadrature():
    h, n_leapfrog, t = 0.35, 3, 1.3
    p = grid_density(double_well, t)
    v = torch.linspace(-7, 7, 801, dtype=torch.float64)
    weight = (-v.square() / 2).exp() / (-v.square() / 2).exp().sum()
    x, v = GRID[::4, None].clone().expand(-1, len(v)), math.sqrt(t) * v

    def force(x):
        return 4 * x * (x.square() - 1) + 0.3

    def level(x):
        return (x.square() - 1).square() + 0.3 * x

    y, w = x, v.expand(len(x), -1)
    start = level(y) + w.square() / 2
    for _ in range(n_leapfrog):
        w = w - h / 2 * force(y)
        y = y + h * w
        w = w - h / 2 * force(y)
    r = ((start - level(y) - w.square() / 2) / t).exp().clamp(max=1)
    q = p[::4] / p[::4].sum()
    expected = (q[:, None] * weight * r).sum().item()
    chains = of_density(p, 200_000).float()
    sampler = HMC(double_well, h, n_leapfrog, jitter=0.0, temperature=t)
    _, found = sampler.sample(chains, 1, seed=9, return_diagnostics=True)
    spread = math.sqrt(expected * (1 - expected) / len(chains))
    assert abs(found["acceptance"].item() - expected) < 4.5 * spread
    assert found["n_divergent"] == 0


def test_tempering_finds_the_weights_of_modes_that_langevin_does_not_cross():
    """From one mode alone, at 2e5 chains: modes at -4 and 4 of std 0.5, of weights 0.3 and 0.7."""

    def mixture(x):
        a = math.log(0.3) - (x + 4).square() / (2 * 0.25)
        b = math.log(0.7) - (x - 4).square() / (2 * 0.25)
        return -torch.logaddexp(a, b).sum(1)

    n = 200_000
    start = -4 + 0.5 * torch.randn(n, 1, generator=torch.Generator().manual_seed(10))
    alone = MALA(mixture, 0.2).sample(start[:2000], 100, seed=11)
    assert (alone < 0).all()
    sampler = MALA(mixture, 0.3)
    tempering = ParallelTempering(sampler, (1.0, 2.2, 5.0, 12.0, 30.0))
    x, found = tempering.sample(start, 400, seed=12, return_diagnostics=True)
    share = (x > 0).double().mean().item()
    assert abs(share - 0.7) < 4.5 * math.sqrt(0.7 * 0.3 / n)
    assert (found["swap_rates"] > 0.2).all()
    right = x[x > 0].double()
    assert abs(right.mean().item() - 4) < 4.5 * 0.5 / math.sqrt(len(right))
    assert abs(right.var().item() / 0.25 - 1) < 4.5 * math.sqrt(2 / len(right))


def test_preconditioned_langevin_steps_are_steps_of_the_scaled_chain():
    """x = s z: the same numbers as a chain of z on E(s z), whose variance is known."""
    sampler = LangevinDynamics(gaussian, 0.05, preconditioner=SCALE)

    def scaled(z):
        return gaussian(z * SCALE)

    x0 = exact(50)
    x = sampler.sample(x0, 7, seed=13)
    z = LangevinDynamics(scaled, 0.05).sample(x0 / SCALE, 7, seed=13)
    torch.testing.assert_close(x, z * SCALE, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*SAMPLERS, "underdamped", "tempering"])
def test_chains_are_the_same_in_any_batch(name):
    if name == "underdamped":
        sampler = UnderdampedLangevin(gaussian, 0.3)
    elif name == "tempering":
        sampler = ParallelTempering(SAMPLERS["hmc"](), (1.0, 2.0))
    else:
        sampler = SAMPLERS[name]()
    x, ids = exact(9), torch.arange(9) + 100
    whole = sampler.sample(x, 6, seed=ChainRNG(5), sample_ids=ids)
    parts = [
        sampler.sample(x[rows], 6, seed=ChainRNG(5), sample_ids=ids[rows])
        for rows in (slice(0, 2), slice(2, 9))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-6)
