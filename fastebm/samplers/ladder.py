"""Ladders of temperatures between two ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def log_gaps(temperatures: Sequence[float]) -> Tensor:
    """Logarithms of the ratios' logarithms, (R - 1,): what may be any numbers."""
    return torch.tensor(temperatures, dtype=torch.float64).log().diff().log()


def adapted(temperatures: Sequence[float], gaps: Tensor) -> tuple[float, ...]:
    """The ladder of the same ends whose ``log_gaps`` are these, up to a constant."""
    low, high = math.log(temperatures[0]), math.log(temperatures[-1])
    inner = low + (high - low) * gaps.softmax(0).cumsum(0)[:-1]
    return temperatures[0], *inner.exp().tolist(), temperatures[-1]
