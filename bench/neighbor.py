"""The nearest-neighbour search, forward and forward + backward of the mean log distance.

Data: normal for d <= 64, else smooth images in [0, 1], as float32 or rounded to bytes, queries in
float32 always; the same rows plus noise of 1e-3 as queries ("near") for correctness. Rivals
(bench/neighbor_rivals.py), the best of which is what counts:
  broadcast         every difference in memory, as the script of ICD's authors has it
  torch.cdist       its default mode, and min; with a graph for the backward pass
  ... + pairs       a search without a graph, then the distances of the n pairs it found: products
                    by addmm in blocks, cdist, differences in place in blocks, torch.compile,
                    pykeops; argmin in vectorised parts, which is several times as fast as torch's
  ... + certified   the same by products of bfloat16 or, among bytes, int8, whose bounds leave a
        pairs       few candidates to float64 (bench/neighbor_rivals_certified.py)
  faiss             knn and IndexFlatL2, with their own distances; + pairs for the backward pass;
                    among bytes its SQ8 too, which counts only where it finds no wrong index
Rivals among bytes have their copies of the references, in float32, bfloat16 or int8, and faiss its
filled index, before the clock starts. An index is wrong where its exact distance, rounded to
float32, is above the smallest (so ties are not). Memory is what one call adds at its worst.
Yardsticks are no rivals: the float32 matrix product alone, making the int8 copies that a rival has,
and the gradient of n pairs that are known. With --quick nothing is compiled first. Last comes the
share of the entropy term in a step of ICD training (bench/neighbor_icd.py). With --simd there are
only the cases that have a target of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import levels
import neighbor_icd
import suite
import timing
import torch
from neighbor_rivals import APPROXIMATE, SMALL_DIM, exact_nearest, rivals, then_pairs
from neighbor_rivals_certified import int8_copies
from torch import Tensor

import fastebm

OURS = "fastebm"
MATMUL, PAIRS = "torch.mm alone", "pairs alone, no search"
COPIES = "copies of bytes as int8 alone, no search"
FAISS = "faiss.knn"
YARDSTICKS = {MATMUL, PAIRS, COPIES}
FORWARD, BOTH = "forward", "forward + backward"
Y_SCALE = (1 / 255, 0.0)  # of bytes


class Case(NamedTuple):
    n: int
    m: int
    d: int
    dtype: str = "float32"  # of the references

    @property
    def name(self) -> str:
        return ", ".join(map(str, self[:3])) + " uint8" * (self.dtype == "uint8")


CASES = [
    *(Case(128, 1000, 2), Case(1024, 10000, 2), Case(4096, 100000, 2)),
    *(Case(128, 1000, 64), Case(1024, 10000, 64)),
    *(Case(128, 1000, 784), Case(128, 1000, 3072), Case(128, 10000, 3072), Case(1024, 10000, 784)),
    *(Case(128, 1000, 784, "uint8"), Case(128, 10000, 3072, "uint8")),
    Case(1024, 10000, 784, "uint8"),
]
# The largest first, last those whose rivals are compiled, 40 s: the best ones where d is 2.
ON_CUDA = sorted((c for c in CASES if c[1:3] not in ((1000, 2), (1000, 64))), key=lambda c: -c.d)
QUICK = [c for c in CASES if c.m == 1000 and c.d <= 784]
QUICK_ON_CUDA = [c for c in CASES if c.d == 3072 or c.m == 100000]  # that predictions are of
SLOW = 0.5  # seconds a call from which a rival far behind the best is called only once more
MAX_BYTES = {"cpu": 8e6, "cuda": 70e6}  # cuda: the bound of csrc/neighbor/blocks_cuda.h
MAX_ERROR = 2e-7


# How many times as fast as the best rival, on one thread; the pair: at AVX-512 VNNI, at AVX2.
WANTED = {
    Case(128, 10000, 3072, "uint8"): (1.9, 1.4),
    Case(1024, 10000, 784, "uint8"): (1.9, 1.4),
    Case(128, 1000, 784, "uint8"): (2.0, 1.3),
    Case(128, 10000, 3072): (1.5, 1.2),
    Case(1024, 10000, 784): (1.5, 1.2),
    Case(1024, 10000, 64): (1.2, 0.95),
    Case(128, 1000, 784): (1.3, 1.3),
}


def wanted_speed(case: Case, level: str) -> float:
    at_vnni, at_avx2 = WANTED.get(case, (10.0, 10.0) if case.d == 2 else (0.95, 0.95))
    return at_avx2 if level.startswith("avx2") else at_vnni


def data(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Queries (n, d), references (m, d), those as bytes where they are, and queries (n, d) that are
    nearly references."""
    n, m, d, dtype = case
    generator = torch.Generator().manual_seed(0)
    rows = partial(torch.randn, generator=generator)
    if d <= 64:
        x, y = rows(n, d), rows(m, d)
    else:
        x, y = images(n, d, generator), images(m, d, generator)
    stored = None
    if dtype == "uint8":
        stored = (y * 255).round_().to(torch.uint8)
        y = stored * Y_SCALE[0] + Y_SCALE[1]
        stored = stored.to(device)
    near = y[torch.randint(m, (n,), generator=generator)] + 1e-3 * rows(n, d)
    return x.to(device), y.to(device), stored, near.to(device)


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


