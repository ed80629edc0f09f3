"""The units that chains run in: the user's, or those of standardised data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastebm.energies.standardized import Standardized
from fastebm.ops.langevin import Clamp

Faces = tuple[Tensor | None, Tensor | None]
UNIFORM_SHARE = 0.1  # of jumps, to uniform points of a box of at most
MOST_WIDTH = 100  # standard deviations


def units_of(model: Callable) -> Standardized | None:
    """The units that chains of a model run in, where they are not the user's."""
    return model if isinstance(model, Standardized) else None


def has_formula(units: Standardized | None) -> bool:
    """Whether they are the user's, or ``(x - mean) / std``: a subclass may be anything."""
    return units is None or type(units) is Standardized


def inner_model(model: Callable) -> Callable:
    """What chains of a model run on."""
    units = units_of(model)
    return model if units is None else units.energy


def uniform_share(model: Callable, clamp: Clamp | None) -> float:
    """Of jumps, to uniform points of a box. None where there is no box, or where it is so wide in
    the standard units of some coordinate that its points are far from all data: while the energy is
    flat they would be accepted, and train it out there."""
    lo, hi = _closed(clamp)
    if lo is None or hi is None:
        return 0.0
    units = units_of(model)
    wide = units is not None and hi - lo > MOST_WIDTH * units.least_std
    return 0.0 if wide else UNIFORM_SHARE


def _closed(clamp: Clamp | None) -> Clamp:
    """Both faces, None for one that is nowhere."""
    lo, hi = clamp or (None, None)
    return tuple(None if c is None or abs(c) == torch.inf else c for c in (lo, hi))


def box_in(model: Callable, clamp: Clamp | None, x: Tensor) -> Faces:
    """The faces of a box of the user's units in those of the chains x (B, *event): each of the
    event's shape, or None."""
    clamp, units = _closed(clamp), units_of(model)
    if units is not None:
        return units.bounds(clamp)
    full = dict(size=x.shape[1:], dtype=torch.float32, device=x.device)
    return tuple(None if c is None else torch.full(fill_value=c, **full) for c in clamp)
