"""Whole Langevin chains, library against library, and what share of them is the step.

The energies go from one that costs next to nothing to networks that are all there is: the less of a
chain the step is, the less a fused one can gain. Perceptrons run inside one operator.
x' = x - step * grad E(x) + sqrt(2 step) n, a few steps a call, from the same start, by
  fastebm                LangevinDynamics as it comes
  fastebm, compile       Gaussians: the same with compile=True
  eager gradient + step  the same with backend="eager" and no graph: autograd, then the fused step
  fastebm, graph         CUDA only: the same as CUDA graphs
  fastebm, bfloat16      CUDA only: perceptrons inside one operator, products of bfloat16
  eager, in place        a loop by hand at its best: parameters frozen, autograd.grad of the input
                         only, noise into a kept buffer, the step in place
  eager, naive           a loop as it is often written: parameters not frozen, new tensors
  torch.compile          of the gradient (torch.func.grad), then the step in place
  reduce-overhead        CUDA only: the same in this mode of torch.compile, a CUDA graph a gradient
  eager, as a graph      CUDA only: "eager, in place", all its steps captured by hand
  torchebm, ebmkit       their LangevinDynamics, where they are installed
"gradient alone" and "step alone" are no rivals: the energy's own forward and backward pass, and the
in-place loop's step without them. Figures are of one step. Targets of Gaussians, whose gradient by
autograd takes longer than their arithmetic, are for the better of fastebm and "fastebm, compile".
The limit is the network's matrix
products at the measured rate, and x and its gradient through the step at the measured bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial

import suite
import timing
import torch
from torch import Tensor, nn

from fastebm import LangevinDynamics
from fastebm.energies import ConvEnergy, MLPEnergy, ResNetEnergy

STEP = 0.001
SIGMA = math.sqrt(2 * STEP)
FUSED, BEST_EAGER, NAIVE, COMPILED = "fastebm", "eager, in place", "eager, naive", "torch.compile"
STEPWISE, GRAPH, BFLOAT16 = "eager gradient + step", "fastebm, graph", "fastebm, bfloat16"
BY_COMPILE, OVERHEAD, BY_HAND = "fastebm, compile", "reduce-overhead", "eager, as a graph"
TORCHEBM, EBMKIT = "torchebm", "ebmkit"
GRADIENT, ALONE = "gradient alone", "step alone"
PHASES = ("energy and gradient", "all else")


class Gaussian(nn.Module):
    """E(x) = |2 x|^2 / 2."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (2 * x).square().sum(1)


@dataclass(frozen=True)
class Case:
    """An energy and its chains. Targets: rival -> how many times faster the best of `ways` is to be
    on a CPU; of the gradient alone, what share of it everything else may take."""

    name: str
    energy: Callable[[], nn.Module]
    shape: tuple[int, ...]
    n_steps: int
    targets: dict[str, float] = field(default_factory=dict)
    ways: tuple[str, ...] = (FUSED,)


def mlp(batch: int, dim: int, n_steps: int, target: float) -> Case:
    targets = {BEST_EAGER: target, STEPWISE: 1.0, COMPILED: 1.0}
    name = f"MLP {dim}-128-128-1"
    return Case(name, lambda: MLPEnergy(dim), (batch, dim), n_steps, targets)


