"""What chains of a loss are given: where they start, how many they are, what they jump by."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.replay.buffer import ReplayBuffer


def check_jumps(sampler, buffer: ReplayBuffer | None, jumps: int) -> None:
    """ValueError unless the chains can jump by samples of the buffer."""
    if not jumps:
        return
    if not getattr(sampler, "jumps_possible", False):
        raise ValueError(f"jumps={jumps} needs a LangevinDynamics with adjusted=True")
    if buffer is None or buffer.mode != "slot" or buffer.data.dtype != torch.float32:
        kind = "none" if buffer is None else f"mode {buffer.mode!r} of {buffer.data.dtype}"
        raise ValueError(f"jumps={jumps} needs a buffer of mode 'slot' and float32, got {kind}")


def check_buffer(buffer: ReplayBuffer) -> None:
    if not isinstance(buffer, ReplayBuffer):
        raise TypeError(f"buffer must be a ReplayBuffer, got {type(buffer).__name__}")


def check_starts(
    x: Tensor, buffer: ReplayBuffer | None, n_chains: int | None, at_data: bool
) -> None:
    """ValueError unless the chains beside data x (B, *event) have somewhere to start: at the data,
    or at samples of a buffer."""
    if at_data and n_chains is not None:
        raise ValueError(
            f"n_chains={n_chains} needs chains that start in a buffer or at noise, these start at"
            " the data: leave it None"
        )
    if buffer is None:
        return
    if (n_chains or len(x)) > buffer.capacity:
        got = f"a batch of {len(x)}" if n_chains is None else f"n_chains={n_chains}"
        raise ValueError(
            f"chains must be at most as many as the samples of the ReplayBuffer where they start,"
            f" {buffer.capacity}, got {got}"
        )
    if x.shape[1:] != buffer.shape:
        raise ValueError(
            f"x must have samples of the buffer's shape {buffer.shape}, got {tuple(x.shape[1:])}"
        )


def check_rows(model_kwargs: dict, n: int, n_chains: int | None) -> None:
    """ValueError where an argument has a row for each of n data, and chains are not as many."""
    if n_chains in (None, n):
        return
    for name, value in model_kwargs.items():
        if isinstance(value, Tensor) and value.dim() and len(value) == n:
            raise ValueError(
                f"model_kwargs has {n} rows of {name!r}, one for each of the data; chains are"
                f" n_chains={n_chains}"
            )