def inexact(found: dict, x: Tensor, y: Tensor, smallest: Tensor) -> set[str]:
    """The approximate rivals that find a wrong index."""
    approximate = {name: search for name, search in found.items() if name.startswith(APPROXIMATE)}
    return {name for name, s in approximate.items() if correctness(s, x, y, smallest)[0]}


def measure(
    case: Case, device: torch.device, threads: int, seconds: float, rate: float, compiled: bool
) -> suite.Rows:
    """One row for each way, forward and with the backward pass; `rate`: floating-point operations
    a second of a matrix product."""
    n, m, d, dtype = case
    x, y, stored, near = data(case, device)
    torch.compiler.reset()
    found = rivals(y, stored, Y_SCALE, n, threads, compiled)
    absent = {name: found.pop(name) for name, v in list(found.items()) if isinstance(v, str)}
    ours = fastebm.nearest_neighbor
    if stored is not None:
        ours = lambda x, _: fastebm.nearest_neighbor(x, stored, y_scale=Y_SCALE)  # noqa: E731
    found = {OURS: ours, **found}
    smallest = {queries: exact_nearest(queries, y) for queries in (x, near)}
    rows = []
    for mode in (FORWARD, BOTH):
        facts = {
            "case": f"{case.name}, {mode}, {suite.threads_text(device, threads)}",
            **{"n": n, "m": m, "d": d, "dtype": dtype, "mode": mode, "threads": threads},
            "limit": "float32 matrix product",
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
            if stored is not None:
                calls[COPIES] = partial(int8_copies, stored, 4096)
        timings = timing.compare(calls, device, seconds=seconds)
        timings |= {name: timing.Timing([s]) for name, s in slow.items()}
        exact = timings.keys() - {OURS, *YARDSTICKS} - inexact(found, x, y, smallest[x])
        best = min(exact, key=lambda name: timings[name].median)
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
                "inexact": name not in {OURS, *YARDSTICKS, *exact},
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
                row["variant"] + " (BEST RIVAL)" * row["best_rival"] + ", inexact" * row["inexact"],
                f"{row['seconds'] * 1e6:.4g}",
                "one call" if row["spread"] is None else f"{row['spread']:.0%}",
                f"{row['fastebm_faster']:.2f}x",
                f"{row['extra_bytes'] / 1e6:.1f}" if "extra_bytes" in row else "",
                ""
                if row["variant"] in (PAIRS, COPIES)
                else f"{row['limit_seconds'] / row['seconds']:.0%}",
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
    """What was to be reached on one thread of a CPU, over the best rival and over faiss, and what
    was; errors, and memory against the
    device's own bound, anywhere."""
    claims = []
    for row in rows:
        counts = row.get("best_rival") or row["variant"] == FAISS and "seconds" in row
        if counts and row["threads"] == 1 and device.type == "cpu":
            case = Case(row["n"], row["m"], row["d"], row["dtype"])
            wanted, got = wanted_speed(case, levels.name()), row["fastebm_faster"]
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
    on_cpu = [*WANTED] if levels.is_held() else CASES
    cases = ((ON_CUDA, QUICK_ON_CUDA) if device.type == "cuda" else (on_cpu, QUICK))[quick]
    rows = []
    # With more threads, a rival whose threads spin slows down whoever comes next.
    for threads in options.each_thread_count(1):
        rate = timing.matmul_rate(device, seconds)
        for case in options.in_time(cases):
            compiled = not quick and (device.type == "cpu" or case.d == 2)
            of_case = measure(case, device, threads, seconds, rate, compiled)
            print_case(of_case)
            rows += of_case
            yield of_case
        for case in options.in_time([] if quick or levels.is_held() else neighbor_icd.CASES):
            of_step = neighbor_icd.measure(case, device, threads, 2 * seconds)
            neighbor_icd.print_case(of_step)
            yield of_step
    if rows:
        print_targets(rows, device)


if __name__ == "__main__":
    suite.script("neighbor", __doc__, run)
