"""Nearest neighbours: the operators' wrappers, fakes and gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastebm.ops import library

# Pairs times elements of one call on a CPU for each thread, pairs of few elements as those of 16:
# 0.1 to 0.2 s (AVX-512).
MAX_WORK = 2**32


def nearest_neighbor(
    x: Tensor,
    y: Tensor,
    *,
    skip: Tensor | None = None,
    k: int = 1,
    y_scale: tuple[float, float] = (1.0, 0.0),
) -> tuple[Tensor, Tensor]:
    """The nearest references of each query, and the Euclidean distances to them; exact.

    Distances are summed from differences, in float64, and rounded once, so near neighbours keep all
    their digits; of equally near references the lowest index comes first. Candidates come from
    faster scores whose error is bounded, so the neighbours are those of an exhaustive search, and
    the same on every device. Scores are exact products of bytes where samples are told apart by a
    grid of 256 steps, else float32's; uint8 references are on their grid as they are stored, and
    so the fastest. Never an (n, m) matrix: at most 8 MB of memory on a CPU; on a GPU at most 32 MiB
    of scores and, for samples of more than 16 elements, a copy of at most 2048 queries in 32 MiB
    (of 128 queries where these take more).

    Differentiable any number of times in ``x`` and ``y`` (floating-point), through the winning
    pairs only: d distance / dx = (x - y) / distance, taken as zero for points that coincide.
    (``torch.ops.fastebm.nearest_neighbor`` itself records no gradient.)

    Args:
        x: (n, *event), the queries: float32, float64, bfloat16 or float16.
        y: (m, *event), the references, same device. Any floating-point dtype no wider than ``x``
            (float32 for 16-bit ``x``), or uint8; none is copied to a wider one as a whole.
        skip: (n,) int64, one reference that each query may not choose, -1 for none.
        k: how many, 1..16, nearest first.
        y_scale: (scale, offset): a uint8 q stands for ``q * scale + offset`` in float32.

    Returns:
        distance, of the dtype of ``x``, and index, int64: both (n,), or (n, k) when k > 1.
        A pair with a NaN, or an infinity in the same place, is never chosen: a query left with
        fewer than k references has distance NaN and index -1 for what is missing.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, y holds fewer than k references, or, on
            a CPU, skip is out of range or leaves fewer than k.
    """
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    search = _search
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        search = _NearestNeighbor.apply
    distance, index = search(wide, y, skip, k, *y_scale)
    return distance.to(x.dtype), index


def _search(
    x: Tensor, y: Tensor, skip: Tensor | None, k: int, scale: float, offset: float
) -> tuple[Tensor, Tensor]:
    """The operator, on a CPU by calls of bounded work, so that Ctrl-C does not wait for it: queries
    do not depend on one another."""
    search = library.op.nearest_neighbor.default
    n = len(x) if x.dim() and x.device.type == "cpu" and not torch.compiler.is_compiling() else 0
    rows = queries_of_a_call(y) if n else 0
    if n <= rows:
        return library.call(search, x, y, skip, k, scale, offset)
    skips = [None] * n if skip is None else skip.split(rows)
    parts = [
        library.call(search, queries, y, own, k, scale, offset)
        for queries, own in zip(x.split(rows), skips, strict=False)
    ]
    distance, index = map(torch.cat, zip(*parts, strict=True))
    return distance, index


def queries_of_a_call(y: Tensor) -> int:
    """How many queries one call on a CPU may have, so that Ctrl-C does not wait for it."""
    of_a_query = y.shape[0] * max(16, y[0].numel()) if y.dim() and len(y) else 1
    return max(1, MAX_WORK * torch.get_num_threads() // of_a_query)


def nn_log_distance(
    x: Tensor,
    y: Tensor,
    skip: Tensor | None,
    eps: float,
    y_scale: tuple[float, float] = (1.0, 0.0),
) -> tuple[Tensor, Tensor, Tensor]:
    """``mean(log(d^2 + eps^2)) / 2``, d the distance of each query to the nearest reference, and
    its gradient in ``x``, ``(x - y*) / (d^2 + eps^2) / n``: search and formula in one call.

    No gradient is recorded; ``fastebm.entropy.estimators.nn_log_distance`` is the differentiable
    twin.

    Args:
        x: (n, *event) float32 or float64.
        y, skip, y_scale: as in ``nearest_neighbor``.
        eps: > 0.

    Returns:
        value 0-d, gradient (n, *event) and d (n,), all of the dtype of ``x``. A query without a
        neighbour has d NaN, so its gradient and the value are NaN.

    Raises:
        RuntimeError: as ``nearest_neighbor``, or eps is out of range.
    """
    search, n = library.op.nn_log_distance.default, len(x) if x.dim() else 0
    rows = n if x.device.type != "cpu" or torch.compiler.is_compiling() else queries_of_a_call(y)
    if n <= rows:
        return library.call(search, x, y, skip, eps, *y_scale)
    skips = [None] * n if skip is None else skip.split(rows)
    values, grads, distances = zip(
        *(
            library.call(search, queries, y, own, eps, *y_scale)
            for queries, own in zip(x.split(rows), skips, strict=False)
        ),
        strict=True,
    )
    shares = [len(d) / n for d in distances]
    value = sum(share * v for share, v in zip(shares, values, strict=True))
    grad = torch.cat([share * g for share, g in zip(shares, grads, strict=True)])
    return value, grad, torch.cat(distances)


def neighbor_means(y: Tensor, chosen: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of some samples the means of their k nearest, themselves among them, and the root of their
    variance (unbiased), averaged over elements, 1e-6 at least; 1 for k = 1. Summed in float64 and
    rounded once.

    Args:
        y: (m, D) float32.
        chosen: (n,) int64, rows of y; on a device they are not looked at.
        k: 1..16, and at most m.

    Returns:
        means (n, D) and scales (n,), float32. Of a sample that is not finite the first row of y
        stands for each neighbour that it lacks. No gradient is recorded.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    means = library.op.neighbor_means.default
    whole = y.device.type != "cpu" or torch.compiler.is_compiling()
    rows = len(chosen) if whole else queries_of_a_call(y)
    if len(chosen) <= rows:
        return library.call(means, y, chosen, k)
    parts = zip(*(library.call(means, y, part, k) for part in chosen.split(rows)), strict=True)
    means, scales = map(torch.cat, parts)
    return means, scales


def check_neighbor(x: Tensor, y: Tensor, skip: Tensor | None, k: int) -> None:
    """What the nearest-neighbour operator asks of its arguments, but for its own range of k."""
    torch._check(x.is_floating_point(), lambda: f"x must be floating-point, got {x.dtype}")
    torch._check(
        x.dim() > 0 and x.dim() == y.dim() and x.shape[1:] == y.shape[1:],
        lambda: f"x and y must be (n, *event) and (m, *event), got {x.shape} and {y.shape}",
    )
    torch._check(x.device == y.device, lambda: "y and x are on different devices")
    torch._check(k >= 1, lambda: f"k must be >= 1, got {k}")
    torch._check(k <= y.shape[0], lambda: f"k must be at most m = {y.shape[0]}, got {k}")
    if skip is not None:
        torch._check(skip.dtype == torch.int64, lambda: f"skip must be int64, got {skip.dtype}")
        torch._check(
            skip.shape == x.shape[:1], lambda: f"skip must have shape {tuple(x.shape[:1])}"
        )


class _NearestNeighbor(torch.autograd.Function):
    """The gradient of the operator. Its own registration, or a setup_context, would take 40 us more
    a call."""

    @staticmethod
    def forward(ctx, x, y, skip, k, scale, offset):
        distance, index = _search(x, y, skip, k, scale, offset)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(index)
        ctx.y_scale = (scale, offset)
        # The winners, not y: a replay buffer changes before the backward pass comes.
        winners = y if ctx.needs_input_grad[1] else _winners(y, index)
        ctx.save_for_backward(x, winners, distance, index)
        return distance, index

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return (None,) * 6
        if torch.is_grad_enabled() or ctx.needs_input_grad[1]:
            return (*_neighbor_gradients(ctx, grad), None, None, None, None)
        x, winners, distance, _ = ctx.saved_tensors
        backward = library.op.nearest_neighbor_backward.default
        grad_x = library.call(backward, grad, x, winners, distance, *ctx.y_scale)
        return grad_x, None, None, None, None, None


def _winners(y: Tensor, index: Tensor) -> Tensor:
    """(n k, *event), the first reference where there is none."""
    return y.index_select(0, index.clamp(min=0).view(-1))


def _neighbor_gradients(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients in x and, if asked for, y: plain torch, so that they can be differentiated."""
    x, y, distance, index = ctx.saved_tensors
    winners = _winners(y, index) if ctx.needs_input_grad[1] else y
    k = 1 if index.dim() == 1 else index.shape[1]
    winners = winners.to(x.dtype).view(len(x), k, math.prod(x.shape[1:]))
    if y.dtype == torch.uint8:
        winners = winners * ctx.y_scale[0] + ctx.y_scale[1]
    apart = distance != 0
    slope = torch.where(apart, grad / torch.where(apart, distance, 1.0), 0.0)
    pull = slope.view(*winners.shape[:2], 1) * (x.unsqueeze(-1).flatten(1)[:, None] - winners)
    if not ctx.needs_input_grad[1]:
        return pull.sum(1).view_as(x), None
    rows = index.flatten()
    found = torch.where(rows[:, None] < 0, 0.0, -pull.flatten(0, 1)).to(y.dtype)
    grad_y = torch.zeros_like(y).unsqueeze(-1).flatten(1).index_add(0, rows.clamp(min=0), found)
    return pull.sum(1).view_as(x), grad_y.view_as(y)


