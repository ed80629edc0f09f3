"""Arrays as files hold them: the header first, the values when they are asked for."""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

NUMBERS = {"bool", "bfloat16", *(f"float{n}" for n in (16, 32, 64))}
NUMBERS |= {f"{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64)}


class DataError(ValueError):
    """A data set that cannot be used; the message is one line."""


def first_line(error: Exception) -> str:
    """The start of an error's text, or its type when it has none."""
    lines = str(error).splitlines()
    return lines[0][:120] if lines and lines[0] else type(error).__name__


def brief(value: object) -> str:
    """A value for a message: a short one as it is, a tensor by its form, others by their type."""
    if isinstance(value, Tensor):
        shape = "nested" if value.is_nested else tuple(value.shape)
        return f"{str(value.dtype).removeprefix('torch.')} {shape}"
    plain = value is None or isinstance(value, (bool, float, str))
    if plain or (isinstance(value, int) and value.bit_length() < 200):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:80]}..."
    return type(value).__name__


@dataclass(frozen=True)
class StoredArray:
    """An array of a file whose values have not been read yet.

    Attributes:
        shape: by the header.
        dtype: name of its type, such as "uint8".
        fault: why it holds no real numbers that could be read, or None.
        itemsize: bytes of one value.
        read: gives the values, as uint8, float32 or float64 if they were NumPy's.
    """

    shape: tuple[int, ...]
    dtype: str
    fault: str | None
    itemsize: int
    read: Callable[[], Tensor]


def load_tensors(path: Path, mmap: bool = False):
    """`torch.load` of tensors, numbers, text and their containers, to the CPU; runs no code, and
    takes no more memory than the file is long. With `mmap`, values are read as they are used.

    Raises:
        ValueError: the file holds something else. Torch's own text is about its switches.
        Exception: torch's, for a damaged file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile:
        raise ValueError("not a file of torch.save, or of one before torch 1.6") from None
    size = sum(e.file_size for e in entries)
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or size > os.path.getsize(path):
        raise ValueError("not a file of torch.save, which compresses nothing")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise ValueError("not a file of torch.save, or one that holds more than tensors") from None


def open_arrays(path: Path) -> StoredArray | dict[str, StoredArray]:
    """The array of a .npy or .pt file, or those of a .npz or .pt file by name; reads headers.

    Raises:
        DataError: the file cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return _of_numpy(file, os.path.getsize(path), lambda: path.open("rb"))
        if path.suffix == ".npz":
            return _of_archive(path)
        content = load_tensors(path, mmap=True)
        if isinstance(content, dict):
            return {str(name)[:40]: _of_torch(value) for name, value in content.items()}
        return _of_torch(content)
    except Exception as error:  # the readers raise a dozen types; the user needs one line
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from None


def _of_archive(path: Path) -> dict[str, StoredArray]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():

            def reopen(name=entry.filename) -> BinaryIO:
                return zipfile.ZipFile(path).open(name)

            try:
                with archive.open(entry) as file:
                    array = _of_numpy(file, entry.file_size, reopen)
            except Exception as error:  # one that is not used may be damaged
                array = _unusable(f"cannot be read ({first_line(error)})")
            found[entry.filename.removesuffix(".npy")[:40]] = array
    return found


def _unusable(fault: str, dtype: str = "none", shape: tuple[int, ...] = ()) -> StoredArray:
    return StoredArray(shape, dtype, fault, 0, lambda: torch.empty(0))


def _of_numpy(file: BinaryIO, size: int, reopen: Callable[[], BinaryIO]) -> StoredArray:
    """The array at the start of `file`, `size` bytes long with its header."""
    major, _ = npy.read_magic(file)
    header = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
    shape, _, dtype = header(file)
    if dtype.kind not in "fiub":
        return _unusable(f"is of dtype {str(dtype)[:40]}, not numbers", str(dtype), shape)
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size - file.tell() < expected:
        fault = f"should have {expected} bytes by its shape {shape}, has {size - file.tell()}"
        return _unusable(fault, str(dtype), shape)

    def read() -> Tensor:
        with reopen() as file:
            array = npy.read_array(file, allow_pickle=False)
        # torch lacks the wider unsigned types and foreign byte orders
        plain = array.dtype in (np.uint8, np.float32)
        return torch.from_numpy(array if plain else array.astype(float))

    return StoredArray(shape, str(dtype), None, dtype.itemsize, read)


def _of_torch(value: object) -> StoredArray:
    if not isinstance(value, Tensor):
        return _unusable(f"is of type {type(value).__name__}, not a tensor")
    dtype = str(value.dtype).removeprefix("torch.")
    kinds = {"nested": value.is_nested, "meta": value.is_meta, "quantised": value.is_quantized}
    kinds[str(value.layout).removeprefix("torch.")] = value.layout != torch.strided
    for kind in (k for k, is_it in kinds.items() if is_it):
        return _unusable(f"is a {kind} tensor, not a dense one", dtype)
    shape = tuple(value.shape)
    if dtype not in NUMBERS:
        return _unusable(f"is of dtype {dtype}, not real numbers", dtype, shape)
    return StoredArray(shape, dtype, None, value.element_size(), lambda: value.detach().clone())
