"""What the demo shows: the table, the sentences the numbers bear out, the figures."""

from __future__ import annotations

import statistics
from pathlib import Path

from fastebm.app import demo_runs, evaluation, files
from fastebm.app.data import load, need
from fastebm.app.plotting import curves, images, planes


def ring_table(ring: dict[str, list[dict]]) -> dict[str, dict]:
    """Median over the seeds, diverged runs included, and the count of diverged runs."""
    names = {"modes": "modes_long", "on_mode": "on_mode_long", "kl": "kl", "tv": "tv",
             "mmd2": "mmd2_long", "mmd2_short": "mmd2_short",
        "mode_changes": "mode_changes", "seconds": "seconds"}  # fmt: skip
    return {
        method: {
            "runs": len(runs),
            "diverged": sum(r["diverged"] is not None for r in runs),
            "diverged_at": sorted(r["steps"] for r in runs if r["diverged"] is not None),
            **{k: statistics.median(r[source] for r in runs) for k, source in names.items()},
        }
        for method, runs in ring.items()
    }


def verdicts(table: dict[str, dict]) -> list[str]:
    """What the table says, in sentences that are only there when the numbers bear them out."""
    cd, low, good = table["CD"], table["CD + L2 0.01"], table["CD + L2 0.1"]
    icd, both, auto = table["ICD"], table["ICD + L2 0.1"], table["auto"]
    rivals = [row for name, row in table.items() if name != "auto"]

    def works(row: dict) -> bool:
        return row["diverged"] == 0 and row["modes"] >= 7

    def samples(row: dict) -> str:
        return f"{row['modes']:g} of 8 modes, {row['on_mode']:.0%} of samples on a mode"

    said = []
    if cd["diverged"] == cd["runs"]:
        at = cd["diverged_at"]
        said.append(f"Plain CD explodes at this step size: {cd['diverged']} of {cd['runs']} runs,"
                    f" between steps {at[0]} and {at[-1]}.")  # fmt: skip
    else:
        said.append(f"Plain CD diverged in {cd['diverged']} of {cd['runs']} runs here.")
    helps = "prevents it" if cd["diverged"] else "works"
    if works(good):
        said.append(f"A well-tuned energy penalty also {helps} (0.1: {samples(good)}).")
        if not works(low):
            said.append(f"A badly tuned one does not give samples (0.01: {samples(low)}).")
    if works(icd):
        said.append(f"ICD {helps} with its default weights ({samples(icd)}).")
    elif icd["diverged"] == 0:
        said.append(f"ICD did not diverge, but found only {samples(icd)}.")
    best = min(row["kl"] for row in rivals)
    if works(both) and both["kl"] == best:
        said.append(f"ICD with the penalty has the best density of these (KL {both['kl']:.2g}).")
    if works(auto) and auto["kl"] < best:
        said.append(
            "Told neither step size nor learning rate, auto has a density"
            f" {best / auto['kl']:.2g} times as near (KL {auto['kl']:.2g})."
        )
    if works(icd) and icd["kl"] > max(0.3, 2 * min(good["kl"], both["kl"])):
        text = f"For ICD alone samples and density disagree (KL {icd['kl']:.2g})"
        if icd["mode_changes"] < min(good["mode_changes"], both["mode_changes"]):
            text += (
                f", its chains change mode more rarely: {icd['mode_changes']:.0%} in"
                f" {demo_runs.SNAPSHOT_STEPS} steps, {both['mode_changes']:.0%} with the penalty"
            )
        said.append(f"{text}. Look at both.")
    return said


