"""The nearest-neighbour search, forward and forward + backward of the mean log distance.

Data: normal for d <= 64, else smooth images in [0, 1]; the same rows plus noise of 1e-3 as queries
("near") for correctness. Rivals (bench/neighbor_rivals.py), the best of which is what counts:
  broadcast         every difference in memory, as the script of ICD's authors has it
  torch.cdist       its default mode, and min; with a graph for the backward pass
  ... + pairs       a search without a graph, then the distances of the n pairs it found: products
                    by addmm in blocks, cdist, differences in place in blocks, torch.compile,
                    pykeops; argmin in vectorised parts, which is several times as fast as torch's
  faiss             knn and IndexFlatL2, with their own distances; + pairs for the backward pass
An index is wrong where its exact distance, rounded to float32, is above the smallest (so ties are
not). Memory is what one call adds at its worst. Two yardsticks are no rivals: the matrix product
alone, and the gradient of n pairs that are known. With --quick nothing is compiled first. Last
comes the share of the entropy term in a step of ICD training (bench/neighbor_icd.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import neighbor_icd
import timing
import torch
from neighbor_rivals import BROADCAST, CDIST, SMALL_DIM, exact_nearest, rivals, then_pairs
from torch import Tensor

import fastebm

OURS = "fastebm"
MATMUL, PAIRS = "torch.mm alone", "pairs alone, no search"
YARDSTICKS = {MATMUL, PAIRS}
FORWARD, BOTH = "forward", "forward + backward"
CASES = [
    *((128, 1000, 2), (1024, 10000, 2), (4096, 100000, 2), (128, 1000, 64)),
    *((128, 1000, 784), (128, 1000, 3072), (128, 10000, 3072), (1024, 10000, 784)),
]
SLOW = 0.5  # seconds a call from which a rival far behind the best is called only once more
MAX_BYTES, MAX_ERROR = 8e6, 2e-7
# design/nearest-neighbour.md 3.6, for an H200, forward. Not a measurement.
PREDICTED = {
    (128, 1000, 3072): {OURS: "15-20 us", CDIST: "70-90 us", BROADCAST: "750 us"},
    (128, 10000, 3072): {OURS: "50-60 us", CDIST: "245 us", BROADCAST: "7300 us"},
    (4096, 100000, 2): {OURS: "90-100 us", CDIST: "3000-4000 us"},
}


def wanted_speed(case: tuple[int, int, int]) -> float:
    """How many times as fast as the best rival, on one thread."""
    return 10.0 if case[2] == 2 else 1.3 if case == (128, 1000, 784) else 0.95


def data(n: int, m: int, d: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (n, d), references (m, d), and queries (n, d) that are nearly references."""
    generator = torch.Generator().manual_seed(0)
    rows = partial(torch.randn, generator=generator)
    if d <= 64:
        x, y = rows(n, d), rows(m, d)
    else:
        x, y = images(n, d, generator), images(m, d, generator)
    near = y[torch.randint(m, (n,), generator=generator)] + 1e-3 * rows(n, d)
    return x.to(device), y.to(device), near.to(device)


