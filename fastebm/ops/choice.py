"""Distinct slots of a buffer, chosen at random: the operators' wrappers and fakes."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops import library


def choose_slots(
    rng: Tensor, size: int, n: int, slots: Tensor | None = None, *, t: int = 0
) -> tuple[Tensor, Tensor]:
    """``n`` distinct numbers of 0 .. size - 1, every choice and order of them as probable as any
    other (to 4e-9 of it where the size is small enough to tell).

    They are a function of the stream's seed and step alone, and not of its first sample, the same
    on every device: the first n values of a random permutation, so a smaller n gives the beginning
    of what a larger one does. Time and memory go with n, not with size.

    Args:
        rng: int64 (4,), ``ChainRNG.state(device)``, where the results are.
        size: 0..2^40.
        n: 0..size.
        slots: (b,) int64, numbers to look for among the chosen; any that are not in 0 .. size - 1
            are not found.
        t: steps that are added to those of ``rng``, >= 0.

    Returns:
        chosen (n,) int64, and own (b,) int64: where in ``chosen`` each of ``slots`` is, or -1;
        (0,) without slots.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    return library.call(library.op.choose_slots.default, rng, size, n, slots, t)


def choose_strata(
    rng: Tensor, size: int, n: int, first: int = 0, total: int | None = None
) -> Tensor:
    """One number of 0 .. size - 1 for each of the rows first .. first + n - 1 of a batch of
    ``total``: distinct, and each number is among those of the batch with probability total / size.

    With g the greatest common divisor of size and total, the numbers are g blocks of L = size / g
    and the rows g blocks of m = total / g. A row has a number of its own block, each of its L as
    probable as any other (to 2^-64). Blocks are independent of each other. Within one, row j draws
    from floor(j L / m) .. floor((j + 1) L / m) - 1, independently of others, and where m > 1 a
    random amount is added to what all of them drew, mod L.

    The numbers are a function of the stream's seed and step and of the row's number, and not of its
    first sample, the same on every device: processes that share a batch find theirs alone, as one
    that has all rows would. Where N divides size and total, the rows of the k-th N-th of the batch
    have numbers of the k-th N-th of all.

    Args:
        rng: int64 (4,), ``ChainRNG.state(device)``, where the result is.
        size: 0..2^40.
        n: 0..total - first.
        first: the first row, 0..total.
        total: rows of the whole batch, at most size and 2^22; n when None.

    Returns:
        chosen (n,) int64.

    Raises:
        RuntimeError: rng is no stream, or a value is out of range.
    """
    total = n if total is None else total
    return library.call(library.op.choose_strata.default, rng, size, n, first, total)


def register_operators(namespace: str) -> None:
    """The fakes of one built library, as ``fastebm.ops.langevin.register_operators``."""
    library.record_no_gradient(namespace, "choose_slots", "choose_strata")

    @torch.library.register_fake(f"{namespace}::choose_slots")
    def _(rng, size, n, slots, t):
        torch._check(n <= size, lambda: f"n must be in 0..{size}, the size, got {n}")
        return rng.new_empty(n), rng.new_empty(0 if slots is None else slots.shape[0])

    @torch.library.register_fake(f"{namespace}::choose_strata")
    def _(rng, size, n, first, total):
        torch._check(total <= size, lambda: f"total must be in 0..{size}, the size, got {total}")
        rows = total - first
        torch._check(n <= rows, lambda: f"n must be in 0..{rows}, the rows from first on, got {n}")
        return rng.new_empty(n)


register_operators("fastebm")
