"""Signals that end a process: Ctrl-C, a batch system's SIGTERM, the SIGHUP of a closed terminal;
and workers that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """One of SIGNALS, `signum`, has arrived."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


class Stop:
    """Whether a signal has asked for the end: `signum` is that signal, 0 before."""

    signum = 0


def raising():
    """Until the block ends, SIGNALS raise Interrupted, and the next of the same kind ends the
    process at once. What they do in a thread that is not the main one stays as it is."""
    return _handled_by(_raise)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Until the block ends, the first of SIGNALS is only noted in the Stop that is yielded, for a
    loop to look at where it can end; the next raises Interrupted, but for a repeated SIGHUP: the
    kernel and the shell each send one when a terminal is closed."""
    stop = Stop()

    def note(signum, frame):
        if not stop.signum:
            stop.signum = signum
        elif signum != signal.SIGHUP:
            _raise(signum, frame)

    with _handled_by(note):
        yield stop


def end_with_parent() -> None:
    """In a process of multiprocessing: end when the parent has, however that was."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _raise(signum, frame):
    signal.signal(signum, signal.SIG_DFL)
    raise Interrupted(signum)


@contextmanager
def _handled_by(handler: Callable) -> Iterator[None]:
    old = {}
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            # nohup ignores SIGHUP; SIGINT is taken though shells ignore it in the background
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                old[signum] = signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, previous in old.items():
            signal.signal(signum, previous)
