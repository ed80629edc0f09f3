"""Data sets of the application: named synthetic laws, scikit-learn's digits, or a file."""

from __future__ import annotations

import hashlib
import importlib
import math
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ARRAY_KEYS = ("x_train", "x", "X", "data", "images")  # looked for in an archive, in this order
MIN_SAMPLES = 40  # so that the training part of a file has 32


class DataError(ValueError):
    """A data set that cannot be used; the message is one line."""


class MissingExtra(ImportError):
    """An optional package that is not installed; the message says how to get it."""


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


def need(module: str):
    """Import an optional module, or say in one line how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(f'{error.name} is needed here: pip install "fastebm[app]"') from None


@dataclass(frozen=True)
class Dataset:
    """Training and test samples and what is known about their law.

    Attributes:
        train, test: (N, *event) float32 samples.
        clamp: box (lo, hi) every coordinate lies in; chains are clamped to it.
        centres, std: the exact law when known, an equal-weight mixture of Gaussians N(c, std^2 I),
            c one of the (M, D) centres.
        n_modes: number of well separated modes (= M), 0 when modes are not to be counted.
    """

    name: str
    train: Tensor
    test: Tensor
    clamp: tuple[float, float]
    centres: Tensor | None = None
    std: float | None = None
    n_modes: int = 0

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.train.shape[1:])

    @property
    def is_image(self) -> bool:
        return self.train.dim() == 4

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log density, (N, D) -> (N,) in float64. Only for sets with `centres`."""
        if self.centres is None:
            raise DataError(f"the density of {self.name!r} is not known")
        d = torch.cdist(x.double(), self.centres.double())
        log_kernel = torch.logsumexp(-0.5 * (d / self.std) ** 2, dim=1) - math.log(
            len(self.centres)
        )
        return log_kernel - x.shape[1] * math.log(self.std * math.sqrt(2 * math.pi))

    def fingerprint(self) -> str:
        """Hash of the training samples: a resumed run must see the same ones."""
        return hashlib.sha256(self.train.contiguous().numpy().tobytes()).hexdigest()[:16]


def _circle(radius: float, n: int, turn: float = 2 * math.pi, phase: float = 0.0) -> Tensor:
    angle = phase + turn * torch.arange(n) / n
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1)


def _law(name: str, dim: int) -> tuple[Tensor, float, tuple[float, float], int]:
    """Centres, std, box and number of countable modes of a synthetic set."""
    if name == "gaussian":
        return torch.zeros(1, dim), 1.0, (-6.0, 6.0), 0
    if name == "ring":
        return _circle(2.0, 8), 0.15, (-4.0, 4.0), 8
    if name == "25gaussians":
        side = torch.arange(5) - 2.0
        return torch.cartesian_prod(side, side), 0.1, (-4.0, 4.0), 25
    if name == "rings":  # centres so close (0.07 < std) that the mixture is the smooth ring
        return torch.cat([_circle(r, 256) for r in (1.0, 2.0, 3.0)]), 0.12, (-4.0, 4.0), 0
    half = math.pi / 256 / 2
    upper = _circle(1.0, 256, math.pi, half)
    lower = torch.tensor([1.0, 0.5]) - upper
    moons = (torch.cat([upper, lower]) - torch.tensor([0.5, 0.25])) * 1.5
    return moons, 0.15, (-4.0, 4.0), 0


SYNTHETIC = ("ring", "gaussian", "25gaussians", "rings", "moons")
NAMES = ("digits", *SYNTHETIC)


