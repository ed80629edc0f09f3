"""Runs that `bench/auto.py` is made of: what one is, how it is measured, and where it is kept.

A cell is a dict that goes to JSON as it is, and says all that its result depends on:
  who                "auto", "rival", "classic" (what fits a table else) or "times" (of `cells`)
  set, seed          of `auto_sets` or `auto_held_out`
  scale, degrees     where the set is scaled or turned
  steps, samples     of the training; of each kind of chains, 0: none are run
  group, method, ratio, lr   of a rival
  betas              of a table's log-likelihood
  source             of "auto": the product's code, as `source` has it
  step_size, lr      of "auto", where they are not the preset's: in units of the data's variance
  width, depth, activation, k_steps   where they are not the demo's
Its result is a line of a file, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import auto_held_out
import auto_product
import auto_rivals
import auto_sets
import torch
from auto_runs import Network, Run

from fastebm.app import files, signals
from fastebm.app.data import Dataset

ROOT = Path(__file__).resolve().parent.parent
TURNS = 10
LONG_STEPS = 1000  # of the chains from noise that samples are
NETWORK = ("width", "depth", "activation", "k_steps")

Cell = dict
Result = dict


def key(cell: Cell) -> str:
    return json.dumps(cell, sort_keys=True)


def source() -> str:
    """Of the code that the automatic rule is made of: two runs of the same can be told apart from
    two of another."""
    found = hashlib.sha256()
    for folder, pattern in (("fastebm", "*.py"), ("csrc", "*.*")):
        for path in sorted((ROOT / folder).rglob(pattern)):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def measure(cell: Cell) -> Result:
    """Trains what the cell says, and measures it."""
    held_out = cell["set"] in auto_held_out.TABLES
    data = auto_held_out.load(cell["set"], cell["seed"]) if held_out else _known(cell)
    if cell["who"] == "classic":
        return files.finite(auto_held_out.classic(data))
    if cell["who"] == "times":
        return _times(cell, data)
    run = _build(cell, data)
    seconds, diverged = run.train()
    found = {"seconds": seconds, "diverged": diverged, "steps": run.trainer.iteration}
    if held_out:
        return files.finite(found | auto_held_out.score(data, run, cell["betas"]))
    if data.kind.axes is not None:
        found |= auto_sets.divergence(data, run.energy, run.inside)
    for name, sample in run.samplers.items() if cell["samples"] else ():
        x = sample(cell["samples"], LONG_STEPS, 3)
        found[name] = auto_sets.quality(data, x) if x.isfinite().all() else {"mmd2": None}
    if cell["who"] == "auto" and cell["samples"]:
        found["real"] = auto_sets.quality(data, data.train[: cell["samples"]])
    return files.finite(found)


def _known(cell: Cell) -> auto_sets.KnownSet:
    return auto_sets.make(
        cell["set"], cell["seed"], cell.get("scale", 1.0), cell.get("degrees", 0.0)
    )


def _build(cell: Cell, data: Dataset) -> Run:
    network = Network(**{name: cell[name] for name in NETWORK if name in cell})
    if cell["who"] == "auto":
        given = {name: cell[name] for name in ("step_size", "lr") if name in cell}
        return auto_product.build(data, cell["seed"], cell["steps"], network, **given)
    if cell["set"] in auto_held_out.TABLES:
        variances = auto_held_out.variances(data)
    else:
        variances = data.variances
    rival = [cell[name] for name in ("group", "method", "ratio", "lr", "seed", "steps")]
    return auto_rivals.build(data, variances, *rival, network)


def _times(cell: Cell, data: Dataset) -> Result:
    """Seconds of processor time of each run, which take turns."""
    runs = [_build(of, data) for of in cell["cells"]]
    seconds = [0.0] * len(runs)
    for turn in range(TURNS):
        for i, run in enumerate(runs):
            seconds[i] += run.train(cell["steps"] * (turn + 1) // TURNS)[0]
    return {"seconds": seconds}


class Store:
    """Results in a file, a line each."""

    def __init__(self, path: Path) -> None:
        self.path, self._found = path, {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:  # it was cut short
                continue
            self._found[key(record["cell"])] = record["result"]

    def __contains__(self, cell: Cell) -> bool:
        return key(cell) in self._found

    def __getitem__(self, cell: Cell) -> Result:
        return self._found[key(cell)]

    def add(self, cell: Cell, result: Result) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"cell": cell, "result": result}) + "\n")
        self._found[key(cell)] = result


def _start_worker() -> None:
    torch.set_num_threads(1)
    signals.end_with_parent()


@contextmanager
def workers(n: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each; those that are left when something fails do not run on."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n, spawn, _start_worker) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_missing(cells: Iterable[Cell], store: Store, pool: Executor) -> Iterator[Cell]:
    """Those that the store lacks; each when it is done and kept."""
    missing = [cell for cell in {key(c): c for c in cells}.values() if cell not in store]
    futures = {pool.submit(measure, cell): cell for cell in missing}
    for future in as_completed(futures):
        store.add(futures[future], future.result())
        yield futures[future]
