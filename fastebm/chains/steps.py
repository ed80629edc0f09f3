"""Steps of chains of any kind, as a run asks for them."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from fastebm.chains.adjusted import Points

Number = float | Tensor  # of all chains, or (B,)


class Steps(Protocol):
    """Steps of some chains, with what they keep from one call to the next."""

    def __call__(self, points: Points, first: int, n: int, known: bool) -> None:
        """Steps ``first``, ..., ``first + n - 1`` of ``points``, in place. ``known``: energies and
        gradients are those of x, as they are afterwards."""

    def metrics(self, points: Points, n_steps: int) -> dict[str, Tensor]:
        """What there is to say of the ``n_steps`` steps so far."""


def decay_and_noise(step: Number, friction: Number, temperature: Number) -> tuple[Number, Number]:
    """What a velocity is multiplied by in a time ``step``, and the standard deviation of the noise
    that it gets, at unit mass."""
    rate = friction * step
    if isinstance(rate, Tensor):
        return (-rate).exp(), (-(-2 * rate).expm1() * temperature) ** 0.5
    return math.exp(-rate), (-math.expm1(-2 * rate) * temperature) ** 0.5
