"""Energies of the user's own code: perceptrons that are found in it, and torch.compile of formulas.

Perceptrons inside a class, with a Gaussian base, conditions; 128 chains, by
  fused             all steps in one kernel, found by a capture of the class's code
  fused, plain      the same network as a plain nn.Sequential: what finding it costs in a call
  eager             backend="eager": autograd, then the fused step
with the seconds of a first capture, and the microseconds of a call's guards. Formulas without
parameters by
  eager             as they come
  compiled          compile=True
with the seconds of the first call, and after how many steps it has paid. Figures are of one step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import suite
import timing
import torch
from torch import Tensor, nn

from fastebm import LangevinDynamics
from fastebm.chains.mlp_chain import STEPS, MLPChain, mlp_chain

STEP = 1e-4


class Classed(nn.Module):
    """A perceptron in a class, as users write it."""

    def __init__(self, dim: int, inputs: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Flatten(), nn.Linear(inputs, 128), activation()),
            *(nn.Linear(128, 128), activation(), nn.Linear(128, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)


class WithBase(Classed):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1) + 0.5 * x.square().sum(1)


class Conditional(Classed):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.net(torch.cat([x, c], 1)).squeeze(-1)


class Perceptron(NamedTuple):
    name: str
    kind: type[Classed]
    dim: int
    conditions: int = 0


PERCEPTRONS = [
    Perceptron("in a class", Classed, 2),
    Perceptron("with a base", WithBase, 64),
    Perceptron("with conditions", Conditional, 8, 16),
]


def gaussian(x: Tensor) -> Tensor:
    return 0.5 * (2 * x).square().sum(1)


def double_well(x: Tensor) -> Tensor:
    return (x.square() - 1).square().sum(1)


def mixture(x: Tensor) -> Tensor:
    centres = torch.linspace(-2, 2, 8, device=x.device)[:, None]
    return -torch.logsumexp(-2 * (x[:, None] - centres).square().sum(2), 1)


FORMULAS = [gaussian, double_well, mixture]
SHAPES = [(128, 2), (1024, 2), (1024, 100)]


def steps_of(sampler: LangevinDynamics, x: Tensor, n: int, kwargs: dict) -> Callable[[], Tensor]:
    return lambda: sampler.sample(x, n, seed=1, model_kwargs=kwargs)


def perceptron(case: Perceptron, device: torch.device, seconds: float) -> suite.Rows:
    torch.manual_seed(0)
    model = case.kind(case.dim, case.dim + case.conditions, nn.LeakyReLU).to(device)
    x = torch.randn(128, case.dim, device=device)
    kwargs = {"c": torch.randn(128, case.conditions, device=device)} if case.conditions else {}
    begin = time.perf_counter()
    chain = mlp_chain(model, x, kwargs, n_steps=STEPS)
    first = time.perf_counter() - begin
    if not isinstance(chain, MLPChain):
        raise RuntimeError(f"{case.name}: {chain}")
    n = 100
    fused = LangevinDynamics(model, STEP)
    eager = LangevinDynamics(model, STEP, backend="eager", graph=False)
    calls = {"fused": steps_of(fused, x, n, kwargs), "eager": steps_of(eager, x, n, kwargs)}
    if case.kind is Classed:
        plain = LangevinDynamics(nn.Sequential(*model.net[1:]), STEP, backend="fused")
        calls["fused, plain"] = steps_of(plain, x, n, kwargs)
    timings = timing.compare(calls, device, seconds=seconds)
    ask = {"guards": lambda: mlp_chain(model, x, kwargs, n_steps=None)}
    guards = timing.compare(ask, device, seconds=seconds / 4)["guards"].median
    facts = {"case": f"perceptron {case.name}, 128 x {case.dim}", "n_steps": n}
    facts |= {"capture_seconds": first, "guards_seconds": guards}
    return [facts | {"variant": name, **t.row(n)} for name, t in timings.items()]


def formula(f: Callable, shape: tuple[int, int], device: torch.device, seconds: float):
    torch.compiler.reset()
    x, n = torch.randn(shape, device=device), 200
    ways = {"eager": False, "compiled": True}
    samplers = {
        name: LangevinDynamics(lambda x: f(x), STEP, backend="eager", compile=way, graph=False)
        for name, way in ways.items()
    }
    begin = time.perf_counter()
    samplers["compiled"].sample(x, 3, seed=1)
    first = time.perf_counter() - begin
    calls = {name: steps_of(sampler, x, n, {}) for name, sampler in samplers.items()}
    timings = timing.compare(calls, device, seconds=seconds)
    saved = (timings["eager"].median - timings["compiled"].median) / n
    facts = {"case": f"{f.__name__}, {shape[0]} x {shape[1]}", "n_steps": n}
    facts |= {"first_seconds": first, "pays_after": first / saved if saved > 0 else math.inf}
    return [facts | {"variant": name, **t.row(n)} for name, t in timings.items()]


def print_rows(rows: suite.Rows) -> None:
    eager = next(r for r in rows if r["variant"] == "eager")["seconds"]
    table = [
        [r["variant"], f"{r['seconds'] * 1e6:.4g}", f"{eager / r['seconds']:.2f}x"] for r in rows
    ]
    first = rows[0]
    if "capture_seconds" in first:
        table.append(["first capture", f"{first['capture_seconds']:.2g} s", ""])
        table.append(["guards, a call", f"{first['guards_seconds'] * 1e6:.4g}", ""])
    else:
        table.append(["first call", f"{first['first_seconds']:.2g} s", ""])
        table.append(["pays after", f"{first['pays_after']:.3g} steps", ""])
    suite.print_table(first["case"], ["", "us a step", "of eager"], table)


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """Measures and prints every case."""
    seconds = 1.0 if options.quick else 3.0
    with torch.no_grad():
        for _ in options.each_thread_count(1):
            for case in options.in_time(PERCEPTRONS):
                rows = perceptron(case, options.device, seconds)
                print_rows(rows)
                yield rows
            shapes = SHAPES[:1] if options.quick else SHAPES
            for f, shape in options.in_time([(f, shape) for f in FORMULAS for shape in shapes]):
                rows = formula(f, shape, options.device, seconds)
                print_rows(rows)
                yield rows


if __name__ == "__main__":
    suite.script("captured", __doc__, run)
