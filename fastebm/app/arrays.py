"""Which arrays of a file are the samples and their classes, checked."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.app.stored import DataError, StoredArray, first_line, open_arrays

ARRAY_KEYS = ("x_train", "x", "X", "data", "images")  # looked for in an archive, in this order
MIN_SAMPLES = 40  # so that the training part of a file has 32
LARGEST = 1e18  # squares of values and of their range are float32


class Arrays(NamedTuple):
    """What a file holds: x (N, *event) float32; test, of the same event, or None; labels (N,) int64
    or None, and then why there are none; bin_width, 1/256 of uint8 arrays and 0 of others."""

    x: Tensor
    test: Tensor | None
    labels: Tensor | None
    no_labels: str
    bin_width: float


def read_arrays(path: Path) -> Arrays:
    """Samples of a .npz, .npy or .pt file: one array, or `x_train` with `x_test` and `y_train`.
    Other arrays of the file are not read. Classes that cannot be used are left out, with the
    reason, as few runs need them.

    Raises:
        DataError: unreadable, not numbers, wrong shape, not finite, too large for the memory.
    """
    content = open_arrays(path)
    if isinstance(content, StoredArray):
        x, bin_width = _samples(f"{path}", content)
        return Arrays(x, None, None, "the file is one array", bin_width)
    key = next((k for k in ARRAY_KEYS if k in content), None)
    if key is None and len(content) == 1:
        key = next(iter(content))
    if key is None and "x_test" in content:
        key = "x_test"
    if key is None:
        names = ", ".join(list(content)[:10]) + (", ..." if len(content) > 10 else "")
        raise DataError(
            f"{path}: holds {names or 'nothing'};"
            f" expected one array, or one called {', '.join(ARRAY_KEYS)}"
        )
    x, bin_width = _samples(f"{path}: {key}", content[key])
    if key != "x_train":
        return Arrays(x, None, None, "classes go with an array called x_train", bin_width)
    test = None
    if "x_test" in content:
        test, test_width = _samples(f"{path}: x_test", content["x_test"])
        if test.shape[1:] != x.shape[1:]:
            raise DataError(
                f"{path}: x_train is {tuple(x.shape[1:])} a sample, x_test {tuple(test.shape[1:])}"
            )
        if test_width != bin_width:
            raise DataError(f"{path}: one of x_train and x_test is uint8, the other is not")
    labels, no_labels = _labels(content.get("y_train"), len(x))
    return Arrays(x, test, labels, no_labels, bin_width)


def _labels(array: StoredArray | None, n: int) -> tuple[Tensor | None, str]:
    """Classes (n,) int64, or None and the reason."""
    if array is None:
        return None, "the file has no y_train"
    if array.fault or math.prod(array.shape) != n:
        return None, f"y_train {array.fault or f'has the shape {array.shape}, not ({n},)'}"
    try:
        values = array.read().double().reshape(-1)
    except Exception as error:
        return None, f"y_train cannot be read ({first_line(error)})"
    if not bool(((values >= 0) & (values < n) & (values == values.floor())).all()):
        return None, f"y_train must be classes from 0 to at most {n - 1}, the number of samples"
    return values.long(), ""


def _samples(name: str, array: StoredArray) -> tuple[Tensor, float]:
    """Check an array and bring it to float32 (N, D) or (N, C, H, W); with the width of its bins.

    uint8 q stands for the values from q/256 to (q + 1)/256 and becomes the middle of them.
    """
    if array.fault:
        raise DataError(f"{name} {array.fault}")
    shape = array.shape
    if len(shape) not in (2, 3, 4) or shape[0] < MIN_SAMPLES or 0 in shape:
        raise DataError(
            f"{name}: shape {shape}; expected (N, D), (N, H, W), (N, C, H, W) or (N, H, W, C)"
            f" with N >= {MIN_SAMPLES}"
        )
    n = math.prod(shape)
    need = n * (array.itemsize + 16)  # as stored, in between, float32, and that in another order
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > memory:
        raise DataError(
            f"{name}: shape {shape} needs {need / 2**30:.3g} GiB of memory, this machine has"
            f" {memory / 2**30:.3g}"
        )
    try:
        values = array.read()
    except Exception as error:  # what a damaged archive raises, as when it is opened
        raise DataError(f"{name} cannot be read ({first_line(error)})") from None
    bin_width = 1 / 256 if values.dtype == torch.uint8 else 0.0
    x = (values.float() + 0.5) / 256 if bin_width else values.float()
    if not x.isfinite().all():
        bad = int((~x.isfinite()).sum())
        raise DataError(f"{name}: {bad} of {n} values are not finite")
    if x.dim() == 3:
        x = x.unsqueeze(1)
    elif x.dim() == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3):
        x = x.permute(0, 3, 1, 2)
    return x.contiguous(), bin_width


def box_of(x: Tensor) -> tuple[float, float]:
    """The box that chains are clamped to: the usual range of pictures, a margin around vectors.

    Raises:
        DataError: all values are one, or their range has no square in float32.
    """
    lo, hi = x.min().item(), x.max().item()
    if lo == hi:
        raise DataError(f"all values of the data are {lo:g}")
    if max(abs(lo), abs(hi)) > LARGEST or hi - lo < 1 / LARGEST:
        raise DataError(
            f"the data goes from {lo:g} to {hi:g}, whose squares float32 cannot hold: scale it"
        )
    if x.dim() == 4:  # pictures: the usual ranges, else the range of the data
        return next(
            (box for box in ((0.0, 1.0), (-1.0, 1.0)) if box[0] <= lo and hi <= box[1]), (lo, hi)
        )
    margin = 0.25 * (hi - lo)
    return lo - margin, hi + margin
