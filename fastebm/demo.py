"""`fastebm demo`: ring and digits, trained by a few processes; figures, numbers, one table."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import queue
import signal
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from fastebm import demo_runs, evaluation, plotting
from fastebm.config import versions
from fastebm.data import load, need
from fastebm.fit import progress_bar

MAX_WORKERS = 8
_reports = None  # the queue of a worker process


def _start_worker(reports) -> None:
    global _reports
    _reports = reports
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def _task(part: str, method: str, seed: int, steps: int) -> dict:
    return demo_runs.run(part, method, seed, steps, lambda n: _reports.put((part, method, n)))


def run_demo(out: Path, quick: bool = False, console=None) -> dict:
    """Train everything, write `out`/*.png and metrics.json, print the table; returns the metrics.

    Args:
        out: an existing directory.
        quick: a few steps of one seed, to see that all of it works; its numbers mean nothing.
        console: rich console to print to.
    """
    console = console or need("rich.console").Console()
    seeds, ring_steps, digits_steps = (1, 30, 20) if quick else (3, 1000, 1500)
    start = time.perf_counter()
    tasks = [("digits", method, 0, digits_steps) for method in demo_runs.DIGITS_METHODS]
    tasks += [
        ("ring", method, seed, ring_steps)
        for seed in range(seeds)
        for method in demo_runs.RING_METHODS
    ]
    results = _run_all(tasks, console)
    ring = {m: [r for r in results if (r["part"], r["method"]) == ("ring", m)]
            for m in demo_runs.RING_METHODS}  # fmt: skip
    digits = {r["method"]: r for r in results if r["part"] == "digits"}
    table = ring_table(ring)
    console.print("Writing figures ...")
    write_figures(out, ring, digits)
    metrics = _finite({
        "ring": {"settings": demo_runs.RING | {"steps": ring_steps, "seeds": seeds},
                 "methods": table, "runs": [_numbers(r) for runs in ring.values() for r in runs]},
        "digits": {"settings": demo_runs.DIGITS | {"steps": digits_steps},
                   "methods": {m: _numbers(r) for m, r in digits.items()}},
        "versions": versions(),
        "quick": quick,
        "seconds": time.perf_counter() - start,
    })  # fmt: skip
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    show(console, table, digits, metrics, out)
    return metrics


def _run_all(tasks: list, console) -> list[dict]:
    """Run the tasks in worker processes, with one progress bar a method."""
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    workers = min(os.cpu_count() or 1, MAX_WORKERS, len(tasks))
    totals: dict[tuple[str, str], int] = {}
    for part, method, _, steps in tasks:
        totals[part, method] = totals.get((part, method), 0) + steps
    with (
        ProcessPoolExecutor(workers, context, _start_worker, (reports,)) as pool,
        progress_bar(console) as bar,
    ):
        bars = {key: bar.add_task(f"{key[0]:6} {key[1]:12}", total=n, note="", start=False)
                for key, n in totals.items()}  # fmt: skip
        everything = bar.add_task(f"{'all':19}", total=sum(totals.values()), note="")
        futures = [pool.submit(_task, *task) for task in tasks]
        try:
            while not (all(f.done() for f in futures) and reports.empty()):
                failed = next((f for f in futures if f.done() and f.exception()), None)
                if failed:
                    failed.result()
                try:
                    part, method, n = reports.get(timeout=0.2)
                except queue.Empty:
                    continue
                bar.start_task(bars[part, method])
                bar.advance(bars[part, method], n)
                bar.advance(everything, n)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [f.result() for f in futures]


def _numbers(result: dict) -> dict:
    """The part of a result that goes to metrics.json."""
    arrays = {"log_density", "trace", "trace_steps", "snapshots"}
    arrays |= {"samples", "nearest", "real", "buffer"}
    return {k: v for k, v in result.items() if k not in arrays}


def _finite(value):
    """The same value with non-finite numbers as None: JSON has none of them."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ring_table(ring: dict[str, list[dict]]) -> dict[str, dict]:
    """Median over the seeds, diverged runs included, and the count of diverged runs."""
    names = {"modes": "modes_long", "on_mode": "on_mode_long", "kl": "kl", "tv": "tv",
             "mmd2": "mmd2_long", "mmd2_short": "mmd2_short", "seconds": "seconds"}  # fmt: skip
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
    icd, both = table["ICD"], table["ICD + L2 0.1"]

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
    if works(good):
        said.append(f"A well-tuned energy penalty also prevents it (0.1: {samples(good)}).")
        if not works(low):
            said.append(f"A badly tuned one does not give samples (0.01: {samples(low)}).")
    if works(icd):
        said.append(f"ICD prevents it with its default weights ({samples(icd)}).")
    elif icd["diverged"] == 0:
        said.append(f"ICD did not diverge, but found only {samples(icd)}.")
    if works(both) and both["kl"] == min(row["kl"] for row in table.values()):
        said.append(f"ICD with the penalty has the best density of all (KL {both['kl']:.2g}).")
    if works(icd) and icd["kl"] > 2 * min(good["kl"], both["kl"]):
        said.append(f"Samples and density disagree for ICD alone (KL {icd['kl']:.2g}): its chains"
                    " do not mix, so the weights of the modes are free. Look at both.")  # fmt: skip
    return said


def write_figures(out: Path, ring: dict[str, list[dict]], digits: dict[str, dict]) -> None:
    data = load("ring", demo_runs.RING["samples"])
    box = data.clamp
    points, _ = evaluation.grid(box, demo_runs.GRID)
    exact = data.log_prob(points).reshape(demo_runs.GRID, demo_runs.GRID).numpy()
    first = {method: runs[0] for method, runs in ring.items()}
    landscapes = {f"{m}{_note(r)}\nKL {r['kl']:.3g}": r["log_density"] for m, r in first.items()}
    figures = {
        "ring_energy": plotting.energy_landscapes(data.train.numpy(), exact, landscapes, box),
        "ring_samples": plotting.samples_over_training(
            {m: r["snapshots"] for m, r in first.items()}, box, data.centres.numpy(), 3 * data.std
        ),
        "ring_energy_gap": plotting.energy_gap(
            {m: [(r["log_steps"], plotting.numbers(r["log"]["energy_gap"])) for r in runs]
             for m, runs in ring.items()}
        ),
        "ring_loss_terms": plotting.loss_terms(
            {m: [(r["log_steps"], r["log"]) for r in runs] for m, runs in ring.items()}
        ),
        "ring_chain_energy": plotting.chain_energy(
            {m + _note(r): (r["trace_steps"], r["trace"]) for m, r in first.items()},
            demo_runs.RING["k_steps"],
        ),
        "digits_loss_terms": plotting.loss_terms(
            {m: [(r["log_steps"], r["log"])] for m, r in digits.items()}
        ),
    }  # fmt: skip
    r = digits["ICD + L2 0.1"]
    figures["digits_samples"] = plotting.image_panels(
        {
            "real digits": r["real"],
            "ICD + L2 0.1: 200-step chains from noise": r["samples"],
            "CD + L2 0.1: 200-step chains from noise": digits["CD + L2 0.1"]["samples"],
            "nearest training digit of each ICD sample": r["nearest"],
            "ICD: replay buffer": r["buffer"],
        },
        columns=12,
        wide=3,
    )
    figures["digits_training"] = plotting.image_panels(
        {f"step {s}": x[:32] for s, x in r["snapshots"] if x is not None}, columns=8, wide=5
    )
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png")


def _note(result: dict) -> str:
    return f" (diverged at {result['steps']})" if result["diverged"] else ""


def show(console, table: dict, digits: dict, metrics: dict, out: Path) -> None:
    """Print the table, the sentences it bears out, and where everything is."""
    ring = metrics["ring"]["settings"]
    view = need("rich.table").Table(
        title=f"Ring of 8 Gaussians at step size {ring['step_size']:g}: {ring['steps']} steps,"
        f" median of {ring['seeds']} seeds. Digits: {metrics['digits']['settings']['steps']}"
        " steps, one seed.",
        caption="Modes, on a mode, MMD^2, precision and recall are of long chains from noise"
        f" ({demo_runs.LONG_STEPS} steps; digits {demo_runs.SNAPSHOT_STEPS}, against the test"
        f" part). KL(data || model) on a {demo_runs.GRID} x {demo_runs.GRID} grid, in nats."
        " Seconds: training, a run.",
    )
    view.add_column("method")
    names = ("diverged", "modes", "on a mode", "KL", "MMD^2", "precision", "recall", "seconds")
    for name in names:
        view.add_column(name, justify="right")
    for method, row in table.items():
        view.add_row(
            f"ring    {method}",
            f"{row['diverged']}/{row['runs']}",
            f"{row['modes']:g}/8",
            f"{row['on_mode']:.0%}",
            f"{row['kl']:.3g}",
            f"{row['mmd2']:.4f}",
            "",
            "",
            f"{row['seconds']:.1f}",
        )
    view.add_section()
    rows = {method: (r["quality"], r["mmd2_long"], r) for method, r in digits.items()}
    for method, (quality, mmd2, r) in rows.items():
        view.add_row(
            f"digits  {method}",
            f"{int(r['diverged'] is not None)}/1",
            *("", "", ""),
            f"{mmd2:.4f}",
            f"{quality['precision']:.2f}",
            f"{quality['recall']:.2f}",
            f"{r['seconds']:.1f}",
        )
    r = next(iter(digits.values()))
    view.add_row(
        "digits  real against real",
        *("", "", "", ""),
        f"{r['mmd2_floor']:.4f}",
        f"{r['floor']['precision']:.2f}",
        f"{r['floor']['recall']:.2f}",
        "",
    )
    console.print(view)
    if metrics["quick"]:
        console.print("Quick run: these numbers mean nothing.")
    else:
        for line in verdicts(table):
            console.print(f"- {line}")
    console.print(f"{metrics['seconds']:.0f} s in all. Figures and metrics.json: {out}")
