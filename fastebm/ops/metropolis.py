"""Jumps between the modes of a population: the operator's wrapper and fake."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastebm.ops import library


def population_jump(
    x: Tensor,
    centres: Tensor | None,
    scales: Tensor | None,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    lo: float | Tensor | None = None,
    hi: float | Tensor | None = None,
    uniform_share: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Where samples jump to: ``c_i + (s_i / s_j) (x - c_j)``, c_j the nearest to x of 16 centres in
    a row from a random one (of all, where there are fewer), c_i another one of them; or with
    probability ``uniform_share`` a uniform point of the box.

    Metropolis' rule accepts y with probability min(1, exp((E(x) - E(y)) / T + log_factor)), where
    log_factor is D log(s_i / s_j), -inf where c_i is not the nearest to y, so that there is no way
    back, and 0 for a uniform point. The draws have tag ``JUMP``, are alike on every device, and a
    sample's do not depend on those beside it.

    Args:
        x: (B, *event) float32, of D elements each.
        centres: (M, D) float32, M >= 2; None for none, which takes ``uniform_share`` 1.
        scales: (M,) float32, > 0, with ``centres``; on a device they are not looked at.
        rng, t, sample_ids: as in ``langevin_step_``.
        lo, hi: corners of the box, numbers or tensors of the event's shape; they are needed, and
            finite, for a ``uniform_share`` above 0. On a device tensors are not looked at.
        uniform_share: in [0, 1].

    Returns:
        y (B, *event) and log_factor (B,), float32. No gradient is recorded.

    Source: the nearest of few centres, and back, is that of smart darting: Andricioaei, Straub and
    Voter, Smart darting Monte Carlo, 2001.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    if x.dim() < 1:
        raise RuntimeError("population_jump: x must be (B, *event), got a 0-d tensor")
    flat = x.flatten(1) if x.dim() > 1 else x[:, None]
    y, log_factor = library.call(
        library.op.population_jump.default,
        *(flat, centres, scales, rng, t, sample_ids, *box("population_jump", x, lo, hi)),
        uniform_share,
    )
    return y.view(x.shape), log_factor


def box(
    operator: str, x: Tensor, lo: float | Tensor | None, hi: float | Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The corners of a box for samples of ``x`` as operators take them, (D,) both or None both; a
    number is that of every element, and a single None is infinite.

    Raises:
        RuntimeError: a tensor is not of the event's shape.
    """
    if lo is None and hi is None:
        return None, None
    corners = []
    for name, value, missing in (("lo", lo, -math.inf), ("hi", hi, math.inf)):
        if isinstance(value, Tensor):
            if value.shape != x.shape[1:]:
                raise RuntimeError(
                    f"{operator}: {name} must be a number or of the event's shape"
                    f" {tuple(x.shape[1:])}, got {tuple(value.shape)}"
                )
            corners.append(value.flatten())
        else:
            value = missing if value is None else value
            corners.append(x.new_full((math.prod(x.shape[1:]),), value))
    return corners[0], corners[1]


def register_operators(namespace: str) -> None:
    """The fake of one built library, as ``fastebm.ops.langevin.register_operators``."""
    library.record_no_gradient(namespace, "population_jump")

    @torch.library.register_fake(f"{namespace}::population_jump")
    def _(x, *rest):
        torch._check(x.dim() == 2, lambda: f"x must be (B, D), got {tuple(x.shape)}")
        torch._check(x.dtype == torch.float32, lambda: f"x must be float32, got {x.dtype}")
        return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(len(x))


register_operators("fastebm")
