"""Where the time of one training step of improved contrastive divergence goes, phase by phase.

Rivals (bench/icd_step_rivals.py), on networks and data of the same shapes, with the same K, step,
noise first, 100 references and fused Adam:
  fastebm             ImprovedContrastiveDivergence with a ReplayBuffer; in the 64-D case also with
                      all stored samples as references, on CUDA also as one graph
  torch, one by one   plain PyTorch in the structure of the authors' script: a Python list of stored
                      samples that is read and written one sample at a time (a reservoir), the last
                      step computed again with a graph, a forward of its own for the KL term, and
                      the distances of all pairs as one tensor of differences
  torch, batched      the same in the best plain PyTorch we know: a tensor as buffer, the last step
                      computed once, and the nearest neighbour found without a graph

The phases: draw (from the buffer, with restarts), chain (all steps but the last, or all where it is
computed again), last step, entropy (with fastebm also the KL term), forward (energies of data and
chains, and what is left of the loss; with fastebm on perceptrons everything from the chain to the
gradient in their parameters, which is one operator), backward, optimiser (with the clip of the
gradient), push. A phase is its share in all calls, times the median of a step. On CUDA, where
a phase must wait for the device, the shares are of a turn after those that are timed, and a graph
has none. A turn is several steps, as in training: the first of them finds the caches as another
rival left them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial

import suite
import timing
import torch
from icd_step_rivals import GRAPH, OURS, SCRIPT, Case, Step, rivals
from torch import Tensor, nn

from fastebm.energies import ConvEnergy, ResNetEnergy
from fastebm.losses.train_step import WARM_UP_STEPS

PHASES = ("draw", "chain", "last step", "entropy", "forward", "backward", "optimiser", "push")


def perceptron(shape: tuple[int, ...]) -> nn.Module:
    hidden = [nn.Linear(*shape, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
    return nn.Sequential(*hidden, nn.Linear(128, 1))


CASES = [
    Case("2-D MLP, B = 128", perceptron, (2,), 128, 20, 0.01, in_a_row=20, target=5.0),
    Case("64-D MLP, B = 1024", perceptron, (64,), 1024, 20, 0.01, in_a_row=5, target=5.0),
    Case("ConvEnergy 28x28, B = 128", ConvEnergy, (1, 28, 28), 128, 20, 0.1),
]
RESNET = Case("ResNetEnergy 3x32x32, B = 128", ResNetEnergy, (3, 32, 32), 128, 20, 0.1)
IN_BFLOAT16 = replace(RESNET, name=f"{RESNET.name}, bfloat16", dtype=torch.bfloat16)
ON_CUDA = [  # where most of a step is launches, so that 20 in a row of each rival take seconds
    replace(case, in_a_row=min(case.in_a_row, 5))
    for case in (CASES[0], CASES[2], IN_BFLOAT16, RESNET, CASES[1])
]


def step_flops(case: Case, device: torch.device) -> int:
    """Floating-point operations of a step that computes nothing twice and no gradient that is not
    used: K gradients in x for the chain, the last with a graph, and one for the KL term; the
    energies of data and chains, and their gradient."""
    model = case.model().to(device)
    x = torch.rand((case.batch, *case.shape), device=device)

    def gradient(create_graph: bool) -> Tensor:
        point = x.clone().requires_grad_() + 0  # no leaf: see timing.flops
        return torch.autograd.grad(model(point).sum(), point, create_graph=create_graph)[0]

    with_graph = timing.flops(lambda: gradient(True).square().sum().backward())
    both = timing.flops(lambda: (model(x).mean() - model(x).mean()).backward())
    model.requires_grad_(False)
    return case.k_steps * timing.flops(lambda: gradient(False)) + with_graph + both


def take(step: Step, n: int) -> None:
    """`n` training steps."""
    for _ in range(n):
        step()


def measure(case: Case, device: torch.device, threads: int, seconds: float, rate: float) -> list:
    """A row for each rival; `rate`: floating-point operations a second of a matrix product."""
    steps = rivals(case, device)
    # As often as it takes until a graph is captured.
    tries = {n: partial(take, s, 1 + WARM_UP_STEPS * (n == GRAPH)) for n, s in steps.items()}
    available, reasons = timing.only_available(tries, required=(OURS,))
    turns = {name: partial(take, steps[name], case.in_a_row) for name in available}
    timings = timing.compare(turns, device, seconds=seconds)
    if device.type == "cuda":
        for name in turns.keys() - {GRAPH}:
            steps[name].clock.on = True
            turns[name]()
    facts = {
        "case": f"{case.name}, K = {case.k_steps}, {suite.threads_text(device, threads)}",
        "threads": threads,
        "limit": "matrix products",
        "limit_seconds": step_flops(case, device) / rate,
    }
    rows = []
    for name, timed in timings.items():
        row = facts | {
            "variant": name,
            **timed.row(case.in_a_row),
            "fastebm_faster": timings[OURS].times_faster_than(timed),
            "target": case.target if name == SCRIPT and device.type == "cpu" else None,
        }
        if seconds_in := steps[name].clock.seconds:
            whole, each = sum(seconds_in.values()), timed.median / case.in_a_row
            row["phases"] = {phase: each * seconds_in[phase] / whole for phase in PHASES}
        rows.append(row)
    return rows + suite.unavailable_rows(facts, reasons)


def print_case(rows: suite.Rows) -> None:
    table = []
    for row in (row for row in rows if "seconds" in row):
        phases = row.get("phases", {})
        cells = [f"{1e3 * phases[name]:.2f}" if phases else "" for name in PHASES]
        mine = [row["variant"], f"{1e3 * row['seconds']:.2f}", *cells]
        table.append([*mine, f"{row['fastebm_faster']:.2f}x"])
    limit = f"limit: {rows[0]['limit']}"
    table.append([limit, f"{1e3 * rows[0]['limit_seconds']:.2f}", *[""] * len(PHASES), ""])
    suite.print_table(rows[0]["case"], ["ms a step", "all", *PHASES, "fastebm is"], table)


def print_targets(rows: suite.Rows) -> None:
    claims = [
        (f"{row['case']}, over {row['variant']}", f"{row['target']:.1f}x",
         f"{row['fastebm_faster']:.2f}x", row["fastebm_faster"] >= row["target"])
        for row in rows
        if row.get("target")
    ]  # fmt: skip
    suite.print_targets("a training step of ICD on a CPU", claims)


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """Measures and prints every case."""
    device, rows = options.device, []
    seconds = 2.0 if options.quick else 3.0 if device.type == "cuda" else 40.0
    for threads in options.each_thread_count(1, 2):
        rate = cache(partial(timing.matmul_rate, device, 0.5))
        for case in options.in_time(ON_CUDA if device.type == "cuda" else CASES):
            of_case = measure(case, device, threads, seconds, rate(case.dtype, case.pictures))
            print_case(of_case)
            rows += of_case
            yield of_case
    print_targets(rows)


if __name__ == "__main__":
    suite.script("icd_step", __doc__, run)
