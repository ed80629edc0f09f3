"""What the losses do about samples whose state or energy is not finite."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from fastebm.caller import warn
from fastebm.distributed.collectives import gather_integers

ON_NONFINITE = ("raise", "warn", "skip", "count")


class NonFiniteError(RuntimeError):
    """Energies or chains became NaN or infinite."""


def all_finite(metrics: dict[str, Tensor | float], x_neg: Tensor) -> bool:
    """Whether energies and chains are; False also where their sums are too large. Means, sums and
    differences are finite only if all that is in them is, and so there is one number to read."""
    return math.isfinite(metrics["energy_gap"] + x_neg.sum())


class Counts(NamedTuple):
    """How many energies of the data and chains, of ``n`` and ``n_chains``, are not finite, of all
    ranks; and of every rank how many of them are ``kept``."""

    n_pos: int
    n_neg: int
    n: int
    n_chains: int
    kept: list[list[int]]


def counts_of_ranks(n_pos: int, n_neg: int, n: int, n_chains: int | None = None) -> Counts:
    """Of the counts of this rank those of all, which every rank must call for. Chains are ``n`` by
    default.

    Raises:
        ValueError: the ranks' batches are not of one size; on all of them.
    """
    counts = gather_integers([n_pos, n_neg, n, n if n_chains is None else n_chains])
    sizes = [c[2] for c in counts]
    if len(set(sizes)) > 1:
        got = ", ".join(map(str, sizes))
        raise ValueError(f"all ranks must have the same batch size, got {got}: drop_last=True?")
    kept = [[c[2] - c[0], c[3] - c[1]] for c in counts]
    return Counts(*(sum(column) for column in zip(*counts, strict=True)), kept)


def report(where: str, on_nonfinite: str, counts: Counts) -> float:
    """How many energies of the data and chains are not finite. If any, raises or warns.

    Raises:
        NonFiniteError: with "raise", or with "skip" if nothing is left.
    """
    n_pos, n_neg, n, n_chains, kept = counts
    if not n_pos and not n_neg:
        return 0.0
    message = (
        f"{where}: not finite are {n_pos} of {n} energies of the data and {n_neg} of"
        f" {n_chains} chains"
    )
    if len(kept) > 1:
        each = [n // len(kept), n_chains // len(kept)]
        ranks = [str(r) for r, left in enumerate(kept) if left != each]
        message += f" of all ranks, of rank {', '.join(ranks)}"
    left = n_pos < n and n_neg < n_chains
    if on_nonfinite == "raise" or (on_nonfinite == "skip" and not left):
        raise NonFiniteError(message)
    warn(message)
    return float(n_pos + n_neg)
