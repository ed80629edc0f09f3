"""Jumps between samples of a population: the operator's wrapper and fake."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastebm.ops import library


def population_jump(
    x: Tensor,
    population: Tensor | None,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    lo: float | Tensor | None = None,
    hi: float | Tensor | None = None,
    uniform_share: float = 0.0,
) -> Tensor:
    """Where samples jump to: ``x + (b_i - b_j)``, b_i and b_j two samples of the population drawn
    uniformly, or with probability ``uniform_share`` a uniform point of the box.

    Either is as likely as its way back, so that Metropolis' rule accepts it with probability
    min(1, exp((E(x) - E(y)) / T)). The draws have tag ``JUMP``, are alike on every device, and a
    sample's do not depend on those beside it.

    Args:
        x: (B, *event) float32.
        population: (P, *event) float32, P >= 2; None for none, which takes ``uniform_share`` 1.
        rng, t, sample_ids: as in ``langevin_step_``.
        lo, hi: corners of the box, numbers or tensors of the event's shape; they are needed, and
            finite, for a ``uniform_share`` above 0. On a device tensors are not looked at.
        uniform_share: in [0, 1].

    Returns:
        (B, *event) float32. No gradient is recorded.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    if x.dim() < 1:
        raise RuntimeError("population_jump: x must be (B, *event), got a 0-d tensor")
    if population is not None:
        if population.shape[1:] != x.shape[1:] or population.dim() < 1:
            raise RuntimeError(
                f"population_jump: population must be (P, *event) with event {tuple(x.shape[1:])}"
                f" as of x, got {tuple(population.shape)}"
            )
        population = population.flatten(1) if population.dim() > 1 else population[:, None]
    flat = x.flatten(1) if x.dim() > 1 else x[:, None]
    jumped = library.call(
        library.op.population_jump.default,
        *(flat, population, rng, t, sample_ids, *box("population_jump", x, lo, hi)),
        uniform_share,
    )
    return jumped.view(x.shape)


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
    def _(x, population, *rest):
        torch._check(x.dim() == 2, lambda: f"x must be (B, D), got {tuple(x.shape)}")
        torch._check(x.dtype == torch.float32, lambda: f"x must be float32, got {x.dtype}")
        return torch.empty_like(x, memory_format=torch.contiguous_format)


register_operators("fastebm")
