"""Metropolis' rule for Langevin proposals and for jumps between the modes of a population."""

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
    above. margin (B,): that of a jump, else inf."""

    y: Tensor
    log_r: Tensor
    log_u: Tensor
    margin: Tensor


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


class Jump(NamedTuple):
    """Where jumps go: y (B, D), the log of the factor (B,), and margin (B,): of the squared
    distances of x, and of y, to its nearest centre and to the next, the smaller difference: the
    nearest is not in doubt. inf for uniform points."""

    y: Tensor
    log_factor: Tensor
    margin: Tensor


def jump_draws(
    seed: int, step: int, sample_ids: Tensor, size: int, uniform_share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Which centres jumps look at (B, m), the place (B,) of the one that they go by among those
    which are not the nearest, and whether they are uniform (B,)."""
    w = words(seed, step, sample_ids, 4, JUMP)[:, 0]
    uniform = w[:, 2] < min(int(uniform_share * 2**32), 2**32 - 1)
    if size < 2:
        return w[:, :0], w[:, 0] * 0, uniform | True
    m = min(16, size)
    window = ((w[:, :1] * size >> 32) + torch.arange(m)) % size
    return window, w[:, 1] * (m - 1) >> 32, uniform


def window_jump(x: Tensor, centres: Tensor, scales: Tensor, window: Tensor, place: Tensor) -> Jump:
    """Jumps from x (B, D) by the centres ``window`` (B, m), to the one at ``place`` (B,) of those
    that are not the nearest."""
    row, c, s = torch.arange(len(x)), centres[window], scales[window]
    distances = (c - x[:, None]).square().sum(2)
    near = distances.argmin(1)
    far = place + (place >= near)
    scale = s[row, far] / s[row, near]
    y = c[row, far] + scale[:, None] * (x - c[row, near])
    back = (c - y[:, None]).square().sum(2)
    factor = torch.where(back.argmin(1) == far, x.shape[1] * scale.log(), -math.inf)
    gaps = [v.topk(2, largest=False).values.diff(dim=1)[:, 0] for v in (distances, back)]
    return Jump(y, factor, torch.minimum(*gaps))


def population_jump(
    x: Tensor,
    centres: Tensor | None,
    scales: Tensor | None,
    seed: int,
    step: int,
    sample_ids: Tensor,
    lo: Tensor | None = None,
    hi: Tensor | None = None,
    uniform_share: float = 0.0,
) -> Jump:
    """Jumps by local means of a population, or with probability ``uniform_share`` to a uniform
    point of the box, of the dtype of x (B, D)."""
    size = 0 if centres is None else len(centres)
    window, place, uniform = jump_draws(seed, step, sample_ids, size, uniform_share)
    none = x.new_zeros(len(x))
    jump = Jump(x, none, none) if size < 2 else window_jump(x, centres, scales, window, place)
    if lo is None:
        return jump
    w = words(seed, step, sample_ids, 4 + x.shape[1], JUMP)[:, 1:].flatten(1)[:, : x.shape[1]]
    anywhere = lo + (hi - lo) * ((w.double() + 0.5) / 2**32)
    return Jump(
        torch.where(uniform[:, None], anywhere.to(x.dtype), jump.y),
        torch.where(uniform, none, jump.log_factor),
        torch.where(uniform, math.inf, jump.margin),
    )


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
    centres: Tensor | None = None,
    scales: Tensor | None = None,
    uniform_share: float = 0.0,
) -> tuple[Proposal, Tensor, Tensor]:
    """A proposal, and energy and gradient there."""
    x = state.x
    if jump:
        y, log_factor, margin = population_jump(
            x, centres, scales, seed, t, sample_ids, lo, hi, uniform_share
        )
        e, grad = energy(y)
        log_r = 2 * step / sigma**2 * (state.energy - e) + log_factor
    else:
        n = normals(seed, t, sample_ids, x.shape[1], NOISE)
        y = x + drift(state.grad, step, sigma) + (sigma * torch.ones(len(x)).double())[:, None] * n
        e, grad = energy(y)
        log_r = log_ratio(state, y, e, grad, step, sigma)
        margin = torch.full_like(log_r, math.inf)
    if lo is not None:
        log_r = torch.where(((y >= lo) & (y <= hi)).all(1), log_r, -math.inf)
    log_u = -normals(seed, t, sample_ids, 2, ACCEPT).square().sum(1) / 2
    return Proposal(y, log_r, log_u, margin), e, grad


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
