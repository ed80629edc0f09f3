"""Checks of what users give: numbers, schedules, boxes, chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

from torch import Tensor

from fastebm.ops.langevin import Clamp


def callable_model(name: str, model: Callable) -> Callable:
    if not callable(model):
        raise TypeError(f"{name} must be callable, got {type(model).__name__}")
    return model


def setting(name: str, value, *, above_zero: bool = False, per_chain: bool = False):
    """A checked number, tensor (B,), or schedule."""
    if isinstance(value, Tensor):
        if not per_chain:
            raise TypeError(f"{name} must be a number or a schedule, got a tensor")
        if value.dim() > 1 or not value.is_floating_point() or value.requires_grad:
            raise ValueError(
                f"{name} must be a floating-point tensor (B,) without a gradient, got {value.dtype}"
                f" {tuple(value.shape)}"
            )
        bad = ~value.isfinite() | ((value <= 0) if above_zero else (value < 0))
        if bad.any():
            raise ValueError(
                f"{name} must be finite and {'>' if above_zero else '>='} 0, got {value[bad][0]}"
            )
        return value.detach().clone()
    return value if callable(value) else number(name, value, above_zero)


def value_at(k: int, name: str, value, above_zero: bool = False) -> float | Tensor:
    return number(f"{name}({k})", value(k), above_zero) if callable(value) else value


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
    try:
        lo, hi = (None if c is None else float(c) for c in clamp)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pair (lo, hi) of numbers, got {clamp!r}") from None
    if not (-math.inf if lo is None else lo) <= (math.inf if hi is None else hi):
        raise ValueError(f"{name} must have lo <= hi, got {clamp!r}")
    return lo, hi
