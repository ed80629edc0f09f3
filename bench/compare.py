"""A run beside an earlier one, row by row: a look, never a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import suite


class Ratio(NamedTuple):
    """One row in both results; `faster` is old over new."""

    bench: str
    case: str
    variant: str
    old: float
    new: float

    @property
    def faster(self) -> float:
        return self.old / self.new


def ratios(old: suite.Results, new: suite.Results) -> Iterator[Ratio]:
    """The rows measured in both, in the order of the new results."""
    for bench, entry in new.items():
        before = _seconds(old.get(bench, {"rows": []}))
        for (case, variant), seconds in _seconds(entry).items():
            if (case, variant) in before:
                yield Ratio(bench, case, variant, before[case, variant], seconds)


def _seconds(entry: dict) -> dict[tuple[str, str], float]:
    measured = (row for row in entry["rows"] if "seconds" in row)
    return {(row["case"], row["variant"]): row["seconds"] for row in measured}


def print_comparison(old: suite.Results, new: suite.Results) -> None:
    """Ratios for each bench, after where and when both were measured."""
    found = list(ratios(old, new))
    for bench in dict.fromkeys(ratio.bench for ratio in found):
        for which, results in (("old", old), ("new", new)):
            suite.console.print(f"{which}: {_provenance(results[bench])}", markup=False)
        rows = [
            [r.case, r.variant, f"{r.old * 1e6:.4g}", f"{r.new * 1e6:.4g}", f"{r.faster:.2f}x"]
            for r in found
            if r.bench == bench
        ]
        header = ["case", "variant", "old, us", "new, us", "old / new"]
        suite.print_table(f"{bench} against the old results", header, rows)
    alone = sum(len(_seconds(entry)) for entry in new.values()) - len(found)
    suite.console.print(f"{len(found)} rows compared, {alone} have no counterpart")


def _provenance(entry: dict) -> str:
    facts = entry["environment"]
    changed = " with changes" if facts["uncommitted_changes"] else ""
    return (
        f"{facts['date']}, {facts['commit']}{changed}, {facts['device']}, torch {facts['torch']},"
        f" load {facts['load_average'][0]}{', quick' if facts.get('quick') else ''}"
    )
