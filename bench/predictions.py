"""What fastebm is predicted to do on a GPU, from counted bytes and operations: no measurement.

The one place for such figures. They are shown as predictions, and what was measured beside them as
soon as a results file of a CUDA device has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import suite

HEADER = ["claim", "predicted", "measured"]
NOT_MEASURED = "not measured"


class Prediction(NamedTuple):
    """A claim about the rows of a bench: what is predicted of each card, by the word for it in the
    device's name; `measured` finds it in the rows, as text, or None."""

    bench: str
    claim: str
    predicted: Mapping[str, str]
    measured: Callable[[suite.Rows], str | None]


def share_of_copy(dtype: str) -> Callable[[suite.Rows], str | None]:
    """Of the largest step of that type."""

    def measured(rows: suite.Rows) -> str | None:
        of_type = [r for r in _of(rows, "fastebm") if r["dtype"] == dtype]
        row = max(of_type, key=lambda r: r["limit_seconds"], default=None)
        return row and f"{row['limit_seconds'] / row['seconds']:.0%}"

    return measured


def mlp_speedup(variant: str, over: str) -> Callable[[suite.Rows], str | None]:
    """Of one variant over another, least and most over the perceptrons that have both."""

    def measured(rows: suite.Rows) -> str | None:
        mlps = [row for row in rows if row["energy"].startswith("MLP")]
        slow = {r["case"]: r["seconds"] for r in _of(mlps, over)}
        fast = {r["case"]: r["seconds"] for r in _of(mlps, variant)}
        ratios = sorted(slow[case] / fast[case] for case in slow.keys() & fast.keys())
        return f"{ratios[0]:.3g}x to {ratios[-1]:.3g}x" if ratios else None

    return measured


def step_time(energy: str, batch: int) -> Callable[[suite.Rows], str | None]:
    """Of a chain of that energy, device's time alone."""

    def measured(rows: suite.Rows) -> str | None:
        for r in _of(rows, "fastebm"):
            if (r["energy"], r["shape"][0]) == (energy, batch):
                return f"{r['seconds'] * 1e6:.3g} us"
        return None

    return measured


def search_time(
    n: int, m: int, d: int, dtype: str = "float32"
) -> Callable[[suite.Rows], str | None]:
    """Forward, among references of that type."""
    wanted = {"n": n, "m": m, "d": d, "dtype": dtype, "mode": "forward"}

    def measured(rows: suite.Rows) -> str | None:
        for r in _of(rows, "fastebm"):
            if wanted.items() <= r.items():
                return f"{r['seconds'] * 1e6:.3g} us"
        return None

    return measured


def _of(rows: suite.Rows, variant: str) -> suite.Rows:
    return [row for row in rows if row["variant"] == variant and "seconds" in row]


PREDICTIONS = (
    Prediction("langevin", "float32 step, share of the bandwidth of a copy",
               {"H100": ">= 92 %", "H200": ">= 90 %"}, share_of_copy("float32")),
    Prediction("langevin", "bfloat16 step, share of the bandwidth of a copy",
               {"H100": "85 to 90 %", "H200": "<= 75 %"}, share_of_copy("bfloat16")),
    Prediction("chain", "chain of a small MLP: CUDA graph over eager",
               {"H100": ">= 5x"}, mlp_speedup("fastebm, graph", "eager, in place")),
    Prediction("chain", "chain of a small MLP: one kernel, float32, over CUDA graph",
               {"H100": "4.5x to 20x"}, mlp_speedup("fastebm", "fastebm, graph")),
    Prediction("chain", "chain of a small MLP: one kernel, bfloat16, over CUDA graph",
               {"H100": ">= 10x"}, mlp_speedup("fastebm, bfloat16", "fastebm, graph")),
    Prediction("chain", "a step in one kernel, float32, MLP 2-128-128-1, 128 x 2",
               {"H100": "1.5 us"}, step_time("MLP 2-128-128-1", 128)),
    Prediction("chain", "a step in one kernel, float32, MLP 64-128-128-1, 128 x 64",
               {"H100": "1.9 us"}, step_time("MLP 64-128-128-1", 128)),
    Prediction("chain", "a step in one kernel, float32, MLP 32-128-128-1, 1024 x 32",
               {"H100": "3.1 us"}, step_time("MLP 32-128-128-1", 1024)),
    Prediction("chain", "a step in one kernel, float32, MLP 2-128-128-1, 4096 x 2",
               {"H100": "8 to 11 us"}, step_time("MLP 2-128-128-1", 4096)),
    Prediction("neighbor", "nearest neighbours, n, m, d = 128, 1000, 3072",
               {"H100": "18 to 23 us"}, search_time(128, 1000, 3072)),
    Prediction("neighbor", "nearest neighbours, n, m, d = 128, 10000, 3072",
               {"H100": "65 to 75 us", "H200": "55 to 65 us"}, search_time(128, 10000, 3072)),
    Prediction("neighbor", "nearest neighbours, n, m, d = 128, 10000, 3072, uint8",
               {"H100": "22 to 27 us"}, search_time(128, 10000, 3072, "uint8")),
    Prediction("neighbor", "nearest neighbours, n, m, d = 4096, 100000, 2",
               {"H100": "95 to 105 us"}, search_time(4096, 100000, 2)),
)  # fmt: skip


def table(results: suite.Results) -> list[list[str]]:
    """Rows under HEADER; `results` are those of a CUDA device, empty while there are none. Cards
    are named, as what one card shows says little of what is predicted of another."""
    lines = []
    for bench, claim, predicted, measured in PREDICTIONS:
        entry = results.get(bench)
        found = entry and measured(entry["rows"])
        lines.append([
            claim,
            "; ".join(f"{card} {text}" for card, text in predicted.items()),
            f"{found} ({entry['environment']['device']})" if found else NOT_MEASURED,
        ])  # fmt: skip
    return lines
