"""Distinct slots of a buffer, chosen at random."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastebm.ops.reference.random import words
from fastebm.rng import CHOICE, STRATUM

_LOW = 0xFFFFFFFF


def choose_slots(seed: int, step: int, size: int, n: int, slots: Tensor) -> tuple[Tensor, Tensor]:
    """The first ``n`` values of a random permutation of 0 .. size - 1, int64 (n,), and where among
    them ``slots`` are, or -1. Every number is a cell of a table; rounds shift its columns and its
    rows in turn, each by an amount of its own."""
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    rounds = 64 if size < 128 else 16
    key = words(seed, step, torch.tensor([0]), rounds, CHOICE).flatten()
    cells = torch.arange(rows * columns)
    row, column = cells // columns, cells % columns
    for down, right in key.view(-1, 2):
        row = (row + _line_shift(column, down, rows)) % rows
        column = (column + _line_shift(row, right, columns)) % columns
    image = row * columns + column
    chosen = image[:n]
    while (chosen >= size).any():
        chosen = torch.where(chosen < size, chosen, image[chosen])
    place = torch.full((size,), -1).index_copy(0, chosen, torch.arange(n))
    inside = (slots >= 0) & (slots < size)
    return chosen, torch.where(inside, place[slots.clamp(0, size - 1)], -1)


def choose_strata(seed: int, step: int, size: int, n: int, first: int, total: int) -> Tensor:
    """For each of the rows first .. first + n - 1 of ``total``, a number of its own stratum of
    0 .. size - 1, int64 (n,): a fraction of 64 random bits of the stratum's length above its
    beginning."""
    drawn = words(seed, step, torch.arange(first, first + n), 4, STRATUM)[:, 0].tolist()
    chosen = []
    for row, (high, low, _, _) in enumerate(drawn, first):
        begin, end = row * size // total, (row + 1) * size // total
        chosen.append(begin + ((high << 32 | low) * (end - begin) >> 64))
    return torch.tensor(chosen, dtype=torch.int64)


def _line_shift(line: Tensor, word: Tensor, length: int) -> Tensor:
    """A mix of 32 bits, brought to 0 .. length - 1."""
    h = (line + word) & _LOW
    h = (h ^ h >> 16) * 0x7FEB352D & _LOW
    h = (h ^ h >> 15) * 0x846CA68B & _LOW
    return (h ^ h >> 16) * length >> 32
