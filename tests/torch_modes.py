"""Modes and defaults of torch under which calls must give what they give without."""

from contextlib import contextmanager

import pytest
import torch


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),  # stands for torch.set_default_device("cuda")
}
each_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
