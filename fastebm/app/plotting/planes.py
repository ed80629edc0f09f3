"""Samples and energies in two dimensions."""

from __future__ import annotations

import math

import numpy as np

from fastebm.app.data import need
from fastebm.app.plotting.figure import COLOURS, FAINT, INK, figure_of, without_ticks


def energy_landscapes(data, exact, models: dict, box: tuple[float, float], depth: float = 12.0):
    """Learned energies beside the data and the exact energy, all on one colour scale.

    Args:
        data: (N, 2) samples.
        exact: (n, n) exact log density on the grid of the box (x along rows), or None.
        models: label -> (n, n) normalised log density. Energies are shown as -log p, cut at
            `depth` nats above the lowest of the exact energy.
        box: (lo, hi) of both axes.
    """
    panels = ({} if exact is None else {"exact energy": exact}) | models
    columns = min(len(panels) + 1, 4)
    rows = math.ceil((len(panels) + 1) / columns)
    figure = figure_of(2.6 * columns + 0.7, 2.85 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    _scatter(axes.flat[0], data[:3000], box)
    axes.flat[0].set_title("data", fontsize=10)
    low = min(
        float(np.nanmin(-np.asarray(v)))
        for v in ([exact] if exact is not None else [*models.values()])
    )
    image = None
    for axis, (label, log_p) in zip(axes.flat[1:], panels.items(), strict=False):
        value = np.clip(-np.asarray(log_p).T, low, low + depth)
        image = axis.imshow(
            value, origin="lower", extent=(*box, *box), cmap="viridis_r", vmin=low, vmax=low + depth
        )
        axis.set_title(label, fontsize=10)
        without_ticks(axis)
    for axis in axes.flat[len(panels) + 1 :]:
        axis.axis("off")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, extend="max")
    bar.set_label(r"energy $-\log p(x)$, nats", fontsize=9)
    return figure


def samples_over_training(rows: dict, box: tuple[float, float], centres=None, radius: float = 0.0):
    """Scatter plots: one row a method, one column an iteration.

    Args:
        rows: label -> list of (iteration, (N, 2) samples or None). None: the run was over.
        box: (lo, hi) of both axes.
        centres, radius: circles to draw in, (M, 2).
    """
    circle = need("matplotlib.patches").Circle
    columns = max(len(r) for r in rows.values())
    figure = figure_of(1.75 * columns + 0.6, 1.8 * len(rows) + 0.3)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis, (iteration, _) in zip(axes[0], next(iter(rows.values())), strict=True):
        axis.set_title(f"step {iteration}", fontsize=10)
    for line, (label, snapshots) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, fontsize=10)
        for axis, (_, x) in zip(line, snapshots, strict=True):
            if x is None:
                axis.text(0.5, 0.5, "diverged", ha="center", va="center", color=COLOURS[0],
                          transform=axis.transAxes)  # fmt: skip
                axis.set(xlim=box, ylim=box, aspect="equal")
                without_ticks(axis)
            else:
                for c in centres if centres is not None else ():
                    axis.add_patch(circle(c, radius, fill=False, ec=FAINT, lw=0.7))
                _scatter(axis, x, box, COLOURS[3])
    return figure


def scatter_panels(panels: dict, box: tuple[float, float]):
    """Scatter plots beside each other, label -> (N, 2), in the box of both axes, or, where one of
    the data's ranges would be lost in it, in 1.2 times each range."""
    figure = figure_of(3.3 * len(panels), 3.5)
    low, high = (f(panels["data"], axis=0) for f in (np.min, np.max))
    lost = (high - low).min() < 0.2 * (box[1] - box[0])
    for axis, (label, x) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        _scatter(axis, x, box, INK if label == "data" else COLOURS[3])
        if lost and (high > low).all():
            middle, half = (low + high) / 2, 0.6 * (high - low)
            limits = zip(middle - half, middle + half, strict=True)
            axis.set(**dict(zip(("xlim", "ylim"), limits, strict=True)), aspect="auto")
        axis.set_title(label, fontsize=10)
    return figure


def _scatter(axis, x, box, colour: str = INK) -> None:
    axis.scatter(x[:, 0], x[:, 1], s=2.5, c=colour, alpha=0.45, linewidths=0)
    axis.set(xlim=box, ylim=box, aspect="equal")
    without_ticks(axis)
