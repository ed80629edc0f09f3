"""Hamiltonian Monte Carlo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.ops.reference.metropolis import EnergyAndGradient
from fastebm.ops.reference.random import normals, words
from fastebm.rng import ACCEPT, JITTER, VELOCITY


class Trajectory(NamedTuple):
    """Where one ended: y, v (B, D); log r (B,) of it, whatever the box, and log u (B,); whether it
    is inside of the box (B,)."""

    y: Tensor
    v: Tensor
    log_r: Tensor
    log_u: Tensor
    inside: Tensor


class Chains(NamedTuple):
    """x (B, D), energy (B,), its gradient (B, D), sums of min(1, r) (B,), divergences (B,)."""

    x: Tensor
    energy: Tensor
    grad: Tensor
    acceptance: Tensor
    divergent: Tensor


def leapfrog(
    energy: EnergyAndGradient, x: Tensor, v: Tensor, h: Tensor, n_steps: int
) -> tuple[Tensor, Tensor]:
    """x and v (B, D) after steps of size h (B, 1), each half a kick, a move, half a kick."""
    for _ in range(n_steps):
        v = v - h / 2 * energy(x)[1]
        x = x + h * v
        v = v - h / 2 * energy(x)[1]
    return x, v


def jittered_step(
    step: float | Tensor, jitter: float, seed: int, t: int, sample_ids: Tensor
) -> Tensor:
    """``step (1 + jitter (2u - 1))``, (B, 1)."""
    u = (words(seed, t, sample_ids, 4, JITTER)[:, 0, 0] >> 8).double() / 2**24
    return (step * (1 + jitter * (2 * u - 1)))[:, None]


def hamiltonian_chain(
    energy: EnergyAndGradient,
    x: Tensor,
    step_sizes: Sequence[float | Tensor],
    temperatures: Sequence[float | Tensor],
    n_leapfrog: int,
    seed: int,
    sample_ids: Tensor,
    t: int = 0,
    jitter: float = 0.0,
    lo: Tensor | None = None,
    hi: Tensor | None = None,
) -> tuple[Chains, list[Trajectory]]:
    """Transitions in float64, one for each step size and temperature, of ``n_leapfrog`` steps: the
    chains after them, and their trajectories."""
    none = x.new_zeros(len(x))
    chains, found = Chains(x, *energy(x), none, none), []
    for k, (step, temperature) in enumerate(zip(step_sizes, temperatures, strict=True)):
        width = (none + temperature).sqrt()[:, None]
        start = width * normals(seed, t + k, sample_ids, x.shape[1], VELOCITY)
        h = jittered_step(step, jitter, seed, t + k, sample_ids)
        y, v = leapfrog(energy, chains.x, start, h, n_leapfrog)
        e, grad = energy(y)
        before = chains.energy + start.square().sum(1) / 2
        log_r = (before - e - v.square().sum(1) / 2) / temperature
        log_u = -normals(seed, t + k, sample_ids, 2, ACCEPT).square().sum(1) / 2
        inside = (y == y).all(1) if lo is None else ((y >= lo) & (y <= hi)).all(1)
        found.append(Trajectory(y, v, log_r, log_u, inside))
        accepted = (log_r > log_u) & inside
        share = torch.where(inside, log_r.exp().clamp(max=1).nan_to_num(0), none)
        chains = Chains(
            torch.where(accepted[:, None], y, chains.x),
            torch.where(accepted, e, chains.energy),
            torch.where(accepted[:, None], grad, chains.grad),
            chains.acceptance + share,
            chains.divergent + ~(log_r.abs() <= 1000),
        )
    return chains, found
