"""What the commands share: where they print, and how errors of the user end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import typer
from rich.console import Console

from fastebm.app.config import ConfigError
from fastebm.app.data import DataError, MissingExtra, first_line

console = Console()
errors = Console(stderr=True, soft_wrap=True, highlight=False)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What the user can put right becomes one line and exit code 2."""
    try:
        yield
    except (ConfigError, DataError, MissingExtra, OSError) as error:
        errors.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        errors.print("interrupted")
        raise typer.Exit(130) from None


def usable_device(name: str) -> torch.device:
    """The device, or a ConfigError when it cannot be used here."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {first_line(error)}") from None
    return device


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be between 0 and 2^63 - 1, got {seed}")
