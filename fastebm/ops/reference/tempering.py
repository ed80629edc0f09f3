"""Swaps between replicas at neighbouring temperatures."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.ops.reference.random import normals
from fastebm.rng import SWAP


class Swaps(NamedTuple):
    """Replica number (R, B) whose state each replica holds afterwards, the factor (R, B) of its
    velocity, min(1, r) (R - 1, B), 0 of pairs that were not asked, and by how much (R - 1, B) log r
    is above log u."""

    source: Tensor
    factor: Tensor
    acceptance: Tensor
    margin: Tensor


def replica_swap(
    energy: Tensor, temperatures: Tensor, parity: int, seed: int, step: int, sample_ids: Tensor
) -> Swaps:
    """Of energies (R, B) in float64."""
    replicas, chains = energy.shape
    source = torch.arange(replicas)[:, None].repeat(1, chains)
    factor = torch.ones(replicas, chains, dtype=torch.float64)
    acceptance = torch.zeros(replicas - 1, chains, dtype=torch.float64)
    margin = torch.full_like(acceptance, torch.inf)
    n = normals(seed, step, sample_ids, 4 * replicas, SWAP).view(chains, replicas, 4)
    for r in range(parity, replicas - 1, 2):
        low, high = temperatures[r], temperatures[r + 1]
        log_r = (1 / low - 1 / high) * (energy[r] - energy[r + 1])
        margin[r] = log_r + n[:, r, :2].square().sum(1) / 2
        acceptance[r] = log_r.exp().clamp(max=1).nan_to_num(0)
        accepted = margin[r] > 0
        source[r, accepted], source[r + 1, accepted] = r + 1, r
        factor[r, accepted] = (low / high).sqrt()
        factor[r + 1, accepted] = (high / low).sqrt()
    return Swaps(source, factor, acceptance, margin)
