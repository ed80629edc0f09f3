"""What the commands share: where they print, what their options may be, and how they end."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Iterator

import torch
import typer
from rich.console import Console
from rich.text import Text

from fastebm.app import processes, signals
from fastebm.app.config import ConfigError
from fastebm.app.data import DataError, MissingExtra, first_line
from fastebm.distributed import RankError, faults, world

IN_A_LINE = (ConfigError, DataError, MissingExtra, OSError)  # what the user can put right
MANY = 10**8  # of options; a plan of steps is a list


class PlainConsole(Console):
    """Prints text as it is: brackets and colons are no markup, and control characters, of a file's
    name perhaps, are shown as their escapes."""

    prefix = ""  # of errors, which says whose they are

    def __init__(self, **options):
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options) -> Text:
        return super().render_str(_visible(text, keep="\n"), **options)


console = PlainConsole()
errors = PlainConsole(stderr=True, soft_wrap=True, highlight=False)


@contextlib.contextmanager
def one_run(device: str) -> Iterator[torch.device]:
    """The device of this process; one that torchrun has started is in a process group with the
    others until the block ends. Rank 0 alone prints, but for an error that not all of them have.

    Raises:
        ConfigError: nothing can be computed on the device, or the others are not there.
    """
    rank, size = processes.started()
    if size == 1:
        yield usable_device(device)
        return
    console.quiet = errors.quiet = rank > 0
    with warnings.catch_warnings():
        if rank:
            warnings.simplefilter("ignore")
        try:
            processes.join(device)
            own = usable_device(processes.own_device(device))
            if own.type == "cuda":
                torch.cuda.set_device(own)
            yield own
        except typer.Exit:  # of all of them
            processes.leave()
            raise
        except BaseException as error:
            _say_whose(error)
            raise
    processes.leave()


def _say_whose(error: BaseException) -> None:
    """Tell the other ranks why this one ends, and let it print that where it is not their reason
    too. What is left of the group ends with the process."""
    if isinstance(error, KeyboardInterrupt):  # torchrun passes its signals on to all
        faults.tell(error)
    elif isinstance(error, RankError):
        errors.quiet = False
    elif not faults.is_of_all(error):
        errors.quiet, errors.prefix = False, f"rank {world().rank}: "
        if not isinstance(error, IN_A_LINE):  # its traceback follows
            errors.print(f"{errors.prefix}{type(error).__name__}: {first_line(error)}")


def rank_zero_alone() -> None:
    """End the command in all processes but the first, as it is no work for several."""
    if processes.started().rank:
        raise typer.Exit(0)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What the user can put right becomes one line and exit code 2; a signal ends the command with
    128 and its number."""
    try:
        with signals.raising():
            yield
    except RankError as error:
        raise _ended(f"error: {error}", 1) from None
    except IN_A_LINE as error:
        raise _ended(f"error: {error}", 2) from None
    except (MemoryError, RuntimeError) as error:
        if not _of_memory(error):
            raise
        raise _ended(f"error: not enough memory: {first_line(error)}", 2) from None
    except KeyboardInterrupt as error:
        raise _ended("interrupted", 128 + getattr(error, "signum", signal.SIGINT)) from None


def _ended(message: str, code: int) -> typer.Exit:
    with contextlib.suppress(OSError):  # the terminal may be what is gone
        errors.print(errors.prefix + _visible(message), style="red" if code <= 2 else None)
    return typer.Exit(code)


def _of_memory(error: Exception) -> bool:
    kinds = MemoryError | torch.OutOfMemoryError
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def _visible(text: str, keep: str = "") -> str:
    """The text with control characters and what is not unicode as escapes."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def usable_device(name: str) -> torch.device:
    """The device, or a ConfigError when nothing can be computed on it here."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {first_line(error)}") from None
    return device


def check_range(name: str, value: int, least: int, most: int = MANY) -> None:
    """ConfigError unless the value of an option is from `least` to `most`."""
    if not least <= value <= most:
        raise ConfigError(f"{name} must be between {least} and {most}, got {value}")


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be between 0 and 2^63 - 1, got {seed}")
