"""The tightest scale of a data set, which bounds the step size of a Langevin chain."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastebm.caller import warn

MIN_POINTS = 32
_MAX_POINTS = 2000
_SHARE = 0.75  # of its initial value, where the slope is read
_PER_OCTAVE = 4  # points of the log-log curve while the number of pairs doubles
_WIDTH = 8  # points that a slope spans


class StepSizeWarning(UserWarning):
    """The step is too large for the data: no energy makes the chain reproduce them."""


def warn_of_wide_noise(step_size: float, noise_std: float, data: Tensor) -> None:
    """Warn when the noise of one step is wider than the tightest scale of the data: see
    ``LangevinDynamics.check_step_size``."""
    variance, v = noise_std**2, data_scale(data)
    if variance > v:
        warn(
            f"step_size={step_size:.3g} adds noise of variance {variance:.3g} a step, more than the"
            f" tightest scale of the data, {v:.3g}: no energy makes these chains reproduce the"
            f" data; at this effective temperature use step_size <= {step_size * v / variance:.2g}",
            StepSizeWarning,
        )


def data_scale(x: Tensor) -> float:
    """Variance per dimension of the tightest scale of the data, from its correlation integral.

    Let C(r) be the share of pairs of points closer than r. For modes that are Gaussians of variance
    v in d dimensions, pairs within a mode give C(r) ~ P(chi2_d < r^2 / 2v), whatever the number of
    modes: the slope d log C / d log r starts at the intrinsic dimension d and falls. Its value at
    the smallest distances and the distance at which it has fallen to 0.75 of that give d and v.

    Within a factor of 1.5 for well separated or single Gaussians; an order of magnitude for
    anything else. The points, 2000 at most, are taken evenly from ``x``, so the answer does not
    depend on a seed. Computed on the CPU.

    Args:
        x: (N, *event), at least 32 points.

    Raises:
        ValueError: fewer points, fewer than 32 distinct pairs, or values that are not finite.

    Source: Grassberger and Procaccia, Measuring the strangeness of strange attractors, 1983.
    """
    n = x.shape[0] if x.dim() else 0
    if n < MIN_POINTS:
        raise ValueError(f"x must hold at least {MIN_POINTS} points, got {n}")
    rows = torch.linspace(0, n - 1, min(n, _MAX_POINTS), dtype=torch.float64, device=x.device)
    x = x.detach()[rows.round().long()].reshape(len(rows), -1).double().cpu()
    if not x.isfinite().all():
        raise ValueError("x must be finite, got NaN or infinity")
    r = torch.pdist(x).sort().values
    r = r[r > 0]
    if len(r) < 32:
        raise ValueError(f"x must hold at least 32 pairs of distinct points, got {len(r)}")

    octaves = math.log2(len(r) / 16)
    counts = torch.logspace(4, 4 + octaves, int(octaves * _PER_OCTAVE) + 1, 2.0).long()
    log_r = r[counts.clamp(max=len(r)) - 1].log()
    log_c = counts.double().log()
    w = min(_WIDTH, len(counts) // 2)
    slope = (log_c[w:] - log_c[:-w]) / (log_r[w:] - log_r[:-w]).clamp(min=1e-12)
    log_r = (log_r[w:] + log_r[:-w]) / 2

    # The slopes of the fewest pairs are noise; the next octaves say what d is.
    start = min(_WIDTH, len(slope) // 4)
    stop = min(start + 2 * _WIDTH, len(slope) // 2)
    dim = float(x.shape[1])
    first = min(slope[start : stop + 1].median().item(), dim)
    below = slope[start:] < _SHARE * first
    at = start + int(below.int().argmax()) if below.any() else len(slope) - 1
    fallen = min(slope[at].item(), _SHARE * first)
    first_r2, at_r2 = (math.exp(2 * log_r[i].item()) for i in ((start + stop) // 2, at))

    def variance(d: float) -> float:
        q = _bisect(lambda q: _chi2_slope(d, q) > fallen, 1e-9, 20 * d + 20)
        return at_r2 / (2 * q)

    def slope_is_low(d: float) -> bool:
        return _chi2_slope(d, first_r2 / (2 * variance(d))) < first

    return variance(_bisect(slope_is_low, first, dim))


def _bisect(is_low: Callable[[float], bool], low: float, high: float) -> float:
    """Where ``is_low`` turns false between ``low`` and ``high``."""
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if is_low(middle) else (low, middle)
    return high


def _chi2_slope(d: float, q: float) -> float:
    """d log P(chi2_d < r^2) / d log r at r^2 = q: 2 q f(q) / F(q). It falls from d to 0."""
    a, z = torch.tensor([d / 2, q / 2], dtype=torch.float64)
    slope = 2 * torch.exp(a * z.log() - z - torch.lgamma(a)) / torch.special.gammainc(a, z)
    return d if slope.isnan() else float(slope)  # 0 / 0, far below the mode
