"""What the losses do about samples whose state or energy is not finite."""

from __future__ import annotations

import math

from torch import Tensor

from fastebm.caller import warn

ON_NONFINITE = ("raise", "warn", "skip", "count")


class NonFiniteError(RuntimeError):
    """Energies or chains became NaN or infinite."""


def all_finite(metrics: dict[str, Tensor | float], x_neg: Tensor) -> bool:
    """Whether energies and chains are; False also where their sums are too large. Means, sums and
    differences are finite only if all that is in them is, and so there is one number to read."""
    return math.isfinite(metrics["energy_gap"] + x_neg.sum())


def report(where: str, on_nonfinite: str, n_pos: int, n_neg: int, n: int) -> float:
    """How many energies of the data and chains, of n each, are not finite. If any, raises or warns.

    Raises:
        NonFiniteError: with "raise", or with "skip" if nothing is left.
    """
    if not n_pos and not n_neg:
        return 0.0
    message = (
        f"{where}: not finite are {n_pos} of {n} energies of the data and {n_neg} of {n} chains"
    )
    left = n_pos < n and n_neg < n
    if on_nonfinite == "raise" or (on_nonfinite == "skip" and not left):
        raise NonFiniteError(message)
    warn(message)
    return float(n_pos + n_neg)
