"""A training step by Metropolis-adjusted chains with jumps against one of ICD.

As the preset auto takes it, against ICD with an energy penalty: the same network, buffer, batch and
number of chain steps. Variants:
  ICD + L2              ImprovedContrastiveDivergence, 2000 stored samples as references
  adjusted              PersistentContrastiveDivergence: 16 adjusted steps and 4 jumps of 20, a step
                        that adapts, in one operator
  adjusted, units       the same energy in standard units
  adjusted, by parts    the same by one operator a part, which a schedule takes

And a transition on any energy, its gradient left aside: metropolis_step_, and the end of a
trajectory of hmc_step_, against the same by torch's operators and langevin_step_.
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
from fastebm.chains import adjusted
from fastebm.energies import MLPEnergy
from fastebm.ops.hamiltonian import hmc_step_
from fastebm.ops.langevin import langevin_step_
from fastebm.ops.metropolis import metropolis_step_
from fastebm.rng import ChainRNG

ICD, ADJUSTED, UNITS, PARTS = "ICD + L2", "adjusted", "adjusted, units", "adjusted, by parts"
MOST = 1.25  # times ICD's time
BATCH, K_STEPS, JUMPS, STORED = 128, 20, 4, 2000
DIMS = (2, 10, 50)
BOX = (-4.0, 4.0)
METROPOLIS, TORCH, HAMILTONIAN = "metropolis_step_", "torch operators", "hmc_step_"
SHAPES = [(128, 2), (4096, 2), (128, 64), (128, 3072), (4096, 3072)]


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


def by_torch(at: adjusted.Points, y, e_y, grad_y, step, sigma, rng: Tensor, t: int) -> None:
    """A decision about y, and a proposal into it."""
    moves = adjusted.Moves(rng)
    log_r = adjusted.log_ratio(at, y, e_y, grad_y, step, sigma)
    log_r = log_r.masked_fill(~adjusted.is_inside(y, None, None), -torch.inf)
    accept = adjusted.is_accepted(log_r, moves, t)
    at.acceptance[0] += log_r.nan_to_num(nan=-torch.inf).exp().clamp_(max=1)
    at.x.copy_(torch.where(accept[:, None], y, at.x))
    at.grad.copy_(torch.where(accept[:, None], grad_y, at.grad))
    at.energy.copy_(torch.where(accept, e_y, at.energy))
    drift = adjusted.drift_step(at.grad, step, sigma)
    y.copy_(langevin_step_(at.x.clone(), at.grad, drift, sigma, rng, t=t + 1))


def transition(variant: str, shape: tuple[int, int]) -> Callable[[], None]:
    """One transition after another of a Gaussian's chains, at energies and gradients that stay."""
    torch.manual_seed(0)
    x, rng, step, t = torch.randn(shape), ChainRNG(0).state(), (0.1, 0.447), 0
    y = x + 0.1 * torch.randn(shape)
    at, ends = adjusted.Points.at(x), (y.square().sum(1) / 2, y.clone())
    at.grad.copy_(x)
    at.energy.copy_(x.square().sum(1) / 2)
    trajectory = (y, torch.randn(shape), at.energy.clone(), torch.zeros(len(x)))
    counts = torch.zeros(len(x), dtype=torch.int32)

    def call() -> None:
        nonlocal t
        t += 1
        if variant == METROPOLIS:
            metropolis_step_(*at, y, *ends, *step, rng, t=t, next_step=step)
        elif variant == HAMILTONIAN:
            one = (0.1, 1.0)
            hmc_step_(*at[:3], *trajectory, counts, *ends, *one, rng, t=t, next_step=one)
        else:
            by_torch(at, y, *ends, *step, rng, t)

    return call


def measure_transitions(shape: tuple[int, int], threads: int, seconds: float) -> suite.Rows:
    cpu, n_bytes = torch.device("cpu"), 4 * shape[0] * shape[1]
    calls = {name: transition(name, shape) for name in (METROPOLIS, TORCH, HAMILTONIAN)}
    timings = timing.compare(calls, cpu, seconds=seconds)
    copy = timing.copy_bandwidth(n_bytes, cpu, seconds / 5)
    case = {
        "case": f"transition, {shape[0]} x {shape[1]}, {suite.threads_text(cpu, threads)}",
        **{"threads": threads, "limit": "copy"},
        "limit_seconds": 7 * n_bytes / copy,  # x, grad, y, grad_y; x, grad, y
    }
    return [
        {**case, "variant": name, **timed.row()}
        | {"faster_than_torch": timed.times_faster_than(timings[TORCH])}
        for name, timed in timings.items()
    ]


def print_transitions(rows: suite.Rows) -> None:
    table = [
        [r["variant"], f"{1e6 * r['seconds']:.1f}", f"{r['faster_than_torch']:.1f}x"]
        + [f"{r['limit_seconds'] / r['seconds']:.0%}"]
        for r in rows
    ]
    header = ["", "us", "vs torch", "of a copy's bandwidth"]
    suite.print_table(rows[0]["case"], header, table)


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """On a CPU, whatever the device: elsewhere a step is one operator a part."""
    rows = []
    for threads in options.each_thread_count(1, 2):
        for shape in options.in_time(SHAPES[:-1] if options.quick else SHAPES):
            of_case = measure_transitions(shape, threads, 0.5 if options.quick else 4.0)
            print_transitions(of_case)
            yield of_case
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
