"""Exact rivals in plain torch that do as fastebm does, for bench/neighbor_rivals.py: scores from
products of fewer bits, a bound on how far to trust them, then float64 distances of the candidates.

A block is (first reference, squares (n, w), slack (n,), root): the squares, or their roots, are off
by at most the slack of their query, and by a constant of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

Block = tuple[int, Tensor, Tensor, bool]
PARTS = 32  # of a row; where the lowest of a part is no candidate, none of it is looked at
AT_ONCE = 1 << 17  # elements of candidates that are rescored together
HALF = 2.0**-9  # relative, what rounding to bfloat16 loses


def certified(x: Tensor, y: Tensor, blocks: Iterable[Block]) -> Tensor:
    """Index of the nearest reference of each query."""
    upper, found = x.new_full((len(x),), torch.inf), []
    for first, squares, slack, root in blocks:
        measure = torch.sqrt if root else torch.Tensor.float
        by_part = squares.unflatten(1, (math.gcd(squares.shape[1], PARTS), -1))
        low = measure(by_part.amin(1))
        upper = torch.minimum(upper, low.amin(1) + slack)
        query, column = (low <= (upper + slack)[:, None]).nonzero(as_tuple=True)
        scores = measure(by_part[query, :, column])
        row, part = (scores <= (upper + slack)[query][:, None]).nonzero(as_tuple=True)
        query, reference = query[row], first + part * low.shape[1] + column[row]
        found.append((query, reference, scores[row, part] - slack[query]))
    query, reference, lower = (torch.cat(v) for v in zip(*found, strict=True))
    kept = lower <= upper[query]
    pairs = torch.stack([query[kept], reference[kept]])
    square = torch.cat([
        (x[q].double() - y[r]).square_().sum(1)
        for q, r in pairs.split(max(1, AT_ONCE // x.shape[1]), 1)
    ])  # fmt: skip
    least = square.new_full((len(x),), torch.inf).scatter_reduce_(0, pairs[0], square, "amin")
    query, reference = pairs[:, square == least[pairs[0]]]
    return torch.zeros(len(x), dtype=torch.int64, device=x.device).index_put_((query,), reference)


def bfloat16_copies(y: Tensor, center: Tensor | float, block: int) -> Iterator[tuple]:
    """First reference, centred copies in bfloat16, their squares and largest norm, by blocks."""
    scratch = torch.empty(min(block, len(y)), y.shape[1], device=y.device)
    for first in range(0, len(y), block):
        part = y[first : first + block]
        part = torch.sub(part, center, out=scratch[: len(part)])
        norm = torch.linalg.vector_norm(part, dim=1)
        yield first, part.bfloat16(), norm.square(), norm.max()


def bfloat16_blocks(x: Tensor, copies: Iterable[tuple]) -> Iterator[Block]:
    """Of centred queries. x, y and the product are rounded once each, sums are float32's."""
    half, norm = x.bfloat16(), torch.linalg.vector_norm(x, dim=1)
    lost = 2 * (3.05 * HALF + (x.shape[1] + 64) * 2.0**-24)
    for first, part, squares, largest in copies:
        score = torch.sub(squares, half @ part.T, alpha=2)
        yield first, score, lost * norm * largest + 2.0**-20 * largest.square(), False


def in_bfloat16(block: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A search that makes the copies anew in each call."""

    def search(x: Tensor, y: Tensor) -> Tensor:
        center = x.mean(0)
        return certified(x, y, bfloat16_blocks(x - center, bfloat16_copies(y, center, block)))

    return search


def int8_copies(y: Tensor, block: int) -> tuple[list[Tensor], Tensor]:
    """uint8 less 128, by blocks, and the squares."""
    copies = [(part ^ 128).view(torch.int8) for part in y.split(block)]
    return copies, torch.cat([part.int().square_().sum(1, dtype=torch.int32) for part in copies])


def of_bytes(y: Tensor, scale: float, offset: float, block: int, bits: int):
    """A search among uint8 references by products of int8 or bfloat16, whose copies of them are
    made here: they cost a search nothing. int8 wants queries on the grid of the references: how far
    they move is the slack of a distance."""
    copies, squares = int8_copies(y, block)
    if bits == 16:
        copies = [*bfloat16_copies(torch.cat(copies).float(), 0.0, block)]

    def int8_blocks(x: Tensor) -> Iterator[Block]:
        near = x.round().clamp_(-128, 127)
        slack = torch.linalg.vector_norm(x - near, dim=1) * 1.0001 + 0.01
        own = near.square().sum(1, dtype=torch.int32)[:, None]
        near = near.to(torch.int8)
        for first, part in zip(range(0, len(y), block), copies, strict=True):
            products = torch._int_mm(near, part.T)
            score = torch.sub(squares[first : first + block], products, alpha=2).add_(own)
            yield first, score, slack, True

    def search(x: Tensor, wide: Tensor) -> Tensor:
        steps = (x - offset) / scale - 128
        blocks = bfloat16_blocks(steps, copies) if bits == 16 else int8_blocks(steps)
        return certified(x, wide, blocks)

    return search
