"""A training step by Metropolis-adjusted chains with jumps against one of ICD.

As the preset auto takes it, against ICD with an energy penalty: the same network, buffer, batch and
number of chain steps. Variants:
  ICD + L2              ImprovedContrastiveDivergence, 2000 stored samples as references
  adjusted              PersistentContrastiveDivergence: 16 adjusted steps and 4 jumps of 20, a step
                        that adapts, in one operator
  adjusted, units       the same energy in standard units
  adjusted, by parts    the same by one operator a part, which a schedule takes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import suite
import timing
import torch
from torch import Tensor

from fastebm import (
    AdaptiveStep,
    ImprovedContrastiveDivergence,
    LangevinDynamics,
    PersistentContrastiveDivergence,
    ReplayBuffer,
    Standardized,
)
from fastebm.energies import MLPEnergy

ICD, ADJUSTED, UNITS, PARTS = "ICD + L2", "adjusted", "adjusted, units", "adjusted, by parts"
MOST = 1.25  # times ICD's time
BATCH, K_STEPS, JUMPS, STORED = 128, 20, 4, 2000
DIMS = (2, 10, 50)
BOX = (-4.0, 4.0)


def step(variant: str, data: Tensor) -> Callable[[], None]:
    """Loss and gradient of one batch; chains go on in their buffer."""
    torch.manual_seed(0)
    dim = data.shape[1]
    model = MLPEnergy(dim, hidden=(64, 64))
    if variant == UNITS:
        model = Standardized(model, data)
    buffer = ReplayBuffer(STORED, dim, value_range=BOX, seed=0)
    if variant == ICD:
        sampler = LangevinDynamics(model, 0.02, clamp=BOX)
        criterion = ImprovedContrastiveDivergence(
            model, sampler, buffer, k_steps=K_STEPS, energy_reg_weight=0.1
        )
    else:
        schedule = {"noise_scale": lambda k: 1.0} if variant == PARTS else {}
        adaptive = AdaptiveStep(0.1, largest=0.5)
        sampler = LangevinDynamics(model, adaptive, clamp=BOX, adjusted=True, **schedule)
        criterion = PersistentContrastiveDivergence(
            *(model, sampler, buffer, K_STEPS), energy_reg_weight=0.001, jumps=JUMPS
        )
    generator = torch.Generator().manual_seed(0)

    def call() -> None:
        criterion(data, generator=generator).loss.backward()

    return call


def measure(dim: int, threads: int, seconds: float) -> suite.Rows:
    data = torch.randn(BATCH, dim, generator=torch.Generator().manual_seed(0))
    calls = {name: step(name, data) for name in (ICD, ADJUSTED, UNITS, PARTS)}
    cpu = torch.device("cpu")
    timings = timing.compare(calls, cpu, seconds=seconds)
    case = f"{dim}-D, MLP 64-64, B = {BATCH}, K = {K_STEPS}, {suite.threads_text(cpu, threads)}"
    return [
        {
            **{"case": case, "variant": name, "threads": threads, **timed.row()},
            **{"of_icd": 1 / timed.times_faster_than(timings[ICD])},
        }
        for name, timed in timings.items()
    ]


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """On a CPU, whatever the device: elsewhere a step is one operator a part."""
    rows = []
    for threads in options.each_thread_count(1, 2):
        for dim in options.in_time(DIMS):
            of_case = measure(dim, threads, 1.0 if options.quick else 20.0)
            table = [
                [r["variant"], f"{1e3 * r['seconds']:.2f}", f"{r['of_icd']:.2f}x"] for r in of_case
            ]
            suite.print_table(of_case[0]["case"], ["", "ms a step", "of ICD's time"], table)
            rows += of_case
            yield of_case
    claims = [
        (f"{row['case']}: {row['variant']}", f"{MOST}x", f"{row['of_icd']:.2f}x",
         row["of_icd"] <= MOST)
        for row in rows
        if row["variant"] in (ADJUSTED, UNITS)
    ]  # fmt: skip
    suite.print_targets("time of ICD + L2, at most", claims)


if __name__ == "__main__":
    suite.script("adjusted_step", __doc__, run)
