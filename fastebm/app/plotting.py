"""Figures, one function each: arrays in, a matplotlib Figure out (`.savefig(path)` writes it).

No pyplot and no global state: nothing here needs a display or changes a notebook's settings.
"""

from __future__ import annotations

import math

import numpy as np

from fastebm.app.data import need

INK, FAINT = "#222222", "#b8b8b8"
COLOURS = ("#c23b22", "#e39b3d", "#8a5fa8", "#1f6fb2", "#2a8c57", "#555555")
TERMS = {  # metric -> (title, what it is, before its weight)
    "loss_cd": ("contrastive term", "E(data) $-$ E(chains)"),
    "kl_energy": ("KL energy", "E at the end of the last step"),
    "entropy": ("entropy", "mean log neighbour distance"),
    "energy_reg": ("energy penalty", r"E(data)$^2$ + E(chains)$^2$"),
    "grad_norm": ("slope at the chains", r"mean $|\nabla_x E|$"),
    "energy_abs": ("size of the energy", "mean |E| on data"),
}


def _figure(width: float, height: float):
    return need("matplotlib.figure").Figure((width, height), layout="constrained", dpi=130)


def _plain(axis) -> None:
    axis.set_xticks([])
    axis.set_yticks([])


def _scatter(axis, x, box, colour: str = INK) -> None:
    axis.scatter(x[:, 0], x[:, 1], s=2.5, c=colour, alpha=0.45, linewidths=0)
    axis.set(xlim=box, ylim=box, aspect="equal")
    _plain(axis)


def _curves(axis, curves: dict) -> None:
    """One line a run; runs of one label share its colour, and the legend names it once."""
    for colour, (label, runs) in zip(COLOURS, curves.items(), strict=False):
        for i, (steps, values) in enumerate(runs):
            axis.plot(steps, values, color=colour, lw=1.2, alpha=0.85, label=None if i else label)
    axis.grid(color="#e6e6e6", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _symlog_if_wide(axis, runs: list) -> None:
    size = np.abs(np.concatenate(runs)) if runs else np.zeros(1)
    size = size[np.isfinite(size)]
    if size.size and size.max() > 30 and size.max() > 20 * np.quantile(size, 0.25):
        axis.set_yscale("symlog", linthresh=1.0, linscale=0.8)


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
    figure = _figure(2.6 * columns + 0.7, 2.85 * rows)
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
        _plain(axis)
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
    figure = _figure(1.75 * columns + 0.6, 1.8 * len(rows) + 0.3)
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
                _plain(axis)
            else:
                for c in centres if centres is not None else ():
                    axis.add_patch(circle(c, radius, fill=False, ec=FAINT, lw=0.7))
                _scatter(axis, x, box, COLOURS[3])
    return figure


def energy_gap(curves: dict):
    """E(data) - E(chains) against the step with the zero line, on a symmetric log scale when wide.

    Args:
        curves: label -> list of (steps, gap), one pair a run. A label without runs keeps its
            colour, so that figures agree.
    """
    figure = _figure(7.2, 4.0)
    axis = figure.subplots()
    axis.axhline(0, color=INK, lw=0.8)
    _curves(axis, curves)
    _symlog_if_wide(axis, [values for runs in curves.values() for _, values in runs])
    axis.set_xlabel("step")
    axis.set_ylabel("E(data) $-$ E(chains)")
    if len(curves) > 1:
        axis.legend(frameon=False, fontsize=9)
    return figure


def loss_terms(curves: dict, terms: tuple[str, ...] | None = None):
    """The terms of the losses, an axis each. Totals are not drawn: they cannot be compared.

    Args:
        curves: label -> list of (steps, {term: values}), one pair a run.
        terms: names of `TERMS` to show; None: all that some run logged and that are not all zero.
    """
    runs = [values for pairs in curves.values() for _, values in pairs]
    if terms is None:
        terms = tuple(t for t in TERMS if any(np.any(numbers(v.get(t, [0]))) for v in runs))
    columns = 2 if len(terms) == 4 else min(3, len(terms))
    lines = math.ceil(len(terms) / columns)
    figure = _figure(3.9 * columns, 2.6 * lines + 0.4)
    axes = figure.subplots(lines, columns, squeeze=False)
    handles = {}
    for axis, term in zip(axes.flat, terms, strict=False):
        shown = {
            label: [(s, numbers(v[term])) for s, v in pairs if np.any(numbers(v.get(term, [0])))]
            for label, pairs in curves.items()
        }
        _curves(axis, shown)
        _symlog_if_wide(axis, [v for pairs in shown.values() for _, v in pairs])
        title, meaning = TERMS.get(term, (term, ""))
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(meaning, fontsize=8)
        axis.set_xlabel("step", fontsize=8)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for axis in axes.flat[len(terms) :]:
        axis.axis("off")
    if len(handles) > 1:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center",
                      ncols=len(handles), frameon=False, fontsize=9)  # fmt: skip
    return figure


