"""Chains on bits and categories: their law by enumeration, and what they refuse."""

import itertools
import math

import pytest
import torch

from fastebm import ChainRNG, GibbsWithGradients, ParallelTempering, Standardized
from fastebm.energies import MLPEnergy

N = 200_000
COUPLING = torch.tensor(
    [[0.0, 0.8, -0.5, 0.3], [0.8, 0.0, 0.4, -0.9], [-0.5, 0.4, 0.0, 0.6], [0.3, -0.9, 0.6, 0.0]]
)
FIELD = torch.tensor([0.5, -0.2, 0.1, -0.7])


def ising(x):
    """Not linear in its gradient: the expansion of a flip is not exact."""
    y = 2 * x - 1
    return -((y @ COUPLING) * y).sum(1) / 2 - y @ FIELD + 0.3 * torch.sin(2 * x.sum(1))


BITS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)))
ONE_HOT = torch.stack(
    [
        torch.nn.functional.one_hot(torch.tensor(s), 3).float()
        for s in itertools.product(range(3), repeat=2)
    ]
)
TABLE = torch.linspace(-1, 1, 9).view(3, 3)


def potts(x):
    return torch.einsum("bi,ij,bj->b", x[:, 0], TABLE, x[:, 1]) + 0.7 * x[:, 0, 1] * x[:, 1, 1]


def check_law(x, states, energy, temperature=1.0):
    """z scores of the shares of all states."""
    p = (-energy(states) / temperature).double().softmax(0)
    found = (x[:, None] == states[None]).flatten(2).all(2).double()
    assert found.sum(1).eq(1).all()  # each is a state
    z = (found.mean(0) - p) / (p * (1 - p) / len(x)).sqrt()
    assert z.abs().max() < 4.5


def exact(states, energy, temperature=1.0):
    p = (-energy(states) / temperature).softmax(0)
    picks = torch.multinomial(p, N, replacement=True, generator=torch.Generator().manual_seed(0))
    return states[picks]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_law_of_bits_stays(temperature):
    sampler = GibbsWithGradients(ising, temperature)
    start = exact(BITS, ising, temperature)
    x, found = sampler.sample(start, 5, seed=1, return_diagnostics=True)
    check_law(x, BITS, ising, temperature)
    assert 0.3 < found["acceptance"] < 0.99
    assert (x != start).any(1).float().mean() > 0.5


def test_the_law_of_categories_stays():
    sampler = GibbsWithGradients(potts, categorical=True)
    x = sampler.sample(exact(ONE_HOT, potts), 5, seed=2)
    check_law(x, ONE_HOT, potts)


def test_chains_from_anywhere_come_to_the_law():
    x = GibbsWithGradients(ising).sample(n_samples=50_000, dim=4, n_steps=60, seed=3)
    check_law(x, BITS, ising)
    y = GibbsWithGradients(potts, categorical=True).sample(
        n_samples=50_000, dim=(2, 3), n_steps=60, seed=3
    )
    check_law(y, ONE_HOT, potts)


def test_starts_are_uniform():
    x = GibbsWithGradients(ising).sample(n_samples=N, dim=4, n_steps=0, seed=4)
    check_law(x, BITS, lambda s: 0 * s.sum(1))
    y = GibbsWithGradients(potts, categorical=True).sample(
        n_samples=N, dim=(2, 3), n_steps=0, seed=4
    )
    check_law(y, ONE_HOT, lambda s: 0 * s.sum((1, 2)))


def test_schedules_of_temperature_keep_each_proposal_with_its_own():
    """At temperatures that differ from step to step, the last law is that of long last ones; and a
    constant schedule is a constant."""
    x = exact(BITS, ising)[:1000]
    constant = GibbsWithGradients(ising, lambda k: 1.5).sample(x, 6, seed=5)
    assert torch.equal(constant, GibbsWithGradients(ising, 1.5).sample(x, 6, seed=5))
    cooled = GibbsWithGradients(ising, lambda k: 5.0 if k < 20 else 1.0)
    check_law(cooled.sample(exact(BITS, ising), 70, seed=6), BITS, ising)


def test_watched_chains_are_the_same():
    x, sampler = exact(BITS, ising)[:50], GibbsWithGradients(ising)
    out, found = sampler.sample(
        x, 9, thin=3, seed=7, return_trajectory=True, return_diagnostics=True
    )
    assert torch.equal(out[:, -1], sampler.sample(x, 9, seed=7))
    torch.testing.assert_close(found["energy"][-1], ising(out[:, -1]))


def test_in_a_ladder():
    tempering = ParallelTempering(GibbsWithGradients(ising), (1.0, 2.0, 4.0))
    check_law(tempering.sample(exact(BITS, ising), 6, seed=8), BITS, ising)


def test_what_is_not_a_state_is_refused():
    rng = ChainRNG(0)
    for match, x, options in (
        (r"x must be of 0 and 1, got 0\.5", torch.full((2, 3), 0.5), {}),
        ("x must be one-hot: a single 1", torch.ones(2, 3), {"categorical": True}),
        (r"x must be \(B, \*sites, K\), K >= 2", torch.ones(2), {"categorical": True}),
    ):
        with pytest.raises(ValueError, match=match):
            GibbsWithGradients(ising, **options).sample(x, 2, seed=rng)
    with pytest.raises(TypeError, match="model must be an energy of 0 and 1, got Standardized"):
        GibbsWithGradients(Standardized(MLPEnergy(4), torch.randn(40, 4)))
    with pytest.raises(ValueError, match="temperature must be finite and > 0"):
        GibbsWithGradients(ising, 0.0)
    with pytest.raises(ValueError, match="jumps need a sampler with adjusted=True"):
        GibbsWithGradients(ising).sample(torch.zeros(4, 4), 2, jumps=1)
    assert rng.t == 0
    assert math.isfinite(float(ising(BITS).sum()))
