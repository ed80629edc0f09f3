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

from collections.abc import Callable, Iterator
from functools import partial

import neighbor_icd
import suite
import timing
import torch
from neighbor_rivals import SMALL_DIM, exact_nearest, rivals, then_pairs
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
ON_CUDA = [case for case in CASES if case not in ((128, 1000, 2), (128, 1000, 64))]
SLOW = 0.5  # seconds a call from which a rival far behind the best is called only once more
MAX_BYTES = {"cpu": 8e6, "cuda": 70e6}  # cuda: the bound of csrc/neighbor/blocks_cuda.h
MAX_ERROR = 2e-7


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
    case, device: torch.device, threads: int, seconds: float, rate: float, compiled: bool
) -> suite.Rows:
    """One row for each way, forward and with the backward pass; `rate`: floating-point operations
    a second of a matrix product."""
    n, m, d = case
    x, y, near = data(n, m, d, device)
    torch.compiler.reset()
    found = rivals(n, m, d, device, threads, compiled)
    absent = {name: found.pop(name) for name, v in list(found.items()) if isinstance(v, str)}
    found = {OURS: fastebm.nearest_neighbor, **found}
    smallest = {queries: exact_nearest(queries, y) for queries in (x, near)}
    rows = []
    for mode in (FORWARD, BOTH):
        facts = {
            "case": f"{n}, {m}, {d}, {mode}, {suite.threads_text(device, threads)}",
            **{"n": n, "m": m, "d": d, "mode": mode, "threads": threads},
            "limit": "matrix product",
            "limit_seconds": 2 * n * m * d / rate,
        }
        calls, slow, reasons = choose(as_calls(found, x, y, mode), device)
        rows += suite.unavailable_rows(facts, absent | reasons)
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
                "variant": name,
                "family": name.split(",")[0],
                **t.row(),
                "fastebm_faster": t.median / timings[OURS].median
                if name in slow
                else timings[OURS].times_faster_than(t),
                "best_rival": name == best,
                "yardstick": name in YARDSTICKS,
            }
            if name not in YARDSTICKS:
                row["extra_bytes"] = memory[name]
            if name in found and mode == FORWARD:
                row["wrong"], row["error"] = correctness(found[name], x, y, smallest[x])
                near_by = correctness(found[name], near, y, smallest[near])
                row["wrong_near"], row["error_near"] = near_by
            rows.append(row)
    return rows


def print_case(rows: suite.Rows) -> None:
    for mode in (FORWARD, BOTH):
        measured = sorted_rows(rows, mode)
        header = ["", "us", "spread", "fastebm faster", "MB more", "of the limit"]
        checked = "wrong" in measured[0]
        if checked:
            header += ["wrong", "rel. error", "wrong, near", "rel. error, near"]
        table = []
        for row in measured:
            cells = [
                row["variant"] + (" (BEST RIVAL)" if row["best_rival"] else ""),
                f"{row['seconds'] * 1e6:.4g}",
                "one call" if row["spread"] is None else f"{row['spread']:.0%}",
                f"{row['fastebm_faster']:.2f}x",
                f"{row['extra_bytes'] / 1e6:.1f}" if "extra_bytes" in row else "",
                "" if row["variant"] == PAIRS else f"{row['limit_seconds'] / row['seconds']:.0%}",
            ]
            if "wrong" in row:
                cells += [str(row["wrong"]), f"{row['error']:.1e}"]
                cells += [str(row["wrong_near"]), f"{row['error_near']:.1e}"]
            table.append(cells + [""] * (len(header) - len(cells)))
        suite.print_table("n, m, d = " + measured[0]["case"], header, table)


def sorted_rows(rows: suite.Rows, mode: str) -> suite.Rows:
    measured = [row for row in rows if "seconds" in row and row["mode"] == mode]
    return sorted(measured, key=lambda row: (row["variant"] != OURS, row["seconds"]))


def print_targets(rows: suite.Rows, device: torch.device) -> None:
    """What was to be reached on one thread of a CPU, and what was; errors, and memory against the
    device's own bound, anywhere."""
    claims = []
    for row in rows:
        if row.get("best_rival") and row["threads"] == 1 and device.type == "cpu":
            wanted, got = wanted_speed((row["n"], row["m"], row["d"])), row["fastebm_faster"]
            what = f"{row['case']}, over {row['variant']}"
            claims.append((what, f">= {wanted:.2f}x", f"{got:.2f}x", got >= wanted))
    ours = [row for row in rows if row["variant"] == OURS and "seconds" in row]
    checked = [row for row in ours if "wrong" in row]
    extra, most = max(row["extra_bytes"] for row in ours), MAX_BYTES[device.type]
    wrong = sum(row["wrong"] + row["wrong_near"] for row in checked)
    error = max(max(row["error"], row["error_near"]) for row in checked)
    claims += [
        ("extra memory, any case", f"< {most / 1e6:.0f} MB", f"{extra / 1e6:.1f} MB", extra < most),
        ("wrong indices, all cases", "0", str(wrong), wrong == 0),
        ("relative error, any case", f"<= {MAX_ERROR:.0e}", f"{error:.1e}", error <= MAX_ERROR),
    ]  # fmt: skip
    suite.print_targets("fastebm's search", claims)


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """Measures and prints every case."""
    device, quick = options.device, options.quick
    seconds = 1.5 if device.type == "cpu" and not quick else 0.5
    cases = ON_CUDA if device.type == "cuda" else CASES
    if quick:  # on a GPU those that predictions are of
        cases = [CASES[i] for i in ((2, 5, 6) if device.type == "cuda" else (0, 3, 4))]
    rows = []
    # With more threads, a rival whose threads spin slows down whoever comes next.
    for threads in options.each_thread_count(1):
        rate = timing.matmul_rate(device, seconds)
        for case in options.in_time(cases):
            of_case = measure(case, device, threads, seconds, rate, compiled=not quick)
            print_case(of_case)
            rows += of_case
            yield of_case
        for _ in options.in_time([] if quick else [neighbor_icd.CASE]):
            of_step = neighbor_icd.measure(device, threads, 2 * seconds)
            neighbor_icd.print_case(of_step)
            yield of_step
    if rows:
        print_targets(rows, device)


if __name__ == "__main__":
    suite.script("neighbor", __doc__, run)
