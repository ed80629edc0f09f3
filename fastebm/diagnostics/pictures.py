"""Pictures of chains: traces and ranks. No pyplot, so nothing needs a display."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fastebm.arguments import integer
from fastebm.diagnostics.inputs import (
    Element,
    as_columns,
    as_float64,
    check_names,
    column_of,
    label,
    need,
)

INK, FAINT = "#222222", "#b8b8b8"
COLOURS = ("#c23b22", "#e39b3d", "#8a5fa8", "#1f6fb2", "#2a8c57", "#555555")
_MOST = 4  # elements, where none are chosen


def trace_plot(
    trajectory: Tensor,
    elements: Sequence[Element] | None = None,
    *,
    names: Sequence[str] | None = None,
    n_chains: int = 6,
):
    """Elements along some chains, before the middle 90 % of all, and their histograms beside.

    Chains of one law that have forgotten their start look alike, and the band is level.

    Args:
        trajectory: (B, n_kept, *event), n_kept >= 2, as ``LangevinDynamics.sample`` returns it.
        elements: indices, ints or tuples, such as ``summary(trajectory).worst(4)``; None: all of
            up to four, else the four of largest variance.
        names: of all elements of an event, in their order; None: x[i, j].
        n_chains: how many chains are drawn, the first ones.

    Returns:
        A ``matplotlib.figure.Figure``; ``.savefig(path)`` writes it. Draws that are not finite are
        gaps.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
        ImportError: matplotlib is not installed.
    """
    chosen, n_chains = _chosen(trajectory, elements, names), integer("n_chains", n_chains, 1)
    figure = _figure(9.0, 0.5 + 1.8 * len(chosen))
    axes = figure.subplots(len(chosen), 2, squeeze=False, sharey="row", width_ratios=(4, 1))
    for (trace, side), (name, x) in zip(axes, chosen, strict=True):
        seen = np.isfinite(x)
        bins = np.histogram_bin_edges(x[seen], 40)
        flat = {"bins": bins, "density": True, "orientation": "horizontal"}
        if len(x) > 1 and seen.any(0).all():
            band = np.nanpercentile(np.where(seen, x, np.nan), (5, 95), axis=0)
            trace.fill_between(np.arange(x.shape[1]), *band, color=FAINT, alpha=0.4, lw=0)
        if seen.any():
            side.hist(x[seen], color=FAINT, **flat)
        for i, own in enumerate(seen[:n_chains]):
            colour = COLOURS[i % len(COLOURS)]
            trace.plot(np.where(own, x[i], np.nan), color=colour, lw=0.5, alpha=0.7)
            if own.any():
                side.hist(x[i, own], histtype="step", color=colour, lw=0.8, **flat)
        trace.set_title(name, fontsize=9, loc="left", parse_math=False)
        trace.set_xlim(0, x.shape[1] - 1)
        side.set_xticks([])
        for axis in (trace, side):
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
    shown = f"{min(n_chains, len(trajectory))} of {len(trajectory)} chains"
    axes[-1, 0].set_xlabel(f"draw; {shown}, middle 90 % of all", fontsize=8)
    return figure


def rank_plot(
    trajectory: Tensor,
    elements: Sequence[Element] | None = None,
    *,
    names: Sequence[str] | None = None,
    n_chains: int = 6,
):
    """Histograms of the ranks that the draws of some chains have among those of all chains.

    They are level for chains of one law. The dashed line is the level, its band two standard
    deviations of independent draws; correlated ones go beyond it more, the fewer they are worth.

    Args:
        trajectory: (B, n_kept, *event), n_kept >= 2, B >= 2, as ``LangevinDynamics.sample`` returns
            it.
        elements, names, n_chains: as in ``trace_plot``.

    Returns:
        A ``matplotlib.figure.Figure``. Draws that are not finite have no rank.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
        ImportError: matplotlib or scipy is not installed.

    Source: Vehtari et al., Rank-normalization, folding, and localization: an improved R-hat for
    assessing convergence of MCMC, 2021, section 4.2.
    """
    chosen, n_chains = _chosen(trajectory, elements, names), integer("n_chains", n_chains, 1)
    if len(trajectory) < 2:
        raise ValueError("trajectory must hold at least 2 chains for ranks, got 1")
    n_chains = min(n_chains, len(trajectory))
    n = trajectory.shape[1]
    n_bins = max(2, min(20, n // 10))
    figure = _figure(2.6 * len(chosen) + 0.4, 0.8 + 0.55 * n_chains)
    axes = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    for axis, (name, x) in zip(axes, chosen, strict=True):
        seen = np.isfinite(x)
        edges = np.linspace(0, 1, n_bins + 1)
        ranks = np.full(x.shape, np.nan)
        ranks[seen] = (need("scipy.stats").rankdata(x[seen]) - 0.5) / max(seen.sum(), 1)
        counts = [np.histogram(chain, edges)[0] for chain in ranks[:n_chains]]
        level, noise = n / n_bins, 2 * np.sqrt(n / n_bins * (1 - 1 / n_bins))
        unit = 0.9 / max(np.max(counts), level + noise)
        for i, heights in enumerate(counts):
            row = n_chains - 1 - i
            colour = COLOURS[i % len(COLOURS)]
            axis.bar(
                *(edges[:-1], unit * heights, np.diff(edges), row),
                align="edge",
                color=colour,
                alpha=0.75,
                lw=0,
            )
            ends = row + unit * max(level - noise, 0), row + unit * (level + noise)
            axis.axhspan(*ends, color=INK, alpha=0.12, lw=0)
            axis.axhline(row + unit * level, color=INK, lw=0.7, ls="--")
        axis.set_title(name, fontsize=9, loc="left", parse_math=False)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, n_chains)
        axis.set_yticks(range(n_chains), [str(n_chains - 1 - row) for row in range(n_chains)])
        axis.set_xlabel("rank among all draws, as a share", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"chain, of {len(trajectory)}", fontsize=8)
    return figure


def _chosen(
    trajectory: Tensor, elements: Sequence[Element] | None, names: Sequence[str] | None
) -> list[tuple[str, np.ndarray]]:
    """Label and draws (B, n) of the elements."""
    columns = as_columns(trajectory, 2)
    event = tuple(trajectory.shape[2:])
    names = check_names(names, event)
    if elements is not None:
        indices = [column_of(element, event) for element in elements]
        if not indices:
            raise ValueError("elements must be one index at least, got none")
    elif columns.shape[2] <= _MOST:
        indices = list(range(columns.shape[2]))
    else:
        spread = columns.float().var((0, 1)).nan_to_num(nan=np.inf)
        indices = spread.argsort(descending=True, stable=True)[:_MOST].sort().values.tolist()
    arrays = as_float64(columns[..., indices])
    return [(label(i, event, names), x) for i, x in zip(indices, arrays, strict=True)]


def _figure(width: float, height: float):
    return need("matplotlib.figure").Figure((width, height), layout="constrained", dpi=130)
