"""Reading arrays of samples from files, checked."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ARRAY_KEYS = ("x_train", "x", "X", "data", "images")  # looked for in an archive, in this order
MIN_SAMPLES = 40  # so that the training part of a file has 32


class DataError(ValueError):
    """A data set that cannot be used; the message is one line."""


def first_line(error: Exception) -> str:
    """The start of an error's text, or its type when it has none."""
    lines = str(error).splitlines()
    return lines[0][:120] if lines and lines[0] else type(error).__name__


def load_tensors(path: Path):
    """`torch.load` of tensors, numbers, text and their containers, to the CPU; runs no code.

    Raises:
        ValueError: the file holds something else. Torch's own text is about its switches.
        Exception: torch's, for a damaged file.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("not a file of torch.save, or one that holds more than tensors") from None


class Arrays(NamedTuple):
    """What a file holds: x (N, *event) float32; test, of the same event, or None; labels (N,) int64
    or None; bin_width, 1/256 of uint8 arrays and 0 of others."""

    x: Tensor
    test: Tensor | None
    labels: Tensor | None
    bin_width: float


def read_arrays(path: Path) -> Arrays:
    """Samples of a .npz, .npy or .pt file: one array, or `x_train` with `x_test` and `y_train`.

    Raises:
        DataError: unreadable, not numbers, wrong shape, not finite.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if path.suffix == ".pt":
            content = load_tensors(path)
        else:
            content = np.load(path, allow_pickle=False)
            content = dict(content) if path.suffix == ".npz" else content
    except Exception as error:  # the readers raise a dozen types; the user needs one line
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from None
    if not isinstance(content, dict):
        x, bin_width = _samples(path, content)
        return Arrays(x, None, None, bin_width)
    key = next((k for k in ARRAY_KEYS if k in content), None)
    if key is None and len(content) == 1:
        key = next(iter(content))
    if key is None and "x_test" in content:
        key = "x_test"
    if key is None:
        raise DataError(
            f"{path}: holds {', '.join(map(str, content)) or 'nothing'};"
            f" expected one array, or one called {', '.join(ARRAY_KEYS)}"
        )
    x, bin_width = _samples(path, content[key])
    if key != "x_train":
        return Arrays(x, None, None, bin_width)
    labels = _labels(path, content.get("y_train"), len(x))
    if "x_test" not in content:
        return Arrays(x, None, labels, bin_width)
    test, test_width = _samples(path, content["x_test"])
    if test.shape[1:] != x.shape[1:]:
        raise DataError(
            f"{path}: x_train is {tuple(x.shape[1:])} a sample, x_test {tuple(test.shape[1:])}"
        )
    if test_width != bin_width:
        raise DataError(f"{path}: one of x_train and x_test is uint8, the other is not")
    return Arrays(x, test, labels, bin_width)


def _labels(path: Path, array, n: int) -> Tensor | None:
    if array is None:
        return None
    labels = torch.as_tensor(np.asarray(array).astype(np.int64)).reshape(-1)
    if len(labels) != n or labels.min() < 0:
        raise DataError(f"{path}: y_train must be {n} classes from 0, got {len(labels)} numbers")
    return labels


def _samples(path: Path, array) -> tuple[Tensor, float]:
    """Check an array and bring it to float32 (N, D) or (N, C, H, W); with the width of its bins.

    uint8 q stands for the values from q/256 to (q + 1)/256 and becomes the middle of them.
    """
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in "fiub":
            raise DataError(f"{path}: dtype {array.dtype} is not a number type")
        # torch lacks the wider unsigned types and foreign byte orders
        array = torch.from_numpy(
            array if array.dtype in (np.uint8, np.float32) else array.astype(float)
        )
    if not isinstance(array, Tensor) or array.is_complex() or array.is_sparse:
        raise DataError(f"{path}: expected a dense real tensor, got {type(array).__name__}")
    shape = tuple(array.shape)
    if array.dim() not in (2, 3, 4) or len(array) < MIN_SAMPLES or 0 in shape:
        raise DataError(
            f"{path}: shape {shape}; expected (N, D), (N, H, W), (N, C, H, W) or (N, H, W, C)"
            f" with N >= {MIN_SAMPLES}"
        )
    bin_width = 1 / 256 if array.dtype == torch.uint8 else 0.0
    x = (array.float() + 0.5) / 256 if bin_width else array.float()
    if not x.isfinite().all():
        bad = int((~x.isfinite()).sum())
        raise DataError(f"{path}: {bad} of {x.numel()} values are not finite")
    if x.dim() == 3:
        x = x.unsqueeze(1)
    elif x.dim() == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3):
        x = x.permute(0, 3, 1, 2)
    return x.contiguous(), bin_width


def box_of(x: Tensor) -> tuple[float, float]:
    """The box that chains are clamped to: the usual range of pictures, a margin around vectors."""
    lo, hi = x.min().item(), x.max().item()
    if lo == hi:
        raise DataError(f"all values of the data are {lo:g}")
    if x.dim() == 4:  # pictures: the usual ranges, else the range of the data
        return next(
            (box for box in ((0.0, 1.0), (-1.0, 1.0)) if box[0] <= lo and hi <= box[1]), (lo, hi)
        )
    margin = 0.25 * (hi - lo)
    return lo - margin, hi + margin
