"""Modes of torch that draws, likelihoods and stored samples leave aside."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def full_precision(device: torch.device) -> AbstractContextManager:
    """Without autocast: what is computed on ``device`` keeps the dtype of what it is computed of.
    Nothing is entered where that changes nothing, as it takes time."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def outside_inference() -> AbstractContextManager:
    """Without inference mode, whose tensors autograd refuses and nothing may change in place
    later. Gradients are on in it, where it was on: a ``no_grad`` belongs inside."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def ordinary(value: Any) -> Any:
    """A copy of a tensor that was made in inference mode; all else as it is. Not inside the mode,
    where a copy would be another such tensor."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
