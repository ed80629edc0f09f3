"""Metropolis-adjusted chains and population jumps: laws, ways, units, errors."""

import math

import pytest
import torch
from torch import nn

from fastebm import Augmentation, LangevinDynamics, Standardized
from fastebm.rng import ChainRNG
from fastebm.samplers.units import uniform_share, units_of


def bowl(x):
    return x.square().sum(1) / 2


def two_modes(x):
    """-log of a mixture 1:3 of N(-4, 0.3^2) and N(4, 0.3^2)."""
    levels = [-((x[:, 0] - m) ** 2) / 0.18 + math.log(w) for m, w in ((-4.0, 0.25), (4.0, 0.75))]
    return -torch.logsumexp(torch.stack(levels), 0)


def net(dim=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(dim, 24), nn.SiLU(), nn.Linear(24, 24), nn.SiLU(), nn.Linear(24, 1)
    )


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("step, temperature", [(0.9, 1.0), (3.0, 0.5)])
def test_the_law_stays_at_any_step(step, temperature):
    n, sampler = 40_000, LangevinDynamics(bowl, step, temperature=temperature, adjusted=True)
    x = sampler.sample(math.sqrt(temperature) * normal(n, 3).double(), 5, seed=1)
    ratio = x.square().mean(0) / temperature
    assert (ratio - 1).abs().max() < 4 * math.sqrt(2 / n)
    unadjusted = LangevinDynamics(bowl, 0.9).sample(normal(n, 3).double(), 5, seed=1)
    assert (unadjusted.square().mean(0) - 1).min() > 0.5  # what the rule is for


def test_a_box_cuts_the_law_off():
    n, sampler = 40_000, LangevinDynamics(bowl, 0.5, adjusted=True, clamp=(-0.5, 1.5))
    x = sampler.sample(torch.zeros(n, 1), 60, seed=1)
    u = torch.linspace(-0.5, 1.5, 20_001, dtype=torch.float64)
    p = (-u * u / 2).exp()
    mean, square = (p * u).sum() / p.sum(), (p * u * u).sum() / p.sum()
    assert x.min() >= -0.5 and x.max() <= 1.5
    assert abs(x.double().mean() - mean) < 4 * math.sqrt((square - mean**2) / n)


