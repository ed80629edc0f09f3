"""Charts of a results file: times over the measured limit, and where the time goes.

Colours are Okabe and Ito's, told apart by the colour-blind, and every variant has a shape as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import suite
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

OURS, OURS_COLOUR = "fastebm", "#D55E00"
COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#000000", "#8C8C8C")
SHAPES = "sD^v<>Pphd"
PHASES = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#F0E442", "#8C8C8C", "#D55E00")
GRID = "#e2e2e2"
TITLES = {
    "langevin": "One Langevin step",
    "chain": "A step of a whole Langevin chain, gradient and all",
    "neighbor": "Nearest neighbours of n queries among m references in d dimensions",
    "gibbs": "Gibbs sampling of an RBM (batch x visible x hidden units)",
    "replay": "A batch of replayed and augmented images",
    "icd_step": "A training step of improved contrastive divergence",
}

KINDS = {
    "langevin": "One Langevin step",
    "chain": "Step of a chain",
    "icd_step": "Training step of ICD",
    "neighbor": "Nearest neighbours",
    "gibbs": "Gibbs draws and steps",
    "replay": "Replay with augmentation",
}
ENERGIES = {
    "MLP": ", perceptron",
    "Gaussian": ", Gaussian energy",
    "ConvEnergy": ", image network",
    "ResNetEnergy": ", image network",
}


def draw(results: suite.Results, folder: Path, device: str) -> list[Path]:
    """Writes ``<bench>_<device>.png`` and, where phases are known, ``<bench>_phases_<device>.png``;
    returns what was written."""
    written = []
    for bench, entry in results.items():
        charts = {"": over_limit(bench, entry["rows"]), "_phases": phases(bench, entry["rows"])}
        for suffix, figure in charts.items():
            if figure is not None:
                written.append(folder / f"{bench}{suffix}_{device}.png")
                figure.savefig(written[-1])
    return written


def headline(results: suite.Results) -> Figure:
    """A line for each kind of work, a point for each case: how many times as fast as its best
    rival fastebm is; beside it, where there is one, the way that is not the default."""
    points: dict[str, list[tuple[float, float | None]]] = {}
    for kind, of_case in _kinds(results):
        best = suite.best_rival(of_case)
        other = best.get("best_way", OURS) != OURS
        points.setdefault(kind, []).append(
            (best["fastebm_faster"], best["best_way_faster"] if other else None)
        )
    figure, axis = _lines(list(points), height=0.34, width=8.0)
    styles = {0: ("fastebm", OURS_COLOUR, "o"), 1: ("fastebm, compile=True", COLOURS[0], "D")}
    for way, (label, colour, shape) in styles.items():
        found = [(p[way], i) for i, kind in enumerate(points.values()) for p in kind if p[way]]
        if not found:
            continue
        axis.scatter(*zip(*found, strict=True), s=52 - 16 * way, color=colour, marker=shape,
                     alpha=0.65, linewidths=0, label=label, zorder=3)  # fmt: skip
    axis.axvline(1.0, color="black", lw=1.2, zorder=2)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}x"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    label = "times as fast as the best rival (right of the line: faster)"
    _finish(figure, axis, "fastebm against the best rival, every case measured", label)
    axis.tick_params(labelsize=10)
    return figure


def over_limit(bench: str, rows: suite.Rows) -> Figure | None:
    """A line for each case, a point for each variant: its time over what the limit allows."""
    rows = [row for row in rows if "seconds" in row and "limit_seconds" in row]
    rows = [row for row in rows if not row.get("yardstick")]
    if not rows:
        return None
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axis = _lines(cases)
    for name, (colour, shape) in _styles(rows).items():
        points = [
            (row["seconds"] / row["limit_seconds"], cases.index(row["case"]))
            for row in rows
            if _family(row) == name
        ]
        ours = name == OURS
        axis.scatter(*zip(*points, strict=True), s=70 if ours else 34, color=colour, marker=shape,
                     alpha=0.9, linewidths=0, label=name, zorder=4 if ours else 3)  # fmt: skip
    limits = " or ".join(dict.fromkeys(row["limit"] for row in rows))
    axis.axvline(1.0, color="black", lw=1.2, zorder=2)
    axis.annotate(f"limit: {limits}, as measured", (1.0, 1.0), (4, 3), fontsize=8,
                  xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    axis.set_xscale("log")
    low = min(row["seconds"] / row["limit_seconds"] for row in rows)
    axis.set_xlim(left=min(0.8, 0.8 * low))
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if _narrow(axis) else (1.0,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}x"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    label = "time over the time that the limit allows (left is faster)"
    _finish(figure, axis, TITLES.get(bench, bench), label)
    return figure


def phases(bench: str, rows: suite.Rows) -> Figure | None:
    """A bar for each variant of each case, split into phases, in units of fastebm's time."""
    unit = {r["case"]: r["seconds"] for r in rows if r["variant"] == OURS and "seconds" in r}
    rows = [row for row in rows if "phases" in row]
    if not rows:
        return None
    labels = [f"{row['case']}\n{row['variant']}" for row in rows]
    figure, axis = _lines(labels, height=0.42)
    left = [0.0] * len(rows)
    names = list(dict.fromkeys(name for row in rows for name in row["phases"]))
    for name, colour in zip(names, PHASES, strict=False):
        widths = [row["phases"].get(name, 0.0) / unit[row["case"]] for row in rows]
        axis.barh(range(len(rows)), widths, left=left, height=0.66, color=colour, label=name,
                  edgecolor="white", lw=0.6, zorder=3)  # fmt: skip
        left = [a + b for a, b in zip(left, widths, strict=True)]
    limits = [row["limit_seconds"] / unit[row["case"]] for row in rows]
    axis.vlines(limits, [i - 0.4 for i in range(len(rows))], [i + 0.4 for i in range(len(rows))],
                color="black", lw=1.8, label=f"limit: {rows[0]['limit']}", zorder=4)  # fmt: skip
    _finish(figure, axis, f"{TITLES.get(bench, bench)}: where the time goes", "time over fastebm's")
    return figure


