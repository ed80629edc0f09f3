"""Small perceptrons, what the operators on their energy are tested with, and what they may err."""

import math
from typing import NamedTuple

import torch

from fastebm import ops
from fastebm.ops import reference
from fastebm.ops.mlp.network import Network

UNIT = 2.0**-24  # of rounding
BETAS = {"softplus": 1.5, "leaky_relu": 0.2, "elu": 0.7}
# Batch, dimension and widths: on and off the sizes of vectors, tiles and groups of rows.
SHAPES = [
    (1, 1, (1,)),
    (5, 3, (7,)),
    (33, 65, (20, 30, 9)),
    (70, 2, (128, 128)),
    (16, 17, (64, 3, 5, 33)),
    (100, 5, (256,)),
]


def network(dim, widths, activation="silu", bias=True, device="cpu"):
    sizes = [dim, *widths, 1]
    weights, biases = [], []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        weights.append((torch.randn(b, a) * (2 / a) ** 0.5).to(device))
        biases.append((torch.randn(b) * 0.3).to(device) if bias else None)
    return Network(weights, biases, activation, BETAS.get(activation, 1.0), 4.0)


def with_base_and_rows(net, batch):
    """With a base around a point of its own, free in one dimension, and row biases for a batch."""
    width, dim = net.weights[0].shape
    like = net.weights[0]
    precision = 2 * torch.rand(dim)
    precision[dim // 2] = 0.0
    return net._replace(
        base_precision=precision.to(like),
        base_mean=torch.randn(dim).to(like),
        row_bias=torch.randn(batch, width).to(like),
    )


def converted(net, to):
    """The network, each tensor by ``to``."""
    one = lambda v: to(v) if isinstance(v, torch.Tensor) else v  # noqa: E731
    return Network(*(list(map(one, v)) if isinstance(v, list) else one(v) for v in net))


def double(net):
    return converted(net, torch.Tensor.double)


def noise(shape, k, state, **which):
    """The noise that ``langevin_step_`` uses in step k."""
    x = torch.zeros(shape, device=state.device)
    return ops.langevin_step_(x, None, 0.0, 1.0, state, t=which.pop("t", 0) + k, **which)


class Rounded(NamedTuple):
    """An exact value, and what float32 errs by at most, to first order in ``UNIT``: a sum of n
    products errs by n + 1 units of the sum of their sizes, and hands on what its terms err by."""

    value: torch.Tensor
    error: torch.Tensor

    def __add__(self, other):
        size = self.value.abs() + other.value.abs()
        return Rounded(self.value + other.value, self.error + other.error + UNIT * size)

    def __mul__(self, other):
        (a, da), (b, db) = self, other
        return Rounded(a * b, a.abs() * db + b.abs() * da + UNIT * (a * b).abs())

    def __matmul__(self, other):
        (a, da), (b, db) = self, other
        rounding = (a.shape[1] + 1) * UNIT * (a.abs() @ b.abs())
        return Rounded(a @ b, da @ b.abs() + a.abs() @ db + rounding)

    @property
    def T(self):
        return Rounded(self.value.T, self.error.T)


def exact(value):
    return Rounded(value.double(), torch.zeros_like(value, dtype=torch.float64))


def derivatives(net, z):
    """The activation and its first two derivatives, float64."""
    z = z.double().requires_grad_()
    act = Network([z.new_ones(1, 1)] * 2, [None] * 2, *net[2:5])
    a = reference.mlp_energy(act, z.view(-1, 1)).view(z.shape)
    (slope,) = torch.autograd.grad(a.sum(), z, create_graph=True)
    (curvature,) = torch.autograd.grad((slope + 0 * z).sum(), z)
    return a.detach(), slope.detach(), curvature


def activated(net, z):
    """The same of what errs, each computed to 8 units of max(1, |z|). Slopes are at most 1.2,
    curvatures at most 1.6, and third derivatives 2.1 (of tanh; beta 1.5 included)."""
    values = derivatives(net, z.value)
    bounds, jumps = [1.2, 1.6, 2.1], [0.0, 0.0, 0.0]
    if net.activation == "relu":
        bounds, jumps = [1.0, 0.0, 0.0], [0.0, z.value.abs() <= z.error, 0.0]
    if net.activation == "softplus":  # torch's jump to the straight line
        near = (net.beta * z.value - net.threshold).abs() <= net.beta * z.error
        jumps = [near * math.exp(-net.threshold) * f for f in (1 / net.beta, 1, net.beta)]
    if net.activation in ("leaky_relu", "elu"):
        near, curve = z.value.abs() <= z.error, net.beta if net.activation == "elu" else 0.0
        bounds, jumps = [1.0, curve, curve], [0.0, near * (1 - net.beta), near * curve]
    coarse = 8 * UNIT * z.value.abs().clamp(min=1)
    return [
        Rounded(value, bound * z.error + coarse + jump)
        for value, bound, jump in zip(values, bounds, jumps, strict=True)
    ]


def rounding_errors(net, x, **terms):
    """What energy (B,), gradient in x (B, D) and gradient in the parameters (P,), as
    ``reference.mlp_gradient`` defines them, may err by."""
    return all_rounding_errors(net, x, **terms)[:3]


def all_rounding_errors(net, x, n_data=0, factor=0.0, square_factor=0.0, v=None, x_error=None):
    """These, and what the gradient in row biases (B, width_1) may err by; by the formulas of
    csrc/mlp/gradient/gradient.h. ``x_error`` is what x errs by."""
    weights = [exact(w) for w in net.weights]
    biases = [exact(w.new_zeros(len(w)) if b is None else b) for w, b in zip(*net[:2], strict=True)]
    if net.row_bias is not None:
        biases[0] = exact(net.row_bias)
    h = [exact(x) if x_error is None else Rounded(x.double(), x_error)]
    t = [exact(torch.zeros_like(x) if v is None else v)]
    slopes, bends = [], []
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        value, slope, curvature = activated(net, h[-1] @ w.T + b)
        moved = t[-1] @ w.T
        h.append(value)
        t.append(slope * moved)
        slopes.append(slope)
        bends.append(curvature * moved)
    e, pull = h[-1] @ weights[-1].T + biases[-1], exact(torch.zeros_like(x))
    if net.base_precision is not None:
        mean = torch.zeros_like(net.base_precision) if net.base_mean is None else net.base_mean
        u = h[0] + exact(-mean)
        pull = exact(net.base_precision) * u
        e = e + (pull * u) @ exact(torch.full_like(mean, 0.5)[:, None])
    sign = torch.where(torch.arange(len(x), device=x.device) < n_data, 1.0, -1.0)[:, None]
    one = exact(torch.ones_like(sign))
    a = exact(sign) * Rounded(factor * one.value, UNIT * abs(factor) * one.value)
    a = a + e * Rounded(square_factor * one.value, UNIT * abs(square_factor) * one.value)
    sums = [a.T @ h[-1] + one.T @ t[-1], a.T @ one]
    to_h, through = one @ weights[-1], None
    for i in reversed(range(len(slopes))):
        to_z, bent = to_h * slopes[i], bends[i] * to_h
        through = bent if through is None else bent + through * slopes[i]
        g = a * to_z + through
        sums = [g.T @ h[i] + to_z.T @ t[i], g.T @ one, *sums]
        to_h, through = to_z @ weights[i], through @ weights[i]
    sums = torch.cat([s.error.flatten() for s in sums])
    return e.error[:, 0], (to_h + pull).error, sums, g.error
