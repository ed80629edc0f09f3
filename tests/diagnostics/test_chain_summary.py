"""Diagnostics of chains against ArviZ and closed forms of AR(1); what is never made up."""

import math
import sys

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from scipy.special import ndtri

from fastebm import LangevinDynamics
from fastebm.diagnostics import convergence, summary

MEASURES = convergence._MEASURES


def ar1(rho, *shape, seed=1):
    """Stationary Gaussian AR(1) chains of variance 1, along the second axis."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    x = noise.copy()
    for t in range(1, shape[1]):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * noise[:, t]
    return torch.from_numpy(x)


CHAINS = [((6, 101, 2, 3), 0.8), ((2, 10, 3), 0.3), ((300, 12), 0.95), ((2, 4), 0.0)]


@pytest.mark.parametrize(("shape", "rho"), [*CHAINS, ((3, 250, 2), -0.4)])
@pytest.mark.parametrize("prob", [0.9, 0.5])
def test_the_numbers_are_arvizs(shape, rho, prob):
    x = ar1(rho, *shape)
    found, a = summary(x, prob=prob), x.numpy()
    axes = {"chain_axis": 0, "draw_axis": 1}
    ends = ((1 - prob) / 2, (1 + prob) / 2)
    low, high = np.quantile(a, ends, axis=(0, 1))
    expected = {
        "mean": a.mean((0, 1)),
        "sd": a.reshape(-1, *shape[2:]).std(0, ddof=1),
        "low": low,
        "high": high,
        "ess_bulk": array_stats.ess(a, **axes),
        "ess_tail": array_stats.ess(a, method="tail", prob=ends, **axes),
        "r_hat": array_stats.rhat(a, **axes),
        "mcse_mean": array_stats.mcse(a, **axes),
    }
    for name, value in expected.items():
        ours = getattr(found, name)
        assert ours.shape == shape[2:] and ours.dtype == torch.float64
        if shape[1] < 10 and name[:3] in ("ess", "mcs"):
            assert ours.isnan().all()
            continue
        np.testing.assert_allclose(ours, value, rtol=1e-9, atol=1e-12, err_msg=name)
    assert (found.n_chains, found.n_draws) == shape[:2] and not found.n_nonfinite.any()


@pytest.mark.parametrize("step", [0.1, 0.5, 1.5])
def test_langevin_chains_on_a_gaussian_are_ar1(step):
    # E = x^2 / 2: x <- (1 - h) x + sqrt(2 h) n, of variance 1 / (1 - h / 2)
    n_chains, n_draws, n = 16, 2000, 30
    rho, sd = 1 - step, (1 - step / 2) ** -0.5
    sampler = LangevinDynamics(lambda x: 0.5 * x.square().sum(1), step)
    start = sd * torch.randn(n_chains, n, dtype=torch.float64)
    x = sampler.sample(start, n_draws, return_trajectory=True, seed=3)
    found, total = summary(x), n_chains * n_draws
    tau, tau_squares = (1 + rho) / (1 - rho), (1 + rho**2) / (1 - rho**2)
    # A sum of autocorrelations up to lag W has the relative variance 2 (2 W + 1) / N (Priestley
    # 1981, 5.3); with W = 3 tau, beyond which they are below e^-6. Means of chains of n / 2 draws
    # bias it by tau / (n / 2), and Geyer's rule ends where a pair of autocorrelations is noise, of
    # which tau has twice. Of the n elements, errors are averaged.
    bias = tau / (n_draws / 2) + 2 * (2 / total) ** 0.5 / tau
    tolerance = 4 * math.sqrt(2 * (6 * max(tau, 1) + 1) / (total * n)) + bias
    assert tolerance < 0.1
    assert found.ess_bulk.mean() == pytest.approx(total / tau, rel=tolerance)
    assert found.mcse_mean.mean() == pytest.approx(sd * (tau / total) ** 0.5, rel=tolerance)
    expected = sd * (tau_squares / (2 * total)) ** 0.5
    assert found.mcse_sd.mean() == pytest.approx(expected, rel=tolerance)
    # and they are the errors: chi^2 of n terms, within 4 of its standard deviations
    for error in (found.mean / found.mcse_mean, (found.sd - sd) / found.mcse_sd):
        assert abs(error.square().sum() - n) < 4 * (2 * n) ** 0.5 + 2 * bias * n
    # The variance of the means of 32 halves of m draws is tau / m; chi^2 of 31 is below 2.5 * 31.
    assert 1 - 1e-3 < found.max_r_hat < (1 + 2.5 * max(tau, 1) / (n_draws / 2)) ** 0.5


def test_r_hat_of_equal_and_of_other_laws():
    x = ar1(0.5, 8, 500, 5)
    x[0, :, 1] += 1.5
    x[:4, :, 2] *= 4  # seen about the median alone
    x[:, 250:, 3] += 1.5  # the halves of each chain
    r_hat = summary(x).r_hat
    assert (r_hat[[0, 4]] < 1.01).all() and (r_hat[1:4] > 1.1).all()


def test_a_single_chain_has_the_r_hat_of_its_halves():
    x = ar1(0.3, 1, 401, 2)
    x[:, 201:, 1] += 1
    for column, found in enumerate(summary(x).r_hat.tolist()):
        halves = torch.stack([x[0, :200, column], x[0, 201:, column]])
        by_hand = []
        median = torch.quantile(halves, 0.5)
        for values in (halves, (halves - median).abs()):
            ranks = values.flatten().argsort().argsort().double() + 1
            z = torch.from_numpy(ndtri((ranks.numpy() - 3 / 8) / (400 + 1 / 4))).view(2, 200)
            within, between = z.var(1).mean(), 200 * z.mean(1).var()
            by_hand.append(((199 / 200 * within + between / 200) / within).sqrt())
        # The two draws about the median are as far from it, up to rounding: one rank or two.
        assert found == pytest.approx(max(by_hand).item(), rel=3e-4)
        assert found > 1.1 if column else found < 1.02


def test_what_is_not_known_is_nan():
    x = ar1(0.5, 4, 100, 8)
    x[0, 3, 1] = math.nan
    x[2, 5:8, 2] = torch.tensor([math.inf, -math.inf, math.nan])
    x[..., 3] = 0.1
    x[:, :, 4] = (x[:, :, 4] < 2).double()  # 1 in more than 95 %: both ends are the largest value
    x[:, :, 5] = x[:, :, 5].sign()  # whose squares about the median are one number
    x[:, :, 6] = torch.arange(4.0)[:, None]  # stuck chains
    found = summary(x)
    assert found.n_nonfinite.tolist() == [0, 1, 3, 0, 0, 0, 0, 0]
    for name in MEASURES:
        nan = getattr(found, name).isnan()
        assert nan[1] and nan[2] and not nan[0], name
        assert nan[3] == (name not in ("mean", "sd", "low", "high")), name
        assert not nan[4:].any(), name
    assert found.mean[3] == found.low[3] == found.high[3] == 0.1 and found.sd[3] == 0
    assert 1 > x[:, :, 4].mean() > 0.95 and found.low[4] == 1
    assert found.ess_tail[4] == pytest.approx(array_stats.ess(1 - x[..., 4].numpy(), method="tail",
                                                              prob=(0.05, 0.95)))  # fmt: skip
    assert found.r_hat[6] > 1e6 and found.ess_bulk[6] < 5  # as many as chains
    assert math.isnan(found.max_r_hat) and math.isnan(found.min_ess_bulk)
    good = summary(x[..., [0, 3, 7]])
    assert good.max_r_hat == good.r_hat[[0, 2]].max() and good.min_ess_tail > 50
    assert good.min_ess_bulk == good.ess_bulk[[0, 2]].min()
    assert math.isnan(summary(x[..., 3]).max_r_hat)  # it has not moved


def test_few_draws_have_an_r_hat_and_no_made_up_sample_size():
    stuck = torch.randn(50, 1) + 1e-6 * torch.randn(50, 9)
    assert array_stats.ess(stuck.numpy()) > 450  # what ArviZ says of 50 chains that are stuck
    found = summary(stuck)
    for value in (found.ess_bulk, found.ess_tail, found.mcse_mean, found.mcse_sd):
        assert value.isnan()
    assert found.r_hat > 10 and found.sd > 0 and "need 10 draws of each chain" in str(found)
    assert summary(torch.randn(2, 4)).r_hat > 0
    assert 0 < summary(stuck[:, :1] + 1e-6 * torch.randn(50, 10)).ess_bulk < 200


@pytest.mark.parametrize("unit", [1e-200, 1e200, -3.0])
def test_units_change_nothing(unit):
    x = ar1(0.7, 3, 60, 2)
    ours, theirs = summary(x), summary(unit * x)
    for name in ("ess_bulk", "ess_tail"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-6), name
    assert torch.allclose(ours.r_hat, theirs.r_hat, rtol=1e-3)  # ties of |x - median| are rounded
    for name in ("sd", "mcse_mean", "mcse_sd"):
        assert torch.allclose(abs(unit) * getattr(ours, name), getattr(theirs, name), rtol=1e-6)
    assert torch.allclose(unit * ours.mean, theirs.mean, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int16])
def test_any_type_is_its_values_in_float64(dtype):
    x = (20 * ar1(0.6, 3, 50, 2, 2)).to(dtype).requires_grad_(dtype.is_floating_point)
    ours, theirs = summary(x), summary(x.detach().double())
    for name in MEASURES:
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    bits = x.detach() > 0
    assert torch.allclose(summary(bits).mean, bits.double().mean((0, 1)))


def test_blocks_and_strides_change_nothing(monkeypatch):
    x = ar1(0.5, 5, 40, 3, 4)
    strided = x.movedim((0, 1), (2, 3)).contiguous().movedim((2, 3), (0, 1))
    monkeypatch.setattr(convergence, "_BLOCK", 5 * 40 * 5)  # five of twelve elements
    assert not strided.is_contiguous()
    found = summary(strided)
    monkeypatch.undo()
    for name in MEASURES:
        assert torch.equal(getattr(found, name), getattr(summary(x), name))


def test_a_picture_names_its_worst_pixels():
    x = ar1(0.2, 6, 80, 1, 5, 4)
    x[0, :, 0, 3, 2] += 3
    x[1, :, 0, 4, 1] += 2
    x[:, :, 0, 0, 0] = 1
    found = summary(x)
    assert found.worst(2) == [(0, 3, 2), (0, 4, 1)] and found.worst(20)[-1] == (0, 0, 0)
    lines = str(found).splitlines()
    assert lines[0].startswith("6 chains of 80 draws; 20 elements: r_hat <= ")
    assert lines[1:3] == ["1 elements never change", "the 8 worst:"]
    assert lines[3].split() == ["mean", "sd", "5%", "95%", *MEASURES[4:]]
    assert [line.split("  ")[0] for line in lines[4:6]] == ["x[0, 3, 2]", "x[0, 4, 1]"]
    assert len(lines) == 12 and len({len(line) for line in lines[3:]}) == 1
    assert f"{found.max_r_hat:.3f}" == f"{found.r_hat[0, 3, 2]:.3f}" in lines[0]
    x[0, 0, 0, 2, 2] = math.nan
    assert summary(x).worst(1) == [(0, 2, 2)]
    assert "1 draws of 1 elements are not finite" in str(summary(x))
    few = summary(x[:, :, 0, 3:4, 0:2], names=["a", "b"], prob=0.5)
    rows = [line.split() for line in repr(few).splitlines()]
    assert [row[0] for row in rows[2:]] == ["a", "b"] and rows[1][2:4] == ["25%", "75%"]
    scalar = summary(x[:, :, 0, 1, 1])
    assert scalar.r_hat.shape == () and scalar.worst() == [()]
    assert str(scalar).splitlines()[2].startswith("x ")


def test_bad_arguments():
    x = torch.randn(3, 8, 2)
    for trajectory, error, message in (
        (x.numpy(), TypeError, "trajectory must be a tensor .*got ndarray"),
        (x.to(torch.complex64), TypeError, "trajectory must be of real numbers, got .*complex64"),
        (x[0, :, 0], ValueError, r"n_kept >= 4 draws of each chain, got \(8,\)"),
        (x[:, :3], ValueError, r"n_kept >= 4 draws of each chain, got \(3, 3, 2\)"),
        (x[:0], ValueError, r"none of them 0.*got \(0, 8, 2\)"),
        (x[..., :0], ValueError, r"none of them 0.*got \(3, 8, 0\)"),
    ):
        with pytest.raises(error, match=message):
            summary(trajectory)
    for prob in (0, 1, -0.1, math.nan, True, "0.9"):
        with pytest.raises(ValueError, match=r"prob must be a number in \(0, 1\), got"):
            summary(x, prob=prob)
    with pytest.raises(ValueError, match="names must be 2, one for each element, got 1"):
        summary(x, names=["a"])
    for names in ("ab", [1, 2]):
        with pytest.raises(TypeError, match="names must be a sequence of 2 strings, got"):
            summary(x, names=names)


def test_without_arviz_it_says_what_to_install(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "arviz_stats"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "arviz_stats", None)
    with pytest.raises(ImportError, match=r'arviz_stats.* pip install "fastebm\[diagnostics\]"'):
        summary(torch.randn(2, 20))
