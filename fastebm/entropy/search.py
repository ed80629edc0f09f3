"""Nearest neighbours: exact by the fused operator, or approximate by faiss."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.entropy.faiss_search import approximate_neighbors
from fastebm.ops import neighbor as neighbor_ops

BACKENDS = ("exact", "faiss")


def nearest_neighbor(
    x: Tensor,
    y: Tensor,
    *,
    skip: Tensor | None = None,
    k: int = 1,
    y_scale: tuple[float, float] = (1.0, 0.0),
    backend: str = "exact",
) -> tuple[Tensor, Tensor]:
    """The nearest references of each query, and the Euclidean distances to them.

    Args:
        x, y, skip, k, y_scale: as in ``fastebm.ops.neighbor.nearest_neighbor``, which is what
            ``backend="exact"`` calls: the neighbours of an exhaustive search, 1 <= k <= 16.
        backend: ``"exact"``, or ``"faiss"`` for many queries against references too many for an
            exhaustive search: approximate in which references it finds (see
            ``approximate_neighbors``), exact in their distances; any k; y is taken to the dtype of
            ``x`` as a whole; needs ``pip install "fastebm[faiss]"``.

    Returns:
        distance and index, both (n,), or (n, k) when k > 1, differentiable in ``x`` and ``y``.
        Index -1 and distance NaN where fewer than k references are left to a query. faiss leaves
        out all that is not finite, the operator only what is NaN.

    Raises:
        ValueError: backend is unknown.
        RuntimeError: shapes, dtypes or devices do not fit, or fewer than k references are there.
        ImportError: faiss is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "exact":
        return neighbor_ops.nearest_neighbor(x, y, skip=skip, k=k, y_scale=y_scale)
    neighbor_ops.check_neighbor(x, y, skip, k)
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    flat_x, flat_y = (v.unsqueeze(-1).flatten(1).to(wide.dtype) for v in (x, y))
    if y.dtype == torch.uint8:
        flat_y = flat_y * y_scale[0] + y_scale[1]
    index = approximate_neighbors(flat_x, flat_y, skip, k)
    square = (flat_x[:, None] - flat_y[index]).square().sum(-1)
    apart = square != 0
    distance = torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0).to(x.dtype)
    distance = distance.masked_fill(index < 0, torch.nan)
    return (distance, index) if k > 1 else (distance[:, 0], index[:, 0])
