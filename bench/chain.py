"""Whole Langevin chains: x' = x - step * grad E(x) + sqrt(2 step) n, K steps a call.

Perceptrons d-128-128-1, whose chains run inside one operator; a convolutional energy, to see what
the chain adds to the energy's own time; a Gaussian energy, a function of three torch calls, where
the step is what counts. From the same start, by
  fastebm                LangevinDynamics as it comes
  eager gradient + step  the same with backend="eager": autograd, then the fused step
  eager, in place        by hand at its best: parameters frozen, autograd.grad of the input only,
                         noise into a kept buffer, the step in place
  eager, naive           by hand as it is often written: parameters not frozen, new tensors
  torch.compile          of the gradient (torch.func.grad), then the step in place
  torchebm               its LangevinDynamics, if it is installed (--no-deps)
"gradient alone" is no rival: it is the time of the energy's own forward and backward pass.
The limit is the rate of a large torch matrix product, for the products of a perceptron's gradient.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import timing
import torch
from torch import Tensor, nn

from fastebm import LangevinDynamics
from fastebm.energies import ConvEnergy, MLPEnergy

STEP = 0.001
SIGMA = math.sqrt(2 * STEP)
FUSED, STEPWISE, BEST_EAGER = "fastebm", "eager gradient + step", "eager, in place"
NAIVE, COMPILED, TORCHEBM = "eager, naive", "torch.compile", "torchebm"
GRADIENT = "gradient alone"
HIDDEN = (128, 128)


class Gaussian:
    """E(x) = |(x - mean) / scale|^2 / 2, a function."""

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.tensor(0.5, device=device)

    def __call__(self, x: Tensor) -> Tensor:
        return 0.5 * (x / self.scale).square().sum(1)


@dataclass(frozen=True)
class Case:
    """An energy and its chains. Targets: rival -> how many times faster fastebm is to be on a CPU;
    of the gradient alone, what share of it everything else may take."""

    name: str
    energy: Callable[[torch.device], Callable[[Tensor], Tensor]]
    shape: tuple[int, ...]
    n_steps: int
    targets: dict[str, float]
    compiled: bool = False

    def flops(self) -> float:
        """Of the products of a perceptron's gradient in x, for one step; 0 for other energies."""
        if not self.name.startswith("MLP"):
            return 0.0
        sizes = (self.shape[1], *HIDDEN, 1)
        macs = 2 * sum(a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        return 2.0 * macs * self.shape[0]


def mlp_case(batch: int, dim: int, n_steps: int, target: float) -> Case:
    return Case(
        f"MLP {dim}-128-128-1",
        lambda device: MLPEnergy(dim, HIDDEN).to(device),
        (batch, dim),
        n_steps,
        {BEST_EAGER: target, STEPWISE: 1.0, COMPILED: 1.0},
        compiled=True,
    )


def gaussian_case(batch: int, dim: int) -> Case:
    targets = {BEST_EAGER: 2.5, TORCHEBM: 3.0}
    return Case("Gaussian", Gaussian, (batch, dim), max(2, 2_000_000 // (batch * dim)), targets)


CONV = Case(
    "ConvEnergy", lambda device: ConvEnergy((1, 28, 28)).to(device), (128, 1, 28, 28), 2,
    {GRADIENT: 0.05},
)  # fmt: skip
CASES = [
    mlp_case(128, 2, 100, 5.0),
    mlp_case(128, 64, 100, 5.0),
    mlp_case(1024, 32, 10, 2.0),
    mlp_case(4096, 2, 5, 2.0),
    CONV,
    gaussian_case(1024, 2),
    gaussian_case(65536, 2),
    gaussian_case(1024, 100),
    gaussian_case(65536, 100),
    gaussian_case(1024, 3072),
    gaussian_case(8192, 3072),
]
QUICK = [CASES[0], CASES[3], gaussian_case(1024, 100)]


def ways(case: Case, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Every way to run the chain: a call makes all its steps and returns the end."""
    torch.manual_seed(0)
    model = case.energy(device)
    start = torch.randn(case.shape, device=device)
    steps = range(case.n_steps)
    samplers = {b: LangevinDynamics(model, STEP, backend=b) for b in ("auto", "eager")}
    frozen = case.energy(device)
    if isinstance(frozen, nn.Module):
        frozen.load_state_dict(model.state_dict())
        frozen.eval().requires_grad_(False)

    x, noise = torch.empty_like(start).requires_grad_(), torch.empty_like(start)
    values = x.detach()  # the same memory

    def in_place() -> Tensor:
        values.copy_(start)
        for _ in steps:
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(frozen(x).sum(), x)
            values.add_(grad, alpha=-STEP).add_(noise.normal_(0, SIGMA))
        return values

    def naive() -> Tensor:
        y = start
        for _ in steps:
            y = y.detach().requires_grad_()
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(model(y).sum(), y)
            y = y.detach() - STEP * grad + SIGMA * torch.randn_like(y)
        return y

    gradient = torch.compile(torch.func.grad(lambda x: frozen(x).sum()), dynamic=False)

    def compiled() -> Tensor:
        values.copy_(start)
        for _ in steps:
            values.add_(gradient(values), alpha=-STEP).add_(noise.normal_(0, SIGMA))
        return values

    def gradients() -> Tensor:
        values.copy_(start)
        for _ in steps:
            with torch.enable_grad():
                torch.autograd.grad(frozen(x).sum(), x)
        return values

    found = {
        FUSED: lambda: samplers["auto"].sample(start, case.n_steps, seed=1),
        STEPWISE: lambda: samplers["eager"].sample(start, case.n_steps, seed=1),
        BEST_EAGER: in_place,
        NAIVE: naive,
        GRADIENT: gradients,
        TORCHEBM: torchebm(frozen, start, case.n_steps),
    }
    return found | {COMPILED: compiled} if case.compiled else found


def torchebm(energy: Callable[[Tensor], Tensor], start: Tensor, n_steps: int) -> Callable:
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
        return made[0].sample(x=start, n_steps=n_steps)

    return call


def check(calls: dict[str, Callable[[], Tensor]]) -> None:
    """All ways must lead to the same law: that of the distance gone."""
    ends = {name: call().double().clone() for name, call in calls.items() if name != GRADIENT}
    wanted = ends[BEST_EAGER]
    for name, end in ends.items():
        for moment in (1, 2):
            a, b = end.pow(moment).flatten(), wanted.pow(moment).flatten()
            error = ((a - b).var() / a.numel()).sqrt()
            if not abs(a.mean() - b.mean()) <= 6 * error + 1e-6:
                raise AssertionError(f"{name}: moment {moment} is {a.mean()}, not {b.mean()}")


def product_rate(device: torch.device, seconds: float) -> float:
    """FLOP/s of torch's float32 matrix product, the best of a few sizes."""
    rates = []
    for n in (512, 1024, 2048):
        a, b = torch.randn(2, n, n, device=device)
        out = torch.empty_like(a)
        call = {"mm": lambda a=a, b=b, out=out: torch.mm(a, b, out=out)}
        rates.append(2 * n**3 / timing.compare(call, device, seconds=seconds)["mm"].median)
    return max(rates)


def measure(case: Case, device: torch.device, threads: int, seconds: float) -> list[dict]:
    calls, reasons = timing.only_available(ways(case, device), (FUSED, BEST_EAGER))
    check(calls)
    timings = timing.compare(calls, device, seconds=seconds)
    common = {
        "case": f"{case.name}, {' x '.join(map(str, case.shape))}",
        "device": device.type,
        "threads": threads,
        "n_steps": case.n_steps,
        "load_average": os.getloadavg()[0],
    }
    if case.flops():
        rate = product_rate(device, seconds / 10)
        common |= {"limit": "matrix product", "flops_per_s": rate}
        common |= {"limit_seconds": case.flops() * case.n_steps / rate}
    for name, reason in reasons.items():
        print(f"unavailable: {name}: {reason}")
    return [
        common
        | {
            "variant": name,
            "seconds": t.median,
            "spread": t.spread,
            "rounds": len(t.seconds),
            "fused_times_faster": timings[FUSED].times_faster_than(t),
            "target": case.targets.get(name),
        }
        for name, t in timings.items()
    ] + [common | {"variant": name, "unavailable": reason} for name, reason in reasons.items()]


def print_case(rows: list[dict]) -> None:
    case = rows[0]
    steps, elements = case["n_steps"], case.get("limit_seconds")
    title = f"{case['case']}, {steps} steps"
    if case["device"] == "cpu":
        title += f", {case['threads']} thread(s), load average {case['load_average']:.1f}"
    print(title)
    table = []
    for row in sorted(rows, key=lambda row: row.get("seconds", math.inf)):
        if "unavailable" in row:
            table.append([row["variant"], "unavailable", *[""] * 3])
            continue
        share = f"{elements / row['seconds']:.0%}" if elements else ""
        table.append(
            [
                row["variant"],
                f"{row['seconds'] / steps * 1e6:.4g}",
                f"{row['spread']:.0%}",
                f"{row['fused_times_faster']:.2f}x",
                share,
            ]
        )
    if elements:
        rate = f"limit: torch.mm at {case['flops_per_s'] / 1e9:.0f} GFLOP/s"
        table.append([rate, f"{elements / steps * 1e6:.4g}", "", "", "100%"])
    timing.print_table(["", "us/step", "spread", "fastebm is", "of limit"], table)


def print_targets(rows: list[dict]) -> None:
    """What was to be reached on a CPU with two threads, and what was."""
    table = []
    for row in rows:
        wanted, got = row.get("target"), row.get("fused_times_faster")
        if wanted is None or row["device"] != "cpu" or row["threads"] < 2:
            continue
        claim = f"{row['case']}, over {row['variant']}"
        if row["variant"] == GRADIENT:  # the share of everything else
            extra = 1 / got - 1
            verdict = "met" if extra <= wanted else "MISSED"
            table.append([claim, f"+{wanted:.0%}", f"{extra:+.1%}", verdict])
        else:
            verdict = "met" if got >= wanted else "MISSED"
            table.append([claim, f"{wanted:.1f}x", f"{got:.2f}x", verdict])
    if table:
        timing.print_table(["target (fastebm, 2 threads)", "wanted", "measured", ""], table)


def main() -> None:
    arguments = timing.parse_arguments(__doc__)
    device = arguments.device
    seconds = 4.0 if device.type == "cpu" and not arguments.quick else 1.0
    facts = timing.environment(device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    rows = []
    with torch.no_grad():
        for threads in (1, 2) if device.type == "cpu" else (torch.get_num_threads(),):
            torch.set_num_threads(threads)
            timing.warn_if_busy(threads)
            for case in QUICK if arguments.quick else CASES:
                torch.compiler.reset()
                measured = measure(case, device, threads, seconds)
                print_case(measured)
                rows += measured
    print_targets(rows)
    timing.write_results(arguments.out, facts, rows)


if __name__ == "__main__":
    main()
