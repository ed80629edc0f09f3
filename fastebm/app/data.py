"""Data sets of the application: named synthetic laws, scikit-learn's digits, or a file."""

from __future__ import annotations

import hashlib
import importlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastebm.app.arrays import MIN_SAMPLES, Arrays, box_of, read_arrays
from fastebm.app.stored import DataError, first_line

__all__ = ["DataError", "Dataset", "MissingExtra", "first_line", "load", "need"]


class MissingExtra(ImportError):
    """An optional package that is not installed; the message says how to get it."""


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
        bin_width: 1/256 of samples that were uint8: q became (q + 1/2) / 256, the middle of the
            values it stands for; training draws one of these values at each visit. 0 of others.
        labels: (len(train),) int64 classes of the training samples, or None.
        no_labels: why there are none.
    """

    name: str
    train: Tensor
    test: Tensor
    clamp: tuple[float, float]
    centres: Tensor | None = None
    std: float | None = None
    n_modes: int = 0
    bin_width: float = 0.0
    labels: Tensor | None = None
    no_labels: str = "it has none"

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

    def clamp_share(self) -> Tensor:
        """Share of the training samples' elements within 1/200 of the box of one of its faces."""
        lo, hi = self.clamp
        x, edge = self.train[:2000], (hi - lo) / 200
        return ((x <= lo + edge) | (x >= hi - edge)).float().mean()

    def bits(self, x: Tensor, seed: int) -> Tensor:
        """Samples x (N, *event) of this set as 0 and 1, drawn with their values as probabilities;
        a q that was uint8 has q / 255 (its middle of a bin would light black pixels).

        Raises:
            DataError: values are outside [0, 1].
        """
        p = (x - self.bin_width / 2) / (1 - self.bin_width)
        if not bool(((p > -1e-6) & (p < 1 + 1e-6)).all()):
            lo, hi = float(x.min()), float(x.max())
            raise DataError(f"{self.name}: bits need values in [0, 1], got {lo:g} to {hi:g}")
        g = torch.Generator(x.device).manual_seed(seed)
        return torch.bernoulli(p.clamp(0, 1), generator=g)

    def fingerprint(self) -> str:
        """Hash of the training samples: a resumed run must see the same ones."""
        return hashlib.sha256(self.train.flatten().numpy()).hexdigest()[:16]


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


MOST_VALUES = 1 << 26  # of a synthetic set: so much is drawn at once
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
        digits = Arrays(x, None, torch.from_numpy(bunch.target), "", 0.0)
        return _real(name, digits, (0.0, 1.0), samples, seed)
    path = Path(name)
    if path.suffix not in (".npz", ".npy", ".pt"):
        raise DataError(
            f"unknown data {name!r}: expected one of {', '.join(NAMES)} or a .npz, .npy, .pt file"
        )
    arrays = read_arrays(path)
    return _real(name, arrays, box_of(arrays.x), samples, seed)


def _synthetic(name: str, samples: int, dim: int, seed: int) -> Dataset:
    if max(samples, 2000) * dim > MOST_VALUES:
        raise DataError(f"samples={samples} of dim={dim} are more than {MOST_VALUES} values")
    centres, std, clamp, n_modes = _law(name, dim)
    g = torch.Generator().manual_seed(seed)

    def draw(n: int) -> Tensor:
        c = centres[torch.randint(len(centres), (n,), generator=g)]
        return (c + std * torch.randn(c.shape, generator=g)).clamp(*clamp)

    return Dataset(name, draw(samples), draw(2000), clamp, centres, std, n_modes)


def _real(
    name: str, arrays: Arrays, clamp: tuple[float, float], samples: int | None, seed: int
) -> Dataset:
    x, test, labels, no_labels, bin_width = arrays
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    if test is None:
        n_test = len(x) // 5
        test, order = x[order[:n_test]], order[n_test:]
    if samples is not None and samples > len(order):
        raise DataError(f"samples={samples}, but {name} has only {len(order)} training samples")
    order = order[:samples]
    labels = None if labels is None else labels[order]
    test = test.clamp(*clamp)
    known = {"bin_width": bin_width, "labels": labels, "no_labels": no_labels}
    return Dataset(name, x[order], test, clamp, **known)
