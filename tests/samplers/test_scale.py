"""The tightest scale of a data set, and the step size that it allows."""

import math
import warnings

import pytest
import torch

from fastebm.samplers import scale
from fastebm.samplers.langevin import LangevinDynamics
from fastebm.samplers.scale import StepSizeWarning, data_scale


def bowl(x):
    return x.square().sum(1) / 2


def ring(n, generator, std=0.15):
    angle = torch.randint(8, (n,), generator=generator) * (math.pi / 4)
    centre = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + std * torch.randn(n, 2, generator=generator)


def grid25(n, generator):
    centre = torch.randint(5, (n, 2), generator=generator) - 2.0
    return centre + 0.1 * torch.randn(n, 2, generator=generator)


@pytest.mark.parametrize(
    "data, variance",
    [
        (lambda g: ring(5000, g), 0.0225),
        (lambda g: ring(500, g), 0.0225),
        (lambda g: grid25(5000, g), 0.01),
        (lambda g: torch.randn(2000, 2, generator=g), 1.0),
        (lambda g: torch.randn(1000, 10, generator=g), 1.0),
        (lambda g: 0.1 * torch.randn(1000, 1, 4, 4, generator=g), 0.01),
    ],
)
def test_data_scale_finds_the_tightest_variance(data, variance):
    estimate = data_scale(data(torch.Generator().manual_seed(0)))
    assert 1 / 1.5 < estimate / variance < 1.5


def test_data_scale_scales_and_ignores_offsets_and_lattices():
    x = ring(500, torch.Generator().manual_seed(1)).double()
    assert data_scale(3 * x + 5) == pytest.approx(9 * data_scale(x), rel=1e-6)
    bits = torch.randint(2, (200, 4), generator=torch.Generator().manual_seed(0)).double()
    assert 0 < data_scale(bits) < 2


@pytest.mark.parametrize(
    "n, dim, points",
    [
        (3000, 2, 2000),  # all that were ever taken
        (1000, 16, 1000),
        (1000, 784, 207),
        (128, 3072, 105),
        (1000, 3072, 179),  # as many pairs as 16 for each sample
        (60_000, 3072, 1386),
        (40, 150_528, 36),
    ],
)
def test_points_are_few_where_they_are_large(n, dim, points, monkeypatch):
    """Against a stall in the first call of a loss: 16 differences of an element for each that is
    given, or 16 million; the roots take no more than some fifty short series."""
    seen, slopes, slope = [], [], scale._chi2_slope
    monkeypatch.setattr(scale, "_chi2_slope", lambda d, q: slopes.append(d) or slope(d, q))
    pdist = torch.pdist
    monkeypatch.setattr(torch, "pdist", lambda x: seen.append(x.shape) or pdist(x[:, :3]))
    rows = torch.randn(min(n, 3000), 1)
    data_scale(rows.expand(-1, dim) if n <= 3000 else rows[:1].expand(n, dim) + torch.rand(n, 1))
    ((chosen, _),) = seen
    assert chosen == points and chosen * (chosen - 1) / 2 * dim <= max(16 * n * dim, 2**24)
    assert len(slopes) < 100


def test_many_elements_leave_the_estimate_its_meaning():
    g = torch.Generator().manual_seed(0)
    centre = torch.randn(4, 784, generator=g)[torch.randint(4, (1000,), generator=g)]
    for std in (0.1, 0.3):
        x = centre + std * torch.randn(1000, 784, generator=g)
        assert 1 / 1.5 < data_scale(x) / std**2 < 1.5


@pytest.mark.parametrize(
    "x, match",
    [
        (torch.randn(31, 2), "at least 32 points"),
        (torch.ones(100, 2), "distinct"),
        (torch.full((100, 2), math.nan), "finite"),
    ],
)
def test_data_scale_errors(x, match):
    with pytest.raises(ValueError, match=match):
        data_scale(x)


def test_step_size_is_checked_against_the_data():
    data = ring(2000, torch.Generator().manual_seed(0))  # v / 2 = 0.011
    with pytest.warns(StepSizeWarning, match=r"step_size=0.02 .* no energy") as caught:
        LangevinDynamics(bowl, 0.02).check_step_size(data)
    assert caught[0].filename == __file__  # in the name of who called
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LangevinDynamics(bowl, 0.005).check_step_size(data)
        LangevinDynamics(bowl, 0.02, noise_std=0.05).check_step_size(data)  # colder, so allowed
        LangevinDynamics(bowl, 0.02, noise_first=True).check_step_size(data)
