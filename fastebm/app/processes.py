"""A run of several processes: how they become one group, and what each of them does of the work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastebm.app.config import ConfigError, TrainConfig
from fastebm.app.stored import first_line
from fastebm.distributed import alone, collectives
from fastebm.distributed.world import World, world

TIMEOUT = timedelta(minutes=5)  # of a call that all ranks take part in
FOR_RANK_ZERO = timedelta(days=7)  # which may have figures and measures to make
Result = TypeVar("Result")

_waiting: dist.ProcessGroup | None = None  # in which ranks wait for rank 0


def started() -> World:
    """Which of how many processes this was started as, by torchrun's variables."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    is_one = rank.isdecimal() and size.isdecimal() and "MASTER_ADDR" in os.environ
    return World(int(rank), int(size)) if is_one and int(size) > 1 else World(0, 1)


def join(device: str) -> None:
    """Make the process group of a run on a kind of device.

    Raises:
        ConfigError: the others are not to be found.
    """
    global _waiting
    backend = "gloo"
    if device.startswith("cuda") and torch.cuda.is_available() and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
        _waiting = dist.new_group(backend="gloo", timeout=FOR_RANK_ZERO)
    except (RuntimeError, ValueError) as error:
        n = started().size
        raise ConfigError(f"the {n} processes cannot meet ({first_line(error)})") from None


def leave() -> None:
    """End the process group, if there is one."""
    global _waiting
    _waiting = None
    if dist.is_initialized():
        # A thread of gloo may ask for Python's lock while the group's end holds it and waits.
        time.sleep(0.1)
        dist.destroy_process_group()


def own_device(name: str) -> str:
    """Of several GPUs of a machine that of this process."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name


def on_rank_zero(work: Callable[[], Result]) -> Result:
    """What ``work`` returns, or raises, on rank 0, which alone runs it, as one process; however
    long that takes, the others wait."""

    def by_itself() -> Result:
        with alone():
            return work()

    return collectives.on_rank_zero(by_itself, _waiting)


def check_parts(config: TrainConfig) -> None:
    """ConfigError unless batch and buffer of a run can be split over its processes."""
    n = world().size
    names = ["batch_size", "buffer_size"] if config.uses_buffer else ["batch_size"]
    for name in names:
        value = getattr(config, name)
        if value % n:
            raise ConfigError(f"{name} must be a multiple of the {n} processes, got {value}")


def own_rows(x: Tensor, block: int) -> Tensor:
    """This rank's part of each ``block`` rows of ``x``."""
    if world().size == 1:
        return x
    rows = world().part(block)
    return x.view(-1, block, *x.shape[1:])[:, rows].reshape(-1, *x.shape[1:])


def in_parts(x: Tensor, work: Callable[[Tensor, int], Tensor]) -> Tensor:
    """``work(x, 0)``, with the rows of ``x``; each rank does its own, ``work(rows, first)``."""
    rank, size = world()
    if size == 1:
        return work(x, 0)
    parts = [World(r, size).part(len(x)) for r in range(size)]
    own = x[parts[rank]]
    out = work(own, parts[rank].start) if len(own) else own
    return collectives.uneven_rows(out, [part.stop - part.start for part in parts])[0]


def numbered(x: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
    """``work(x)`` of one number a row, of which each rank does as many rows as any: so what
    numbers its rows by the rank numbers them as one process does."""
    rank, size = world()
    if size == 1:
        return work(x)
    each = -(-len(x) // size)
    rows = (rank * each + torch.arange(each, device=x.device)).clamp(max=len(x) - 1)
    return collectives.all_rows(work(x[rows]))[: len(x)]