@pytest.mark.parametrize("population", ["others", "buffer"])
def test_jumps_put_the_weights_of_modes_right(population):
    n, sampler = 4000, LangevinDynamics(two_modes, 0.02, adjusted=True, clamp=(-8.0, 8.0))
    x = 0.3 * normal(n, 1)
    x[: n // 2] -= 4
    x[n // 2 :] += 4
    x = x[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    stored = x[:200].clone() if population == "buffer" else None
    x = sampler.sample(x, 120, seed=3, jumps=60, population=stored)
    share = (x > 0).double().mean()
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / n)
    assert abs(x[x > 0].std() / 0.3 - 1) < 4 * math.sqrt(0.5 / (0.75 * n))


def agreement(a, b):
    """Share of chains that are alike up to rounding."""
    return torch.isclose(a, b, rtol=1e-3, atol=1e-3).flatten(1).all(1).double().mean()


@pytest.mark.parametrize("given", [True, False])
def test_ways_agree_but_for_decisions_by_a_rounding(given):
    model, x, stored = net(5), normal(300, 5), normal(40, 5, seed=1) if given else None
    found = [
        LangevinDynamics(model, 0.3, adjusted=True, clamp=(-3.0, 3.0), backend=way).sample(
            x, 25, seed=2, jumps=5, population=stored, return_diagnostics=True
        )
        for way in ("fused", "eager")
    ]
    (fused, a), (eager, b) = found
    assert agreement(fused, eager) > 0.98 and not torch.equal(fused, x)
    for name in ("acceptance", "jump_acceptance"):
        assert abs(a[name] - b[name]) < 0.02 and 0 < a[name] < 1


def test_batches_split_and_cuts_by_what_is_kept_change_no_bit():
    model, x, stored = net(), normal(90, 2), normal(40, 2, seed=1)
    sampler = LangevinDynamics(model, 0.2, adjusted=True, clamp=(-4.0, 4.0))
    whole = sampler.sample(x, 30, seed=5, jumps=6, population=stored)
    parts = [
        sampler.sample(
            x[i : i + 37], 30, seed=ChainRNG(5, sample_offset=i), jumps=6, population=stored
        )
        for i in range(0, 90, 37)
    ]
    assert torch.equal(whole, torch.cat(parts))
    path = sampler.sample(
        x, 21, burn_in=9, thin=3, seed=5, jumps=6, population=stored, return_trajectory=True
    )
    assert path.shape == (90, 7, 2) and torch.equal(path[:, -1], whole)


def test_diagnostics_are_of_the_states_kept():
    model, x = net(), normal(50, 2)
    sampler = LangevinDynamics(model, 0.2, adjusted=True)
    path, found = sampler.sample(x, 8, seed=0, return_trajectory=True, return_diagnostics=True)
    e = torch.stack([model(path[:, k]).squeeze(1).detach() for k in range(8)])
    torch.testing.assert_close(found["energy"], e, rtol=1e-4, atol=1e-5)
    assert "jump_acceptance" not in found and found["n_nonfinite"] == 0


def test_augmented_chains_know_their_energy_again():
    def energy(x):
        return x.flatten(1).square().sum(1)

    sampler = LangevinDynamics(energy, 0.01, adjusted=True, clamp=(0.0, 1.0))
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    flip = Augmentation.preset("mnist", (0.0, 1.0))
    path, found = sampler.sample(
        x, 6, seed=0, augmentation=flip, augment_every=3, return_trajectory=True,
        return_diagnostics=True,
    )  # fmt: skip
    e = torch.stack([energy(path[:, k]) for k in range(6)])
    torch.testing.assert_close(found["energy"], e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_standard_units_make_chains_alike_at_any_scale(scale):
    data, stored = normal(500, 2), normal(40, 2, seed=1)
    box, inner = (-4.0, 4.0), net()

    def run(factor):
        model = Standardized(inner, factor * data)
        clamp = tuple(factor * c for c in box)
        sampler = LangevinDynamics(model, 0.2, adjusted=True, clamp=clamp)
        return sampler.sample(factor * data[:100], 20, seed=0, jumps=4, population=factor * stored)

    assert agreement(run(scale) / scale, run(1.0)) > 0.98
    assert run(scale).abs().max() <= scale * 4


def test_a_sampler_in_standard_units_keeps_to_a_box_of_the_users():
    data = normal(500, 2) * torch.tensor([1.0, 0.01]) + 0.5
    model = Standardized(lambda z: z[:, 0] * 0.0, data)  # flat: every proposal inside is accepted
    sampler = LangevinDynamics(model, 0.5, adjusted=True, clamp=(0.0, 1.0))
    x = sampler.sample(torch.full((4000, 2), 0.5), 400, seed=0)
    assert x.min() >= 0 and x.max() <= 1
    # Uniform in the box along the wide coordinate.
    assert abs(x[:, 0].mean() - 0.5) < 4 / math.sqrt(12 * 4000)


def test_energies_that_are_not_finite_are_never_reached():
    def hole(x):
        return torch.where(x[:, 0] > 0, torch.nan, 0.0) * x[:, 0] + bowl(x)

    x = LangevinDynamics(hole, 0.5, adjusted=True).sample(-torch.ones(500, 2), 30, seed=0)
    assert x.isfinite().all() and (x[:, 0] <= 0).all()


def test_the_last_step_is_that_of_the_chain_and_has_its_gradient():
    model, x = net().double(), normal(60, 2).double()
    sampler = LangevinDynamics(model, 0.3, adjusted=True, clamp=(-3.0, 3.0))
    rng = ChainRNG(4)
    before = sampler.sample(x, 6, seed=rng)
    after, _ = sampler.last_step(before, 6, seed=rng)
    torch.testing.assert_close(after, sampler.sample(x, 7, seed=4), rtol=1e-9, atol=1e-9)
    moved = (after != before).any(1)
    assert 0 < moved.sum() < len(x)
    (slope,) = torch.autograd.grad(after[:, 0].sum(), model[0].bias)
    # By differences: of the proposals that were accepted, at the same noise.
    h, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            model[0].bias[3] += sign * h
            values.append(sampler.last_step(before, 6, seed=ChainRNG(4, 6))[0][:, 0].sum())
            model[0].bias[3] -= sign * h
    assert slope[3] == pytest.approx(float(values[0] - values[1]) / (2 * h), rel=1e-4)


def test_models_of_scales_and_keyword_arguments():
    def model(x, shift):
        return torch.stack([bowl(x - shift), bowl(x)], 1)

    sampler = LangevinDynamics(model, 0.3, adjusted=True)
    shift = torch.tensor([[2.0, 0.0]])
    x = sampler.sample(torch.zeros(20_000, 2), 60, seed=0, model_kwargs={"shift": shift})
    assert abs(x[:, 0].mean() - 1) < 4 * math.sqrt(0.5 / 20_000)  # N(1, 1/2)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"noise_first": True}, "noise_first must be False with adjusted=True"),
        ({"grad_clip": 1.0}, "grad_clip must be None with adjusted=True, got 1.0"),
        ({"compile": True}, "compile must be False with adjusted=True"),
        ({"graph": True}, "graph must be False or 'auto' with adjusted=True"),
    ],
)
def test_settings_that_have_no_adjusted_chains(settings, said):
    with pytest.raises(ValueError, match=said):
        LangevinDynamics(bowl, 0.1, adjusted=True, **settings)


def test_wrong_calls_run_nothing():
    calls = []

    def model(x):
        calls.append(len(x))
        return bowl(x)

    x = normal(8, 2)
    good, plain = LangevinDynamics(model, 0.1, adjusted=True), LangevinDynamics(model, 0.1)
    silent = LangevinDynamics(model, 0.1, noise_std=0.0, adjusted=True)
    standard = LangevinDynamics(
        Standardized(model, normal(9, 2)), 0.1, clamp=(-1.0, 1.0), adjusted=True
    )
    standard.adjusted = False
    for sampler, options, said in (
        (good, {"jumps": 11}, r"jumps must be an integer in 0\.\.10, got 11"),
        (plain, {"jumps": 2}, "jumps need a sampler with adjusted=True"),
        (good, {"jumps": 2, "x": x[:3]}, "jumps need a population, or 4 chains at least, got 3"),
        (good, {"jumps": 2, "population": x[:, :1]}, r"population must be \(P, 2\), P >= 2"),
        (silent, {}, "adjusted=True needs noise"),
        (standard, {}, "clamp of chains in units of each coordinate needs adjusted=True"),
    ):
        with pytest.raises(ValueError, match=said):
            sampler.sample(**{"x": x, "n_steps": 10, "seed": 0} | options)
    assert not calls


def test_uniform_points_are_of_boxes_that_the_data_are_seen_in():
    data = normal(500, 3) * torch.tensor([1.0, 100.0, 0.01])
    units = Standardized(net(3), data)
    assert units.least_std == data.std(0).min().item()
    width = 100 * units.least_std
    for model, clamp, share in (
        (bowl, None, 0.0),
        (bowl, (-1.0, None), 0.0),
        (bowl, (-math.inf, 1.0), 0.0),
        (bowl, (-1e9, 1e9), 0.1),
        (units, (0.0, 0.99 * width), 0.1),
        (units, (0.0, 1.01 * width), 0.0),
        (units, None, 0.0),
    ):
        assert uniform_share(units_of(model), clamp) == share
    units.std.mul_(2)
    assert uniform_share(units, (0.0, 1.01 * width)) == 0.1
    units.std = units.std / 4
    assert uniform_share(units, (0.0, 0.99 * width)) == 0.0


@pytest.mark.parametrize("backend", ["fused", "eager"])
def test_jumps_of_columns_of_other_scales_stay_near_the_data(backend):
    data = normal(500, 3) * torch.tensor([1.0, 100.0, 0.01])
    model = Standardized(net(3), data)
    sampler = LangevinDynamics(model, 0.3, adjusted=True, clamp=(-500.0, 500.0), backend=backend)
    chains = sampler.sample(data[:100], 20, jumps=10, population=data, seed=0)
    assert model.standardize(chains).abs().max() < 40  # the box goes to 50,000
    assert not torch.equal(chains, data[:100])