def write_figures(out: Path, ring: dict[str, list[dict]], digits: dict[str, dict]) -> None:
    data = load("ring", demo_runs.RING["samples"])
    box = data.clamp
    points, _ = evaluation.grid(box, demo_runs.GRID)
    exact = data.log_prob(points).reshape(demo_runs.GRID, demo_runs.GRID).numpy()
    first = {method: runs[0] for method, runs in ring.items()}
    landscapes = {f"{m}{_note(r)}\nKL {r['kl']:.3g}": r["log_density"] for m, r in first.items()}
    other = {m: [] for m in ring}  # keeps the colours of the methods in the figures of the digits
    icd, cd = digits["ICD + L2 0.1"], digits["CD + L2 0.1"]
    chains = f"{demo_runs.SNAPSHOT_STEPS}-step chains from noise"
    figures = {
        "ring_energy": (
            "Learned energies of a ring of 8 Gaussians (first seed)",
            planes.energy_landscapes(data.train.numpy(), exact, landscapes, box),
        ),
        "ring_samples": (
            f"{chains} over training; circles: 3 std (first seed)",
            planes.samples_over_training(
                {m: r["snapshots"] for m, r in first.items()},
                box,
                data.centres.numpy(),
                3 * data.std,
            ),
        ),
        "ring_energy_gap": (
            "Energy gap: zero when the chains are at the data's level",
            curves.energy_gap(
                {
                    m: [(r["log_steps"], curves.numbers(r["log"]["energy_gap"])) for r in runs]
                    for m, runs in ring.items()
                }
            ),
        ),
        "ring_loss_terms": (
            "Terms of the losses, ring (all seeds; each term on its own axis, before its weight)",
            curves.loss_terms(
                {m: [(r["log_steps"], r["log"]) for r in runs] for m, runs in ring.items()}
            ),
        ),
        "ring_chain_energy": (
            "Energy along chains from noise: median and middle 80 % (first seed)",
            curves.chain_energy(
                {m + _note(r): (r["trace_steps"], r["trace"]) for m, r in first.items()},
                demo_runs.RING["k_steps"],
            ),
        ),
        "digits_loss_terms": (
            "Terms of the losses, digits (each term on its own axis, before its weight)",
            curves.loss_terms(other | {m: [(r["log_steps"], r["log"])] for m, r in digits.items()}),
        ),
        "digits_samples": (
            f"Digits: samples are {chains}",
            images.image_panels(
                {
                    "real digits": icd["real"],
                    "samples, ICD + L2 0.1": icd["samples"],
                    "samples, CD + L2 0.1": cd["samples"],
                    "nearest training digit of the ICD samples": icd["nearest"],
                    "replay buffer, ICD + L2 0.1": icd["buffer"],
                    "replay buffer, CD + L2 0.1": cd["buffer"],
                },
                columns=12,
                wide=3,
            ),
        ),
        "digits_training": (
            f"ICD + L2 0.1 over training: {chains}, the same noise",
            images.image_panels(
                {f"step {s}": x[:32] for s, x in icd["snapshots"] if x is not None},
                columns=4,
                wide=5,
            ),
        ),
    }
    for name, (title, figure) in figures.items():
        figure.suptitle(title, fontsize=12)
        files.write_figure(out / f"{name}.png", figure)


def _note(result: dict) -> str:
    return f" (diverged at {result['steps']})" if result["diverged"] else ""


def show(console, table: dict, digits: dict, metrics: dict, out: Path) -> None:
    """Print the table, the sentences it bears out, and where everything is."""
    ring, pictures = metrics["ring"]["settings"], metrics["digits"]["settings"]
    console.print(
        f"\nRing of 8 Gaussians at step size {ring['step_size']:g}: {ring['steps']} steps, median"
        f" of {ring['seeds']} seeds. Digits 8x8: {pictures['steps']} steps, one seed.\n"
        "Diverged: mean |E| on data above 2000. KL(data || model) by normalising on a"
        f" {demo_runs.GRID} x {demo_runs.GRID} grid, nats. The other measures are of chains from"
        f" noise ({demo_runs.LONG_STEPS} steps; digits {demo_runs.SNAPSHOT_STEPS}) against test"
        " data; on mode: share within 3 std of a mode. Sec.: training, a run.\n",
        highlight=False,
    )
    view = need("rich.table").Table(
        box=need("rich.box").SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    for name in ("", "diverged", "modes", "on mode", "KL", "MMD^2", "prec.", "recall", "sec."):
        view.add_column(name, justify="right" if name else "left", no_wrap=True)
    view.add_row("ring", style="bold")
    for method, row in table.items():
        view.add_row(
            method,
            f"{row['diverged']}/{row['runs']}",
            f"{row['modes']:g}/8",
            f"{row['on_mode']:.0%}",
            f"{row['kl']:.2g}",
            f"{row['mmd2']:.4f}",
            "",
            "",
            f"{row['seconds']:.1f}",
        )
    view.add_row("digits", style="bold")
    for method, r in digits.items():
        view.add_row(
            method,
            f"{int(r['diverged'] is not None)}/1",
            *("", "", ""),
            f"{r['mmd2_long']:.4f}",
            f"{r['quality']['precision']:.2f}",
            f"{r['quality']['recall']:.2f}",
            f"{r['seconds']:.1f}",
        )
    r = next(iter(digits.values()))
    view.add_row(
        "real digits",
        *("", "", "", ""),
        f"{r['mmd2_floor']:.4f}",
        f"{r['floor']['precision']:.2f}",
        f"{r['floor']['recall']:.2f}",
        "",
    )
    console.print(view, "")
    if metrics["quick"]:
        console.print("Quick run: these numbers mean nothing.")
    else:
        for line in verdicts(table):
            console.print(f"- {line}")
    console.print(f"{metrics['seconds']:.0f} s in all. Figures and metrics.json: {out}")
