"""Ladders of temperatures over any sampler: what they report, how they go on, what they refuse."""

import math

import pytest
import torch

from fastebm import (
    HMC,
    MALA,
    ChainRNG,
    LangevinDynamics,
    ParallelTempering,
    Standardized,
    UnderdampedLangevin,
)
from fastebm.energies import MLPEnergy
from fastebm.samplers.ladder import adapted, log_gaps


def bowl(x, width=1.0):
    return (x / width).square().sum(1) / 2


def start(n=30, d=2):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


BASES = {
    "langevin": lambda e: LangevinDynamics(e, 0.05),
    "mala": lambda e: MALA(e, 0.2),
    "hmc": lambda e: HMC(e, 0.4, n_leapfrog=2),
    "underdamped": lambda e: UnderdampedLangevin(e, 0.3),
}


@pytest.mark.parametrize("base", BASES)
def test_swaps_are_what_their_probabilities_say(base):
    """Of Gaussians at T and T' in d dimensions the mean probability of an exchange is known: in two
    dimensions, energies being exponential of means T and T', it is 2 T / (T + T')."""
    ladder = (1.0, 2.0, 5.0)
    n = 20_000
    replicas = torch.stack([math.sqrt(t) * start(n * (i + 1))[-n:] for i, t in enumerate(ladder)])
    tempering = ParallelTempering(BASES[base](bowl), ladder)
    _, found = tempering.sample(replicas=replicas, n_steps=2, seed=1, return_diagnostics=True)
    for rate, low, high in zip(found["swap_rates"], ladder, ladder[1:], strict=False):
        expected = 2 * low / (low + high)
        assert abs(rate.item() - expected) < 4.5 * 0.5 / math.sqrt(n) + 0.02 * (base == "langevin")


@pytest.mark.parametrize("base", ["mala", "hmc"])
def test_chains_go_on_from_their_replicas(base):
    tempering = ParallelTempering(BASES[base](bowl), (1.0, 3.0), swap_every=2)
    whole = tempering.sample(start(), 12, seed=ChainRNG(2))
    rng = ChainRNG(2)
    _, found = tempering.sample(start(), 4, seed=rng, return_diagnostics=True)
    rest = tempering.sample(replicas=found["replicas"], n_steps=8, seed=rng)
    # swaps of the second call begin with the even pairs, as those after 4 steps do
    torch.testing.assert_close(rest, whole, rtol=1e-5, atol=1e-5)


def test_watched_chains_are_the_same():
    tempering = ParallelTempering(BASES["hmc"](bowl), (1.0, 2.0, 4.0))
    out, found = tempering.sample(
        start(), 9, thin=3, seed=3, return_trajectory=True, return_diagnostics=True
    )
    assert torch.equal(out[:, -1], tempering.sample(start(), 9, seed=3))
    assert out.shape == (30, 3, 2)
    torch.testing.assert_close(found["energy"][-1], bowl(out[:, -1]))
    assert found["acceptances"].shape == (3,)
    assert found["replicas"].shape == (3, 30, 2)


def test_conditions_and_units_belong_to_all_replicas():
    data = 5 + 3 * start(200)
    model = Standardized(MLPEnergy(2, (8,)), data)
    tempering = ParallelTempering(MALA(model, 0.1, clamp=(-20, 20)), (1.0, 2.0))
    out, found = tempering.sample(data[:20], 6, seed=4, return_diagnostics=True)
    torch.testing.assert_close(found["replicas"][0], out, rtol=1e-5, atol=1e-5)

    def conditional(x, c):
        return bowl(x - c)

    c = torch.arange(40.0)[:, None]
    x = ParallelTempering(MALA(conditional, 0.3), (1.0, 2.0)).sample(
        c.expand(-1, 2).clone(), 30, seed=5, model_kwargs={"c": c}
    )
    assert ((x - c).abs() < 6).all()


def test_the_ladder_is_moved_to_equal_rates():
    """Of a Gaussian the ladder with equal rates is geometric."""
    tempering = ParallelTempering(MALA(bowl, 0.5), (1.0, 1.05, 9.0))
    tempering.warm_up(start(500), 400, seed=6)
    low, middle, high = tempering.temperatures
    assert (low, high) == (1.0, 9.0)
    assert middle == pytest.approx(3.0, rel=0.1)
    state = tempering.state_dict()
    other = ParallelTempering(MALA(bowl, 0.5), (1.0, 2.0, 9.0))
    other.load_state_dict(state)
    assert other.temperatures == tempering.temperatures


def test_ladders_keep_their_ends():
    ladder = (0.5, 0.7, 3.0, 4.0)
    torch.testing.assert_close(
        torch.tensor(adapted(ladder, log_gaps(ladder) + 3)), torch.tensor(ladder)
    )


def test_no_chains():
    assert ParallelTempering(MALA(bowl, 0.1), (1.0, 2.0)).sample(start()[:0], 3).shape == (0, 2)


def test_wrong_arguments():
    mala = MALA(bowl, 0.1)
    for error, match, make in (
        (TypeError, "sampler must be a sampler with a temp", lambda: ParallelTempering(3, (1, 2))),
        (ValueError, "temperatures must be 2 to 256", lambda: ParallelTempering(mala, (1.0,))),
        (ValueError, "rising, got", lambda: ParallelTempering(mala, (1.0, 1.0))),
        (ValueError, "rising, got", lambda: ParallelTempering(mala, (0.0, 1.0))),
        (TypeError, "sequence of numbers", lambda: ParallelTempering(mala, "hot")),
        (ValueError, "swap_every", lambda: ParallelTempering(mala, (1, 2), swap_every=0)),
        (
            TypeError,
            "noise_std must be None",
            lambda: ParallelTempering(LangevinDynamics(bowl, 0.1, noise_std=0.1), (1, 2)),
        ),
        (
            TypeError,
            "sampler must be a sampler with a temperature",
            lambda: ParallelTempering(ParallelTempering(mala, (1, 2)), (1, 2)),
        ),
    ):
        with pytest.raises(error, match=match):
            make()
    tempering, rng = ParallelTempering(mala, (1.0, 2.0)), ChainRNG(0)
    with pytest.raises(ValueError, match="give x or replicas, not both"):
        tempering.sample(start(), replicas=torch.zeros(2, 3, 2), seed=rng)
    with pytest.raises(ValueError, match=r"replicas must be a tensor \(2, B, \*event\)"):
        tempering.sample(replicas=torch.zeros(3, 3, 2), seed=rng)
    assert rng.t == 0
