"""Weak scaling of a training step: does a second process, with as many samples, cost time?

A step is ICD's: draw from a buffer, chains, loss with the entropy of all stored samples, backward
pass, mean of the gradients, Adam; one thread a process, gloo on one machine. Variants:
  1 process             the batch of one process
  2 processes, apart    two of these side by side that know nothing of each other: what the machine
                        gives at most, as they share its memory and its power
  2 processes           as one run, bit for bit that of one process with both batches
  2 processes, local    the same, each with a buffer and references of its own: DDP as it is used
                        elsewhere
A step of two processes does twice the work: 2x is all that can be had.
"""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from multiprocessing.connection import Connection

import suite
import timing
import torch
import torch.distributed as dist

import fastebm
from fastebm.distributed import alone, average_gradients

ONE, APART, BOTH, LOCAL = (
    *("1 process", "2 processes, apart"),
    *("2 processes", "2 processes, local"),
)
CASES = {
    "conv 1x28x28, B = 128, K = 20, 2000 uint8": ((1, 28, 28), 128, 20, 2000),
    "MLP 2-D, 64-64, B = 128, K = 20, 2000 float32": ((2,), 128, 20, 2000),
}
LEAST = 1.8  # times the work of one process in the same time, of the convolutional energy


def step(variant: str, case: str) -> Callable[[], None]:
    """A training step on this rank."""
    shape, batch, k_steps, stored = CASES[case]
    torch.manual_seed(0)
    image = len(shape) == 3
    net = fastebm.energies.ConvEnergy(shape) if image else None
    net = net or fastebm.energies.MLPEnergy(2, hidden=(64, 64))
    box = (0.0, 1.0) if image else (-4.0, 4.0)
    buffer = fastebm.ReplayBuffer(
        *(stored * (2 if variant == BOTH else 1), shape),
        dtype=torch.uint8 if image else torch.float32,
        value_range=box,
        seed=0,
        shared=variant == BOTH,
    )
    sampler = fastebm.LangevinDynamics(net, 0.01, noise_std=0.005 if image else None, clamp=box)
    criterion = fastebm.ImprovedContrastiveDivergence(
        *(net, sampler, buffer, k_steps), energy_reg_weight=0.1, local_refs=variant == LOCAL
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    x, generator = torch.rand(batch, *shape), torch.Generator().manual_seed(0)

    def call() -> None:
        loss = criterion(x, generator=generator).loss
        optimizer.zero_grad()
        loss.backward()
        average_gradients(net.parameters())
        optimizer.step()

    return call


def rank(r: int, folder: str, orders: Connection) -> None:
    """A process that runs steps when it is told to, and says how long each took."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=r, world_size=2)
    calls: dict[tuple[str, str], Callable[[], None]] = {}
    while (order := orders.recv()) is not None:
        variant, case, n = order
        with alone() if variant in (ONE, APART) else nullcontext():
            if (variant, case) not in calls:
                calls[variant, case] = step(variant, case)
            began = time.perf_counter()
            for _ in range(n):
                calls[variant, case]()
        orders.send((time.perf_counter() - began) / n)
    time.sleep(0.1)
    dist.destroy_process_group()


def measure(case: str, ranks: list[Connection], seconds: float) -> suite.Rows:
    """Rounds in which each variant runs a few steps."""

    def run(variant: str, n: int) -> float:
        used = ranks[:1] if variant == ONE else ranks
        for orders in used:
            orders.send((variant, case, n))
        return max(orders.recv() for orders in used)

    variants = [ONE, APART, BOTH, LOCAL]
    for variant in variants:
        run(variant, 3)
    steps = max(1, round(0.2 / run(ONE, 2)))
    found: dict[str, list[float]] = {variant: [] for variant in variants}
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(found[ONE]) < timing.MIN_ROUNDS:
        for variant in random.sample(variants, len(variants)):
            found[variant].append(run(variant, steps))
    timings = {variant: timing.Timing(times) for variant, times in found.items()}
    return [
        {
            **{"case": case, "variant": variant, "threads": 1, **timed.row()},
            "scaling": (1 if variant == ONE else 2) * timed.times_faster_than(timings[ONE]),
        }
        for variant, timed in timings.items()
    ]


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """On a CPU, whatever the device."""
    context, rows = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe() for _ in range(2)]
        workers = [
            context.Process(target=rank, args=(r, folder, theirs), daemon=True)
            for r, (_, theirs) in enumerate(pipes)
        ]
        for worker in workers:
            worker.start()
        ranks = [ours for ours, _ in pipes]
        try:
            for case in options.in_time(CASES):
                of_case = measure(case, ranks, 2.0 if options.quick else 60.0)
                table = [
                    [r["variant"], f"{1e3 * r['seconds']:.2f}", f"{r['scaling']:.2f}x"]
                    for r in of_case
                ]
                suite.print_table(case, ["", "ms a step", "work in the time of one"], table)
                rows += of_case
                yield of_case
        finally:
            for orders in ranks:
                orders.send(None)
            for worker in workers:
                worker.join(20)
    claims = [
        (f"{row['case']}: {row['variant']}", f"{LEAST}x", f"{row['scaling']:.2f}x",
         row["scaling"] >= LEAST)
        for row in rows
        if row["variant"] == BOTH and row["case"].startswith("conv")
    ]  # fmt: skip
    suite.print_targets("weak scaling, at least", claims)


if __name__ == "__main__":
    suite.script("processes", __doc__, run)
