"""Stored samples as the entropy term sees them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class References(NamedTuple):
    """Stored samples for ``nearest_neighbor``: y (m, *event) of the storage's dtype; own (b,)
    int64, which of them each slot that was asked for is, or -1; and y_scale, for uint8."""

    y: Tensor
    own: Tensor
    y_scale: tuple[float, float]
