"""Metropolis' rule for Langevin proposals and for jumps between samples of a population."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.ops.reference.random import normals, words
from fastebm.rng import ACCEPT, JUMP, NOISE

EnergyAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]  # (B, D) -> (B,), (B, D)


class Proposal(NamedTuple):
    """What a transition proposes: y (B, D), its log r (B,), and log u (B,): accepted where log r is
    above."""

    y: Tensor
    log_r: Tensor
    log_u: Tensor


class State(NamedTuple):
    """Chains: x (B, D), energy (B,), its gradient (B, D), sums (2, B) of min(1, r) of the Langevin
    proposals and of accepted jumps."""

    x: Tensor
    energy: Tensor
    grad: Tensor
    acceptance: Tensor


def drift(grad: Tensor, step: Tensor | float, sigma: Tensor | float) -> Tensor:
    """``-a grad`` with a = min(step, sigma sqrt(D) / |grad|)."""
    norm = grad.norm(dim=1)
    most = sigma * math.sqrt(grad.shape[1]) / norm
    return -torch.where(most < step, most, step)[:, None] * grad


def log_ratio(state: State, y: Tensor, e_y: Tensor, grad_y: Tensor, step, sigma) -> Tensor:
    """log r of a Langevin proposal, by its density and that of the way back."""
    there = (y - state.x - drift(state.grad, step, sigma)).square().sum(1)
    back = (state.x - y - drift(grad_y, step, sigma)).square().sum(1)
    return 2 * step / sigma**2 * (state.energy - e_y) - (back - there) / (2 * sigma**2)


def jump_draws(
    seed: int, step: int, sample_ids: Tensor, size: int, uniform_share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Which two samples of a population a jump takes, (B,) each, and whether it is uniform."""
    w = words(seed, step, sample_ids, 4, JUMP)[:, 0]
    uniform = w[:, 2] < min(int(uniform_share * 2**32), 2**32 - 1)
    if size == 0:
        return w[:, 0] * 0, w[:, 0] * 0, uniform | True
    i, j = w[:, 0] * size >> 32, w[:, 1] * (size - 1) >> 32
    return i, j + (j >= i), uniform


def population_jump(
    x: Tensor,
    population: Tensor | None,
    seed: int,
    step: int,
    sample_ids: Tensor,
    lo: Tensor | None = None,
    hi: Tensor | None = None,
    uniform_share: float = 0.0,
) -> Tensor:
    """``x + (b_i - b_j)``, or with probability ``uniform_share`` a uniform point of the box, of the
    dtype of x (B, D)."""
    size = 0 if population is None else len(population)
    i, j, uniform = jump_draws(seed, step, sample_ids, size, uniform_share)
    y = x if population is None else x + (population[i] - population[j])
    if lo is None:
        return y
    w = words(seed, step, sample_ids, 4 + x.shape[1], JUMP)[:, 1:].flatten(1)[:, : x.shape[1]]
    anywhere = lo + (hi - lo) * ((w.double() + 0.5) / 2**32)
    return torch.where(uniform[:, None], anywhere.to(x.dtype), y)


def propose(
    energy: EnergyAndGradient,
    state: State,
    step: Tensor | float,
    sigma: Tensor | float,
    seed: int,
    t: int,
    sample_ids: Tensor,
    jump: bool,
    lo: Tensor | None = None,
    hi: Tensor | None = None,
    population: Tensor | None = None,
    uniform_share: float = 0.0,
) -> tuple[Proposal, Tensor, Tensor]:
    """A proposal, and energy and gradient there."""
    x = state.x
    if jump:
        y = population_jump(x, population, seed, t, sample_ids, lo, hi, uniform_share)
        e, grad = energy(y)
        log_r = 2 * step / sigma**2 * (state.energy - e)
    else:
        n = normals(seed, t, sample_ids, x.shape[1], NOISE)
        y = x + drift(state.grad, step, sigma) + (sigma * torch.ones(len(x)).double())[:, None] * n
        e, grad = energy(y)
        log_r = log_ratio(state, y, e, grad, step, sigma)
    if lo is not None:
        log_r = torch.where(((y >= lo) & (y <= hi)).all(1), log_r, -math.inf)
    log_u = -normals(seed, t, sample_ids, 2, ACCEPT).square().sum(1) / 2
    return Proposal(y, log_r, log_u), e, grad


def adjusted_chain(
    energy: EnergyAndGradient,
    x: Tensor,
    step_sizes: Sequence[float | Tensor],
    noise_stds: Sequence[float | Tensor],
    seed: int,
    sample_ids: Tensor,
    t: int = 0,
    every: int = 0,
    first: int = 0,
    **options,
) -> tuple[State, list[Proposal]]:
    """Transitions in float64, one for each coefficient, a jump where ``every`` > 0 and it divides
    first + k + 1, with the ``options`` of ``propose``: the chains after them, and what each of them
    proposed."""
    state = State(x, *energy(x), x.new_zeros(2, len(x)))
    proposals = []
    for k, (step, sigma) in enumerate(zip(step_sizes, noise_stds, strict=True)):
        jump = every > 0 and (first + k + 1) % every == 0
        proposal, e, grad = propose(
            energy, state, step, sigma, seed, t + k, sample_ids, jump, **options
        )
        accepted = proposal.log_r > proposal.log_u
        share = proposal.log_r.exp().clamp(max=1).nan_to_num(0)
        acceptance = state.acceptance.clone()
        acceptance[int(jump)] += accepted if jump else share
        state = State(
            torch.where(accepted[:, None], proposal.y, state.x),
            torch.where(accepted, e, state.energy),
            torch.where(accepted[:, None], grad, state.grad),
            acceptance,
        )
        proposals.append(proposal)
    return state, proposals
