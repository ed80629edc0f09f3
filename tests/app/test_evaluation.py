"""Measures against closed forms, and against what they must tell apart."""

import math

import pytest
import torch
from torch import nn

from fastebm.app.data import load
from fastebm.app.evaluation import (
    floor,
    grid,
    grid_divergences,
    grid_log_density,
    mmd2,
    modes_found,
    precision_recall,
)

BOX = (-6.0, 6.0)


def gaussian(mean, std):
    return lambda x: 0.5 * ((x - torch.tensor(mean)) / std).square().sum(1)


def test_grid_density_is_the_gaussian_whatever_the_offset():
    points, area = grid(BOX, 120)
    assert area == pytest.approx(0.01)
    exact = -0.5 * points.double().square().sum(1) - math.log(2 * math.pi)
    for offset in (0.0, 1e4):  # the energy is known up to a constant only
        found = grid_log_density(lambda x, c=offset: x.double().square().sum(1) / 2 + c, BOX, 120)
        assert (found - exact).abs().max() < 1e-6


def test_grid_divergences_have_the_closed_form():
    points, area = grid(BOX, 200)
    p = -gaussian([0.0, 0.0], 1.0)(points).double()
    for mean, std in (([0.0, 0.0], 1.0), ([0.5, -0.5], 1.0), ([0.0, 0.3], 0.8)):
        q = -gaussian(mean, std)(points).double() + 7.0
        found = grid_divergences(q, p, area)
        shift = sum(m * m for m in mean)
        kl = 2 * math.log(std) + (2 + shift) / (2 * std**2) - 1
        assert found["kl"] == pytest.approx(kl, abs=1e-5)
    # equal variances: TV = P(|N(0,1)| < d / 2) with d the distance of the means
    q = -gaussian([0.5, -0.5], 1.0)(points).double()
    tv = math.erf(math.sqrt(0.5) / 2 / math.sqrt(2))
    assert grid_divergences(q, p, area)["tv"] == pytest.approx(tv, abs=1e-3)


def test_a_dead_model_is_reported_not_hidden():
    points, area = grid(BOX, 50)
    p = -gaussian([0.0, 0.0], 1.0)(points).double()
    q = p.clone()
    q[0] = math.nan
    assert grid_divergences(q, p, area) == {"kl": math.inf, "tv": 1.0}
    spike = torch.full_like(p, -5000.0)
    spike[0] = 0.0
    found = grid_divergences(spike, p, area)
    assert found["kl"] > 4000 and found["tv"] == pytest.approx(1, abs=1e-3)
    assert mmd2(torch.full((20, 2), math.nan), torch.randn(20, 2)) == math.inf
    assert modes_found(torch.full((20, 2), math.nan), torch.zeros(1, 2), 1.0) == (0, 0.0)


def test_batches_of_a_network_do_not_change_the_density():
    net = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)).double()
    whole = grid_log_density(lambda x: net(x.double()), BOX, 150)  # 22 500 points: three parts
    e = net(grid(BOX, 150)[0].double()).squeeze(1)
    assert torch.allclose(whole, -e - torch.logsumexp(-e, 0) - math.log((12 / 150) ** 2))


def test_modes_by_hand():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    x = torch.cat(
        [
            torch.tensor([0.0, 0.29]).repeat(70, 1),  # on the first mode: within 3 x 0.1
            torch.tensor([10.0, 0.31]).repeat(20, 1),  # just off the second
            torch.tensor([0.0, 10.0]).repeat(7, 1),  # a quarter of the fair 25 is 6.25: found
            torch.tensor([10.0, 10.0]).repeat(3, 1),  # on the fourth, but too few
        ]
    )
    assert modes_found(x, centres, 0.1) == (2, pytest.approx(0.8))


def test_real_samples_find_all_modes():
    for name, n in (("ring", 8), ("25gaussians", 25)):
        data = load(name)
        modes, on_mode = modes_found(data.test, data.centres, data.std)
        # within 3 std in 2-D: 1 - exp(-4.5)
        assert modes == n and abs(on_mode - (1 - math.exp(-4.5))) < 5 * math.sqrt(0.011 / 2000)


def test_mmd_is_unbiased_and_sees_a_shift():
    real = torch.randn(2000, 3)
    same = [mmd2(part, real) for part in torch.randn(20, 100, 3)]
    mean = sum(same) / 20
    spread = torch.tensor(same).std().item()
    assert min(same) < 0 and abs(mean) < 4 * spread / math.sqrt(20) + 1e-3
    assert mmd2(torch.randn(500, 3) + 0.5, real) > 10 * spread
    # two points each, by hand: kernel e^-1/2 at distance 1, with bandwidth 1
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]])
    k = math.exp(-0.5)
    assert mmd2(x, y, bandwidth=1.0) == pytest.approx(k + k - (1 + k))


def test_precision_recall_on_digits(capsys):
    digits = load("digits")
    real, n = digits.test, len(digits.test)
    good = precision_recall(real, digits.train[:n])
    assert capsys.readouterr().out == ""
    assert min(good["precision"], good["recall"]) > 0.9
    noise = precision_recall(real, torch.rand(n, 1, 8, 8))
    assert noise["precision"] < 0.05
    one_class = digits.train[(digits.train - digits.train[0]).flatten(1).norm(dim=1).argsort()[:80]]
    dropped = precision_recall(real, one_class)
    assert dropped["precision"] > 0.8 and dropped["recall"] < 0.6


def test_floor_splits_once():
    x = torch.arange(10.0).unsqueeze(1)
    a, b = floor(lambda a, b: (a, b), x)
    assert len(a) == len(b) == 5 and torch.equal(torch.cat([a, b]).sort(0).values, x)
