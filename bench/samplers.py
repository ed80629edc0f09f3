"""Samplers by name, a step of each against ebmkit's, on perceptrons and on analytic energies.

As many gradients for all: MALA a step, HMC a leapfrog step of ten, underdamped Langevin a step,
parallel tempering a MALA step of three replicas and an exchange, Gibbs with gradients a step
of its energy (an Ising model of 64 spins, and one of a perceptron).
  fastebm    as it comes
  ebmkit     its sampler of the same name, where it is installed, parameters frozen (its
             UnderdampedLangevin is Euler's scheme)
Figures are of one such step of all chains. There is no limit to compare with: the gradient is what
a step costs, and bench/chain.py has that of its matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import suite
import timing
import torch
from torch import Tensor, nn

from fastebm import HMC, MALA, GibbsWithGradients, ParallelTempering, UnderdampedLangevin
from fastebm.energies import MLPEnergy

OURS, EBMKIT = "fastebm", "ebmkit"
LEAPFROG = 10
LADDER = (1.0, 2.0, 4.0)


class Gaussian(nn.Module):
    """E(x) = |2 x|^2 / 2."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (2 * x).square().sum(1)


class Ising(nn.Module):
    """A ring of spins, given as bits."""

    def forward(self, x: Tensor) -> Tensor:
        y = 2 * x - 1
        return -0.4 * (y * y.roll(1, 1)).sum(1)


@dataclass(frozen=True)
class Case:
    """A sampler on an energy. ``target``: how many times as fast as ebmkit on a CPU."""

    sampler: str
    energy: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int]
    n_steps: int
    target: float

    @property
    def name(self) -> str:
        return f"{self.sampler}, {self.energy}, {self.shape[0]} x {self.shape[1]}"


SAMPLERS = ("MALA", "HMC", "underdamped", "tempering")
CASES = [
    Case(s, f"MLP {d}-{w}-{w}-1", partial(MLPEnergy, d, (w, w)), (b, d), n, target)
    for s in SAMPLERS
    for b, d, w, n, target in (
        (128, 2, 64, 100, 5.0),
        (128, 2, 128, 100, 5.0),
        (128, 64, 128, 100, 5.0),
        (1024, 32, 128, 10, 2.0),
        (4096, 2, 128, 5, 2.0),
    )
]
CASES += [Case(s, "Gaussian", Gaussian, (1024, 64), 50, 1.0) for s in SAMPLERS]
CASES += [
    Case("GWG", "Ising", Ising, (128, 64), 100, 1.0),
    Case("GWG", "MLP 64-128-128-1", partial(MLPEnergy, 64), (128, 64), 100, 5.0),
    Case("GWG", "MLP 64-128-128-1", partial(MLPEnergy, 64), (1024, 64), 10, 2.0),
]
QUICK = [CASES[1], CASES[6]]


def steps_of(case: Case) -> int:
    """A call's steps that cost a gradient each, of every library alike."""
    return max(LEAPFROG, case.n_steps) if case.sampler == "HMC" else case.n_steps


def ours(case: Case, energy: nn.Module, start: Tensor) -> Callable[[], Tensor]:
    sampler = {
        "MALA": lambda: MALA(energy, 0.01),
        "HMC": lambda: HMC(energy, 0.05, LEAPFROG),
        "underdamped": lambda: UnderdampedLangevin(energy, 0.05),
        "tempering": lambda: ParallelTempering(MALA(energy, 0.01), LADDER),
        "GWG": lambda: GibbsWithGradients(energy),
    }[case.sampler]()
    n = steps_of(case) // (LEAPFROG if case.sampler == "HMC" else 1)
    return partial(sampler.sample, start, n, seed=0)


def ebmkit(case: Case, energy: nn.Module, start: Tensor) -> Callable[[], Tensor]:
    """Imported at the first call, where its absence is noted."""
    n = steps_of(case) // (LEAPFROG if case.sampler == "HMC" else 1)

    def call() -> Tensor:
        from ebm.samplers import discrete, hmc, langevin, tempering

        sampler = {
            "MALA": lambda: langevin.MALA(0.01),
            "HMC": lambda: hmc.HMC(0.05, LEAPFROG),
            "underdamped": lambda: langevin.UnderdampedLangevin(0.05, 1.0),
            "tempering": lambda: tempering.ParallelTempering(langevin.MALA(0.01), LADDER),
            "GWG": discrete.GibbsWithGradients,
        }[case.sampler]()
        return sampler.sample(energy, start, steps=n)

    return call


def measure(case: Case, threads: int, seconds: float) -> suite.Rows:
    cpu = torch.device("cpu")
    torch.manual_seed(0)
    energy = case.make().requires_grad_(False)
    start = torch.randn(case.shape)
    if case.sampler == "GWG":
        start = (start > 0).float()
    calls = {OURS: ours(case, energy, start), EBMKIT: ebmkit(case, energy, start)}
    calls, reasons = timing.only_available(calls, (OURS,))
    timings = timing.compare(calls, cpu, seconds=seconds)
    facts = {"case": f"{case.name}, {suite.threads_text(cpu, threads)}", "threads": threads}
    facts["target"] = case.target
    return [
        {
            **facts,
            **{"variant": name, **timed.row(steps_of(case))},
            "fastebm_faster": timings[OURS].times_faster_than(timed),
        }
        for name, timed in timings.items()
    ] + suite.unavailable_rows(facts, reasons)


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """On a CPU, whatever the device: elsewhere a step is one operator and a gradient."""
    rows = []
    for threads in options.each_thread_count(1, 2):
        for case in options.in_time(QUICK if options.quick else CASES):
            of_case = measure(case, threads, 1.0 if options.quick else 4.0)
            table = [
                [r["variant"], f"{1e6 * r['seconds']:.4g}", f"{r['spread']:.0%}",
                 f"{r['fastebm_faster']:.2f}x"]
                for r in of_case
                if "seconds" in r
            ]  # fmt: skip
            suite.print_table(of_case[0]["case"], ["", "us a step", "spread", "fastebm is"], table)
            rows += of_case
            yield of_case
    claims = [
        (row["case"], f"{row['target']:g}x", f"{row['fastebm_faster']:.2f}x",
         row["fastebm_faster"] >= row["target"])
        for row in rows
        if row["variant"] == EBMKIT and "seconds" in row
    ]  # fmt: skip
    suite.print_targets("fastebm over ebmkit on a CPU", claims)


if __name__ == "__main__":
    suite.script("samplers", __doc__, run)