def images(n: int, d: int, generator: torch.Generator) -> Tensor:
    """(n, d) in [0, 1]: smooth fields and a little noise."""
    channels, side = {784: (1, 28), 3072: (3, 32)}[d]
    coarse = torch.randn(n, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").flatten(1)
    noise = torch.randn(n, d, generator=generator)
    return (0.5 + 0.3 * smooth + 0.02 * noise).clamp_(0, 1)


def as_calls(found: dict, x: Tensor, y: Tensor, mode: str) -> dict[str, Callable]:
    if mode == FORWARD:
        return {name: partial(search, x, y) for name, search in found.items()}
    leaf = x.clone().requires_grad_()

    def gradient(search):
        return torch.autograd.grad(search(leaf, y)[0].log().mean(), leaf)

    return {name: partial(gradient, search) for name, search in found.items()}


def choose(calls: dict, device: torch.device) -> tuple[dict, dict[str, float], dict[str, str]]:
    """The calls to time in turns, seconds of those too slow for that, and why others failed."""
    seconds, reasons = {}, {}
    for name, call in calls.items():
        try:
            seconds[name] = timing.warm_up(call, device, 0.05)
        except Exception as error:
            if name == OURS:
                raise
            lines = str(error).splitlines() or [""]
            reasons[name] = f"{type(error).__name__}: {lines[0]}"
    family = {name: name.split(",")[0] for name in seconds}
    best = [min((n for n in seconds if family[n] == f), key=seconds.get) for f in family.values()]
    fastest = min((s for name, s in seconds.items() if name != OURS))
    slow = {n: seconds[n] for n in best if seconds[n] > max(SLOW, 5 * fastest) and n != OURS}
    return {n: calls[n] for n in dict.fromkeys(best) if n not in slow}, slow, reasons


def correctness(search, x: Tensor, y: Tensor, smallest: Tensor) -> tuple[int, float]:
    """Wrong indices, and the largest relative error of a distance."""
    distance, index = search(x, y)
    chosen = (x.double() - y[index].double()).norm(dim=1)
    wrong = (chosen.float() > smallest.float()).sum().item()
    return wrong, ((distance.double() - smallest).abs() / smallest).max().item()


def measure(
    case, device: torch.device, threads: int, seconds: float, compiled: bool, check: bool
) -> list[dict]:
    """One row for each way, forward and with the backward pass; `check`: with correctness."""
    n, m, d = case
    x, y, near = data(n, m, d, device)
    facts = {"n": n, "m": m, "d": d, "device": device.type, "threads": threads}
    found = rivals(n, m, d, device, threads, compiled)
    rows = []
    for name in [name for name, search in found.items() if isinstance(search, str)]:
        rows.append(facts | {"variant": name, "unavailable": found.pop(name)})
    found = {OURS: fastebm.nearest_neighbor, **found}
    smallest = {queries: exact_nearest(queries, y) for queries in (x, near)} if check else {}
    for mode in (FORWARD, BOTH):
        calls, slow, reasons = choose(as_calls(found, x, y, mode), device)
        rows += [facts | {"mode": mode, "variant": k, "unavailable": v} for k, v in reasons.items()]
        memory = {
            name: timing.peak_extra_memory(call, device)
            for name, call in as_calls({k: found[k] for k in [*calls, *slow]}, x, y, mode).items()
        }
        if mode == BOTH:
            index = torch.arange(n, device=device) % m
            known = {PAIRS: then_pairs(lambda x, y, index=index: index)}
            calls |= as_calls(known, x, y, mode)
        elif d > SMALL_DIM:
            calls[MATMUL] = partial(torch.mm, x, y.T, out=x.new_empty(n, m))
        timings = timing.compare(calls, device, seconds=seconds)
        timings |= {name: timing.Timing([s]) for name, s in slow.items()}
        best = min(timings.keys() - {OURS, *YARDSTICKS}, key=lambda name: timings[name].median)
        for name, t in timings.items():
            row = facts | {
                "mode": mode,
                "variant": name,
                "seconds": t.median,
                "spread": None if name in slow else t.spread,
                "rounds": len(t.seconds),
                "ours_times_faster": t.median / timings[OURS].median
                if name in slow
                else timings[OURS].times_faster_than(t),
                "best_rival": name == best,
                "gflops": None if name == PAIRS else 2e-9 * n * m * d / t.median,
                "pairs_per_s": None if name in YARDSTICKS else n * m / t.median,
                "load_average": os.getloadavg()[0],
            }
            if name not in YARDSTICKS:
                row["extra_bytes"] = memory[name]
            if name in found and mode == FORWARD and check:
                row["wrong"], row["error"] = correctness(found[name], x, y, smallest[x])
                near_by = correctness(found[name], near, y, smallest[near])
                row["wrong_near"], row["error_near"] = near_by
                row["predicted_h200_not_measured"] = PREDICTED.get(case, {}).get(name)
            rows.append(row)
    return rows


def print_case(rows: list[dict]) -> None:
    n, m, d, threads = (rows[0][k] for k in ("n", "m", "d", "threads"))
    on = f"{threads} thread(s)" if rows[0]["device"] == "cpu" else "CUDA"
    for row in rows:
        if "unavailable" in row:
            print(f"not measured: {row['variant']}: {row['unavailable']}")
    for mode in (FORWARD, BOTH):
        print(f"n = {n}, m = {m}, d = {d}, {mode}, {on}")
        header = ["", "us", "spread", "fastebm faster", "MB more"]
        header.append("pairs/s" if d <= SMALL_DIM else "GFLOP/s")
        measured = sorted_rows(rows, mode)
        checked = "wrong" in measured[0]
        if checked:
            header += ["wrong", "rel. error", "wrong, near", "rel. error, near"]
            header.append("H200, PREDICTED, not measured")
        table = []
        for row in measured:
            rate = row["pairs_per_s"] if d <= SMALL_DIM else row["gflops"]
            cells = [
                row["variant"] + (" (BEST RIVAL)" if row["best_rival"] else ""),
                f"{row['seconds'] * 1e6:.4g}",
                "one call" if row["spread"] is None else f"{row['spread']:.0%}",
                f"{row['ours_times_faster']:.2f}x",
                f"{row['extra_bytes'] / 1e6:.1f}" if "extra_bytes" in row else "",
                "" if rate is None else f"{rate:.3g}",
            ]
            if "wrong" in row:
                cells += [str(row["wrong"]), f"{row['error']:.1e}"]
                cells += [str(row["wrong_near"]), f"{row['error_near']:.1e}"]
                cells.append(row["predicted_h200_not_measured"] or "")
            table.append(cells + [""] * (len(header) - len(cells)))
        timing.print_table(header, table)


def sorted_rows(rows: list[dict], mode: str) -> list[dict]:
    measured = [row for row in rows if "seconds" in row and row["mode"] == mode]
    return sorted(measured, key=lambda row: (row["variant"] != OURS, row["seconds"]))


def print_targets(rows: list[dict]) -> None:
    """What was to be reached on one thread of a CPU, and what was; memory and errors anywhere."""
    table = []

    def claim(what: str, wanted: str, measured: str, met: bool) -> None:
        table.append([what, wanted, measured, "met" if met else "MISSED"])

    ours = [row for row in rows if row.get("variant") == OURS and "seconds" in row]
    for row in rows:
        if row.get("best_rival") and row["threads"] == 1 and row["device"] == "cpu":
            wanted, got = wanted_speed((row["n"], row["m"], row["d"])), row["ours_times_faster"]
            what = f"{row['n']}, {row['m']}, {row['d']}, {row['mode']}, over {row['variant']}"
            claim(what, f">= {wanted:.2f}x", f"{got:.2f}x", got >= wanted)
    extra = max(row["extra_bytes"] for row in ours)
    claim(
        "extra memory, any case",
        f"< {MAX_BYTES / 1e6:.0f} MB",
        f"{extra / 1e6:.1f} MB",
        extra < MAX_BYTES,
    )
    checked = [row for row in ours if "wrong" in row]
    wrong = sum(row["wrong"] + row["wrong_near"] for row in checked)
    claim("wrong indices, all cases", "0", str(wrong), wrong == 0)
    error = max(max(row["error"], row["error_near"]) for row in checked)
    claim("relative error, any case", f"<= {MAX_ERROR:.0e}", f"{error:.1e}", error <= MAX_ERROR)
    timing.print_table(["target (fastebm)", "wanted", "measured", ""], table)


def main() -> None:
    arguments = timing.parse_arguments(__doc__)
    device, quick = arguments.device, arguments.quick
    seconds = 3.0 if device.type == "cpu" and not quick else 0.5
    facts = timing.environment(device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    cases = [CASES[i] for i in (0, 3, 4)] if quick else CASES
    passes = (1, 2) if device.type == "cpu" and not quick else (1,)
    rows, icd_rows = [], []
    for threads in passes:
        torch.set_num_threads(threads)
        timing.warn_if_busy(threads)
        for case in cases:
            torch.compiler.reset()
            check = threads == passes[0]
            of_case = measure(case, device, threads, seconds, compiled=not quick, check=check)
            print_case(of_case)
            rows += of_case
        if not quick:
            of_step = neighbor_icd.measure(device, threads, 2 * seconds)
            neighbor_icd.print_case(of_step)
            icd_rows += of_step
    print_targets(rows)
    timing.write_results(arguments.out, facts, rows + icd_rows)


if __name__ == "__main__":
    main()
