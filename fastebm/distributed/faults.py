"""Ranks that are gone: who, and why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from fastebm.distributed.world import world

WAIT = 10.0  # seconds for the other ranks to say that they are there
_KEY = "fastebm/fault"

seconds_waited = 0.0  # that this process has spent in calls that all ranks take part in


class RankError(RuntimeError):
    """Another rank is gone, or has failed; the message names it."""


@contextmanager
def named(what: str) -> Iterator[None]:
    """A collective call, in which the ranks ``what``.

    Raises:
        RankError: it failed, and which ranks are gone or have failed.
    """
    global seconds_waited
    start = time.perf_counter()
    try:
        yield
    except RuntimeError as error:
        raise RankError(_message(what, error)) from error
    finally:
        seconds_waited += time.perf_counter() - start


def tell(error: BaseException) -> None:
    """Let the other ranks say why this one is gone: call it before ending for a reason of its
    own."""
    if world().size == 1 or isinstance(error, RankError):
        return
    text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    with suppress(Exception):
        _set(f"failed with {text}")


def is_of_all(error: BaseException, seconds: float = 2.0) -> bool:
    """``tell``, and whether all ranks tell the same, for which this waits so long at most."""
    tell(error)
    rank, size = world()
    if size == 1 or isinstance(error, RankError):
        return size == 1
    try:
        store, until = dist.distributed_c10d._get_default_store(), time.monotonic() + seconds
        keys = [f"{_KEY}/{r}" for r in range(size)]
        while not store.check(keys):
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return len({store.get(key) for key in keys}) == 1
    except Exception:  # the store is gone with the process that held it
        return False


def _message(what: str, error: RuntimeError) -> str:
    """Who did not come, by what each has left in the group's store."""
    rank, size = world()
    first = str(error).strip().splitlines()[0][:200] if str(error).strip() else "no reason"
    here = f"rank {rank} could not {what} with the others"
    try:
        _set("waits")
        others = _words(set(range(size)) - {rank})
    except Exception:  # the store is gone with the process that held it
        return f"{here}: rank 0, which held the store, is gone ({first})"
    failed = {r: word for r, word in others.items() if word.startswith("failed")}
    gone = sorted(set(range(size)) - {rank} - others.keys())
    parts = [f"rank {r} {word}" for r, word in sorted(failed.items())]
    parts += [f"rank {r} is gone or stuck" for r in gone]
    return f"{here}: {'; '.join(parts) or 'all of them are there'} ({first})"


def _words(ranks: set[int]) -> dict[int, str]:
    """What ranks have left, once all have or WAIT is over."""
    store, found, until = dist.distributed_c10d._get_default_store(), {}, time.monotonic() + WAIT
    while ranks - found.keys() and time.monotonic() < until:
        for r in ranks - found.keys():
            if store.check([f"{_KEY}/{r}"]):
                found[r] = store.get(f"{_KEY}/{r}").decode()
        if any(word.startswith("failed") for word in found.values()):
            break
        time.sleep(0.1)
    return found


def _set(word: str) -> None:
    store = dist.distributed_c10d._get_default_store()
    store.set_timeout(timedelta(seconds=WAIT))
    store.set(f"{_KEY}/{world().rank}", word)