def gaussian(batch: int, dim: int) -> Case:
    targets, ways = {BEST_EAGER: 2.5, TORCHEBM: 3.0}, (FUSED, BY_COMPILE)
    n_steps = max(2, 2_000_000 // (batch * dim))
    return Case("Gaussian", Gaussian, (batch, dim), n_steps, targets, ways)


CONV = Case("ConvEnergy", lambda: ConvEnergy((1, 28, 28)), (128, 1, 28, 28), 2, {GRADIENT: 0.05})
RESNET = Case("ResNetEnergy", lambda: ResNetEnergy((3, 32, 32)), (32, 3, 32, 32), 1)
GAUSSIANS = [
    *(gaussian(1024, 2), gaussian(65536, 2), gaussian(1024, 100), gaussian(65536, 100)),
    *(gaussian(1024, 3072), gaussian(8192, 3072)),
]
MLPS = [mlp(128, 2, 100, 5.0), mlp(128, 64, 100, 5.0), mlp(1024, 32, 10, 2.0), mlp(4096, 2, 5, 2.0)]
CASES = [*GAUSSIANS, *MLPS, CONV, RESNET]
QUICK = [GAUSSIANS[2], MLPS[0], MLPS[2], CONV]
COMPILED_ALWAYS = [GAUSSIANS[2], GAUSSIANS[3], MLPS[0], MLPS[3]]  # where time is short, only these
# What is not compiled comes first: 20 to 40 s go by until the first compiled case is measured.
ON_CUDA = [MLPS[1], MLPS[2], CONV, RESNET, MLPS[0], MLPS[3], GAUSSIANS[3]]


def chains(case: Case, device: torch.device, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """Every way to run the chain: a call makes all its steps and returns the end."""
    torch.manual_seed(0)
    model = case.energy().to(device)
    start = torch.randn(case.shape, device=device)
    steps = range(case.n_steps)
    frozen = case.energy().to(device)
    frozen.load_state_dict(model.state_dict())
    frozen.eval().requires_grad_(False)

    x, noise = torch.empty_like(start).requires_grad_(), torch.empty_like(start)
    values = x.detach()  # the same memory

    def gradient(energy: nn.Module, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return torch.autograd.grad(energy(x).sum(), x)[0]

    def in_place() -> Tensor:
        values.copy_(start)
        for _ in steps:
            values.add_(gradient(frozen, x), alpha=-STEP).add_(noise.normal_(0, SIGMA))
        return values

    def naive() -> Tensor:
        y = start
        for _ in steps:
            y = y.detach().requires_grad_()
            y = y.detach() - STEP * gradient(model, y) + SIGMA * torch.randn_like(y)
        return y

    def gradients() -> Tensor:
        values.copy_(start)
        for _ in steps:
            gradient(frozen, x)
        return values

    def by_compiled(**mode: str) -> Callable[[], Tensor]:
        compiled_gradient = torch.compile(
            torch.func.grad(lambda x: frozen(x).sum()), dynamic=False, **mode
        )

        def call() -> Tensor:
            values.copy_(start)
            for _ in steps:
                values.add_(compiled_gradient(values), alpha=-STEP).add_(noise.normal_(0, SIGMA))
            return values

        return call

    def steps_alone() -> Tensor:
        for _ in steps:
            values.add_(start, alpha=-STEP).add_(noise.normal_(0, SIGMA))
        return values

    rivals = {BEST_EAGER: in_place, NAIVE: naive, GRADIENT: gradients, ALONE: steps_alone}
    rivals |= {COMPILED: by_compiled()} if compiled else {}
    if device.type == "cuda":
        rivals |= {OVERHEAD: by_compiled(mode="reduce-overhead")} if compiled else {}
        rivals[BY_HAND] = captured(in_place)
    theirs = {TORCHEBM: torchebm(frozen, start, steps), EBMKIT: ebmkit(frozen, start, steps)}
    return ours(case, model, start, compiled) | rivals | theirs


def ours(
    case: Case, model: nn.Module, start: Tensor, compiled: bool
) -> dict[str, Callable[[], Tensor]]:
    """fastebm's own ways."""
    on_cuda = start.device.type == "cuda"
    samplers = {
        FUSED: LangevinDynamics(model, STEP),
        STEPWISE: LangevinDynamics(model, STEP, backend="eager", graph=False),
    }
    if compiled and BY_COMPILE in case.ways:
        samplers[BY_COMPILE] = LangevinDynamics(model, STEP, compile=True)
    if on_cuda:
        samplers[GRAPH] = LangevinDynamics(model, STEP, backend="eager", graph=True)
    if on_cuda and isinstance(model, MLPEnergy):
        samplers[BFLOAT16] = LangevinDynamics(model, STEP, backend="fused", precision="bf16")
    return {
        name: lambda sampler=sampler: sampler.sample(start, case.n_steps, seed=1)
        for name, sampler in samplers.items()
    }


def captured(loop: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A loop on tensors of its own as a CUDA graph; captured at the first call."""
    made = []

    def call() -> Tensor:
        if not made:
            side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                loop()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                end = loop()
            made.extend((graph, end))
        made[0].replay()
        return made[1]

    return call


def torchebm(energy: nn.Module, start: Tensor, steps: range) -> Callable[[], Tensor]:
    """torchebm's chain; imported at the first call, where its absence is noted."""
    made = []

    def call() -> Tensor:
        if not made:
            from torchebm.core import BaseModel
            from torchebm.samplers import LangevinDynamics as Theirs

            class Model(BaseModel):
                def forward(self, x: Tensor) -> Tensor:
                    return energy(x)

            made.append(Theirs(Model().to(start.device), STEP, device=start.device))
        return made[0].sample(x=start, n_steps=len(steps))

    return call


def ebmkit(energy: nn.Module, start: Tensor, steps: range) -> Callable[[], Tensor]:
    """ebmkit's chain, likewise."""
    made = []

    def call() -> Tensor:
        if not made:
            from ebm.samplers import LangevinDynamics as Theirs

            made.append(Theirs(STEP, len(steps)))
        return made[0].sample(energy, start)

    return call


def check(calls: dict[str, Callable[[], Tensor]]) -> None:
    """All ways must lead to the same law: the mean and the mean square of the coordinates."""
    ends = {
        name: call().double().clone()
        for name, call in calls.items()
        if name not in (GRADIENT, ALONE)
    }
    wanted = ends[BEST_EAGER]
    for name, end in ends.items():
        for moment in (1, 2):
            a, b = end.pow(moment).flatten(), wanted.pow(moment).flatten()
            error = ((a - b).var() / a.numel()).sqrt()
            if not abs(a.mean() - b.mean()) <= 6 * error + 1e-6:
                raise RuntimeError(f"{name}: moment {moment} is {a.mean():.4g}, not {b.mean():.4g}")


def gradient_flops(case: Case, device: torch.device) -> int:
    """Of one gradient in x."""
    model = case.energy().to(device).requires_grad_(False)
    x = torch.randn(case.shape, device=device).requires_grad_()
    with torch.enable_grad():
        return timing.flops(lambda: model(x).sum().backward())


def measure(
    case: Case, device: torch.device, threads: int, seconds: float, rate: float, compiled: bool
) -> suite.Rows:
    """A row for each way; `rate`: floating-point operations a second of a matrix product."""
    torch.compiler.reset()
    calls, reasons = timing.only_available(chains(case, device, compiled), (FUSED, BEST_EAGER))
    check(calls)
    timings = timing.compare(calls, device, seconds=seconds)
    elements = math.prod(case.shape)
    # On a GPU of a large tensor: a copy of a small one is a launch, and so can a chain be.
    moved = 4 * elements if device.type == "cpu" else max(4 * elements, 1 << 28)
    copy = timing.copy_bandwidth(moved, device, seconds / 10)
    best = min((way for way in case.ways if way in timings), key=lambda way: timings[way].median)
    size = " x ".join(map(str, case.shape))
    facts = {
        "case": f"{case.name}, {size}, {suite.threads_text(device, threads)}",
        "energy": case.name,
        "shape": list(case.shape),
        "n_steps": case.n_steps,
        "threads": threads,
        "limit": "matrix products + copy",
        "limit_seconds": gradient_flops(case, device) / rate + 12 * elements / copy,
    }
    rows = []
    for name, t in timings.items():
        row = facts | {
            "variant": name,
            **t.row(case.n_steps),
            "fastebm_faster": timings[FUSED].times_faster_than(t),
            "best_way": best,
            "best_way_faster": timings[best].times_faster_than(t),
            "yardstick": name in (GRADIENT, ALONE),
            "target": case.targets.get(name) if device.type == "cpu" else None,
        }
        if name == BEST_EAGER:
            share = 1 - min(1.0, t.times_faster_than(timings[ALONE]))
            parts = (share * row["seconds"], (1 - share) * row["seconds"])
            row["phases"] = dict(zip(PHASES, parts, strict=True))
        rows.append(row)
    return rows + suite.unavailable_rows(facts, reasons)


def print_case(rows: suite.Rows) -> None:
    faster = {f"{FUSED} is": "fastebm_faster", f"{rows[0]['best_way']} is": "best_way_faster"}
    table = [
        [
            row["variant"],
            f"{row['seconds'] * 1e6:.4g}",
            f"{row['spread']:.0%}",
            *(f"{row[key]:.2f}x" for key in faster.values()),
            f"{row['limit_seconds'] / row['seconds']:.0%}",
        ]
        for row in sorted((r for r in rows if "seconds" in r), key=lambda r: r["seconds"])
    ]
    limit = [f"limit: {rows[0]['limit']}", f"{rows[0]['limit_seconds'] * 1e6:.4g}", ""]
    table.append([*limit, *("" for _ in faster), "100%"])
    title = f"{rows[0]['case']}, {rows[0]['n_steps']} steps a call"
    suite.print_table(title, ["", "us a step", "spread", *faster, "of the limit"], table)


def print_targets(rows: suite.Rows) -> None:
    """What was to be reached on a CPU, and what was."""
    claims = []
    for row in rows:
        if row.get("target") is None or "seconds" not in row:
            continue
        wanted, got = row["target"], row["best_way_faster"]
        claim = f"{row['case']}, {row['best_way']} over {row['variant']}"
        if row["variant"] == GRADIENT:  # the share of everything else
            claims.append((claim, f"+{wanted:.0%}", f"{1 / got - 1:+.1%}", 1 / got - 1 <= wanted))
        else:
            claims.append((claim, f"{wanted:.1f}x", f"{got:.2f}x", got >= wanted))
    suite.print_targets("fastebm's chains on a CPU", claims)


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """Measures and prints every case."""
    device, quick = options.device, options.quick
    seconds = 1.0 if quick or device.type == "cuda" else 4.0
    cases = QUICK if quick else ON_CUDA if device.type == "cuda" else CASES
    rows = []
    with torch.no_grad():
        for threads in options.each_thread_count(1, 2):
            rate_of = cache(partial(timing.matmul_rate, device, 0.5))
            for case in options.in_time(cases):
                compiled = case in COMPILED_ALWAYS or device.type == "cpu" and not quick
                rate = rate_of(torch.float32, len(case.shape) == 4)  # images: convolutions
                of_case = measure(case, device, threads, seconds, rate, compiled)
                print_case(of_case)
                rows += of_case
                yield of_case
    print_targets(rows)


if __name__ == "__main__":
    suite.script("chain", __doc__, run)
