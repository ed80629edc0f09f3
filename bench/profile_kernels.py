"""Every kernel that a claim is about, once, at the claim's size: for Nsight Compute.

    ncu --profile-from-start off --clock-control none --set full --kernel-name-base demangled \\
        --kernel-name 'regex:fastebm::' -o FILE python bench/profile_kernels.py
    ncu --import FILE.ncu-rep --page raw --csv | python bench/profile_kernels.py --table

The second prints a line a kernel: its time, the share of its cycles in which a scheduler issued, the
shares of the peaks of device memory, L2, shared memory and the busiest pipe, its warps, and what a
warp waits for most.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator

import torch

import fastebm
from fastebm import Augmentation, ops
from fastebm.ops.bernoulli import bernoulli_sigmoid_
from fastebm.ops.choice import choose_slots
from fastebm.ops.mlp.chain import mlp_chain_
from fastebm.ops.mlp.network import Network
from fastebm.rng import ChainRNG

COLUMNS = {  # of the table: the metric, and by what it is multiplied
    "us": ("gpu__time_duration.sum", 1.0),
    "issued %": ("sm__inst_issued.avg.pct_of_peak_sustained_active", 1.0),
    "memory %": ("dram__throughput.avg.pct_of_peak_sustained_elapsed", 1.0),
    "L2 %": ("lts__t_sectors.avg.pct_of_peak_sustained_elapsed", 1.0),
    "shared %": ("l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed", 1.0),
    "SM %": ("sm__throughput.avg.pct_of_peak_sustained_elapsed", 1.0),
    "blocks": ("launch__grid_size", 1.0),
    "registers": ("launch__registers_per_thread", 1.0),
    "warps/SM": ("sm__warps_active.avg.per_cycle_active", 1.0),
}
STALL, ISSUED = "smsp__average_warps_issue_stalled_", "_per_issue_active.ratio"
UNITS = {"ns": 1e-3, "us": 1.0, "usecond": 1.0, "nsecond": 1e-3, "ms": 1e3, "msecond": 1e3}


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and call of each case; inputs of one are freed before the next."""
    device = torch.device("cuda")
    rng = ChainRNG(0).state(device)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.rand(10000, 10000, device=device).to(dtype)
        grad = torch.randn(10000, 10000, device=device).to(dtype)
        clip = dict(grad_clip=1.0, clamp=(0.0, 1.0))
        yield f"step {dtype}", lambda: ops.langevin_step_(x, grad, 0.01, 0.1, rng, **clip)
    x, grad = torch.rand(1000, 10000, device=device), torch.randn(1000, 10000, device=device)
    yield "norm clip", lambda: ops.langevin_step_(x, grad, 0.01, 0.1, rng, grad_norm_clip=1.0)
    for n, d in ((128, 2), (128, 64), (1024, 32), (4096, 2)):
        sizes = (d, 128, 128, 1)
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        weights = [torch.randn(b, a, device=device) / a**0.5 for a, b in pairs]
        net = Network(weights, [None] * 3, "silu")
        x = torch.randn(n, d, device=device)
        for precision in ("fp32", "bf16"):
            yield (
                f"chain {n} x {d}, 10 steps, {precision}",
                lambda p=precision: mlp_chain_(x, net, 10, 0.001, 0.04, rng, precision=p),
            )
    for n, m, d, dtype in (
        *((128, 1000, 3072, torch.float32), (128, 10000, 3072, torch.float32)),
        *((128, 10000, 3072, torch.uint8), (1024, 10000, 784, torch.float32)),
        *((1024, 10000, 784, torch.uint8), (1024, 10000, 64, torch.float32)),
        *((1024, 10000, 2, torch.float32), (4096, 100000, 2, torch.float32)),
    ):
        x, y = torch.rand(n, d, device=device), torch.rand(m, d, device=device)
        y = (255 * y).to(dtype) if dtype == torch.uint8 else y
        scale = (1 / 255, 0.0) if dtype == torch.uint8 else (1.0, 0.0)
        name = f"neighbours {n}, {m}, {d} {dtype}"
        yield name, lambda: fastebm.nearest_neighbor(x, y, y_scale=scale)
    images = torch.randint(0, 256, (10000, 3, 32, 32), device=device, dtype=torch.uint8)
    index = torch.randint(0, 10000, (128,), device=device)
    how = dict(reinit_prob=0.05, init="uniform")
    yield "gather", lambda: ops.replay_gather(images, index, rng, augmentation=(), **how)
    augmentation = Augmentation(hflip_p=0.5, contrast=0.5, kernel_size=5, blur_p=0.5).parameters
    yield "augment", lambda: ops.replay_gather(images, index, rng, augmentation=augmentation, **how)
    yield "slots", lambda: choose_slots(rng, 10000, 128)
    logits = torch.randn(4096, 784, device=device)
    yield "bernoulli", lambda: bernoulli_sigmoid_(logits, rng)


def launch(seconds: float) -> None:
    end = time.monotonic() + seconds
    with torch.no_grad():
        for name, call in calls():
            if time.monotonic() > end:
                print("no time for", name)
                continue
            call()
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStart()
            print(name, flush=True)
            call()
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStop()


def number(text: str) -> float:
    return float(text.replace(",", "") or "nan")


def table(lines: Iterator[str]) -> None:
    """Prints what the raw page of ncu, as CSV, says of each kernel."""
    rows = csv.DictReader(line for line in lines if line.startswith('"'))
    units = next(rows)
    print("  ".join(f"{name:>9}" for name in COLUMNS), " most waited for; kernel")
    for row in rows:
        cells = []
        for metric, times in COLUMNS.values():
            value = number(row.get(metric) or "nan") * times * UNITS.get(units.get(metric), 1.0)
            cells.append(f"{value:9.4g}")
        waits = {
            name[len(STALL) : -len(ISSUED)]: number(row[name] or "nan")
            for name in row
            if name and name.startswith(STALL) and name.endswith(ISSUED) and "_not_" not in name
        }
        most = sorted(waits, key=waits.get, reverse=True)[:3]
        why = ", ".join(f"{name} {waits[name]:.2g}" for name in most)
        print("  ".join(cells), f" {why}; {row['Kernel Name'][:90]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="of ncu's raw page on standard input")
    parser.add_argument("--seconds", type=float, default=60.0, help="launch nothing after that")
    arguments = parser.parse_args()
    if arguments.table:
        table(iter(sys.stdin))
    else:
        launch(arguments.seconds)
