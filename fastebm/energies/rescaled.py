"""An energy in units in which each coordinate is divided by its scale."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fastebm.energies.compose import Energy, GivenEnergy
from fastebm.energies.protocol import energy as energies_of


class Rescaled(Energy):
    """``energy(scale z)``: what preconditioned chains run on.

    Args:
        energy: (B, *event) -> (B,), (B, 1) or (B, S); a submodule.
        scale: (*event), > 0; a buffer.
    """

    def __init__(self, energy: Callable[..., Tensor], scale: Tensor) -> None:
        super().__init__()
        self.energy = energy if isinstance(energy, nn.Module) else GivenEnergy(energy)
        self.register_buffer("scale", scale)

    def forward(self, z: Tensor, **model_kwargs) -> Tensor:
        return energies_of(self.energy, (z * self.scale).to(z.dtype), **model_kwargs)
