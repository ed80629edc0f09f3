"""Every kernel that a claim is about, once, at the claim's size: for Nsight Compute.

    ncu --profile-from-start off --clock-control none --kernel-name-base demangled \\
        --kernel-name regex:fastebm --section SpeedOfLight --section SchedulerStats \\
        --section WarpStateStats --section LaunchStats --section Occupancy \\
        --section MemoryWorkloadAnalysis --section ComputeWorkloadAnalysis \\
        -o FILE python bench/profile_kernels.py > LOG
    ncu --import FILE.ncu-rep --page raw --csv | cat LOG - |
        python bench/profile_kernels.py --table

`bench/gpu.sh OUT_DIR profile` does both. The second prints a line a kernel, in the order of their
launches: its time, the share of its cycles in which a scheduler issued, the shares of the peaks of
device memory, L2, shared memory and the busiest pipe, its blocks, registers and warps, what a warp
waits for most (warps a cycle for each that issues), its name and the case's. The log knows the
cases: they are printed before their kernels.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import neighbor
import torch
from torch import Tensor

import fastebm
from fastebm import Augmentation, ops
from fastebm.ops.bernoulli import bernoulli_sigmoid_
from fastebm.ops.choice import choose_slots
from fastebm.ops.mlp.chain import mlp_chain_
from fastebm.ops.mlp.network import Network
from fastebm.rng import ChainRNG

Calls = Iterator[tuple[str, Callable[[], object]]]

STEP, NORM_CLIP = (10000, 10000), (1000, 10000)
CHAINS = ((128, 2), (128, 64), (1024, 32), (4096, 2))
SEARCHES = neighbor.ON_CUDA
UNIFORM = (neighbor.Case(128, 10000, 3072), neighbor.Case(128, 10000, 3072, "uint8"))
STORED, BATCH = (10000, 3, 32, 32), 128
UNITS = (4096, 784)

COLUMNS = {
    "us": "gpu__time_duration.sum",
    "issued %": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "memory %": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "L2 %": "lts__t_sectors.avg.pct_of_peak_sustained_elapsed",
    "shared %": "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed",
    "SM %": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "blocks": "launch__grid_size",
    "registers": "launch__registers_per_thread",
    "warps/SM": "sm__warps_active.avg.per_cycle_active",
}
SCALE = {"ns": 1e-3, "ms": 1e3}  # to microseconds
# What a warp waits for; one that is selected, or is not though it could be, does not wait.
STALL = re.compile(
    r"smsp__average_warps_issue_stalled_((?!selected|not_)\w+)_per_issue_active\.ratio"
)


def steps(rng: Tensor) -> Calls:
    rand = partial(torch.rand, device=rng.device)
    for dtype in (torch.float32, torch.bfloat16):
        x, grad = (rand(STEP).to(dtype) for _ in range(2))
        how = dict(grad_clip=1.0, clamp=(0.0, 1.0))
        yield f"step {dtype}", partial(ops.langevin_step_, x, grad, 0.01, 0.1, rng, **how)
    x, grad = (rand(NORM_CLIP) for _ in range(2))
    yield "norm clip", partial(ops.langevin_step_, x, grad, 0.01, 0.1, rng, grad_norm_clip=1.0)


def chains(rng: Tensor) -> Calls:
    for n, dim in CHAINS:
        sizes = (dim, 128, 128, 1)
        weights = [
            torch.randn(b, a, device=rng.device) / a**0.5
            for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        ]
        net = Network(weights, [None] * len(weights), "silu")
        x = torch.randn(n, dim, device=rng.device)
        for precision in ("fp32", "bf16"):
            call = partial(mlp_chain_, x, net, 10, 0.001, 0.04, rng, precision=precision)
            yield f"chain {n} x {dim}, 10 steps, {precision}", call


def searches(rng: Tensor) -> Calls:
    for case in SEARCHES:
        x, y, stored, _ = neighbor.data(case, rng.device)
        yield f"nearest of {case.name}", search(x, y if stored is None else stored)
    for case in UNIFORM:  # distances are all alike, so that many candidates are left
        x, y = (torch.rand(rows, case.d, device=rng.device) for rows in (case.n, case.m))
        y = (255 * y).to(torch.uint8) if case.dtype == "uint8" else y
        yield f"nearest of {case.name}, uniform", search(x, y)


def search(x: Tensor, y: Tensor) -> Callable[[], object]:
    scale = neighbor.Y_SCALE if y.dtype == torch.uint8 else (1.0, 0.0)
    return partial(fastebm.nearest_neighbor, x, y, y_scale=scale)


def replay(rng: Tensor) -> Calls:
    images = torch.randint(0, 256, STORED, device=rng.device, dtype=torch.uint8)
    index = torch.randint(0, len(images), (BATCH,), device=rng.device)
    gather = partial(ops.replay_gather, images, index, rng, reinit_prob=0.05, init="uniform")
    augmentation = Augmentation(hflip_p=0.5, contrast=0.5, kernel_size=5, blur_p=0.5)
    yield "gather", partial(gather, augmentation=())
    yield "augment", partial(gather, augmentation=augmentation.parameters)
    yield "slots", partial(choose_slots, rng, len(images), BATCH)


def units(rng: Tensor) -> Calls:
    yield "bernoulli", partial(bernoulli_sigmoid_, torch.randn(UNITS, device=rng.device), rng)


def calls(device: str = "cuda") -> Calls:
    """Name and call of each case."""
    rng = ChainRNG(0).state(device)
    for part in (steps, chains, searches, replay, units):
        yield from part(rng)


def launch(seconds: float) -> None:
    """Calls every case twice and lets the profiler see the second, as long as there is time."""
    end = time.monotonic() + seconds
    with torch.no_grad():
        for name, call in calls():
            if time.monotonic() > end:
                print("not run:", name)
                continue
            call()
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStart()
            print(name, flush=True)
            call()
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStop()


def table(lines: Iterable[str]) -> Iterator[str]:
    """Lines to print, of a log of ncu and of its raw page as CSV, one after the other."""
    page, cases, case = [], [], ""
    for line in lines:
        if line.startswith('"'):
            page.append(line)
        elif line.startswith("==PROF== Profiling"):
            cases.append(case)
        elif not line.startswith("=="):
            case = line.strip()
    if len(page) < 3:
        raise SystemExit("standard input has no raw page of a kernel: ncu prints it with --csv")
    units, *rows = csv.DictReader(page)
    if len(cases) != len(rows):  # without the log, or with another's
        cases = [""] * len(rows)
    yield "  ".join(f"{name:>9}" for name in COLUMNS) + "  waits for; kernel; case"
    for row, case in zip(rows, cases, strict=True):
        numbers = [number(row.get(m, "")) * SCALE.get(units.get(m), 1.0) for m in COLUMNS.values()]
        waits = {m[1]: number(row[m[0]]) for m in map(STALL.fullmatch, row) if m}
        most = sorted(waits, key=waits.get, reverse=True)[:3]
        why = ", ".join(f"{name} {waits[name]:.2g}" for name in most)
        yield (
            "  ".join(f"{n:9.5g}" for n in numbers)
            + f"  {why}; {short(row['Kernel Name'])}; {case}"
        )


def number(text: str) -> float:
    """Of a metric; nan where it was not measured."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return math.nan


def short(kernel: str) -> str:
    """The name with its template's arguments, of a signature."""
    found = re.search(r"(\w+(<.*?>)?)\(", kernel)
    return found[1] if found else kernel


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--table", action="store_true", help="of a log and a page on standard input"
    )
    parser.add_argument("--seconds", type=float, default=50.0, help="launch nothing after that")
    arguments = parser.parse_args()
    if arguments.table:
        print(*table(sys.stdin), sep="\n")
    else:
        launch(arguments.seconds)
