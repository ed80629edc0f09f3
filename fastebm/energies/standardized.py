"""An energy in the standard units of its data."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor, nn

from fastebm.energies.compose import Energy, GivenEnergy
from fastebm.energies.protocol import energy as energies_of


class Standardized(Energy):
    """``energy((x - mean) / std)``: an energy of data in units of its own, each coordinate with the
    mean 0 and the standard deviation 1 that it has over ``data``.

    Takes and is a density of ``x`` in the user's units: the constant ``sum log std``, by which the
    energies of the two densities differ, is left out. ``LangevinDynamics`` knows this class: it
    runs its chains in standard units and gives samples back in the user's, so that its step sizes
    are in units of the data's variance, whatever the scale of the data.

        model = Standardized(MLPEnergy(2), data)
        sampler = LangevinDynamics(model, step_size=0.1)  # a tenth of each coordinate's variance

    Mean and standard deviation (unbiased) are computed in float64 and kept as buffers of the data's
    dtype, float32 at least, so they are saved with the model and follow it to a device. A
    coordinate that is constant over the data is only shifted: its ``std`` is 1.

    Args:
        energy: of standard units, (B, *event) -> (B,), (B, 1) or (B, S); a submodule.
        data: (N, *event), floating point, N >= 2.

    Attributes:
        mean, std: buffers (*event).

    Returns:
        What ``energy`` returns, (B,) or (B, S); it gets the keyword arguments of the call.

    Raises:
        TypeError: ``energy`` is no energy, or ``data`` not floating point.
        ValueError: ``data`` has fewer than 2 samples or is not finite; or a batch has samples of
            another shape.
    """

    def __init__(self, energy: Callable[..., Tensor], data: Tensor) -> None:
        super().__init__()
        if not callable(energy):
            raise TypeError(f"energy must be callable, got {type(energy).__name__}")
        mean, std = _moments(data)
        self.energy = energy if isinstance(energy, nn.Module) else GivenEnergy(energy)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self._least_std: tuple = (None, 0, 0.0)

    def forward(self, x: Tensor, **model_kwargs) -> Tensor:
        return energies_of(self.energy, self.standardize(x), **model_kwargs)

    def standardize(self, x: Tensor) -> Tensor:
        """Points (B, *event) of the user's units in standard ones: ``(x - mean) / std``, in the
        dtype of ``x``."""
        self._check("x", x)
        return ((x - self.mean) / self.std).to(x.dtype)

    def restore(self, z: Tensor) -> Tensor:
        """Points (B, *event) of standard units in the user's: ``z std + mean``, in the dtype of
        ``z``. Undoes ``standardize`` up to a few units of rounding of ``x`` and ``mean``."""
        self._check("z", z)
        return (z * self.std + self.mean).to(z.dtype)

    def bounds(
        self, clamp: tuple[float | Tensor | None, float | Tensor | None] | None
    ) -> tuple[Tensor | None, Tensor | None] | None:
        """A box (lo, hi) of the user's units in standard ones: tensors of the event's shape, since
        each coordinate has its own, or (B, *event) where the faces are. None, of a side or of both,
        stays None.

        A chain on such a bound comes back to the box up to the rounding of ``restore``.

        Raises:
            ValueError: ``clamp`` is no pair of numbers with lo <= hi.
        """
        if clamp is None:
            return None
        lo, hi = _box(clamp)
        return tuple(c if c is None else (c - self.mean) / self.std for c in (lo, hi))

    @property
    def least_std(self) -> float:
        """The least of ``std``. Waits for its device where ``std`` has changed."""
        std = self.std
        if std.is_inference():  # which has no version
            return std.min().item()
        of, version, least = self._least_std
        if of is not std or version != std._version:
            least = std.min().item()
            self._least_std = std, std._version, least
        return least

    def _check(self, name: str, points: Tensor) -> None:
        if not isinstance(points, Tensor) or not points.is_floating_point():
            kind = str(points.dtype) if isinstance(points, Tensor) else type(points).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
        if points.dim() == 0 or points.shape[1:] != self.mean.shape:
            shape = ", ".join(map(str, ("B", *self.mean.shape)))
            raise ValueError(f"{name} must be ({shape}) as the data, got {tuple(points.shape)}")


@torch.no_grad()
def _moments(data: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each coordinate."""
    if not isinstance(data, Tensor) or not data.is_floating_point():
        kind = str(data.dtype) if isinstance(data, Tensor) else type(data).__name__
        raise TypeError(f"data must be a floating-point tensor (N, *event), got {kind}")
    if data.dim() == 0 or len(data) < 2 or not data[0].numel():
        raise ValueError(
            f"data must be (N, *event) of at least 2 samples, got shape {tuple(data.shape)}"
        )
    n_bad = int((~data.isfinite()).sum())
    if n_bad:
        raise ValueError(f"data must be finite, got {n_bad} of {data.numel()} values that are not")
    dtype = torch.promote_types(data.dtype, torch.float32)
    mean, std = data.double().mean(0).to(dtype), data.double().std(0).to(dtype)
    if not std.isfinite().all():
        raise ValueError(
            f"data must have a finite variance in {dtype}, got values up to "
            f"{data.abs().max().item():.3g}"
        )
    constant = std == 0  # there a mean may be rounded
    return torch.where(constant, data[0].to(dtype), mean), torch.where(constant, 1.0, std)


def _box(clamp: tuple) -> tuple:
    pair = tuple(clamp) if isinstance(clamp, (tuple, list)) else ()
    given = [c for c in pair if c is not None and not isinstance(c, Tensor)]
    numbers = all(isinstance(c, Real) and c == c for c in given)
    if len(pair) != 2 or not numbers or given != sorted(given):
        raise ValueError(f"clamp must be (lo, hi), numbers or None with lo <= hi, got {clamp!r}")
    return pair
