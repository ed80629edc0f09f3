"""What each part of the ICD recipe gives on scikit-learn's digits, at the same cost.

Methods, all with the digits preset's network, step, noise, energy penalty and average of weights:
  CD                        chains start at the data
  PCD                       chains from the replay buffer
  ICD                       PCD and the KL term, augmentation of stored chains
  ICD, no entropy           without the entropy term
  ICD, no augmentation      stored chains go on as they are
Each run has the same seconds of processor time on one thread, chains, losses, guard and all; the
number of steps that fit is measured beforehand, as the learning rate falls to zero over them. What
is measured: 200-step chains from noise, and chains of the training's length, against test digits in
the features of a small classifier (no FID: see fastebm.app.features), with training digits as the
floor; AUROC of test digits against means of pairs of them. Median over seeds, and range.
Divergences are roll-backs of the guard, which is on as in `fastebm train`.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import suite
import torch

from fastebm.app import files, ood, quality, signals
from fastebm.app.config import TrainConfig
from fastebm.app.guard import DivergedError, DivergenceGuard
from fastebm.app.presets import PRESETS
from fastebm.app.training import Trainer
from fastebm.losses.nonfinite import NonFiniteError

METHODS = {
    "CD": {"loss": "cd"},
    "PCD": {"loss": "pcd"},
    "ICD": {"loss": "icd", "augmentation": "digits"},
    "ICD, no entropy": {"loss": "icd", "augmentation": "digits", "entropy_weight": 0.0},
    "ICD, no augmentation": {"loss": "icd"},
}
SEEDS, SAMPLES, LONG_STEPS, LOG_EVERY = 3, 360, 200, 10
SHOWN = ("precision", "recall", "coverage", "frechet", "class_entropy")


def config(method: str, seed: int, steps: int) -> TrainConfig:
    plain = PRESETS["digits"] | {"augmentation": None}
    return TrainConfig(data="digits", seed=seed, steps=steps, **plain | METHODS[method])


def steps_within(method: str, seconds: float) -> int:
    """How many steps fit, by those of a trainer whose buffer is full."""
    trainer = Trainer(config(method, 0, 10**6))
    for n in (40, 200):
        start = time.process_time()
        for _ in range(n):
            trainer.step()
    return max(LOG_EVERY, int(seconds * n / (time.process_time() - start)))


def train(trainer: Trainer) -> tuple[float, str | None]:
    """To the end of the configuration; seconds of processor time, and why it was given up."""
    start = time.process_time()
    guard = DivergenceGuard(trainer, trainer.config.on_divergence)
    while trainer.iteration < trainer.config.steps:
        reason = None
        try:
            trainer.step()
            if trainer.iteration % LOG_EVERY == 0:
                reason = guard.check(trainer.probe())
        except NonFiniteError as error:
            reason = str(error)
        if reason is not None:
            try:
                guard.roll_back(reason)
            except DivergedError as error:
                return time.process_time() - start, str(error)
    return time.process_time() - start, None


def train_and_measure(job: tuple[str, int, float]) -> dict:
    method, seed, seconds = job
    torch.set_num_threads(1)
    steps = steps_within(method, seconds)
    trainer = Trainer(config(method, seed, steps))
    used, given_up = train(trainer)
    row = {"case": f"digits, seed {seed}", "variant": method, "threads": 1}
    row |= {"seed": seed, "steps": steps, "processor_seconds": used}
    row |= {"rollbacks": trainer.n_rollbacks, "given_up": given_up}
    sets = quality.sample_sets(trainer, SAMPLES, LONG_STEPS)
    row["quality"] = quality.evaluate(trainer, sets, "classifier")["samples"]
    test = trainer.dataset.test
    energies = [
        ood.energies(trainer, x) for x in (test, ood.derived_set("pairs", test, trainer.dataset))
    ]
    row["pairs"] = ood.detection(*energies, n_boot=2)["auroc"]
    return row


def spread(values: list[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def table(rows: list[dict], kind: str) -> list[list[str]]:
    """A line a method: median and range over seeds for samples whose name starts with `kind`."""
    lines = []
    for method in METHODS:
        runs = [r for r in rows if r["variant"] == method]
        found = [next(v for k, v in r["quality"].items() if k.startswith(kind)) for r in runs]
        cells = [spread([q[name] for q in found]) for name in SHOWN]
        steps = f"{statistics.median(r['steps'] for r in runs):.0f}"
        diverged = str(sum(r["rollbacks"] for r in runs))
        lines.append([method, steps, diverged, *cells, spread([r["pairs"] for r in runs])])
    floor = [r["quality"][quality.FLOOR] for r in rows]
    lines.append(["real digits", "", "", *(spread([q[n] for q in floor]) for n in SHOWN), ""])
    return lines


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """Trains and measures all; prints two tables. Rows have no `seconds`: nothing is timed."""
    seconds = 3.0 if options.quick else 60.0
    seeds = 1 if options.quick else SEEDS
    jobs = [(method, seed, seconds) for seed in range(seeds) for method in METHODS]
    rows = []
    spawn = multiprocessing.get_context("spawn")
    workers = multiprocessing.cpu_count()
    with ProcessPoolExecutor(workers, spawn, signals.end_with_parent) as pool:
        for row in pool.map(train_and_measure, jobs):
            steps = f"{row['steps']} steps, {row['rollbacks']} roll-backs"
            suite.console.print(f"{row['variant']}, seed {row['seed']}: {steps}")
            rows.append(row)
    header = ["", "steps", "diverged", *SHOWN, "AUROC pairs"]
    for kind, name in (("long", f"{LONG_STEPS}-step chains"), ("short", "chains as in training")):
        title = f"{name} from noise, {seconds:g} s of one core a run, {seeds} seeds"
        suite.print_table(title, header, table(rows, kind))
    yield files.finite(rows)


if __name__ == "__main__":
    suite.script("digits", __doc__, run)