def register_operators(namespace: str) -> None:
    """The fakes of one built library, as ``fastebm.ops.langevin.register_operators``."""
    searches = ("nearest_neighbor", "nearest_neighbor_backward", "nn_log_distance")
    library.record_no_gradient(namespace, *searches, "neighbor_means")

    @torch.library.register_fake(f"{namespace}::nearest_neighbor")
    def _(x, y, skip, k, y_scale, y_offset):
        check_neighbor(x, y, skip, k)
        shape = (x.shape[0],) if k == 1 else (x.shape[0], k)
        return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)

    @torch.library.register_fake(f"{namespace}::nearest_neighbor_backward")
    def _(grad, x, winners, distance, y_scale, y_offset):
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @torch.library.register_fake(f"{namespace}::nn_log_distance")
    def _(x, y, skip, eps, y_scale, y_offset):
        check_neighbor(x, y, skip, 1)
        grad = torch.empty_like(x, memory_format=torch.contiguous_format)
        return x.new_empty(()), grad, x.new_empty(x.shape[:1])

    @torch.library.register_fake(f"{namespace}::neighbor_means")
    def _(y, chosen, k):
        torch._check(y.dim() == 2, lambda: f"y must be (m, D), got {tuple(y.shape)}")
        torch._check(y.dtype == torch.float32, lambda: f"y must be float32, got {y.dtype}")
        n = chosen.shape[0]
        return y.new_empty((n, y.shape[1])), y.new_empty(n)


register_operators("fastebm")