def _kinds(results: suite.Results) -> Iterator[tuple[str, suite.Rows]]:
    """Kind of work and rows of each case that has a rival."""
    for bench, name in KINDS.items():
        cases: dict[str, suite.Rows] = {}
        for row in results.get(bench, {}).get("rows", []):
            if "fastebm_faster" in row:
                cases.setdefault(row["case"], []).append(row)
        for case, of_case in cases.items():
            energy = next((words for start, words in ENERGIES.items() if start in case), "")
            yield name + energy * (bench in ("chain", "icd_step")), of_case


def _lines(labels: Sequence[str], height: float = 0.3, width: float = 9.5):
    figure = Figure((width, 1.7 + height * len(labels)), layout="constrained", dpi=120)
    axis = figure.subplots()
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    return figure, axis


def _finish(figure: Figure, axis, title: str, label: str) -> None:
    axis.set_xlabel(label, fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.grid(color=GRID, lw=0.7, zorder=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=min(6, len(names)),
                  frameon=False, fontsize=8)  # fmt: skip


def _narrow(axis) -> bool:
    low, high = axis.get_xlim()
    return high / low < 100


def _styles(rows: suite.Rows) -> dict[str, tuple[str, str]]:
    """Colour and shape of each variant: ours first, rivals by order of appearance."""
    names = list(dict.fromkeys(map(_family, rows)))
    rivals = [name for name in names if name != OURS]
    return {name: (OURS_COLOUR, "o") for name in names if name == OURS} | {
        name: (COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)]) for i, name in enumerate(rivals)
    }


def _family(row: dict) -> str:
    return row.get("family", row["variant"])
