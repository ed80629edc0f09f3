"""Distinct slots of a buffer, chosen at random: the operator's wrapper and fake."""

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


def register_operators(namespace: str) -> None:
    """The fake of one built library, as ``fastebm.ops.langevin.register_operators``."""
    library.record_no_gradient(namespace, "choose_slots")

    @torch.library.register_fake(f"{namespace}::choose_slots")
    def _(rng, size, n, slots, t):
        torch._check(n <= size, lambda: f"n must be in 0..{size}, the size, got {n}")
        return rng.new_empty(n), rng.new_empty(0 if slots is None else slots.shape[0])


register_operators("fastebm")
