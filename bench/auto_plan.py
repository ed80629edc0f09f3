"""Which cells `bench/auto.py` runs, and what follows from those that were run."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from statistics import median

import auto_sets
from auto_cells import Cell, Result, Store
from auto_held_out import BETAS, TABLES
from auto_rivals import DEMO, FAIR, METHODS, RATES, RATIOS, SMALL

EXTREMES = ({"step_size": 1e-6, "lr": 1e-4}, {"step_size": 100.0, "lr": 1.0})
SCALES, DEGREES = (0.01, 100.0), 45.0
# Rivals of a network of any kind and of data of any scale: standardised, as the networks' input
# would be lost otherwise; as many chains as the rule; a learning rate that wide networks bear.
OF_A_NETWORK = [
    {"group": SMALL, "method": method, "ratio": ratio, "lr": 0.01}
    for method in ("ICD + L2 0.1", "CD + L2 0.1")
    for ratio in (0.45, 0.9)
]
OF_HIGH = [{**r, "group": FAIR} for r in OF_A_NETWORK]
OF_TABLES = [{**r, "group": FAIR} for r in OF_A_NETWORK if r["ratio"] == 0.9]


@dataclass(frozen=True)
class Plan:
    """How much is run; `quick` shows that all of it works, and its numbers mean nothing."""

    source: str
    quick: bool = False

    @property
    def seeds(self) -> range:
        return range(1 if self.quick else 5)

    @property
    def steps(self) -> int:
        return 20 if self.quick else 1000

    @property
    def sets(self) -> tuple[str, ...]:
        return ("ring", "square") if self.quick else auto_sets.TUNED_ON + auto_sets.UNSEEN

    @property
    def extreme_sets(self) -> tuple[str, ...]:
        return self.sets if self.quick else auto_sets.TUNED_ON

    @property
    def turned_sets(self) -> tuple[str, ...]:
        return ("ring",) if self.quick else ("aniso", "ring")

    @property
    def high_sets(self) -> tuple[str, ...]:
        return auto_sets.HIGH[:1] if self.quick else auto_sets.HIGH

    @property
    def tables(self) -> tuple[str, ...]:
        return ("wine",) if self.quick else tuple(TABLES)

    def auto(self, name: str, seed: int, **more) -> Cell:
        cell = {"who": "auto", "source": self.source, "set": name, "seed": seed}
        return {**cell, "steps": self.steps, "samples": 200 if self.quick else 2000, **more}

    def rival(self, name: str, seed: int, of: dict, **more) -> Cell:
        cell = {"who": "rival", "set": name, "seed": seed, **of}
        return {**cell, "steps": self.steps, "samples": 200 if self.quick else 2000, **more}

    def of_rule(self) -> list[Cell]:
        """All cells of the automatic rule."""
        found = [self.auto(name, seed) for name in self.sets for seed in self.seeds]
        turned = {"degrees": DEGREES}
        found += [
            self.auto(name, seed, **turned) for name in self.turned_sets for seed in self.seeds
        ]
        of_sets = [self.extremes(name) for name in self.extreme_sets]
        of_sets += [self.high(name) for name in self.high_sets]
        of_sets += [self.table(name) for name in self.tables]
        found += [c for of_set in of_sets for cells in of_set.values() for c in cells]
        found += [cell for cell, _ in self.configurations()]
        return [cell for cell in found if cell["who"] == "auto"]

    # The table: every set, and the best of all rivals on seed 0

    def candidates(self, name: str, group: str) -> list[Cell]:
        ratios, methods = RATIOS, METHODS
        if group == FAIR:
            methods = [m for m in METHODS if "L2" in m]
        if self.quick:
            ratios = [0.9]
        few = {"samples": 200 if self.quick else 1000}
        return [
            self.rival(name, 0, {"group": group, "method": m, "ratio": r, "lr": lr}, **few)
            for lr in (RATES[group][:1] if self.quick else RATES[group])
            for r in ratios
            for m in methods
        ]

    def best(self, store: Store, name: str, group: str) -> dict:
        """The rival that has the least KL of those that did not diverge."""
        cells = self.candidates(name, group)
        whole = [c for c in cells if store[c]["diverged"] is None] or cells
        chosen = min(whole, key=lambda c: number(store[c]["kl"]))
        return {k: chosen[k] for k in ("group", "method", "ratio", "lr")}

    def finals(self, store: Store, name: str) -> dict[str, list[Cell]]:
        """Variant -> its cells, one a seed."""
        found = {"auto": [self.auto(name, seed) for seed in self.seeds]}
        for group in (DEMO, FAIR):
            of = self.best(store, name, group)
            found[called(of)] = [self.rival(name, seed, of) for seed in self.seeds]
        return found

    def times(self, store: Store, name: str) -> Cell:
        """Of the finals' first seeds, in turns."""
        cells = [cells[0] for cells in self.finals(store, name).values()]
        return {"who": "times", "set": name, "seed": 0, "steps": self.steps, "cells": cells}

    def equal_time(self, store: Store, name: str) -> dict[str, list[Cell]]:
        """The rivals, one seed, with as many steps as fit in the rule's time."""
        ours, *theirs = store[self.times(store, name)]["seconds"]
        found = {}
        for (variant, cells), seconds in zip(
            list(self.finals(store, name).items())[1:], theirs, strict=True
        ):
            steps = max(10, round(self.steps * ours / seconds))
            found[f"{variant}, equal time"] = [{**c, "steps": steps} for c in cells[:1]]
        return found

    # What the rule has to bear

    def extremes(self, name: str) -> dict[str, list[Cell]]:
        changes = {f"step {e['step_size']:g}, lr {e['lr']:g}": e for e in EXTREMES}
        changes |= {f"data x {scale:g}": {"scale": scale} for scale in SCALES}
        return {
            words: [self.auto(name, seed, **more) for seed in self.seeds]
            for words, more in changes.items()
        }

    def turned(self, store: Store, name: str) -> dict[str, list[Cell]]:
        """With the rivals that are the best where nothing is turned."""
        more = {"degrees": DEGREES}
        found = {"auto": [self.auto(name, seed, **more) for seed in self.seeds]}
        for group in (DEMO, FAIR):
            of = self.best(store, name, group)
            found[called(of)] = [self.rival(name, seed, of, **more) for seed in self.seeds]
        return found

    def high(self, name: str) -> dict[str, list[Cell]]:
        found = {"auto": [self.auto(name, seed) for seed in self.seeds]}
        for of in OF_HIGH[:1] if self.quick else OF_HIGH:
            found[called(of)] = [self.rival(name, seed, of) for seed in self.seeds]
        return found

    def table(self, name: str) -> dict[str, list[Cell]]:
        more = {"betas": 50 if self.quick else BETAS, "samples": 0}
        found = {"auto": [self.auto(name, seed, **more) for seed in self.seeds]}
        for of in OF_TABLES:
            found[called(of)] = [self.rival(name, seed, of, **more) for seed in self.seeds]
        classic = {"who": "classic", "set": name}
        return found | {"classic": [{**classic, "seed": seed} for seed in self.seeds]}

    def configurations(self) -> list[tuple[Cell, list[Cell]]]:
        """Random ones: of each the automatic rule's cell, and those of OF_A_NETWORK."""
        draw, found = random.Random(18), []
        for _ in range(2 if self.quick else 100):
            more = {
                "width": round(16 * 16 ** draw.random()),
                "depth": draw.randint(1, 4),
                "activation": draw.choice(("silu", "tanh", "relu", "softplus", "gelu")),
                "k_steps": round(5 * 10 ** draw.random()),
                "scale": float(f"{10 ** draw.uniform(-2, 2):.3g}"),
                "samples": 0,
                "steps": 10 if self.quick else 300,
            }
            name, seed = draw.choice(auto_sets.TUNED_ON + auto_sets.UNSEEN), draw.randrange(1000)
            rivals = [self.rival(name, seed, of, **more) for of in OF_A_NETWORK]
            found.append((self.auto(name, seed, **more), rivals))
        return found[:1] if self.quick else found


def called(of: dict) -> str:
    return f"{of['group']}: {of['method']}, step {of['ratio']:g} v, lr {of['lr']:g}"


def number(value: float | None) -> float:
    """None, which JSON has for it, is infinite."""
    return math.inf if value is None else value


def of_cells(store: Store, cells: list[Cell], *path: str) -> list[float]:
    """A figure of each result that has it."""
    found = []
    for cell in cells:
        value: Result = store[cell]
        for name in path:
            value = value.get(name, {}) if isinstance(value, dict) else {}
        if value != {}:
            found.append(number(value))
    return found


def middle(values: list[float]) -> float:
    return median(values) if values else math.nan
