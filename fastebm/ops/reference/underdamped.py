"""A step of underdamped Langevin dynamics, its noise given."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def underdamped_step(
    x: Tensor,
    v: Tensor,
    grad: Tensor,
    kick: float | Tensor,
    drift: float | Tensor,
    decay: float | Tensor,
    noise_std: float | Tensor,
    noise: Tensor,
    lo: float | Tensor = -math.inf,
    hi: float | Tensor = math.inf,
) -> tuple[Tensor, Tensor]:
    """x and v (B, ...) after the step: coefficients are numbers or (B,), faces are numbers or
    broadcast to x."""

    def of_rows(value):
        return value.reshape(-1, *[1] * (x.dim() - 1)) if isinstance(value, Tensor) else value

    kick, drift, decay, noise_std = map(of_rows, (kick, drift, decay, noise_std))
    lo, hi = (torch.as_tensor(face, dtype=x.dtype).expand_as(x) for face in (lo, hi))

    def move(x, v):
        x = x + drift * v
        low, high = x < lo, x > hi
        x = torch.where(low, 2 * lo - x, torch.where(high, 2 * hi - x, x))
        return torch.minimum(torch.maximum(x, lo), hi), torch.where(low | high, -v, v)

    x, v = move(x, v - kick * grad)
    return move(x, decay * v + noise_std * noise)
