"""Local means of a population: what jumps of adjusted chains go by."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.ops.choice import choose_slots
from fastebm.ops.neighbor import nearest_neighbor

LEAST_CENTRES, MOST_CENTRES, FOR_A_JUMP = 16, 128, 8
MOST_NEIGHBORS = 16
LEAST_SCALE = 1e-6


class Modes(NamedTuple):
    """Where a population is dense.

    Attributes:
        centres: (M, D) float32. scales: (M,) float32, > 0: how wide it is there.
    """

    centres: Tensor
    scales: Tensor


def local_means(population: Tensor, rng: Tensor, t: int = 0, n_jumps: int = 16) -> Modes:
    """Means of the neighbours of some samples of a population, and the root of their variance,
    averaged over elements.

    Of the samples 8 a jump are drawn, all different, 16 to 128; each has its K nearest, itself
    among them, K = P // 16 but 1 at least and 16 at most. Scales are 1 where K = 1. The draw
    depends on the seed and the step of the stream, not on its first sample, so that parts of a
    batch agree.

    Args:
        population: (P, *event), P >= 2.
        rng: state of the stream. t: steps that are added to its own.
        n_jumps: that each chain makes by these means.
    """
    b = population.detach().unsqueeze(-1).flatten(1).float()
    stream = rng.clone()
    stream[1] += t
    stream[2] = 0
    wanted = max(LEAST_CENTRES, min(FOR_A_JUMP * n_jumps, MOST_CENTRES))
    chosen, _ = choose_slots(stream, len(b), min(wanted, len(b)))
    centres, k = b[chosen], min(MOST_NEIGHBORS, len(b) // 16)
    if k < 2:
        return Modes(centres, torch.ones_like(centres[:, 0]))
    _, index = nearest_neighbor(centres, b, k=k)
    near = b[index.clamp_(min=0)]  # of a sample that is not finite any others
    means = near.mean(1)
    square = near.sub_(means[:, None]).square_().sum((1, 2))  # var_mean takes 20 times as long
    scales = square.div_((k - 1) * b.shape[1]).sqrt_().clamp_(min=LEAST_SCALE)
    return Modes(means, scales)
