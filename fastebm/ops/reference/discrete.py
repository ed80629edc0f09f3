"""Gibbs with gradients: a step by given streams, and its matrix on few states."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.ops.reference.random import normals, words
from fastebm.rng import ACCEPT, SITE

EnergyAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]  # (B, D) -> (B,), (B, D)


def proposal_logits(x: Tensor, grad: Tensor, temperature: Tensor | float, k: int) -> Tensor:
    """log w of all moves from flattened x (B, D): of flips for k = 0, else of one-hot sites of k
    categories, -inf for the one that is there."""
    t = torch.as_tensor(temperature, dtype=x.dtype).reshape(-1, 1)
    if k == 0:
        return (2 * x - 1) * grad / (2 * t)
    sites, there = grad.reshape(len(x), -1, k), x.reshape(len(x), -1, k) > 0.5
    current = sites.masked_fill(~there, 0).sum(2, keepdim=True)
    logits = (current - sites) / (2 * t[:, None])
    return logits.masked_fill(there, -math.inf).flatten(1)


def moved(x: Tensor, move: Tensor, k: int) -> Tensor:
    """x (B, D) after move (B,)."""
    y, row = x.clone(), torch.arange(len(x))
    if k == 0:
        y[row, move] = 1 - y[row, move]
        return y
    sites = y.view(len(x), -1, k)
    sites[row, move // k] = torch.nn.functional.one_hot(move % k, k).to(x.dtype)
    return y


def way_back(x: Tensor, move: Tensor, k: int) -> Tensor:
    """The move (B,) that leads from where ``move`` leads to back to x."""
    if k == 0:
        return move
    site = move // k
    return site * k + x.view(len(x), -1, k)[torch.arange(len(x)), site].argmax(1)


class Step(NamedTuple):
    """y and its move, log q(y|x), log r, log u, and by how much the race was won: the ratio of the
    times of the second and the first, less 1."""

    y: Tensor
    move: Tensor
    log_q: Tensor
    log_r: Tensor
    log_u: Tensor
    margin: Tensor


def gwg_step(
    energy: EnergyAndGradient,
    x: Tensor,
    temperature: Tensor | float,
    k: int,
    seed: int,
    step: int,
    sample_ids: Tensor,
) -> Step:
    """A proposal from x (B, D) by the draws of ``step``, and what accepts it by those of the next
    step."""
    e_x, grad = energy(x)
    logits = proposal_logits(x, grad, temperature, k)
    u = (words(seed, step, sample_ids, x.shape[1], SITE).flatten(1)[:, : x.shape[1]] + 0.5) / 2**32
    times = -torch.log1p(-u) / logits.exp()
    move = times.argmin(1)
    least = times.topk(2, largest=False).values if x.shape[1] > 1 else torch.ones(len(x), 2)
    y = moved(x, move, k)
    e_y, grad_y = energy(y)
    back = proposal_logits(y, grad_y, temperature, k).log_softmax(1)
    log_q = logits.log_softmax(1).gather(1, move[:, None])[:, 0]
    log_q_back = back.gather(1, way_back(x, move, k)[:, None])[:, 0]
    log_r = (e_x - e_y) / temperature + log_q_back - log_q
    log_u = -normals(seed, step + 1, sample_ids, 2, ACCEPT).square().sum(1) / 2
    return Step(y, move, log_q, log_r, log_u, least[:, 1] / least[:, 0] - 1)


def gwg_matrix(
    energy: EnergyAndGradient, states: Tensor, temperature: float, k: int
) -> tuple[Tensor, Tensor]:
    """Probabilities (S, S) of a step between all ``states`` (S, D), and their law (S,)."""
    size = len(states)
    e, grad = energy(states)
    law = (-e / temperature).softmax(0)
    proposals = torch.zeros(size, size, dtype=states.dtype)
    chances = proposal_logits(states, grad, temperature, k).softmax(1)
    for move in range(states.shape[1]):
        y = moved(states, torch.full((size,), move), k)
        to = (y[:, None] == states[None]).all(2).double().argmax(1)
        proposals[torch.arange(size), to] += chances[:, move]
    ratio = law[None] * proposals.T / (law[:, None] * proposals)
    matrix = proposals * ratio.nan_to_num(0).clamp(max=1)
    return matrix + torch.diag(1 - matrix.sum(1)), law
