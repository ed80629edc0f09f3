"""Checks of what users give: numbers, schedules, boxes, chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from fastebm.ops.langevin import Clamp, broadcasts


def callable_model(name: str, model: Callable) -> Callable:
    if not callable(model):
        raise TypeError(f"{name} must be callable, got {type(model).__name__}")
    return model


def setting(name: str, value, *, above_zero: bool = False, per_chain: bool = False):
    """A checked number or schedule, or ``per_chain`` a tensor: (B,), or (K, B) or (K, 1) of K
    steps."""
    if isinstance(value, Tensor):
        if not per_chain:
            raise TypeError(f"{name} must be a number or a schedule, got a tensor")
        if value.dim() > 2 or not value.is_floating_point() or value.requires_grad:
            raise ValueError(
                f"{name} must be a floating-point tensor (B,), or (K, B) of K steps, without a"
                f" gradient, got {value.dtype} {tuple(value.shape)}"
            )
        bad = ~value.isfinite() | ((value <= 0) if above_zero else (value < 0))
        if bad.any():
            raise ValueError(
                f"{name} must be finite and {'>' if above_zero else '>='} 0, got {value[bad][0]}"
            )
        return value.detach().clone()
    return value if callable(value) else number(name, value, above_zero)


def value_at(
    k: int, name: str, value, above_zero: bool = False, per_chain: bool = True
) -> float | Tensor:
    """A setting at step ``k``: a number, or ``per_chain`` a tensor (B,)."""
    if callable(value):
        found = setting(f"{name}({k})", value(k), above_zero=above_zero, per_chain=per_chain)
        if callable(found) or (isinstance(found, Tensor) and found.dim() > 1):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"{name}({k}) must be a number or a tensor (B,), got {got}")
        return found
    if not is_table(value):
        return value
    if k >= len(value):
        raise ValueError(f"{name} must have a row for each step, got {len(value)} and step {k}")
    return value[k]


def is_table(value) -> bool:
    """Whether a setting has a row for each step."""
    return isinstance(value, Tensor) and value.dim() == 2


def check_sizes(name: str, value, steps: int, n: int) -> None:
    """ValueError where a setting that is a tensor is not for so many steps of n chains."""
    if not isinstance(value, Tensor) or not value.dim():
        return
    if is_table(value) and len(value) < steps:
        raise ValueError(
            f"{name} must have a row for each of {steps} steps, burn_in included, got {len(value)}"
        )
    if value.shape[-1] not in (1, n):
        raise ValueError(
            f"{name} must hold 1 or B = {n} values a step, got shape {tuple(value.shape)}"
        )


def number(name: str, value, above_zero: bool = False) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        raise ValueError(f"{name} must be finite and {'>' if above_zero else '>='} 0, got {value}")
    return float(value)


def real(name: str, value: float) -> float:
    """A finite number of either sign."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    return float(value)


def chains(x: Tensor) -> Tensor:
    """Where chains start, (B, *event), without a graph."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() == 0:
        kind = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor (B, *event), got {kind}")
    return x.detach()


def scales(name: str, value: Tensor) -> Tensor:
    """A scale of each coordinate, (*event)."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.requires_grad:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor without a gradient, got {got}")
    bad = ~(value.isfinite() & (value > 0))
    if bad.any():
        raise ValueError(f"{name} must be finite and > 0, got {value[bad][0]}")
    return value.detach().clone()


def box(name: str, clamp: Clamp) -> Clamp:
    """(lo, hi), each a number, None, or a tensor: of the event's shape, or with a box a chain
    (B, *event); checked."""
    try:
        lo, hi = (_face(name, face) for face in clamp)
    except (TypeError, ValueError) as error:
        if f"{name} must" in str(error):
            raise
        raise ValueError(
            f"{name} must be a pair (lo, hi) of numbers or tensors, got {clamp!r}"
        ) from None
    try:
        ordered = lo is None or hi is None or bool(torch.as_tensor(lo <= hi).all())
    except RuntimeError:
        shapes = f"{tuple(lo.shape)} and {tuple(hi.shape)}"
        raise ValueError(f"{name} must have faces of one shape, got {shapes}") from None
    if not ordered or any(isinstance(face, float) and math.isnan(face) for face in (lo, hi)):
        raise ValueError(f"{name} must have lo <= hi, got {clamp!r}")
    return lo, hi


def _face(name: str, face) -> float | Tensor | None:
    if face is None or not isinstance(face, Tensor) or not face.dim():
        return None if face is None else float(face)
    if face.is_complex() or face.requires_grad or face.isnan().any():
        raise ValueError(
            f"{name} must hold real tensors without NaN and without a gradient, got {face.dtype}"
            f" {tuple(face.shape)}"
        )
    return face.detach().to(torch.promote_types(face.dtype, torch.float32), copy=True)


def check_box(clamp: Clamp | None, x: Tensor) -> None:
    """ValueError where the tensors of a box do not fit chains x (B, *event)."""
    for face in clamp or ():
        if isinstance(face, Tensor) and not broadcasts(face, x.shape):
            raise ValueError(
                f"clamp must hold tensors of the event's shape {tuple(x.shape[1:])}, or of the"
                f" chains' {tuple(x.shape)}, got {tuple(face.shape)}"
            )
