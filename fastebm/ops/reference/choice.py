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
    """For each of the rows first .. first + n - 1 of ``total``, a number of 0 .. size - 1, int64
    (n,): of its block of numbers, one of the row's own stratum, and the block turned."""
    blocks = math.gcd(size, total)
    length, rows = size // blocks, total // blocks
    row = torch.arange(first, first + n)
    own = words(seed, step, row, 4, STRATUM)[:, 0, :2].tolist()
    of_block = words(seed, step, row // rows * rows, 4, STRATUM)[:, 0, 2:].tolist()
    chosen = []
    for i in range(n):
        block, j = divmod(first + i, rows)
        begin, end = j * length // rows, (j + 1) * length // rows
        turn = _fraction(of_block[i], length) if rows > 1 else 0
        position = begin + _fraction(own[i], end - begin)
        chosen.append(block * length + (position + turn) % length)
    return torch.tensor(chosen, dtype=torch.int64)


def _fraction(high_low: list[int], length: int) -> int:
    """64 random bits, brought to 0 .. length - 1."""
    high, low = high_low
    return (high << 32 | low) * length >> 64


def _line_shift(line: Tensor, word: Tensor, length: int) -> Tensor:
    """A mix of 32 bits, brought to 0 .. length - 1."""
    h = (line + word) & _LOW
    h = (h ^ h >> 16) * 0x7FEB352D & _LOW
    h = (h ^ h >> 15) * 0x846CA68B & _LOW
    return (h ^ h >> 16) * length >> 32
