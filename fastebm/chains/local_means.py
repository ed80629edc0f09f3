"""Local means of a population: what jumps of adjusted chains go by."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastebm.ops.choice import choose_slots
from fastebm.ops.neighbor import neighbor_means

LEAST_CENTRES, MOST_CENTRES, FOR_A_JUMP = 16, 128, 8
MOST_NEIGHBORS = 16


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
    n, k = means_and_neighbors(len(b), n_jumps)
    chosen, _ = choose_slots(rng, len(b), n, t=t)
    return Modes(*neighbor_means(b, chosen, k))


def means_and_neighbors(size: int, n_jumps: int) -> tuple[int, int]:
    """How many local means a population of ``size`` has, and neighbours each."""
    wanted = max(LEAST_CENTRES, min(FOR_A_JUMP * n_jumps, MOST_CENTRES))
    return min(wanted, size), max(1, min(MOST_NEIGHBORS, size // 16))
