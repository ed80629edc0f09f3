"""What ranks tell each other. Every rank must call the same functions in the same order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastebm.distributed.faults import named
from fastebm.distributed.world import world

Result = TypeVar("Result")
GATHERED = 1 << 19  # bytes up to which a sum of what was gathered is faster than gloo's all_reduce
# Its name since torch 2.13, and before.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def all_rows(x: Tensor) -> Tensor:
    """The rows of all ranks, (size * B, ...) in the order of the ranks, of ``x`` (B, ...), which
    has the same shape on each; any dtype, bit for bit."""
    size = world().size
    if size == 1:
        return x
    row = _bytes(x.contiguous())
    out = row.new_empty(size * len(row))
    with named("gather rows"):
        _gather(out, row)
    return out.to(x.device).view(x.dtype).view(size * x.shape[0], *x.shape[1:])


def uneven_rows(x: Tensor, counts: list[int] | None) -> tuple[Tensor, int]:
    """As ``all_rows``, of the first ``counts[r]`` rows on rank r (None: of all, as many on each);
    and which of them is this rank's first."""
    rank, size = world()
    if counts is None:
        return all_rows(x), rank * len(x)
    padded = x.new_zeros((max(counts), *x.shape[1:]))
    padded[: counts[rank]] = x[: counts[rank]]
    parts = all_rows(padded).split(max(counts)) if max(counts) else [padded] * size
    rows = torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])
    return rows, sum(counts[:rank])


def sum_of_ranks(x: Tensor) -> Tensor:
    """The sum of the ranks' ``x``, which has one shape and dtype on all; the same bits on each."""
    size = world().size
    if size == 1:
        return x
    if size * x.numel() * x.element_size() <= GATHERED:
        return all_rows(x.detach()[None]).sum(0, dtype=x.dtype)
    total = x.detach().to(_device(x.device), copy=True)
    with named("sum"):
        dist.all_reduce(total)
    return total.to(x.device)


def mean_of_ranks(x: Tensor) -> Tensor:
    """``sum_of_ranks`` over their number."""
    return sum_of_ranks(x) / world().size


def rows_of_slots(part: Tensor, slots: Tensor, first: int) -> Tensor:
    """Some rows of a table of which every rank has a part, wherever they are, bit for bit: the sum
    of what each rank has of them, as bytes.

    Args:
        part: (n, *event), rows first, first + 1, ... of the table.
        slots: (m,) int64, which rows; the same on all ranks.
    """
    at = slots - first
    here = (at >= 0) & (at < len(part))
    rows = part.index_select(0, torch.where(here, at, 0)).view(len(slots), -1).view(torch.uint8)
    rows = sum_of_ranks(torch.where(here[:, None], rows, 0))
    return rows.view(part.dtype).view(len(slots), *part.shape[1:])


def gather_integers(values: Sequence[int]) -> list[list[int]]:
    """The values of every rank, as many on each; waits for all."""
    if world().size == 1:
        return [list(values)]
    own = torch.tensor(list(values), dtype=torch.int64, device=_device(torch.device("cpu")))
    return all_rows(own).view(world().size, -1).tolist()


def gather_objects(value: Any) -> list[Any]:
    """The value of every rank, of any kind that can be pickled; slow: for the first call."""
    if world().size == 1:
        return [value]
    values: list[Any] = [None] * world().size
    with named("gather"):
        dist.all_gather_object(values, value)
    return values


def on_rank_zero(work: Callable[[], Result], group: dist.ProcessGroup | None = None) -> Result:
    """What ``work`` returns on rank 0, which alone runs it, on all ranks; what it raises there,
    all ranks raise. ``group``: of all ranks, by whose timeout they wait (None: the default one)."""
    if world().size == 1:
        return work()
    outcome: list[Any] = [None, None]
    if world().rank == 0:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    with named("wait for rank 0"):
        dist.broadcast_object_list(outcome, group=group)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def _bytes(x: Tensor) -> Tensor:
    """All of it as bytes, where the group can take them."""
    return x.detach().to(_device(x.device)).reshape(-1).view(torch.uint8)


def _device(wanted: torch.device) -> torch.device:
    """Where the group's tensors must be: as wanted, where it has a backend of its own for that."""
    backends = dict(part.split(":") for part in dist.get_backend_config().split(","))
    if backends.get(wanted.type, "gloo") != "gloo":
        return wanted
    if "cpu" in backends:
        return torch.device("cpu")
    kind = next(iter(backends))
    return torch.device(kind, torch.get_device_module(kind).current_device())
