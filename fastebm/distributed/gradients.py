"""Gradients of all ranks, and whether their parameters are still the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from fastebm.distributed.collectives import gather_integers, sum_of_ranks
from fastebm.distributed.world import world


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor] | Tensor) -> None:
    """Replace the gradients of ``parameters`` by their means over all ranks: between
    ``loss.backward()`` and ``optimizer.step()``, in place of DistributedDataParallel. All gradients
    of a dtype travel in one piece; nothing happens without a process group.

    A parameter without a gradient counts as zero where another rank has one, and keeps none where
    no rank has. A loss of fastebm so keeps its formulas for small perceptrons, and can be captured
    in a CUDA graph.

    Args:
        parameters: the same on all ranks, in the same order.

    Raises:
        TypeError: one of them is no tensor, or a DTensor (FSDP reduces its gradients itself).
        RankError: a rank is gone.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for p in parameters:
        if not isinstance(p, Tensor):
            raise TypeError(f"parameters must be tensors, got {type(p).__name__}")
        if hasattr(p, "to_local"):
            raise TypeError("parameters must be plain tensors: FSDP reduces its gradients itself")
    size = world().size
    groups = defaultdict(list)
    for p in parameters:
        if p.requires_grad:
            groups[p.dtype, p.device].append(p)
    for group in groups.values() if size > 1 else ():
        _average(group, size)


def _average(group: list[Tensor], size: int) -> None:
    present = [p.grad is not None for p in group]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
    flags = [p.new_full((1,), float(has)) for p, has in zip(group, present, strict=True)]
    if all(present):  # no copy from the host, which no CUDA graph may hold; and few launches
        flags = [group[0].new_ones(len(group))]
    flat = sum_of_ranks(torch.cat([*(g.reshape(-1) for g in grads), *flags]))
    somewhere = present if all(present) else (flat[-len(group) :] > 0).tolist()
    flat /= size
    means = flat[: -len(group)].split([g.numel() for g in grads])
    for p, grad, mean, has in zip(group, grads, means, somewhere, strict=True):
        if has:
            p.grad = grad.copy_(mean.view_as(grad))


@torch.no_grad()
def check_parameters(parameters: Iterable[Tensor], where: str, advice: str) -> None:
    """Whether the parameters have the same bits on all ranks; those of FSDP, of which each rank
    has a part, are left out.

    Raises:
        RuntimeError: they differ, on all ranks; ``where`` and ``advice`` are of the message.
    """
    own = [p for p in parameters if not hasattr(p, "to_local")]
    sums = gather_integers([_digest(own), len(own), sum(p.numel() for p in own)])
    other = [r for r, found in enumerate(sums) if found != sums[0]]
    if other:
        names = ", ".join(map(str, other))
        raise RuntimeError(
            f"{where}: the parameters of rank {names} differ from those of rank 0: {advice}"
        )


def _digest(parameters: list[Tensor]) -> int:
    """63 bits of all of them, where one element's change shows."""
    total = 0
    for p in parameters:
        raw = p.detach().contiguous().reshape(-1).view(torch.uint8)
        for part in raw.split(1 << 22):  # which take eight times their bytes
            weights = torch.arange(1, len(part) + 1, device=raw.device) * 0x9E3779B1
            total = (total * 31 + int((part * weights).sum())) % (1 << 63)
    return total
