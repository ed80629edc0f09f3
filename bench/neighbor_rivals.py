"""Other ways to find nearest neighbours, for bench/neighbor.py.

A rival is a function (x, y) -> (distance, index), differentiable in x where x requires a gradient.
Of rivals whose names are alike up to the comma, only the fastest counts.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable

import machine
import torch
from neighbor_rivals_certified import in_bfloat16, of_bytes
from torch import Tensor

Search = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
BROADCAST, CDIST = "broadcast, as ICD's authors", "torch.cdist + min"
SQ8, INT8 = "faiss SQ8", "int8 + certified pairs"
# No rivals where an index is wrong; of int8 products oneDNN's are, on a CPU without VNNI.
APPROXIMATE = (SQ8, INT8)
SMALL_DIM = 16  # up to here forms without a matrix product compete
KEOPS_WORK = 10**9  # n m d beyond which a call takes seconds on a CPU


def rivals(
    y: Tensor,
    stored: Tensor | None,
    y_scale: tuple[float, float],
    n: int,
    threads: int,
    compiled: bool,
) -> dict[str, Search | str]:
    """name -> rival, or the reason why there is none. `stored`: y as uint8 of that scale, whose
    copies of any kind are made here, so that they cost a search nothing; `compiled`: with rivals
    that build first."""
    (m, d), device = y.shape, y.device
    found: dict[str, Search | str] = {BROADCAST: broadcast, CDIST: cdist}
    wide = n * m * d * 4
    if 3 * wide > 9e9 if device.type == "cpu" else 3 * wide > _free_memory(device):
        found[BROADCAST] = f"{wide / 1e9:.3g} GB, and three times that with a graph"
    found["cdist, argmin by parts, pairs"] = then_pairs(lambda x, y: lowest(torch.cdist(x, y)))
    for block in sorted({min(b, m) for b in (256, 1024, 4096, 16384)}):
        found[f"addmm + pairs, block {block}"] = then_pairs(
            lambda x, y, block=block: blocked_products(x, y, block)
        )
    if d <= SMALL_DIM:
        for size in (1 << 17, 1 << 19, 1 << 24):
            found[f"differences + pairs, {size >> 10} Ki at once"] = then_pairs(
                lambda x, y, size=size: blocked_differences(x, y, size)
            )
    else:
        for block in sorted({min(b, m) for b in (256, 1024, 4096)}):
            found[f"bfloat16 + certified pairs, block {block}"] = then_pairs(
                in_bfloat16(block) if stored is None else of_bytes(stored, *y_scale, block, 16)
            )
            if stored is not None:
                found[f"{INT8}, block {block}"] = then_pairs(of_bytes(stored, *y_scale, block, 8))
    if compiled:
        found["torch.compile + pairs"] = then_pairs(
            torch.compile(differences if d <= SMALL_DIM else products, dynamic=False)
        )
    if device.type == "cpu":
        found |= _faiss(threads, y, stored, y_scale)
    if n * m * d > KEOPS_WORK and device.type == "cpu":
        found["pykeops + pairs"] = "seconds a call at this size"
    elif compiled:
        found["pykeops + pairs"] = _keops(threads)
    return found


def broadcast(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """In the structure of the reference script: every difference, its norm, the minimum."""
    return tuple(torch.norm(x[:, None, :] - y[None, :, :], p=2, dim=-1).min(dim=1))


def cdist(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.cdist(x, y).min(1))


def differences(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None] - y).square().sum(2).argmin(1)


def products(x: Tensor, y: Tensor) -> Tensor:
    return torch.addmm(y.square().sum(1), x, y.T, alpha=-2).argmin(1)


def then_pairs(search: Callable[[Tensor, Tensor], Tensor]) -> Search:
    """A search for indices without a graph, then the distances of n pairs from differences."""

    def found(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            index = search(x.detach(), y)
        return torch.linalg.vector_norm(x - y[index], dim=1), index

    return found


def lowest(score: Tensor) -> Tensor:
    """argmin(1) of (n, w), several times as fast as torch's: minima of strided columns, which are
    vectorised, then the place of the lowest among few."""
    parts = math.gcd(score.shape[1], 32)
    by_part = score.unflatten(1, (parts, -1))
    column = by_part.amin(1).argmin(1)
    few = by_part.gather(2, column[:, None, None].expand(-1, parts, 1))[:, :, 0]
    return few.argmin(1) * by_part.shape[2] + column


def blocked_products(x: Tensor, y: Tensor, block: int) -> Tensor:
    """Scores |y|^2 - 2 x.y of `block` references at once, kept no longer than their minimum."""
    scores, indices = [], []
    for first in range(0, len(y), block):
        part = y[first : first + block]
        squares = torch.linalg.vector_norm(part, dim=1).square_()  # no copy of part, unlike square
        score = torch.addmm(squares, x, part.T, alpha=-2)
        index = lowest(score)
        scores.append(score.gather(1, index[:, None])[:, 0])
        indices.append(index + first)
    if len(indices) == 1:
        return indices[0]
    return torch.stack(indices).gather(0, torch.stack(scores).argmin(0)[None])[0]


def blocked_differences(x: Tensor, y: Tensor, size: int) -> Tensor:
    """Squared distances of some queries to all references, about `size` of them, summed in place
    over the elements."""
    columns, rows = y.T.contiguous(), max(1, size // len(y))
    square, difference = (x.new_empty(min(rows, len(x)), len(y)) for _ in range(2))
    indices = []
    for part in x.split(rows):
        s, t = square[: len(part)], difference[: len(part)]
        torch.sub(part[:, :1], columns[0], out=s).square_()
        for k in range(1, x.shape[1]):
            torch.sub(part[:, k : k + 1], columns[k], out=t)
            s.addcmul_(t, t)
        indices.append(lowest(s))
    return torch.cat(indices)


def _faiss(
    threads: int, y: Tensor, stored: Tensor | None, y_scale: tuple[float, float]
) -> dict[str, Search | str]:
    names = "faiss.knn", "faiss.IndexFlatL2"
    facts = machine.cpu_facts()
    if "GenuineIntel" in facts.values() and "avx512_bf16" in facts.get("flags", ""):
        # Its OpenBLAS 0.3.15 takes kernels of Cooper Lake there, a quarter as fast as these.
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    try:
        import faiss
    except ImportError:
        return dict.fromkeys(names, "needs faiss-cpu")
    faiss.omp_set_num_threads(threads)

    def knn(x: Tensor, y: Tensor):
        return faiss.knn(x.numpy(), y.numpy(), 1)

    def filled(index, y: Tensor):
        index.train(y.numpy())
        index.add(y.numpy())
        return index

    def flat(x: Tensor, y: Tensor):
        return filled(faiss.IndexFlatL2(y.shape[1]), y).search(x.numpy(), 1)

    def rival(search) -> Search:
        """Its own distances, but those of pairs for a gradient."""
        pairs = then_pairs(lambda x, y: torch.from_numpy(search(x, y)[1][:, 0]))

        def found(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            if x.requires_grad:
                return pairs(x, y)
            square, index = (torch.from_numpy(a[:, 0]) for a in search(x, y))
            return square.sqrt_(), index

        return found

    if stored is None:
        return dict(zip(names, (rival(knn), rival(flat)), strict=True))
    kinds = faiss.ScalarQuantizer
    ready = filled(faiss.IndexFlatL2(y.shape[1]), y)
    trained = filled(faiss.IndexScalarQuantizer(y.shape[1], kinds.QT_8bit), y)
    direct = filled(faiss.IndexScalarQuantizer(y.shape[1], kinds.QT_8bit_direct), stored.float())
    scale, offset = y_scale

    def in_steps(x: Tensor, y: Tensor) -> Tensor:
        steps = (x - offset).div_(scale).round_().clamp_(0, 255)
        return torch.from_numpy(direct.search(steps.numpy(), 1)[1][:, 0])

    return {
        names[0]: rival(knn),
        names[1]: rival(lambda x, y: ready.search(x.numpy(), 1)),
        f"{SQ8}, trained": rival(lambda x, y: trained.search(x.numpy(), 1)),
        f"{SQ8} direct": then_pairs(in_steps),
    }


def _keops(threads: int) -> Search | str:
    try:
        import pykeops
        from pykeops.torch import LazyTensor

        # Its modules use the system's OpenMP, which torch.set_num_threads does not reach.
        ctypes.CDLL("libgomp.so.1").omp_set_num_threads(threads)
    except Exception as error:  # it looks for compilers when it is imported
        return f"needs pykeops: {error}"
    pykeops.set_verbose(False)

    def search(x: Tensor, y: Tensor) -> Tensor:
        return ((LazyTensor(x[:, None]) - LazyTensor(y[None])) ** 2).sum(2).argmin(1)[:, 0]

    return then_pairs(search)


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


def exact_nearest(x: Tensor, y: Tensor) -> Tensor:
    """Smallest distance (n,) of each query in float64, summed from differences."""
    wide, threads = y.double(), torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    parts = [
        torch.cdist(part.double(), wide, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        for part in x.split(max(1, (1 << 23) // len(y)))
    ]
    torch.set_num_threads(threads)
    return torch.cat(parts)
