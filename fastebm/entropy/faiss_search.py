"""Approximate nearest neighbours by faiss, for references too many for an exact search."""

from __future__ import annotations

import torch
from torch import Tensor

_MIN_REFERENCES = 10_000  # fewer are searched in full
_QUERIES_PER_LIST = 50  # fewer do not repay the lists
_PROBED = 8  # one list in so many is searched
_SPARE = 8  # further candidates, against faiss's rounding
_BLOCK = 1 << 22  # elements of candidates gathered at once


def approximate_neighbors(x: Tensor, y: Tensor, skip: Tensor | None, k: int) -> Tensor:
    """Index (n, k) of rows of ``y`` near to each row of ``x``: mostly, not always, the nearest.

    From m = 10000 and n = 50 sqrt(m) on it is an inverted file of sqrt(m) lists, of which each
    query searches an eighth. It is built anew in each call, which costs about as much as 640 +
    sqrt(m) queries against every reference; so fewer queries do that, in float32. Recall of the
    nearest, measured with n = 20000, m = 100000: clusters or a curved 8-D sheet in D = 64 100 %,
    N(0, I) in D = 16 98.6 %, in D = 64, the worst case, 64 %, where D mean log d is 0.6 too large.

    faiss has candidates only: they are ordered by the distance of the differences, equal ones by
    index. A GPU build of faiss searches where ``x`` is (not run on a GPU yet).

    Args:
        x, y: (n, D), (m, D), m >= 1, one floating-point dtype and device; searched in float32.
        skip: (n,) int64, one row of ``y`` that each query may not choose, -1 for none, or None.
        k: >= 1, how many.

    Returns:
        (n, k) int64, nearest first. A query that is not finite has -1 throughout, one with fewer
        than k finite references -1 in the end. References that are not finite are never chosen.

    Raises:
        ImportError: faiss is not installed.
    """
    faiss = _faiss()
    with torch.no_grad():
        rows = x.isfinite().all(1).nonzero()[:, 0]
        columns = y.isfinite().all(1).nonzero()[:, 0]
        index = torch.full((len(x), k), -1, dtype=torch.int64, device=x.device)
        if len(rows) == 0 or len(columns) == 0:
            return index
        # About their mean, so that float32 and expanded squares lose less.
        centre = y[columns].mean(0)
        wanted = min(k + _SPARE + (skip is not None), len(columns))
        found = _search(faiss, (x[rows] - centre).float(), (y[columns] - centre).float(), wanted)
        own = None if skip is None else skip[rows]
        found = torch.where(found < 0, -1, columns[found])
        index[rows] = _rank(x[rows], y, found, own, k)
        return index


def _search(faiss, x: Tensor, y: Tensor, k: int) -> Tensor:
    """Rows (n, k) of y near to those of x."""
    device, (m, dim) = x.device, y.shape
    x, y = (v.cpu().numpy() for v in (x, y))
    lists = int(m**0.5)
    if m < _MIN_REFERENCES or len(x) < _QUERIES_PER_LIST * lists:
        found = _fill(faiss, faiss.IndexFlatL2(dim), y, device).search(x, k)[1]
    else:
        coarse = faiss.IndexFlatL2(dim)
        inverted = faiss.IndexIVFFlat(coarse, dim, lists)
        inverted.cp.niter, inverted.cp.max_points_per_centroid = 10, 64
        inverted.nprobe = lists // _PROBED
        found = _fill(faiss, inverted, y, device).search(x, k)[1]
        short = (found < 0).any(1)  # the lists that were searched hold fewer than k
        if short.any():
            flat = _fill(faiss, faiss.IndexFlatL2(dim), y, device)
            found[short] = flat.search(x[short], k)[1]
    return torch.from_numpy(found).to(device)


def _fill(faiss, index, y, device: torch.device):
    """The index with y in it, on the device if this faiss knows GPUs."""
    if device.type == "cuda" and faiss.get_num_gpus():
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index, index)
    index.train(y)
    index.add(y)
    return index


def _rank(x: Tensor, y: Tensor, found: Tensor, skip: Tensor | None, k: int) -> Tensor:
    """The k best of the rows (n, c) of y that were found, by distance, then by row; or -1."""
    found = found.sort(dim=1).values  # the sort by distance is stable
    rows = max(1, _BLOCK // (found.shape[1] * x.shape[1]))
    square = torch.cat(
        [
            (x[i : i + rows, None] - y[found[i : i + rows]]).square().sum(2)
            for i in range(0, len(x), rows)
        ]
    )
    absent = found < 0  # beyond the range of float32
    if skip is not None:
        absent |= found == skip[:, None]
    square, found = square.masked_fill(absent, torch.inf), found.masked_fill(absent, -1)
    found = found.gather(1, square.sort(dim=1, stable=True).indices[:, :k])
    return torch.nn.functional.pad(found, (0, k - found.shape[1]), value=-1)


def _faiss():
    try:
        import faiss
    except ModuleNotFoundError:
        raise ImportError('backend="faiss" needs faiss: pip install "fastebm[faiss]"') from None
    return faiss
