"""The Langevin step, its noise given."""

from __future__ import annotations

import torch
from torch import Tensor


def langevin_step(
    x: Tensor,
    grad: Tensor,
    step_size: float | Tensor,
    noise_std: float | Tensor,
    noise: Tensor,
    *,
    grad_clip: float | None = None,
    grad_norm_clip: float | None = None,
    displacement_clip: float | None = None,
    clamp: tuple[float | Tensor | None, float | Tensor | None] | None = None,
) -> Tensor:
    """``clamp(x + clip(noise_std * noise - step_size * clip(grad)))`` with the noise given."""
    rows = (-1,) + (1,) * (x.dim() - 1)
    if isinstance(step_size, Tensor):
        step_size = step_size.reshape(rows)
    if isinstance(noise_std, Tensor):
        noise_std = noise_std.reshape(rows)
    if grad_norm_clip is not None:
        norm = grad.unsqueeze(-1).flatten(1).norm(dim=1).reshape(rows)
        grad = grad * torch.where(norm > grad_norm_clip, grad_norm_clip / norm, 1.0)
    if grad_clip is not None:
        grad = grad.clamp(-grad_clip, grad_clip)
    move = noise_std * noise - step_size * grad
    if displacement_clip is not None:
        move = move.clamp(-displacement_clip, displacement_clip)
    out = x + move
    lo, hi = clamp or (None, None)
    out = out if lo is None else out.clamp(min=lo)
    return out if hi is None else out.clamp(max=hi)
