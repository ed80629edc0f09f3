"""`fastebm demo`: ring and digits, trained by a few processes; figures, numbers, one table."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from fastebm.app import demo_report, demo_runs, files, signals
from fastebm.app.config import versions
from fastebm.app.fit import progress_bar

MAX_WORKERS = 8
_reports = None  # the queue of a worker process


def _start_worker(reports) -> None:
    global _reports
    _reports = reports
    torch.set_num_threads(1)
    # The step is too large on purpose, and what follows from it is counted and shown.
    warnings.simplefilter("ignore", UserWarning)
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signals.end_with_parent()


def _task(part: str, method: str, seed: int, steps: int) -> dict:
    return demo_runs.run(part, method, seed, steps, lambda n: _reports.put((part, method, n)))


def run_demo(out: Path, quick: bool, console) -> dict:
    """Train everything, write `out`/*.png and metrics.json, print the table; returns the metrics.

    Args:
        out: an existing directory.
        quick: a few steps of one seed, to see that all of it works; its numbers mean nothing.
        console: rich console to print to.
    """
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
    table = demo_report.ring_table(ring)
    console.print("Writing figures ...")
    demo_report.write_figures(out, ring, digits)
    metrics = files.finite({
        "ring": {"settings": demo_runs.RING | {"steps": ring_steps, "seeds": seeds},
                 "methods": table, "runs": [_numbers(r) for runs in ring.values() for r in runs]},
        "digits": {"settings": demo_runs.DIGITS | {"steps": digits_steps},
                   "methods": {m: _numbers(r) for m, r in digits.items()}},
        "versions": versions(),
        "quick": quick,
        "seconds": time.perf_counter() - start,
    })  # fmt: skip
    files.write_json(out / "metrics.json", metrics)
    demo_report.show(console, table, digits, metrics, out)
    return metrics


def _run_all(tasks: list, console) -> list[dict]:
    """Run the tasks in worker processes, with one progress bar a method."""
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    workers = min(os.cpu_count() or 1, MAX_WORKERS, len(tasks))
    others = multiprocessing.active_children()
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
        except BaseException:  # Ctrl-C or a failed task: do not wait for the others
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            raise
    return [f.result() for f in futures]


def _numbers(result: dict) -> dict:
    """The part of a result that goes to metrics.json."""
    arrays = {"log_density", "trace", "trace_steps", "snapshots"}
    arrays |= {"samples", "nearest", "real", "buffer"}
    return {k: v for k, v in result.items() if k not in arrays}