def training_curves(steps: list, log: dict):
    """What a run logged: energies with their spread over the batch, the gap, the terms of ICD,
    gradient norms, the chains at the clamp, and the age of stored chains.

    Args:
        steps: logged steps. log: metric -> values (None: not finite) at each.
    """
    series = {name: numbers(values) for name, values in log.items()}
    figure = _figure(11.7, 5.6)
    axes = figure.subplots(2, 3).flat
    for name, label, colour in (("pos", "data", INK), ("neg", "chains", COLOURS[3])):
        if f"energy_{name}" not in series:  # wake-sleep
            continue
        mean, std = series[f"energy_{name}"], series[f"energy_{name}_std"]
        axes[0].fill_between(steps, mean - std, mean + std, color=colour, alpha=0.15, lw=0)
        axes[0].plot(steps, mean, color=colour, lw=1.2, label=label)
    panels = [
        ("energy, with its spread in a batch", {}, False)
        if "bound" not in series
        else ("bound on log p", {"bound": "bound"}, False),
        ("gap: E(data) $-$ E(chains)", {"energy_gap": "gap"}, False),
        ("terms of ICD, without weights", {"kl_energy": "KL energy", "entropy": "entropy"}, False),
        ("gradient norms", {"param_grad_norm": "parameters", "grad_norm": "at the chains"}, True),
        ("share at the clamp", {"clamp_share": "chains", "data_clamp_share": "data"}, False),
        ("draws of a stored chain, median", {"buffer_age": "age"}, False),
    ]
    for axis, (title, names, logarithmic) in zip(axes, panels, strict=True):
        for colour, (name, label) in zip((COLOURS[3], COLOURS[0]), names.items(), strict=False):
            if name in series:
                axis.plot(steps, series[name], color=colour, lw=1.2, label=label)
        if logarithmic:
            axis.set_yscale("log")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(color="#e6e6e6", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        if len(axis.get_legend_handles_labels()[0]) > 1:
            axis.legend(frameon=False, fontsize=8)
    axes[1].axhline(0, color=INK, lw=0.8)
    _symlog_if_wide(axes[1], [series["energy_gap"]] if "energy_gap" in series else [])
    return figure


def numbers(values) -> np.ndarray:
    """Numbers with None (not finite when logged) as NaN."""
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def chain_energy(traces: dict, k_steps: int | None = None):
    """Energy along chains from noise: median and the middle 80 %.

    Args:
        traces: label -> (steps (T,), energies (T, n_chains)), relative to the mean energy of data.
        k_steps: length of the training chains, marked.
    """
    figure = _figure(8.6, 4.0)
    axis = figure.subplots()
    axis.axhline(0, color=INK, lw=0.8)
    for i, (label, (steps, e)) in enumerate(traces.items()):
        low, middle, high = np.nanpercentile(e, [10, 50, 90], axis=1)
        axis.fill_between(steps, low, high, color=COLOURS[i], alpha=0.15, lw=0)
        axis.plot(steps, middle, color=COLOURS[i], lw=1.4, label=label)
    axis.set_ylim(bottom=1.3 * min(-1.0, axis.dataLim.y0))
    if k_steps:
        axis.axvline(k_steps, color=FAINT, ls="--", lw=0.9, label=f"training: k = {k_steps}")
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=2.0)
    axis.set_xlabel("Langevin step of a chain from noise")
    axis.set_ylabel("E(chain) $-$ mean E(data)")
    axis.grid(color="#e6e6e6", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def mosaic(images, columns: int = 16, pad: int = 1) -> np.ndarray:
    """(N, C, H, W) in [0, 1] -> one picture (rows*(H+pad), columns*(W+pad), 3)."""
    images = np.clip(np.asarray(images, dtype=float), 0, 1)
    n, _, h, w = images.shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    sheet = np.ones((rows * (h + pad) + pad, columns * (w + pad) + pad, 3))
    for i, picture in enumerate(images):
        r, c = divmod(i, columns)
        y, x = pad + r * (h + pad), pad + c * (w + pad)
        colour = picture if len(picture) == 3 else picture[:1].repeat(3, 0)
        sheet[y : y + h, x : x + w] = colour.transpose(1, 2, 0)
    return sheet


def image_panels(panels: dict, columns: int = 16, wide: int = 2):
    """Labelled sheets of pictures beside each other.

    Args:
        panels: title -> (N, C, H, W) pictures in [0, 1].
        columns: pictures a row of a sheet. wide: sheets a row of the figure.
    """
    wide = min(wide, len(panels))
    rows = math.ceil(len(panels) / wide)
    sheets = {title: mosaic(x, columns) for title, x in panels.items()}
    tall = max(s.shape[0] / s.shape[1] for s in sheets.values())
    width = min(4.4, 13 / wide)
    figure = _figure(width * wide, (width * tall + 0.35) * rows)
    axes = figure.subplots(rows, wide, squeeze=False)
    for axis, (title, sheet) in zip(axes.flat, sheets.items(), strict=False):
        axis.imshow(sheet, interpolation="nearest")
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.axis("off")
    return figure


def scatter_panels(panels: dict, box: tuple[float, float]):
    """Scatter plots beside each other, label -> (N, 2)."""
    figure = _figure(3.3 * len(panels), 3.5)
    for axis, (label, x) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        _scatter(axis, x, box, INK if label == "data" else COLOURS[3])
        axis.set_title(label, fontsize=10)
    return figure


def histograms(panels: dict):
    """Histograms of one coordinate on one axis, label -> (N,)."""
    figure = _figure(5.5, 3.5)
    axis = figure.subplots()
    for colour, (label, x) in zip((INK, COLOURS[3]), panels.items(), strict=False):
        axis.hist(x, bins=60, density=True, histtype="step", color=colour, lw=1.4, label=label)
    axis.set(xlabel="x", ylabel="density")
    axis.legend(frameon=False, fontsize=9)
    return figure


def energy_histograms(sets: dict):
    """Histograms of energies on one axis, the first set filled, label -> (N,).

    Energies are less the median of the first set; the axis is linear within its standard deviation
    and logarithmic far from it, and bins are equally wide on it. Each histogram has height 1.
    """
    figure = _figure(8.2, 4.0)
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
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
