"""The draw of block Gibbs sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops.reference.random import words
from fastebm.rng import HIDDEN

_LOW = 0xFFFFFFFF


def bernoulli_sigmoid(
    logits: Tensor, seed: int, step: int, sample_ids: Tensor, beta: float = 1.0, tag: int = HIDDEN
) -> tuple[Tensor, Tensor]:
    """``u < sigmoid(beta * logits)``, float64 (B, dim), and how far u is from the sigmoid, in
    shares of the smaller of p and 1 - p: where it is near, rounding may decide otherwise."""
    a = beta * logits.double()
    w = words(seed, step, sample_ids, logits.shape[1], tag).flatten(1)[:, : logits.shape[1]]
    u = ((w >> 1) + 0.5) / 2**31
    u = torch.where(a < 0, u, 1 - (((w ^ _LOW) >> 1) + 0.5) / 2**31)
    p = a.sigmoid()
    return (u < p).double(), (u - p).abs() / torch.where(a < 0, p, (-a).sigmoid())