def load(name: str, samples: int | None = None, dim: int | None = None, seed: int = 0) -> Dataset:
    """A named set or a file, with a test part.

    Args:
        name: one of `NAMES` ("ring8" is "ring"), or a path to .npz, .npy or .pt.
        samples: number of training samples; None: 10 000 of a synthetic set, all of the others.
        dim: dimension of "gaussian" (default 2); the other sets have their own.
        seed: of the samples drawn and of the split.

    Returns:
        Dataset. Synthetic sets draw their test part afresh; digits and files without an "x_test"
        array are split 80:20.

    Raises:
        DataError: unknown name, unreadable, wrong-shaped or non-finite file, bad number.
    """
    if samples is not None and samples < MIN_SAMPLES:
        raise DataError(f"samples must be at least {MIN_SAMPLES}, got {samples}")
    if dim is not None and dim < 1:
        raise DataError(f"dim must be at least 1, got {dim}")
    name = "ring" if name == "ring8" else name
    if dim is not None and name != "gaussian":
        raise DataError(f"dim is an option of 'gaussian' only, got dim={dim} with {name!r}")
    if name in SYNTHETIC:
        return _synthetic(name, 10_000 if samples is None else samples, dim or 2, seed)
    if name == "digits":
        bunch = need("sklearn.datasets").load_digits()
        x = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
        return _real(name, x, None, (0.0, 1.0), samples, seed)
    path = Path(name)
    if path.suffix not in (".npz", ".npy", ".pt"):
        raise DataError(
            f"unknown data {name!r}: expected one of {', '.join(NAMES)} or a .npz, .npy, .pt file"
        )
    x, test = _read(path)
    return _real(name, x, test, _box(x), samples, seed)


def _synthetic(name: str, samples: int, dim: int, seed: int) -> Dataset:
    centres, std, clamp, n_modes = _law(name, dim)
    g = torch.Generator().manual_seed(seed)

    def draw(n: int) -> Tensor:
        c = centres[torch.randint(len(centres), (n,), generator=g)]
        return (c + std * torch.randn(c.shape, generator=g)).clamp(*clamp)

    return Dataset(name, draw(samples), draw(2000), clamp, centres, std, n_modes)


def _real(
    name: str,
    x: Tensor,
    test: Tensor | None,
    clamp: tuple[float, float],
    samples: int | None,
    seed: int,
) -> Dataset:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    if test is None:
        n_test = len(x) // 5
        test, order = x[order[:n_test]], order[n_test:]
    if samples is not None and samples > len(order):
        raise DataError(f"samples={samples}, but {name} has only {len(order)} training samples")
    return Dataset(name, x[order[:samples]], test.clamp(*clamp), clamp)


def _read(path: Path) -> tuple[Tensor, Tensor | None]:
    """Training and, when the archive has `x_test`, test arrays of a file."""
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
        return _samples(path, content), None
    key = next((k for k in ARRAY_KEYS if k in content), None)
    if key is None and len(content) == 1:
        key = next(iter(content))
    if key is None:
        raise DataError(
            f"{path}: holds {', '.join(map(str, content)) or 'nothing'};"
            f" expected one array, or one called {', '.join(ARRAY_KEYS)}"
        )
    x = _samples(path, content[key])
    if key != "x_train" or "x_test" not in content:
        return x, None
    test = _samples(path, content["x_test"])
    if test.shape[1:] != x.shape[1:]:
        raise DataError(
            f"{path}: x_train is {tuple(x.shape[1:])} a sample, x_test {tuple(test.shape[1:])}"
        )
    return x, test


def _samples(path: Path, array) -> Tensor:
    """Check an array and bring it to float32 (N, D) or (N, C, H, W); uint8 becomes [0, 1]."""
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
    x = array.float() / 255 if array.dtype == torch.uint8 else array.float()
    if not x.isfinite().all():
        bad = int((~x.isfinite()).sum())
        raise DataError(f"{path}: {bad} of {x.numel()} values are not finite")
    if x.dim() == 3:
        x = x.unsqueeze(1)
    elif x.dim() == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3):
        x = x.permute(0, 3, 1, 2)
    return x.contiguous()


def _box(x: Tensor) -> tuple[float, float]:
    lo, hi = x.min().item(), x.max().item()
    if lo == hi:
        raise DataError(f"all values of the data are {lo:g}")
    if x.dim() == 4:  # pictures: the usual ranges, else the range of the data
        return next(
            (box for box in ((0.0, 1.0), (-1.0, 1.0)) if box[0] <= lo and hi <= box[1]), (lo, hi)
        )
    margin = 0.25 * (hi - lo)
    return lo - margin, hi + margin
