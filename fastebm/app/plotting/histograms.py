"""Histograms of samples and of energies."""

from __future__ import annotations

import math

import numpy as np

from fastebm.app.plotting.figure import COLOURS, FAINT, INK, figure_of


def histograms(panels: dict):
    """Histograms of one coordinate on one axis, label -> (N,)."""
    figure = figure_of(5.5, 3.5)
    axis = figure.subplots()
    for colour, (label, x) in zip((INK, COLOURS[3]), panels.items(), strict=False):
        axis.hist(x, bins=60, density=True, histtype="step", color=colour, lw=1.4, label=label)
    axis.set(xlabel="x", ylabel="density")
    axis.legend(frameon=False, fontsize=9)
    return figure


def energy_histograms(sets: dict):
    """Histograms of energies on one axis, the first set filled, label -> (N,). Labels are shown as
    they are, $ too; matplotlib leaves one out that starts with an underscore.

    Energies are less the median of the first set; the axis is linear within its standard deviation
    and logarithmic far from it, and bins are equally wide on it. Each histogram has height 1.
    """
    figure = figure_of(8.2, 4.0)
    axis = figure.subplots()
    first = next(iter(sets.values()))
    middle, width = np.median(first), max(float(np.std(first)), 1e-12)
    ends = [np.arcsinh((np.percentile(e, [0, 100]) - middle) / width) for e in sets.values()]
    edges = np.linspace(min(low for low, _ in ends), max(high for _, high in ends) + 1e-9, 81)
    for i, (label, e) in enumerate(sets.items()):
        style = {"color": FAINT, "histtype": "stepfilled", "alpha": 0.8} if i == 0 else {
            "color": COLOURS[(i - 1) % len(COLOURS)], "histtype": "step", "lw": 1.4}  # fmt: skip
        bins = width * np.sinh(edges)
        counts, _ = np.histogram(e - middle, bins)
        axis.hist(bins[:-1], bins, weights=counts / counts.max(), label=label, **style)
    axis.set_xscale("asinh", linear_width=width)
    low, high = axis.get_xlim()
    tens = 10.0 ** np.arange(math.ceil(math.log10(2 * width)), 12)
    ticks = [t for t in (*-tens, 0.0, *tens) if low <= t <= high]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_xticks([], minor=True)
    axis.set_yticks([])
    axis.set(xlabel="energy, less the median of the first set", ylabel="samples")
    axis.spines[["top", "right"]].set_visible(False)
    legend = axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
