"""What the application writes: each file is the old one or the whole new one, in a folder that one
run holds."""

from __future__ import annotations

import fcntl
import glob
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

LOCK = ".lock"


def write(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Let `save` fill a file beside `path` that then takes its place.

    A link in the way is replaced, never followed. What is there and no regular file, such as
    /dev/stdout, is written to as it is.

    Raises:
        OSError: one line that names `path`; it is as it was, and nothing is left beside it.
    """
    try:
        if is_stream(path):
            with path.open("wb") as file:
                save(file)
            return
        part = _part(path)
        try:
            with part.open("xb") as file:
                save(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
    except (OSError, RuntimeError) as error:  # torch.save has a RuntimeError for a failed write
        raise OSError(f"cannot write {path}: {_reason(error)}") from None


def write_json(path: Path, value) -> None:
    """`write` of JSON, null for numbers that are not finite."""
    text = json.dumps(finite(value), indent=2, allow_nan=False) + "\n"
    write(path, lambda file: file.write(text.encode()))


def write_figure(path: Path, figure) -> None:
    """`write` of a matplotlib figure, in the format of the suffix."""
    write(path, lambda file: figure.savefig(file, format=path.suffix[1:]))


def check(path: Path) -> None:
    """OSError, one line, unless `write` could make a file of this name now."""
    try:
        if is_stream(path):
            path.open("ab").close()
            return
        part = _part(path)
        part.touch(exist_ok=False)
        part.unlink()
    except OSError as error:
        raise OSError(f"cannot write {path}: {_reason(error)}") from None


def is_stream(path: Path) -> bool:
    """Whether there is something to write into, not a file to replace; /dev/stdout is one even
    where it leads to a file."""
    return path.is_relative_to("/dev") or (path.exists() and not path.is_file())


def finite(value):
    """The same value with non-finite numbers as None: JSON has none of them."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The existing folder is this process's alone; the lock of a process that died is none.

    Raises:
        OSError: another run holds it, or it cannot be written to.
    """
    path = folder / LOCK
    lock = _locked(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(lock)


def _locked(path: Path) -> int:
    """A descriptor of the locked file; where the one that was opened has been removed by the run
    that held it, another is made."""
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise OSError(f"cannot write to {path.parent}: {_reason(error)}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise OSError(f"{path.parent} is in use by another run: choose another --out") from None
        except OSError:  # a file system without locks
            return lock
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        os.close(lock)


def left(path: Path) -> list[Path]:
    """What processes that were killed while they wrote `path` have left beside it."""
    return [*path.parent.glob(f"{glob.escape(path.name[:40])}.????????.part")]


def _part(path: Path) -> Path:
    """A new name beside `path`; short, as names have a limit."""
    return path.with_name(f"{path.name[:40]}.{secrets.token_hex(4)}.part")


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0] if text else type(error).__name__
