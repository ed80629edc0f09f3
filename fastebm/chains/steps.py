"""Steps of chains of any kind, as a run asks for them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fastebm.chains.adjusted import Points


class Steps(Protocol):
    """Steps of some chains, with what they keep from one call to the next."""

    def __call__(self, points: Points, first: int, n: int, known: bool) -> None:
        """Steps ``first``, ..., ``first + n - 1`` of ``points``, in place. ``known``: energies and
        gradients are those of x, as they are afterwards."""

    def metrics(self, points: Points, n_steps: int) -> dict[str, Tensor]:
        """What there is to say of the ``n_steps`` steps so far."""
