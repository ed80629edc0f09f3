"""Training that needs no tuning, `fastebm train FILE --preset auto`, against rivals tuned by hand.

Parts:
  rule             all runs of the rule, which the other parts compare with
  table            12 laws in 2-D with an exact density, 7 that constants of the rule were chosen on
                   or looked at with and 5 that were not: KL(data || model) on a grid, MMD^2 of
                   chains from noise to test samples, the share of them on a mode or curve, seconds
                   of processor time. Rivals (`auto_rivals`): the best by KL on seed 0 of 4 methods
                   x 5 steps with the demo's settings, and of the 2 with an energy penalty x 5 x 2
                   rates given the rule's optimiser, average, batch and units; then 5 seeds of
                   each, and one of both with as many steps as fit in the rule's time
  extremes         the rule from absurd steps and rates, on data times 0.01 and 100
  turned           two laws turned by 45 degrees, where coordinates do not decouple
  high             8 Gaussians in 10-D and 50-D: what the modes hold
  tables           held-out log-likelihood of scikit-learn's tables (`auto_held_out`)
  configurations   100 random networks, chains, sets and scales: runs lost, and the share within
                   twice the KL of the best of 4 rivals
Each run is kept in runs/auto/cells.jsonl as soon as it is done, and none is run twice: an
interrupted bench goes on where it was. Of the rule, runs by other code than the present are run
again. On 2 cores about 40 minutes for the rule and 80 for the rivals.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path

import auto_cells
import auto_held_out
import auto_plan
import auto_sets
import suite
from auto_cells import Cell, Store
from auto_plan import Plan, middle, of_cells

from fastebm.app import files

KEPT = auto_cells.ROOT / "runs" / "auto" / "cells.jsonl"
Variants = dict[str, list[Cell]]  # name -> its cells, one a seed
REAL = "real samples"
FIGURES = ("mmd2", "on", "weight_min", "weight_max")  # of samples


def compute(cells: list[Cell], store: Store, pool: Executor) -> None:
    """Those that are not in the store."""
    todo = len({auto_cells.key(cell) for cell in cells if cell not in store})
    for n, cell in enumerate(auto_cells.run_missing(cells, store, pool), 1):
        words = " ".join(str(v) for k, v in cell.items() if k not in ("source", "cells"))
        suite.console.print(f"{n}/{todo} {words}", markup=False, soft_wrap=True)


def all_of(of_sets: dict[str, Variants]) -> list[Cell]:
    return [c for variants in of_sets.values() for cells in variants.values() for c in cells]


def row(store: Store, case: str, variant: str, cells: list[Cell], samples: str = "own") -> dict:
    """The figures of all seeds of one variant; `samples`: which chains."""
    found = {"case": case, "variant": variant, "threads": 1, "seeds": len(cells)}
    for name in FIGURES:
        found[name] = of_cells(store, cells, samples, name)
    if variant != REAL:
        found["mmd2_alone"] = of_cells(store, cells, "alone", "mmd2")
        for name, key in (("kl", "kl"), ("steps", "steps"), ("training_seconds", "seconds")):
            found[name] = of_cells(store, cells, key)
        found["diverged"] = sum(store[c]["diverged"] is not None for c in cells)
    return {k: v for k, v in found.items() if v != []}


def rows_of(store: Store, of_sets: dict[str, Variants]) -> suite.Rows:
    """Of each set those of real samples too, from the cells of the rule that have them."""
    rows = []
    for case, variants in of_sets.items():
        for variant, cells in variants.items():
            ours = cells[0]["who"] == "auto"
            rows.append(row(store, case, variant, cells, "jumps" if ours else "own"))
        if "auto" in variants:
            rows.append(row(store, case, REAL, variants["auto"], "real"))
    return rows


def spread(values: list[float] | None, digits: str = ".4f", worst=max) -> str:
    return f"{middle(values):{digits}} ({worst(values):{digits}})" if values else ""


def print_rows(title: str, rows: suite.Rows) -> None:
    header = ["", "KL", "MMD^2", "no jumps", "on", "modes hold", "seconds", "lost"]
    lines, before = [], None
    for r in rows:
        if r["case"] != before:
            lines.append([r["case"], *[""] * (len(header) - 1)])
            before = r["case"]
        figures = [spread(r.get(name)) for name in ("kl", "mmd2", "mmd2_alone")]
        held = ""
        if "weight_min" in r:
            held = f"{min(r['weight_min']):.2f} to {max(r['weight_max']):.2f}"
        seconds = f"{middle(r['training_seconds']):.1f}" if "training_seconds" in r else ""
        more = [spread(r.get("on"), ".3f", min), held, seconds, str(r.get("diverged", ""))]
        lines.append([f"  {r['variant']}", *figures, *more])
    suite.print_table(f"{title}: median (worst) of seeds", header, lines)


def rule(plan: Plan, store: Store, pool: Executor) -> suite.Rows:
    compute(plan.of_rule(), store, pool)
    return []


def table(plan: Plan, store: Store, pool: Executor) -> suite.Rows:
    groups = (auto_plan.DEMO, auto_plan.FAIR)
    compute([c for n in plan.sets for g in groups for c in plan.candidates(n, g)], store, pool)
    finals = {n: plan.finals(store, n) for n in plan.sets}
    compute(all_of(finals), store, pool)
    times = {n: plan.times(store, n) for n in plan.sets}
    compute(list(times.values()), store, pool)
    equal = {n: plan.equal_time(store, n) for n in plan.sets}
    compute(all_of(equal), store, pool)
    rows = rows_of(store, {n: finals[n] | equal[n] for n in plan.sets})
    for name in plan.sets:
        first = next(i for i, r in enumerate(rows) if r["case"] == name)
        for r, seconds in zip(rows[first:], store[times[name]]["seconds"], strict=False):
            r["seconds_in_turns"] = seconds
    for r in rows:
        r["unseen"] = r["case"] in auto_sets.UNSEEN
    print_rows("2-D laws", rows)
    return rows


def extremes(plan: Plan, store: Store, pool: Executor) -> suite.Rows:
    title = "The rule from other starts, and on data of other scales"
    return _part(title, {n: plan.extremes(n) for n in plan.extreme_sets}, store, pool)


def turned(plan: Plan, store: Store, pool: Executor) -> suite.Rows:
    called = {n: f"{n}, turned by {auto_plan.DEGREES:g}" for n in plan.turned_sets}
    of_sets = {words: plan.turned(store, n) for n, words in called.items()}
    return _part("Laws whose coordinates do not decouple", of_sets, store, pool)


def high(plan: Plan, store: Store, pool: Executor) -> suite.Rows:
    of_sets = {n: plan.high(n) for n in plan.high_sets}
    return _part("Modes in many dimensions", of_sets, store, pool)


def _part(title: str, of_sets: dict[str, Variants], store: Store, pool: Executor) -> suite.Rows:
    compute(all_of(of_sets), store, pool)
    rows = rows_of(store, of_sets)
    print_rows(title, rows)
    return rows


def tables(plan: Plan, store: Store, pool: Executor) -> suite.Rows:
    of_sets = {name: plan.table(name) for name in plan.tables}
    compute(all_of(of_sets), store, pool)
    rows, lines = [], []
    for name, variants in of_sets.items():
        classic = variants.pop("classic")
        found = {v: (cells, ()) for v, cells in variants.items()}
        found |= {v: (classic, (v,)) for v in store[classic[0]]}
        for variant, (cells, path) in found.items():
            figures = {k: of_cells(store, cells, *path, k) for k in auto_held_out.FIGURES}
            rows.append({"case": name, "variant": variant, "threads": 1, **figures})
    for r in rows:
        least = f"{min(r['ess']):.0f} of {auto_held_out.CHAINS}" if r["ess"] else ""
        scores = [spread(r[key], ".2f", min) for key in ("test_nats", "train_nats")]
        lines.append([f"{r['case']}, {r['variant']}", *scores, least])
    header = ["", "test", "train", "least effective chains"]
    suite.print_table("Held-out log-likelihood, nats a row: median (worst)", header, lines)
    return rows


def configurations(plan: Plan, store: Store, pool: Executor) -> suite.Rows:
    pairs = plan.configurations()
    compute([cell for ours, theirs in pairs for cell in (ours, *theirs)], store, pool)
    ratios, lost, rivals_lost = [], 0, 0
    for ours, theirs in pairs:
        lost += store[ours]["diverged"] is not None
        rivals_lost += sum(store[c]["diverged"] is not None for c in theirs)
        kl = [auto_plan.number(store[c]["kl"]) for c in (ours, *theirs)]
        ratios.append(kl[0] / min(kl[1:]) if math.isfinite(min(kl[1:])) else 0.0)
    n = len(pairs)
    within = sum(r <= 2 for r in ratios) / n
    claims = [("runs of the rule that diverged", "0", str(lost), lost == 0)]
    suite.print_targets(f"{n} random configurations", claims)
    suite.console.print(
        f"KL within twice that of the best of 4 rivals: {within:.0%}; first: "
        f"{sum(r <= 1 for r in ratios) / n:.0%}; ratio: median {middle(ratios):.2f}, worst "
        f"{max(ratios):.3g}; of {4 * n} runs of rivals {rivals_lost} diverged",
        soft_wrap=True,
    )
    found = {"case": f"{n} random configurations", "variant": "auto", "threads": 1}
    return [
        found | {"diverged": lost, "kl_over_best_rival": ratios, "rivals_diverged": rivals_lost}
    ]


PARTS: dict[str, Callable[[Plan, Store, Executor], suite.Rows]] = {
    f.__name__: f for f in (rule, table, extremes, turned, high, tables, configurations)
}


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """All parts; on a CPU whatever the device, in processes of one thread. Nothing is timed but
    training, so rows have no `seconds`."""
    plan = Plan(auto_cells.source(), options.quick)
    n = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, auto_cells.workers(n) as pool:
        store = Store(Path(folder) / "cells.jsonl" if options.quick else KEPT)
        for name in options.in_time(PARTS):
            yield files.finite(PARTS[name](plan, store, pool))


if __name__ == "__main__":
    suite.script("auto", __doc__, run)
