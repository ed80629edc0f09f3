"""How far long chains are, told as they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastebm.chains.chain import Done

Progress = Callable[[int, int], object]  # (steps done, of how many)
EVERY = 0.1  # seconds between two calls, at least
PIECE = 20  # steps of a call where nothing else cuts them


@contextmanager
def told(progress: Progress | bool | None, total: int) -> Iterator[Done | None]:
    """What a run of so many steps calls now and then with how many are done: on to ``progress``
    where ``EVERY`` seconds have passed, and in the end. True: to a bar of rich's; None or False: to
    nobody.

    Raises:
        TypeError: ``progress`` is something else.
        ImportError: True, and there is no rich.
    """
    if progress is None or progress is False:
        yield None
    elif progress is True:
        try:
            from rich import progress as rich
        except ImportError:
            raise ImportError('progress=True needs rich: pip install "fastebm[app]"') from None
        columns = rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeRemainingColumn()
        with rich.Progress("steps", *columns, transient=True) as bar:
            task = bar.add_task("steps", total=total)
            yield _at_times(lambda done, _: bar.update(task, completed=done), total)
    elif callable(progress):
        yield _at_times(progress, total)
    else:
        raise TypeError(
            f"progress must be a function of (step, total), True or None, got {progress!r}"
        )


def _at_times(progress: Progress, total: int) -> Done:
    last = -EVERY

    def done(step: int) -> None:
        nonlocal last
        now = time.monotonic()
        if step == total or now - last >= EVERY:
            last = now
            progress(step, total)

    return done
