"""The entropy term's share of an ICD training step, for bench/neighbor.py.

A step is timed without the term, and the term by itself, value and gradient in the chains' ends:
steps with and without it differ by less than one convolution varies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import suite
import timing
import torch
from torch import Tensor, nn

import fastebm
from fastebm.energies import ConvEnergy
from fastebm.entropy.estimators import nn_log_distance

OF_IMAGES = {"noise_std": 0.005, "noise_first": True, "clamp": (0.0, 1.0)}
STEP, NOW = "step without entropy", "fastebm"
CDIST = "blocked cdist, as before fastebm's search"
ADDMM = "blocked addmm of bytes made float32"


@dataclass(frozen=True)
class Case:
    energy: str
    shape: tuple[int, ...]
    dtype: torch.dtype  # of the buffer
    batch: int
    k_steps: int
    rival: str
    capacity: int = 10000

    @property
    def name(self) -> str:
        of = f"{self.capacity} references" + " as uint8" * (self.dtype == torch.uint8)
        return f"ICD step, {self.energy}, batch {self.batch}, {of}, {self.k_steps} Langevin steps"

    def model(self) -> nn.Module:
        if len(self.shape) == 3:
            return ConvEnergy(self.shape)
        hidden = [nn.Linear(*self.shape, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
        return nn.Sequential(*hidden, nn.Linear(128, 1))


CASES = [
    Case("MLP 64-128-128-1", (64,), torch.float32, 1024, 20, CDIST),
    Case("ConvEnergy 3 x 32 x 32", (3, 32, 32), torch.uint8, 128, 10, ADDMM),
]


def nearest_by_cdist(x: Tensor, y: Tensor, y_scale: tuple[float, float], skip: Tensor) -> Tensor:
    """The search that the package used before it had one of its own: blocks of 2^22 distances from
    torch.cdist's difference form."""
    index, rows = [], max(1, (1 << 22) // len(y))
    for part, own in zip(x.split(rows), skip.split(rows), strict=True):
        d = torch.cdist(part, y, compute_mode="donot_use_mm_for_euclid_dist")
        at = own.clamp(min=0)[:, None]
        d.scatter_(1, at, d.gather(1, at).masked_fill(own[:, None] >= 0, torch.inf))
        index.append(d.argmin(1))
    return torch.cat(index)


def nearest_by_products(x: Tensor, y: Tensor, y_scale: tuple[float, float], skip: Tensor) -> Tensor:
    """By blocks of 1024 references, about as fast as float32 products are."""
    best, index = x.new_full((len(x),), torch.inf), torch.zeros_like(skip)
    for first in range(0, len(y), 1024):
        part = y[first : first + 1024].float().mul_(y_scale[0]).add_(y_scale[1])
        squares = torch.linalg.vector_norm(part, dim=1).square_()
        score = torch.addmm(squares, x, part.T, alpha=-2)
        own = (skip >= first) & (skip < first + len(part))
        score[own, skip[own] - first] = torch.inf
        low, at = score.min(1)
        nearer = low < best
        best = torch.where(nearer, low, best)
        index = torch.where(nearer, at + first, index)
    return index


def log_distance_by(search: Callable) -> Callable:
    """The term by a search for indices: the distances of n pairs, with a graph."""

    def log_distance(x: Tensor, y: Tensor, skip: Tensor, y_scale: tuple[float, float]) -> Tensor:
        with torch.no_grad():
            index = search(x.detach().flatten(1), y.flatten(1), y_scale, skip)
        winners = y[index]
        if y.dtype == torch.uint8:
            winners = winners * y_scale[0] + y_scale[1]
        square = (x - winners).flatten(1).square().sum(1)
        return (square + 1e-6).log().mean() / 2

    return log_distance


class ByGraph(fastebm.LangevinDynamics):
    """With a last step of its own, so that a CPU too computes the loss by autograd, as that of any
    energy: a small perceptron's formulas search inside an operator."""

    def last_step(self, *args, **kwargs):
        return super().last_step(*args, **kwargs)


def calls_of(case: Case, device: torch.device) -> dict[str, Callable[[], object]]:
    """A training step, and the term in different ways."""
    torch.manual_seed(0)
    model = case.model().to(device)
    init = "normal" if case.dtype == torch.float32 else "uniform"
    buffer = fastebm.ReplayBuffer(
        case.capacity, case.shape, init=init, dtype=case.dtype, device=device, seed=0
    )
    options = {} if case.dtype == torch.float32 else OF_IMAGES
    sampler = ByGraph(model, step_size=0.01, **options)
    loss = fastebm.ImprovedContrastiveDivergence(
        *(model, sampler, buffer, case.k_steps), entropy_weight=0.0
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    x = torch.rand(case.batch, *case.shape, device=device)
    state = fastebm.ChainRNG(0)

    def step() -> None:
        optimizer.zero_grad()
        loss(x, seed=state).loss.backward()
        optimizer.step()

    start, slots = buffer.sample(case.batch)
    ends = sampler.sample(start, n_steps=case.k_steps, seed=0).detach().requires_grad_()
    y, own, y_scale = buffer.references(slots)
    search = {CDIST: nearest_by_cdist, ADDMM: nearest_by_products}[case.rival]

    def term(log_distance: Callable) -> Callable[[], object]:
        return lambda: torch.autograd.grad(log_distance(ends, y, skip=own, y_scale=y_scale), ends)

    ways = {NOW: nn_log_distance, case.rival: log_distance_by(search)}
    values = [way(ends, y, skip=own, y_scale=y_scale).item() for way in ways.values()]
    assert abs(values[0] - values[1]) < 1e-4 * abs(values[0]) + 1e-5, values
    return {STEP: step} | {name: term(way) for name, way in ways.items()}


def measure(case: Case, device: torch.device, threads: int, seconds: float) -> list[dict]:
    timings = timing.compare(calls_of(case, device), device, seconds=seconds)
    step = timings[STEP].median
    return [
        {
            "case": f"{case.name}, {suite.threads_text(device, threads)}",
            "threads": threads,
            "variant": name,
            **t.row(),
            "entropy_share": 0.0 if name == STEP else t.median / (step + t.median),
        }
        for name, t in timings.items()
    ]


def print_case(rows: suite.Rows) -> None:
    header = ["a step, and its entropy term by", "ms", "spread", "share"]
    table = [
        [
            row["variant"],
            f"{row['seconds'] * 1e3:.4g}",
            f"{row['spread']:.0%}",
            f"{row['entropy_share']:.1%}" if row["entropy_share"] else "",
        ]
        for row in rows
    ]
    suite.print_table(rows[0]["case"], header, table)
