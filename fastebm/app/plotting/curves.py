"""Curves over training and along chains."""

from __future__ import annotations

import math

import numpy as np

from fastebm.app.plotting.figure import COLOURS, FAINT, INK, figure_of

TERMS = {  # metric -> (title, what it is, before its weight)
    "loss_cd": ("contrastive term", "E(data) $-$ E(chains)"),
    "kl_energy": ("KL energy", "E at the end of the last step"),
    "entropy": ("entropy", "mean log neighbour distance"),
    "energy_reg": ("energy penalty", r"E(data)$^2$ + E(chains)$^2$"),
    "grad_norm": ("slope at the chains", r"mean $|\nabla_x E|$"),
    "energy_abs": ("size of the energy", "mean |E| on data"),
}


def energy_gap(curves: dict):
    """E(data) - E(chains) against the step with the zero line, on a symmetric log scale when wide.

    Args:
        curves: label -> list of (steps, gap), one pair a run. A label without runs keeps its
            colour, so that figures agree.
    """
    figure = figure_of(7.2, 4.0)
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
    figure = figure_of(3.9 * columns, 2.6 * lines + 0.4)
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
    gradient norms, the chains at the clamp, and the age of stored chains. Of adjusted chains, which
    have neither of these, what was accepted, and the divergence of an update.

    Args:
        steps: logged steps. log: metric -> values (None: not finite) at each.
    """
    series = {name: numbers(values) for name, values in log.items()}
    figure = figure_of(11.7, 5.6)
    axes = figure.subplots(2, 3).flat
    for name, label, colour in (("pos", "data", INK), ("neg", "chains", COLOURS[3])):
        if f"energy_{name}" not in series:  # wake-sleep
            continue
        mean, std = series[f"energy_{name}"], series[f"energy_{name}_std"]
        axes[0].fill_between(steps, mean - std, mean + std, color=colour, alpha=0.15, lw=0)
        axes[0].plot(steps, mean, color=colour, lw=1.2, label=label)
    terms = (
        "terms of ICD, without weights",
        {"kl_energy": "KL energy", "entropy": "entropy"},
        False,
    )
    clamp = ("share at the clamp", {"clamp_share": "chains", "data_clamp_share": "data"}, False)
    if "acceptance" in series and "kl_energy" not in series:
        names = {"acceptance": "steps", "jump_acceptance": "jumps"}
        terms = ("share of the chains' proposals accepted", names, False)
    if "clamp_share" not in series and "kl_step" in series:
        clamp = ("divergence of an update, nats", {"kl_step": "kl_step"}, True)
    panels = [
        ("energy, with its spread in a batch", {}, False)
        if "bound" not in series
        else ("bound on log p", {"bound": "bound"}, False),
        ("gap: E(data) $-$ E(chains)", {"energy_gap": "gap"}, False),
        terms,
        ("gradient norms", {"param_grad_norm": "parameters", "grad_norm": "at the chains"}, True),
        clamp,
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


def chain_energy(traces: dict, k_steps: int | None = None):
    """Energy along chains from noise: median and the middle 80 %.

    Args:
        traces: label -> (steps (T,), energies (T, n_chains)), relative to the mean energy of data.
        k_steps: length of the training chains, marked.
    """
    figure = figure_of(8.6, 4.0)
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


def numbers(values) -> np.ndarray:
    """Numbers with None (not finite when logged) as NaN."""
    return np.array([np.nan if v is None else v for v in values], dtype=float)


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
