"""Random words and normals, as the counters of a stream give them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastebm.rng import NOISE

_LOW = 0xFFFFFFFF


def philox4x32(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox4x32-10 (Salmon et al. 2011): (..., 4) int64 words in [0, 2^32) -> words."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # the low 64 bits, also when the sign wraps
        c0, c1, c2, c3 = (b >> 32 & _LOW) ^ c1 ^ k0, b & _LOW, (a >> 32 & _LOW) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return torch.stack([c0, c1, c2, c3], -1)


def words(seed: int, step: int, sample_ids: Tensor, dim: int, tag: int = NOISE) -> Tensor:
    """The random words behind ``normals``: int64 (B, ceil(dim / 4), 4)."""
    n_blocks = (dim + 3) // 4
    counter = torch.empty(len(sample_ids), n_blocks, 4, dtype=torch.int64)
    counter[..., 0] = step & _LOW
    counter[..., 1] = torch.arange(n_blocks)
    counter[..., 2] = (sample_ids & _LOW)[:, None]
    counter[..., 3] = (sample_ids >> 32 & 0xFFFFFF | tag << 24)[:, None]
    return philox4x32(counter, (seed & _LOW, seed >> 32 & _LOW))


def normals(seed: int, step: int, sample_ids: Tensor, dim: int, tag: int = NOISE) -> Tensor:
    """Standard normals, float64 (B, dim): Box-Muller on each pair of words."""
    w = words(seed, step, sample_ids, dim, tag).double()
    radius = torch.sqrt(-2 * torch.log((w[..., 0::2] + 0.5) / 2**32))
    angle = 2 * math.pi * w[..., 1::2] / 2**32
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1)
    return pairs.flatten(1)[:, :dim]
