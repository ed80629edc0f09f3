"""The tightest scale of a data set, which bounds the step size of a Langevin chain."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastebm.caller import warn

MIN_POINTS = 32
_MAX_POINTS = 2000
# What may be spent on distances, the more of: differences of two elements, which take some
# milliseconds; pairs for each sample given, less work than any loss of these samples.
_DIFFERENCES, _PAIRS_A_SAMPLE = 1 << 24, 16
_EXACT = 1e-10  # relative error of roots
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
    depend on a seed. Where the points have many elements there are fewer, so that no loss waits
    long for the answer: at most 207 of 784 elements, or sqrt(32 N), 179 of 1000. Modes of which
    only a few of these are drawn are not found. Computed on the CPU.

    Args:
        x: (N, *event), at least 32 points.

    Raises:
        ValueError: fewer points, fewer than 32 distinct pairs, or values that are not finite.

    Source: Grassberger and Procaccia, Measuring the strangeness of strange attractors, 1983.
    """
    n = x.shape[0] if x.dim() else 0
    if n < MIN_POINTS:
        raise ValueError(f"x must hold at least {MIN_POINTS} points, got {n}")
    if x[0].numel() == 0:
        raise ValueError(f"x must hold points of at least one element, got {tuple(x.shape)}")
    chosen = _points(n, x[0].numel())
    rows = torch.linspace(0, n - 1, chosen, dtype=torch.float64, device=x.device)
    x = x.detach()[rows.round().long()].reshape(len(rows), -1).cpu().double()
    if not x.isfinite().all():
        raise ValueError("x must be finite, got NaN or infinity")
    r = torch.from_numpy(np.sort(torch.pdist(x).numpy()))  # torch takes ten times as long
    r = r[r > 0]
    if len(r) < 32:
        raise ValueError(f"x must hold at least 32 pairs of distinct points, got {len(r)}")

    octaves, float32 = math.log2(len(r) / 16), {"dtype": torch.float32, "device": "cpu"}
    counts = torch.logspace(4, 4 + octaves, int(octaves * _PER_OCTAVE) + 1, 2.0, **float32).long()
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

    def excess(d: float) -> float:
        """Of the slope at the smallest distances, where it has fallen at the larger one."""
        return _chi2_slope(d, first_r2 / at_r2 * _chi2_with_slope(d, fallen)) - first

    return at_r2 / (2 * _chi2_with_slope(_root(excess, first, dim), fallen))


def _points(n: int, dim: int) -> int:
    """How many of n points of so many elements are looked at."""
    pairs = max(_DIFFERENCES // dim, _PAIRS_A_SAMPLE * n)
    return min(n, _MAX_POINTS, (1 + math.isqrt(1 + 8 * pairs)) // 2)


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where f, below 0 at ``low``, rises to 0; ``high`` where it does not. Regula falsi, which
    halves the weight of an end that stays (the Illinois rule)."""
    at_low, at_high, side = f(low), f(high), 0
    while at_high > 0 and high - low > _EXACT * high:
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        value = f(middle)
        if abs(value) <= _EXACT * middle:
            return middle
        if value < 0:
            low, at_low, at_high = middle, value, at_high / (2 if side < 0 else 1)
        else:
            high, at_high, at_low = middle, value, at_low / (2 if side > 0 else 1)
        side = -1 if value < 0 else 1
    return high


def _chi2_with_slope(d: float, slope: float) -> float:
    """Where ``_chi2_slope`` is ``slope`` < d. It is convex, so Newton's steps from 0 stay below."""
    q, step = 0.0, 1.0
    while step > _EXACT * q:
        here = _chi2_slope(d, q)
        fall = here * ((here - d + q) / (2 * q) if q else 1 / (d + 2))  # minus its derivative
        step = (here - slope) / fall
        q += step
    return q


def _chi2_slope(d: float, q: float) -> float:
    """d log P(chi2_d < r^2) / d log r at r^2 = q. It falls from d to 0: d over the series of
    ``M(1, d / 2 + 1, q / 2)``, Kummer's function."""
    total, term, k = 1.0, 1.0, 0
    while term > 1e-16 * total:
        k += 1
        term *= q / (d + 2 * k)
        total += term
    return d / total
