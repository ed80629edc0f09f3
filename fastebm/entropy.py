"""Nearest neighbours, and the entropy estimate that rests on them."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 1 << 22  # distances held at once


def nearest_neighbor(
    x: Tensor, y: Tensor, *, skip: Tensor | None = None, k: int = 1
) -> tuple[Tensor, Tensor]:
    """The nearest references of each query, and the Euclidean distances to them.

    The search keeps no graph and holds at most 2^22 distances at once; the distances to the
    winners are then differentiable, any number of times, in ``x`` and ``y``. The gradient of the
    distance of coincident points is taken as zero. Distances are those of the differences, not of
    expanded squares, so near neighbours are exact.

    Args:
        x: (n, *event), the queries; floating point, computed in float32 or float64.
        y: (m, *event), the references, same dtype and device.
        skip: (n,) int64, one reference that each query may not choose, -1 for none.
        k: how many, nearest first. Of equally near references the lowest index comes first.

    Returns:
        distance and index, both (n,), or (n, k) when k > 1. A query with a NaN is at distance NaN;
        ``y`` must hold none.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices do not fit, or fewer than k references are
            left to a query.
    """
    _check(x, y, skip, k)
    n = x.shape[0]
    flat_x, flat_y = (v.unsqueeze(-1).flatten(1) for v in (x, y))
    if x.dtype not in (torch.float32, torch.float64):
        flat_x, flat_y = flat_x.float(), flat_y.float()
    with torch.no_grad():
        rows = max(1, _BLOCK // y.shape[0])
        parts = [
            _search(flat_x[i : i + rows], flat_y, None if skip is None else skip[i : i + rows], k)
            for i in range(0, n, rows)
        ]
        index = torch.cat(parts) if parts else torch.empty((0, k), dtype=torch.int64).to(x.device)
    difference = flat_x[:, None] - flat_y[index]
    square = difference.square().sum(-1)
    apart = square != 0
    distance = torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0).to(x.dtype)
    return (distance, index) if k > 1 else (distance[:, 0], index[:, 0])


def nn_log_distance(x: Tensor, y: Tensor, skip: Tensor | None = None, eps: float = 1e-3) -> Tensor:
    """Mean over the queries of ``log(d^2 + eps^2) / 2``, d the distance to the nearest reference.

    Up to a constant, D times this is an estimate of the cross-entropy of the samples ``x`` against
    the density of ``y``, and of the entropy when ``y`` is ``x`` with ``skip=arange(n)``
    (Kozachenko and Leonenko 1987). The factor D, the dimension, is left out. ``eps`` bounds value
    and gradient, at most ``1 / (2 eps)``, for points that coincide.

    Args:
        x, y, skip: as in ``nearest_neighbor``.
        eps: > 0, in units of the data.

    Returns:
        0-d, differentiable in ``x`` and ``y``.
    """
    if not eps > 0:
        raise ValueError(f"eps must be > 0, got {eps}")
    distance, _ = nearest_neighbor(x, y, skip=skip)
    return (distance.square() + eps**2).log().mean() / 2


def _search(x: Tensor, y: Tensor, skip: Tensor | None, k: int) -> Tensor:
    """Index (n, k) of the nearest rows of y (m, D) to each row of x (n, D)."""
    d = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    if skip is not None:
        at = skip.clamp(min=0)[:, None]
        d.scatter_(1, at, d.gather(1, at).masked_fill(skip[:, None] >= 0, torch.inf))
    if k > 1:
        return d.sort(dim=1, stable=True).indices[:, :k]
    # min() may return any of equal entries: take the lowest index that has the minimum.
    column = torch.arange(len(y), device=y.device)
    best = d.amin(1, keepdim=True)
    index = torch.where(d == best, column, len(y)).amin(1, keepdim=True)
    return index.clamp(max=len(y) - 1)  # a NaN equals nothing


def _check(x: Tensor, y: Tensor, skip: Tensor | None, k: int) -> None:
    if not (x.is_floating_point() and y.is_floating_point()) or x.dtype != y.dtype:
        raise TypeError(f"x and y must have one floating-point dtype, got {x.dtype} and {y.dtype}")
    if x.dim() == 0 or y.dim() == 0 or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"x and y must be (n, *event) and (m, *event), got {tuple(x.shape)}, {tuple(y.shape)}"
        )
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
    m = y.shape[0]
    if not isinstance(k, int) or not 1 <= k <= m:
        raise ValueError(f"k must be in 1..m, y holding m = {m} references, got {k}")
    if skip is None:
        return
    if skip.shape != x.shape[:1] or skip.dtype != torch.int64 or skip.device != x.device:
        raise ValueError(
            f"skip must be int64 ({x.shape[0]},) on {x.device}, got {skip.dtype}"
            f" {tuple(skip.shape)} on {skip.device}"
        )
    if skip.device.type == "cpu" and skip.numel() and not -1 <= skip.min() <= skip.max() < m:
        raise ValueError(f"skip must be in -1..{m - 1}, got {skip.min()}..{skip.max()}")
    if k == m and (skip >= 0).any():  # waits for the device, in this rare case only
        raise ValueError(f"k must leave out the reference to skip: at most {m - 1}, got {k}")
