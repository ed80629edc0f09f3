"""What a loss returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LossOutput(NamedTuple):
    """What a loss returns: ``out = criterion(x)`` with the attributes below, or the three of them,
    ``loss, x_neg, metrics = criterion(x)``, of which ``_`` leaves one out.

    Attributes:
        loss: 0-d, to call ``backward()`` on; of a small perceptron on a CPU without create_graph.
        x_neg: (B, *event), the chains in the end, without a graph; of so many as the loss has.
        metrics: the terms, each 0-d without a graph. The total is not among them: its value is not
            comparable between losses.
    """

    loss: Tensor
    x_neg: Tensor
    metrics: dict[str, Tensor | float]
