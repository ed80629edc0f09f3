"""R-hat, effective sample sizes and Monte Carlo errors of chains, by ArviZ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from fastebm.diagnostics.inputs import as_columns, as_float64, check_names, label, need, position

MIN_DRAWS = 4  # of a chain, as its halves need two
MIN_DRAWS_OF_ESS = 10  # with fewer, ArviZ's estimate has no autocorrelation in it
_BLOCK = 1 << 22  # numbers that are taken to float64 at once
_SHOWN = 8  # elements of a printed table
_MEASURES = ("mean", "sd", "low", "high", "ess_bulk", "ess_tail", "r_hat", "mcse_mean", "mcse_sd")


@dataclass(frozen=True, repr=False)
class Summary:
    """What ``summary`` found; printed, a table of all elements, or of the worst of many.

    Attributes:
        n_chains, n_draws: of the trajectory.
        prob: of the interval.
        names: of the elements, or None.
        mean, sd: over all draws of all chains; this and what follows are tensors of the event's
            shape, float64 on the CPU.
        low, high: ends of the central interval, which holds a share ``prob`` of the draws.
        ess_bulk: how many independent draws would do as well for the middle of the law.
        ess_tail: the lesser of those for ``low`` and ``high``.
        r_hat: rank-normalised split R-hat; 1 for chains of one law, and to be below 1.01.
        mcse_mean, mcse_sd: standard errors of ``mean`` and ``sd``.
        n_nonfinite: int64, how many draws are not finite. Elements that have such are NaN in all
            of the above.

    An element that never changes has a mean and the sd 0, and no ESS, R-hat or error: NaN.
    """

    n_chains: int
    n_draws: int
    prob: float
    names: tuple[str, ...] | None
    mean: Tensor
    sd: Tensor
    low: Tensor
    high: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor
    r_hat: Tensor
    mcse_mean: Tensor
    mcse_sd: Tensor
    n_nonfinite: Tensor

    @property
    def max_r_hat(self) -> float:
        """The largest R-hat of elements that change; NaN if a draw of any is not finite."""
        return self._extreme(self.r_hat, max)

    @property
    def min_ess_bulk(self) -> float:
        """The least bulk ESS of elements that change; NaN if a draw of any is not finite."""
        return self._extreme(self.ess_bulk, min)

    @property
    def min_ess_tail(self) -> float:
        """The least tail ESS of elements that change; NaN if a draw of any is not finite."""
        return self._extreme(self.ess_tail, min)

    def worst(self, n: int = 4) -> list[tuple[int, ...]]:
        """Indices of up to ``n`` elements, such as pictures take: those that are not finite, then
        by R-hat, the largest first, and last those that never change."""
        event = tuple(self.r_hat.shape)
        return [position(column, event) for column in self._by_r_hat()[:n]]

    def table(self, n: int | None = None) -> str:
        """Lines of a table: all elements, or the ``n`` worst."""
        columns = range(self.r_hat.numel()) if n is None else self._by_r_hat()[:n]
        ends = [f"{50 * (1 + sign * self.prob):.4g}%" for sign in (-1, 1)]
        rows = [["", "mean", "sd", *ends, *_MEASURES[4:]]]
        for column in columns:
            cells = [label(column, tuple(self.r_hat.shape), self.names)]
            for name in _MEASURES:
                value = getattr(self, name).flatten()[column].item()
                cells.append(_text(name, value))
            rows.append(cells)
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        return "\n".join(
            cells[0].ljust(widths[0])
            + "".join(f"  {c:>{w}}" for c, w in zip(cells[1:], widths[1:], strict=True))
            for cells in rows
        )

    def __str__(self) -> str:
        n = self.r_hat.numel()
        head = f"{self.n_chains} chains of {self.n_draws} draws"
        if n > 1:
            head += (
                f"; {n} elements: r_hat <= {self.max_r_hat:.3f},"
                f" ess_bulk >= {self.min_ess_bulk:.0f}, ess_tail >= {self.min_ess_tail:.0f}"
            )
        lines = [head]
        if self.n_draws < MIN_DRAWS_OF_ESS:
            lines.append(f"ess and mcse need {MIN_DRAWS_OF_ESS} draws of each chain")
        if bad := int((self.n_nonfinite > 0).sum()):
            lines.append(f"{int(self.n_nonfinite.sum())} draws of {bad} elements are not finite")
        if constant := int((self.sd == 0).sum()):
            lines.append(f"{constant} elements never change")
        if n > _SHOWN:
            lines.append(f"the {_SHOWN} worst:")
        return "\n".join([*lines, self.table(_SHOWN if n > _SHOWN else None)])

    __repr__ = __str__

    def _extreme(self, values: Tensor, choose) -> float:
        known = values[~values.isnan()]
        if bool((self.n_nonfinite > 0).any()) or not len(known):
            return math.nan
        return float(choose(known.tolist()))

    def _by_r_hat(self) -> list[int]:
        r_hat = self.r_hat.flatten().nan_to_num(nan=-math.inf, posinf=math.inf)
        r_hat[self.n_nonfinite.flatten() > 0] = math.inf
        return r_hat.argsort(descending=True, stable=True).tolist()


def summary(
    trajectory: Tensor, *, names: Sequence[str] | None = None, prob: float = 0.9
) -> Summary:
    """Mean, spread, effective sample sizes, R-hat and Monte Carlo errors of chains.

    Print the result for ArviZ's table; of many elements it has the worst. Chains should start
    further apart than the law they sample is wide, and forget that before the trajectory begins
    (``burn_in``): R-hat sees no mode that no chain has been to.

    Args:
        trajectory: (B, n_kept, *event), as ``LangevinDynamics.sample`` and ``GibbsSampler.sample``
            return it: B chains of ``n_kept`` draws, B >= 1, n_kept >= 4. Of any dtype but a complex
            one, on any device. Of numbers of the chains it is (B, n_kept), as
            ``diagnostics["energy"].T``.
        names: of the elements of an event, in their order; None: x[i, j].
        prob: share of the draws in the interval (low, high), in (0, 1).

    Returns:
        A ``Summary``. ESS and Monte Carlo errors are NaN for fewer than 10 draws of each chain: no
        autocorrelation would be in them. A single chain has the R-hat of its halves.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
        ImportError: arviz-stats is not installed.

    Elements are looked at one after another, each in a time that is that of sorting its draws a few
    times: 64 chains of 1000 draws take 0.04 s (one core of an EPYC, 2026-11), so 784 pixels half a
    minute. Of large images take a few numbers (the energy, the mean pixel) or some pixels,
    ``trajectory[..., ::4, ::4]``. Beside the trajectory there are 32 MB, or some copies of one
    element.

    The numbers are those of ``arviz_stats`` but for ``mcse_sd``, which goes by the ESS of squared
    deviations, as in Stan's posterior; in arviz-stats 0.8 it goes by that of the mean.

    Source: Vehtari, Gelman, Simpson, Carpenter and Buerkner, Rank-normalization, folding, and
    localization: an improved R-hat for assessing convergence of MCMC, 2021.
    """
    columns = as_columns(trajectory, MIN_DRAWS)
    event = tuple(trajectory.shape[2:])
    names = check_names(names, event)
    if isinstance(prob, bool) or not isinstance(prob, Real) or not 0 < prob < 1:
        raise ValueError(f"prob must be a number in (0, 1), got {prob!r}")
    n_chains, n_draws, n = columns.shape
    found = np.full((n, len(_MEASURES)), np.nan)
    n_nonfinite = np.zeros(n, dtype=np.int64)
    step = max(1, _BLOCK // (n_chains * n_draws))
    for start in range(0, n, step):
        block = as_float64(columns[..., start : start + step])
        for i, x in enumerate(block, start):
            n_nonfinite[i] = x.size - np.isfinite(x).sum()
            if not n_nonfinite[i]:
                found[i] = _measures(x, float(prob))
    tensors = [torch.from_numpy(v.reshape(event)) for v in (*found.T.copy(), n_nonfinite)]
    return Summary(n_chains, n_draws, float(prob), names, *tensors)


def _measures(x: np.ndarray, prob: float) -> tuple[float, ...]:
    """``_MEASURES`` of one element (B, n), finite."""
    nan, shift = math.nan, x[0, 0]
    unit = np.abs(x - shift).max()
    if unit == 0:
        return (shift, 0.0, shift, shift, nan, nan, nan, nan, nan)
    halves = _halves(x)
    scores = _normal_scores(halves)
    r_hat = np.fmax(_r_hat(scores), _r_hat(_normal_scores(np.abs(halves - np.median(halves)))))
    low, high = np.quantile(x, ((1 - prob) / 2, (1 + prob) / 2))
    y = (x - shift) / unit  # whose squares neither overflow nor vanish
    mean, sd = y.mean(), y.std(ddof=1)
    ess_bulk = ess_tail = error = error_of_sd = nan
    if x.shape[1] >= MIN_DRAWS_OF_ESS:
        ess_bulk = _ess(scores)
        ess_tail = min(_ess(_below(halves, end)) for end in (low, high))
        error = sd / math.sqrt(_ess(_halves(y)))
        squares = (y - mean) ** 2
        # that of the variance by the delta method: Kenney and Keeping 1951, p. 141
        error_of_sd = math.sqrt(squares.var() / (4 * squares.mean() * _ess(_halves(squares))))
    return (
        *(shift + unit * mean, unit * sd, low, high),
        *(ess_bulk, ess_tail, r_hat, unit * error, unit * error_of_sd),
    )


def _halves(x: np.ndarray) -> np.ndarray:
    """(B, n) as the halves of chains, (2B, n // 2); an odd chain loses its middle."""
    n = x.shape[1] // 2
    return np.concatenate([x[:, :n], x[:, -n:]])


def _below(x: np.ndarray, end: float) -> np.ndarray:
    """Which numbers are up to an end of the interval; not all of them, where it is the largest."""
    below = x <= end
    return x < end if below.all() else below


def _normal_scores(x: np.ndarray) -> np.ndarray:
    """Normal quantiles of the ranks of all numbers, of equal ones the mean rank."""
    ranks = need("scipy.stats").rankdata(x).reshape(x.shape)
    return need("scipy.special").ndtri((ranks - 0.375) / (x.size + 0.25))


def _ess(x: np.ndarray) -> float:
    """Of chains (B, n) as they are; NaN, not ArviZ's B n, where they are one number."""
    if x.min() == x.max():
        return math.nan
    return float(need("arviz_stats.base").array_stats.ess(x, method="identity"))


def _r_hat(x: np.ndarray) -> float:
    """Of chains (B, n) as they are, B >= 2; ArviZ's needs four draws of each, and halves may have
    two. NaN where all numbers are one."""
    n, within, between = x.shape[1], x.var(1, ddof=1).mean(), x.mean(1).var(ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.sqrt(between / within + (n - 1) / n))


def _text(name: str, value: float) -> str:
    if name.startswith("ess"):
        return f"{value:.0f}"
    return f"{value:.3f}" if name == "r_hat" and value < 1000 else f"{value:.3g}"
