"""The units that chains run in: the user's, those of standardised data, or preconditioned ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastebm.energies.rescaled import Rescaled
from fastebm.energies.standardized import Standardized
from fastebm.ops.langevin import Clamp

Faces = tuple[Tensor | None, Tensor | None]
UNIFORM_SHARE = 0.1  # of jumps, to uniform points of a box of at most
MOST_WIDTH = 100  # standard deviations


class Preconditioned:
    """Units in which a coordinate is divided by its scale: ``x = scale z``. They move to the device
    of the points that they last got.

    Args:
        units: of the model itself, or None.
        scale: (*event), or 0-d for all coordinates, > 0, in those units.
        energy: of those units, kept as ``inner``; chains run on ``self.energy``.
    """

    def __init__(
        self, units: Standardized | None, scale: Tensor, energy: Callable[..., Tensor]
    ) -> None:
        self.of_model, self.scale = units, scale
        self.inner, self.energy = energy, Rescaled(energy, scale)

    def standardize(self, x: Tensor) -> Tensor:
        x = x if self.of_model is None else self.of_model.standardize(x)
        return (x / self._scale(x)).to(x.dtype)

    def restore(self, z: Tensor) -> Tensor:
        x = (z * self._scale(z)).to(z.dtype)
        return x if self.of_model is None else self.of_model.restore(x)

    def bounds(self, clamp: Clamp) -> Faces:
        faces = clamp if self.of_model is None else self.of_model.bounds(clamp)
        return tuple(None if c is None else c / self.scale for c in faces)

    @property
    def std(self) -> Tensor:
        """Of a coordinate, in the user's units."""
        return self.scale if self.of_model is None else self.scale * self.of_model.std

    @property
    def least_std(self) -> float:
        """The least of ``std``."""
        return self.std.min().item()

    def _scale(self, x: Tensor) -> Tensor:
        if self.scale.device != x.device:
            self.scale = self.energy.scale = self.scale.to(x.device)
        if self.scale.dim() and x.shape[1:] != self.scale.shape:
            raise ValueError(
                f"preconditioner must be of the event's shape {tuple(x.shape[1:])}, got"
                f" {tuple(self.scale.shape)}"
            )
        return self.scale


Units = Standardized | Preconditioned


def units_of(model: Callable, preconditioner: Tensor | None = None) -> Units | None:
    """The units that chains of a model run in, where they are not the user's."""
    of_model = model if isinstance(model, Standardized) else None
    if preconditioner is None:
        return of_model
    return Preconditioned(of_model, preconditioner, model if of_model is None else of_model.energy)


def has_formula(units: Units | None) -> bool:
    """Whether they are the user's, or ``(x - mean) / std``: a subclass may be anything."""
    return units is None or type(units) is Standardized


def uniform_share(units: Units | None, clamp: Clamp | None) -> float:
    """Of jumps, to uniform points of a box. None where there is no box, or where it is so wide in
    the standard units of some coordinate that its points are far from all data: while the energy is
    flat they would be accepted, and train it out there."""
    lo, hi = _closed(clamp)
    if lo is None or hi is None:
        return 0.0
    width = hi - lo
    if isinstance(width, Tensor):
        wide = not width.isfinite().all()
        wide = wide or (units is not None and (width > MOST_WIDTH * units.std.to(width)).any())
    else:
        wide = units is not None and width > MOST_WIDTH * units.least_std
    return 0.0 if wide else UNIFORM_SHARE


def _closed(clamp: Clamp | None) -> Clamp:
    """Both faces, None for a number that is nowhere."""
    faces = clamp or (None, None)
    return tuple(
        None if not isinstance(c, Tensor) and (c is None or abs(c) == torch.inf) else c
        for c in faces
    )


def box_in(units: Units | None, clamp: Clamp | None, x: Tensor) -> Faces:
    """The faces of a box of the user's units in those of the chains x (B, *event): each of the
    event's shape, of x's where chains have a box each, or None."""
    faces = _closed(box_for(clamp, x))
    if units is not None:
        faces = units.bounds(faces)
    full = dict(size=x.shape[1:], dtype=torch.float32, device=x.device)
    numbers = (None if c is None or isinstance(c, Tensor) else c for c in faces)
    whole = (None if c is None else torch.full(fill_value=c, **full) for c in numbers)
    return tuple(
        _whole(c, x) if isinstance(c, Tensor) else w for c, w in zip(faces, whole, strict=True)
    )


def _whole(face: Tensor, x: Tensor) -> Tensor:
    """A face of one shape with an event, or with all chains where they differ."""
    if has_box_each((face, None), x):
        return face.expand(x.shape).contiguous()
    return (face if face.dim() < x.dim() else face[0]).expand(x.shape[1:]).contiguous()


def has_faces(clamp: Clamp | None) -> bool:
    """Whether a box is of tensors, not of numbers."""
    return any(isinstance(c, Tensor) for c in clamp or ())


def has_box_each(clamp: Clamp | None, x: Tensor) -> bool:
    """Whether chains x (B, *event) have a box each."""
    return any(isinstance(c, Tensor) and c.dim() == x.dim() and len(c) > 1 for c in clamp or ())


def box_for(clamp: Clamp | None, x: Tensor) -> Clamp | None:
    """A box whose tensors go with x, in device and at least its precision."""
    if clamp is None:
        return None
    dtype = torch.promote_types(x.dtype, torch.float32)
    return tuple(c.to(x.device, dtype) if isinstance(c, Tensor) else c for c in clamp)


def bring_into(clamp: Clamp | None, x: Tensor) -> Tensor:
    """``x`` (..., *event), changed in place to lie in a box."""
    lo, hi = box_for(clamp, x) or (None, None)
    if lo is not None:
        x.clamp_(min=lo)
    return x if hi is None else x.clamp_(max=hi)


def of_replicas(clamp: Clamp | None, x: Tensor, n: int) -> Clamp | None:
    """The box of chains x (B, *event) for n replicas of all of them, (n B, *event)."""
    if not has_box_each(clamp, x):
        return clamp
    return tuple(
        c.repeat(n, *(1,) * (c.dim() - 1)) if has_box_each((c, None), x) else c for c in clamp
    )
