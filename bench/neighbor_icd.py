"""The entropy term's share of an ICD training step on vectors, for bench/neighbor.py."""

from __future__ import annotations

from unittest import mock

import suite
import timing
import torch
from torch import Tensor, nn

import fastebm
from fastebm.losses import improved

DIM, BATCH, CAPACITY, K_STEPS = 64, 1024, 10000, 20
CASE = f"ICD step, d = {DIM}, batch {BATCH}, {CAPACITY} references, {K_STEPS} Langevin steps"
WITHOUT, NOW, BEFORE = "without entropy", "fastebm", "blocked cdist, as before fastebm's search"


def log_distance_before(x: Tensor, y: Tensor, skip: Tensor, eps: float, **_) -> Tensor:
    """The entropy by the search that the package used before it had one of its own: blocks of 2^22
    distances from torch.cdist's difference form, then the distances of n pairs."""
    index, rows = [], max(1, (1 << 22) // len(y))
    with torch.no_grad():
        for part, own in zip(x.split(rows), skip.split(rows), strict=True):
            d = torch.cdist(part, y, compute_mode="donot_use_mm_for_euclid_dist")
            at = own.clamp(min=0)[:, None]
            d.scatter_(1, at, d.gather(1, at).masked_fill(own[:, None] >= 0, torch.inf))
            index.append(d.argmin(1))
    square = (x - y[torch.cat(index)]).square().sum(-1)
    return (square + eps**2).log().mean() / 2


class ByGraph(fastebm.LangevinDynamics):
    """With a last step of its own, so that a CPU too computes the loss by autograd, as that of any
    energy: a small perceptron's formulas search inside an operator."""

    def last_step(self, *args, **kwargs):
        return super().last_step(*args, **kwargs)


def training_step(entropy_weight: float, device: torch.device):
    """A function that takes one step of training, of a model of its own."""
    torch.manual_seed(0)
    hidden = [nn.Linear(DIM, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
    model = nn.Sequential(*hidden, nn.Linear(128, 1)).to(device)
    buffer = fastebm.ReplayBuffer(CAPACITY, (DIM,), init="normal", device=device, seed=0)
    sampler = ByGraph(model, step_size=0.01)
    loss = fastebm.ImprovedContrastiveDivergence(
        *(model, sampler, buffer, K_STEPS), entropy_weight=entropy_weight, n_entropy_refs=None
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    x = torch.randn(BATCH, DIM, device=device)
    state = fastebm.ChainRNG(0)

    def step() -> None:
        optimizer.zero_grad()
        loss(x, seed=state).loss.backward()
        optimizer.step()

    return step


def measure(device: torch.device, threads: int, seconds: float) -> list[dict]:
    on, before = training_step(0.3, device), training_step(0.3, device)

    def step_before() -> None:
        with mock.patch.object(improved, "nn_log_distance", log_distance_before):
            before()

    calls = {WITHOUT: training_step(0.0, device), NOW: on, BEFORE: step_before}
    timings = timing.compare(calls, device, seconds=seconds)
    return [
        {
            "case": f"{CASE}, {suite.threads_text(device, threads)}",
            "threads": threads,
            "variant": name,
            **t.row(),
            "entropy_share": 1 - 1 / timings[WITHOUT].times_faster_than(t),
        }
        for name, t in timings.items()
    ]


def print_case(rows: suite.Rows) -> None:
    header = ["entropy term", "ms a step", "spread", "its share"]
    table = [
        [
            row["variant"],
            f"{row['seconds'] * 1e3:.4g}",
            f"{row['spread']:.0%}",
            "" if row["variant"] == WITHOUT else f"{row['entropy_share']:.1%}",
        ]
        for row in rows
    ]
    suite.print_table(rows[0]["case"], header, table)
