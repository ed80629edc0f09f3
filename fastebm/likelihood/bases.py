"""Laws with known normalisers, where annealed importance sampling starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastebm.arguments import sizes
from fastebm.ops.langevin import langevin_step_
from fastebm.rng import INIT, ChainRNG


@dataclass(frozen=True)
class BernoulliBase:
    """Independent bits, of an RBM without weights: ``p(x_i = 1) = sigmoid(logits_i)``.

    Attributes:
        logits: (V,).
    """

    logits: Tensor

    @classmethod
    def fit(cls, x: Tensor) -> BernoulliBase:
        """The means of x (N, V), any dtype, with one more sample of ones and one of zeros, so that
        no probability is 0 or 1."""
        mean = (x.double().sum(0) + 1) / (len(x) + 2)
        return cls(torch.logit(mean).to(_floating(x.dtype)))


@dataclass(frozen=True)
class GaussianBase:
    """Independent normal elements, ``N(mean, std^2)``.

    Attributes:
        mean: (*event), floating point; the chains have its dtype.
        std: the same, all > 0.

    Raises:
        ValueError: they are not.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape or not bool((self.std > 0).all()):
            raise ValueError(
                f"std must be > 0 and of the shape of mean, {tuple(self.mean.shape)},"
                f" got shape {tuple(self.std.shape)}, least value {float(self.std.min()):g}"
            )

    @classmethod
    def fit(cls, x: Tensor) -> GaussianBase:
        """Mean and standard deviation of each element of x (N, *event), N >= 2; no deviation less
        than a hundredth of the largest."""
        std, dtype = x.double().std(0), _floating(x.dtype)
        std = std.clamp(min=max(0.01 * float(std.max()), torch.finfo(dtype).tiny))
        return cls(x.double().mean(0).to(dtype), std.to(dtype))

    @property
    def event(self) -> torch.Size:
        return self.mean.shape

    @property
    def scale(self) -> Tensor:
        """Standard deviations (*event)."""
        return self.std

    def sample(self, n: int, rng: ChainRNG) -> Tensor:
        """(n, *event), by this step of the stream."""
        return self.mean + self.std * _normals(n, self.mean, rng)

    def energy(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """-log density (B,) float64 and its gradient (B, *event)."""
        z = (x - self.mean) / self.std
        log_scale = self.std.double().log().sum() + self.std.numel() * math.log(2 * math.pi) / 2
        return z.double().square().flatten(1).sum(1) / 2 + log_scale, z / self.std

    def inside(self, x: Tensor) -> Tensor:
        """Where the density is not 0, bool (B,): everywhere."""
        return torch.ones(len(x), dtype=torch.bool, device=x.device)


@dataclass(frozen=True)
class UniformBase:
    """Independent elements, uniform between ``lo`` and ``hi``. The target is restricted to that
    box: its Z is the integral of ``exp(-E)`` over it.

    Attributes:
        lo: (*event), floating point; the chains have its dtype.
        hi: the same, all > lo.

    Raises:
        ValueError: they are not.
    """

    lo: Tensor
    hi: Tensor

    def __post_init__(self) -> None:
        if self.lo.shape != self.hi.shape or not bool((self.lo < self.hi).all()):
            raise ValueError(
                f"lo must be < hi and of its shape, got shapes {tuple(self.lo.shape)} and"
                f" {tuple(self.hi.shape)}"
            )

    @classmethod
    def box(cls, lo: float, hi: float, event: int | tuple[int, ...]) -> UniformBase:
        """The same sides for every element, float32."""
        sides = (torch.full(sizes("event", event), v, dtype=torch.float32) for v in (lo, hi))
        return cls(*sides)

    @property
    def event(self) -> torch.Size:
        return self.lo.shape

    @property
    def scale(self) -> Tensor:
        """Standard deviations (*event)."""
        return (self.hi - self.lo) / math.sqrt(12)

    def sample(self, n: int, rng: ChainRNG) -> Tensor:
        """(n, *event), by this step of the stream."""
        u = torch.special.ndtr(_normals(n, self.lo, rng))
        return self.lo + (self.hi - self.lo) * u

    def energy(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """-log density in the box (B,) float64 and its gradient (B, *event), which is 0."""
        volume = (self.hi - self.lo).double().log().sum()
        return volume.expand(len(x)), torch.zeros_like(x)

    def inside(self, x: Tensor) -> Tensor:
        """Where the density is not 0, bool (B,)."""
        return ((x >= self.lo) & (x <= self.hi)).flatten(1).all(1)


def _floating(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a base fitted to data of ``dtype``: counts and bits are none for it."""
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def _normals(n: int, like: Tensor, rng: ChainRNG) -> Tensor:
    z = torch.zeros((n, *like.shape), dtype=like.dtype, device=like.device)
    return langevin_step_(z, None, 0.0, 1.0, rng.state(z.device, len(z)), tag=INIT)
