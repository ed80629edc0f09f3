"""Composed energies: their normalised density, on a grid and in chains, and what they accept."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fastebm import (
    EnergyFromLogProb,
    LangevinDynamics,
    MixtureEnergy,
    MultiScaleEnergy,
    SumEnergy,
    TemperedEnergy,
)
from fastebm.app.evaluation import grid, grid_log_density
from fastebm.energies import Energy, GivenEnergy, MLPEnergy
from fastebm.energies.protocol import energy

BOX, SIDE = (-12.0, 12.0), 240


class Gaussian(Energy):
    """Mean m and variance v of each axis: p(x) with its normaliser, less a constant ``level``."""

    def __init__(self, m, v, level=0.0):
        super().__init__()
        self.m, self.v = torch.tensor(m).double(), torch.tensor(v).double()
        self.level = level

    def forward(self, x):
        squares = (x - self.m).square() / self.v + (2 * math.pi * self.v).log()
        return squares.sum(1) / 2 + self.level

    def density(self, x):
        return torch.exp(-self(x) + self.level)


A = Gaussian([1.0, 0.0], [1.0, 0.5])
B = Gaussian([-1.0, 0.5], [2.0, 1.5])


def on_grid(model):
    return grid_log_density(model, BOX, SIDE).exp()


def conjunction(weights, parts=(A, B)):
    """Closed form of prod p_i^w_i: precisions add, so do precisions times means."""
    precision = sum(w / g.v for w, g in zip(weights, parts, strict=True))
    mean = sum(w * g.m / g.v for w, g in zip(weights, parts, strict=True)) / precision
    return Gaussian(mean.tolist(), (1 / precision).tolist())


@pytest.mark.parametrize(
    "model, expected",
    [
        (A + B, conjunction((1, 1))),
        (2.0 * A, conjunction((2, 0))),
        (0.5 * A + 2 * B, conjunction((0.5, 2))),
        (A - 0.1 * B, conjunction((1, -0.1))),
        (2 * (A + 0.5 * (B - 0.3 * A)), conjunction((1.7, 1))),
        (TemperedEnergy(A, 3.0), conjunction((1 / 3, 0))),
        (TemperedEnergy(A + B, 2.0), conjunction((0.5, 0.5))),
    ],
)
def test_density_of_sums_and_tempered_energies(model, expected):
    # The rectangle rule of these Gaussians is exact to rounding, that of the grid's float32 points.
    p, (points, _) = on_grid(model), grid(BOX, SIDE)
    torch.testing.assert_close(p, expected.density(points.double()), rtol=1e-6, atol=1e-6)


def test_product_of_gaussians_has_its_normaliser():
    # The integral of p_a p_b is N(m_a - m_b; 0, v_a + v_b), on each axis.
    points, area = grid(BOX, SIDE)
    total = torch.exp(-(A + B)(points.double())).sum() * area
    difference, v = A.m - B.m, A.v + B.v
    expected = torch.exp(-(difference**2) / (2 * v)) / (2 * math.pi * v).sqrt()
    torch.testing.assert_close(total, expected.prod())


@pytest.mark.parametrize("weights", [None, (0.2, 0.8), (3.0, 1.0)])
@pytest.mark.parametrize("level", [0.0, 2.0])
def test_density_of_mixtures(weights, level):
    # A level c makes a component exp(-c) times lighter: weights are relative.
    lowered = Gaussian(B.m.tolist(), B.v.tolist(), level)
    model = (A | lowered) if weights is None else MixtureEnergy((A, lowered), weights)
    w = torch.tensor(weights or (1.0, 1.0)).double() * torch.tensor([0.0, -level]).double().exp()
    points = grid(BOX, SIDE)[0].double()
    expected = (w[0] * A.density(points) + w[1] * B.density(points)) / w.sum()
    torch.testing.assert_close(on_grid(model), expected, rtol=1e-6, atol=1e-6)


def test_nested_mixtures_are_one_and_large_energies_do_not_overflow():
    x = torch.randn(50, 2).double()
    torch.testing.assert_close((A | B | A)(x), MixtureEnergy((A, B, A))(x))
    high = Gaussian([0.0, 0.0], [1.0, 1.0], 1e6)
    torch.testing.assert_close((high | high)(x), high(x) - math.log(2))


def law_on_grid(slope, x, start, step, n_steps):
    """The exact law of a 1-D Langevin chain, as probabilities of the grid points x."""
    kernel = torch.exp(-((x[:, None] - x + step * slope(x)) ** 2) / (4 * step))
    kernel /= kernel.sum(0)
    for _ in range(n_steps):
        start = kernel @ start
    return start


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: a + b,
        lambda a, b: a | b,
        lambda a, b: a - 0.1 * b,
        lambda a, b: MixtureEnergy((a, b), (0.2, 0.8)),
        lambda a, b: TemperedEnergy(2 * (a | b), 3.0),
    ],
    ids=["and", "or", "not", "weighted", "tempered"],
)
def test_chains_follow_the_composed_density(make):
    # Both parts have one law on axis 1, so axis 0 is a chain of its own, whose exact law comes
    # from a grid. Kolmogorov-Smirnov, significance 1e-4; a chain of another energy fails (below).
    a, b = Gaussian([1.5, 0.0], [0.5, 1.0]), Gaussian([-1.5, 0.0], [0.8, 1.0])
    n, step, n_steps = 4000, 0.05, 120
    x = torch.linspace(-9, 9, 601, dtype=torch.float64)

    def slope(x):
        leaf = torch.stack([x, torch.zeros_like(x)], 1).requires_grad_()
        return torch.autograd.grad(make(a, b)(leaf).sum(), leaf)[0][:, 0]

    start = torch.exp(-x.square() / 2)
    law = law_on_grid(slope, x, start / start.sum(), step, n_steps)
    begin = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    samples = LangevinDynamics(make(a, b), step).sample(begin, n_steps, seed=1)[:, 0]

    edges, cumulative = (x + (x[1] - x[0]) / 2).numpy(), law.cumsum(0).numpy()

    def cdf(points):
        return np.interp(points, edges, cumulative)

    assert stats.kstest(samples.numpy(), cdf).pvalue > 1e-4
    other = LangevinDynamics(make(a, a), step).sample(begin, n_steps, seed=1)[:, 0]
    assert stats.kstest(other.numpy(), cdf).pvalue < 1e-4
    # The law itself is near the density. In total variation a Gaussian of precision k is off by
    # 0.12 k step, with k = 3.25 for the conjunction; mixtures have not quite forgotten their start.
    points = torch.stack([x, torch.zeros_like(x)], 1)
    target = torch.softmax(-make(a, b)(points), 0)
    assert (law - target).abs().sum() / 2 < step * 3.25 / 3


class Labelled(Energy):
    """A Gaussian at the label, the same for all or one a sample."""

    def forward(self, x, y, width=1.0):
        centre = y[:, None] if isinstance(y, torch.Tensor) else y
        return (x - centre).square().sum(1) / (2 * width**2)


def test_given_fixes_arguments_and_wins_over_the_call():
    e, x = Labelled(), torch.randn(4, 2).double()
    torch.testing.assert_close(e.given(y=3)(x), e(x, y=3))
    torch.testing.assert_close(e.given(y=3)(x, y=1, width=2.0), e(x, y=3, width=2.0))
    torch.testing.assert_close(e.given(y=3).given(width=2.0)(x), e(x, y=3, width=2.0))
    both = e.given(y=3) + e.given(y=5)
    torch.testing.assert_close(both(x), e(x, 3) + e(x, 5))
    torch.testing.assert_close((e.given(y=3) + e)(x, y=2), e(x, 3) + e(x, 2))
    labels = torch.arange(4).double()
    torch.testing.assert_close(e.given(y=labels)(x), e(x, labels))
    # Conjunction of labels 3 and 5: N(4, 1/2) on each axis, so one step of 1/2 is at the mode.
    out = LangevinDynamics(both, 0.5, noise_std=0.0).sample(x, 1)
    torch.testing.assert_close(out, torch.full_like(x, 4.0))


def test_any_callable_can_be_a_part():
    def f(x):
        return x.square().sum(1, keepdim=True)  # (B, 1)

    x = torch.randn(5, 2).double()
    for model, expected in {
        A + f: A(x) + f(x)[:, 0],
        f + A: A(x) + f(x)[:, 0],
        f - A: f(x)[:, 0] - A(x),
        A - f: A(x) - f(x)[:, 0],
        GivenEnergy(f) + f: 2 * f(x)[:, 0],
        SumEnergy([f, f], [1, 3]): 4 * f(x)[:, 0],
        (f | A): -torch.logaddexp(-f(x)[:, 0], -A(x)),
        (A | f): -torch.logaddexp(-f(x)[:, 0], -A(x)),
        TemperedEnergy(f, 2): f(x)[:, 0] / 2,
    }.items():
        torch.testing.assert_close(model(x), expected)


def test_scales_are_summed_in_compositions():
    def net(x):
        return x.mean((1, 2, 3))

    scales = MultiScaleEnergy([net, lambda x: 2 * net(x)], factors=(1, 2))
    x = torch.rand(3, 1, 4, 4).double()
    torch.testing.assert_close(scales(x), torch.stack([net(x), 2 * net(x)], 1))
    for model, expected in {
        scales + net: 4 * net(x),
        2.0 * scales: 6 * net(x),
        scales | scales: 3 * net(x) - math.log(2),
    }.items():
        torch.testing.assert_close(model(x), expected)
    assert TemperedEnergy(scales, 2.0)(x).shape == scales.given()(x).shape == (3, 2)


def test_energy_of_log_densities():
    normal = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    x = torch.randn(5, 2).double()
    torch.testing.assert_close(EnergyFromLogProb(normal)(x), -normal.log_prob(x))
    torch.testing.assert_close(EnergyFromLogProb(normal.log_prob)(x), -normal.log_prob(x))

    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.ones(2).double())

        def log_prob(self, x):
            return normal.log_prob(x - self.shift)

    flow = EnergyFromLogProb(Flow())
    torch.testing.assert_close(flow(x), -normal.log_prob(x - 1))
    assert [name for name, _ in flow.named_parameters()] == ["model.shift"]
    network = MLPEnergy(2).double()  # a network whose output is the log density
    torch.testing.assert_close(EnergyFromLogProb(network)(x), -network(x))


def test_parameters_are_shared_and_frozen_in_chains(alone):
    net = MLPEnergy(2, (8,)).double()
    model = net + 0.5 * (net | A)
    assert {id(p) for p in model.parameters()} == {id(p) for p in net.parameters()}
    seen = []
    net.register_forward_hook(lambda *_: seen.append([p.requires_grad for p in net.parameters()]))
    LangevinDynamics(model, 0.1).sample(torch.randn(3, 2).double(), 1)
    assert seen == [[False] * 4] * 2
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: SumEnergy([]), ValueError, "models must be at least one"),
        (lambda: SumEnergy([A, B], [1.0]), ValueError, "weights must be 2 numbers"),
        (lambda: math.inf * A, ValueError, "weights must be finite"),
        (lambda: SumEnergy([A], ["1"]), ValueError, "weights must be finite"),
        (lambda: MixtureEnergy([A, B], [1.0, 0.0]), ValueError, "weights must be > 0"),
        (lambda: SumEnergy([A, 3]), TypeError, "model must be callable, got int"),
        (lambda: TemperedEnergy(A, 0.0), ValueError, "temperature must be"),
        (lambda: TemperedEnergy(3, 1.0), TypeError, "model must be callable"),
        (lambda: EnergyFromLogProb(3), TypeError, "model must be callable"),
        (lambda: A + 1, TypeError, "unsupported operand"),
        (lambda: A * B, TypeError, "unsupported operand"),
        (lambda: A | 2.0, TypeError, "unsupported operand"),
    ],
)
def test_wrong_parts(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_part_with_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"energies of shape \(B,\)"):
        energy(A + (lambda x: x.sum()), torch.zeros(4, 2).double())


def test_numbers_sums_and_signs():
    x = torch.randn(7, 2).double()
    three = np.float64(3)
    for composed, expected in (
        (-A, -A(x)),
        (A / 4, A(x) / 4),
        (A / three, A(x) / 3),
        (three * A, 3 * A(x)),
        (np.int64(3) * A, 3 * A(x)),
        (sum([A, B, A]), 2 * A(x) + B(x)),
        (sum([A]), A(x)),
    ):
        assert isinstance(composed, Energy)
        torch.testing.assert_close(composed(x), expected)
    assert sum([A]) is A
    for wrong in (lambda: A / B, lambda: 1 + A, lambda: 1 / A, lambda: A / "2"):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(ZeroDivisionError):
        A / 0
