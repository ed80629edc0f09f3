"""Samples as a replay buffer stores them: uint8 as steps of a range, or rounded floats."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops.replay import replay_gather
from fastebm.rng import ChainRNG

DTYPES = (torch.float32, torch.bfloat16, torch.uint8)
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
Range = tuple[float, float]


def stored(x: Tensor, dtype: torch.dtype, value_range: Range) -> Tensor:
    """Samples in the dtype of a storage, uint8 at the step of the range that they are in."""
    if dtype != torch.uint8:
        return x.to(dtype)
    lo, hi = value_range
    return ((x - lo) * (256 / (hi - lo))).floor().clamp(0, 255).to(torch.uint8)


def read(data: Tensor, value_range: Range) -> Tensor:
    """Stored samples as float32, uint8 at the middle of its steps; nothing random is drawn."""
    everyone = torch.arange(len(data), device=data.device)
    stream = ChainRNG(0).state(data.device)
    return replay_gather(data, everyone, stream, value_range=value_range, dither=False)[0]


def middle_of_steps(value_range: Range) -> tuple[float, float]:
    """(scale, offset) of a uint8 sample at the middle of its step, as ``nearest_neighbor``."""
    lo, hi = value_range
    scale = (hi - lo) / 256
    return scale, lo + scale / 2


def converted(data: Tensor, given: Range | None, dtype: torch.dtype, value_range: Range) -> Tensor:
    """Samples of a state, which may not say of which value_range its uint8 is, for a storage.

    Raises:
        ValueError: they would be rounded, or mean other values.
    """
    own = f"this buffer is {dtype} of value_range {value_range}"
    if data.dtype == torch.uint8:
        same = given is None or tuple(given) == value_range
        if dtype == torch.uint8 and same:
            return data
        if dtype == torch.float32 and given is not None:
            return read(data, tuple(given))
        raise ValueError(f"the state's samples are torch.uint8 of value_range {given}, {own}")
    if torch.promote_types(data.dtype, dtype) != dtype:
        raise ValueError(f"the state's samples are {data.dtype}, {own}: they would be rounded")
    return data.to(dtype)


def as_rows(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(n,) as (n, 1, ..., 1), to go with (n, *shape)."""
    return mask.reshape(-1, *(1,) * len(shape))
