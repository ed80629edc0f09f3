"""A uniform choice of all samples ever pushed."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops.replay import replay_gather
from fastebm.replay.storage import as_rows


def push_reservoir(data: Tensor, q: Tensor, n_pushed: int, stream: Tensor) -> None:
    """Sample i of all (from 0) goes to slot i, or to u in 0..i where that is a slot.

    Args:
        data: (capacity, *event), changed.
        q: (n, *event), samples as they are stored, the first of them the one ``n_pushed``.
        stream: advanced by one step.

    Source: Vitter, Random sampling with a reservoir, 1985, algorithm R.
    """
    n, capacity = len(q), len(data)
    i = n_pushed + torch.arange(n, device=q.device)
    # Two uniform numbers of 24 bits each make one of 48.
    nothing = torch.empty((0, 2), dtype=torch.float32, device=q.device)
    none = torch.full_like(i, -1)
    parts, _ = replay_gather(nothing, none, stream, init="uniform")
    stream[1].add_(1)
    high, low = parts.double().unbind(1)
    u = torch.where(i < capacity, i, ((high + low * 2**-24) * (i + 1)).long())
    keep, slot = u < capacity, u % capacity
    # The last sample for a slot wins. Every other row writes what its slot holds in the end, so
    # the order of writes does not matter and no row need be dropped (a wait for the device).
    order = torch.arange(n, device=q.device)
    last = torch.full((capacity,), -1, device=q.device)
    last.scatter_reduce_(0, slot, torch.where(keep, order, -1), "amax")
    winner = last[slot]
    taken = as_rows(winner >= 0, tuple(data.shape[1:]))
    data[slot] = torch.where(taken, q[winner.clamp(min=0)], data[slot])
