"""Which of several processes this is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch.distributed as dist

_alone: ContextVar[bool] = ContextVar("fastebm_alone", default=False)
_together: ContextVar[bool] = ContextVar("fastebm_together", default=False)


class World(NamedTuple):
    """The ``rank`` of this process among ``size``."""

    rank: int
    size: int

    def part(self, n: int) -> slice:
        """Of n rows of all ranks those of this one, as even as can be."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)


def world() -> World:
    """Of the default process group of ``torch.distributed``; (0, 1) without one, and inside
    ``alone()``."""
    if _alone.get() or not dist.is_available() or not dist.is_initialized():
        return World(0, 1)
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def alone() -> Iterator[None]:
    """Until the block ends, this process is one of one: its chains are numbered from 0, and losses
    of this thread talk to no other rank. For what one rank does by itself, such as a validation
    loss on rank 0. A buffer that was made as a part of all ranks' stays one and is refused."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def together() -> Iterator[None]:
    """Until the block ends, all ranks do the same, as in a call of a loss: so that what is deep
    inside may ask the others."""
    token = _together.set(True)
    try:
        yield
    finally:
        _together.reset(token)


def is_together() -> bool:
    """Whether there are other ranks, and they do the same now."""
    return _together.get() and world().size > 1
