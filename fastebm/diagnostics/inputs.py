"""Trajectories and what of them is looked at: checks, names, elements, packages."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

Element = int | tuple[int, ...]  # index of an element of an event


def need(module: str) -> ModuleType:
    """Import an optional module, or say in one line how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{error.name} is needed here: pip install "fastebm[diagnostics]"'
        ) from None


def as_columns(trajectory: Tensor, min_draws: int) -> Tensor:
    """(B, n_kept, *event) as (B, n_kept, D), or the error that says what is wrong with it."""
    if not isinstance(trajectory, Tensor):
        raise TypeError(
            f"trajectory must be a tensor (B, n_kept, *event), got {type(trajectory).__name__}"
        )
    if trajectory.is_complex():
        raise TypeError(f"trajectory must be of real numbers, got {trajectory.dtype}")
    shape = tuple(trajectory.shape)
    if len(shape) < 2 or shape[1] < min_draws or 0 in shape:
        raise ValueError(
            f"trajectory must be (B, n_kept, *event), none of them 0, with n_kept >= {min_draws}"
            f" draws of each chain, got {shape}"
        )
    return trajectory.detach().reshape(*shape[:2], math.prod(shape[2:]))


def as_float64(columns: Tensor) -> np.ndarray:
    """Some columns (B, n, d) as an array (d, B, n)."""
    return columns.movedim(2, 0).cpu().to(torch.float64).contiguous().numpy()


def check_names(names: Sequence[str] | None, event: tuple[int, ...]) -> tuple[str, ...] | None:
    """Names of all elements of an event, in their order."""
    if names is None:
        return None
    n = math.prod(event)
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"names must be a sequence of {n} strings, got {names!r}")
    if len(names) != n:
        raise ValueError(f"names must be {n}, one for each element, got {len(names)}")
    return tuple(names)


def label(column: int, event: tuple[int, ...], names: Sequence[str] | None) -> str:
    """What an element is called: its name, or x[i, j]."""
    if names is not None:
        return names[column]
    index = position(column, event)
    return f"x[{', '.join(map(str, index))}]" if index else "x"


def position(column: int, event: tuple[int, ...]) -> tuple[int, ...]:
    """Index of an element in an event."""
    return tuple(int(i) for i in np.unravel_index(column, event)) if event else ()


def column_of(element: Element, event: tuple[int, ...]) -> int:
    """The inverse of ``position``; an index below 0 counts from the end."""
    index = element if isinstance(element, tuple) else (element,)
    fits = len(index) == len(event) and all(
        isinstance(i, int) and -n <= i < n for i, n in zip(index, event, strict=True)
    )
    if not fits:
        raise ValueError(f"elements must be indices of an event of shape {event}, got {element!r}")
    column = 0
    for i, n in zip(index, event, strict=True):
        column = column * n + i % n
    return column
