"""Random augmentation of images: the transition that replayed chains make before they start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Generator, Tensor

from fastebm.arguments import integer
from fastebm.ops.replay import replay_gather
from fastebm.rng import ChainRNG, as_rng, check_sample_ids

Factor = float | tuple[float, float]
MAX_KERNEL_SIZE = 63


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop, horizontal flip, colour jitter, grayscale and Gaussian blur, in this
    order, with torchvision's names, meaning and random parameters; every sample draws its own.

    What is not asked for is left out. The random numbers are a function of the stream's key and
    step and the sample's id: the same for any device, batch split and number of threads.

    The crop is enlarged to the size of the image by bilinear interpolation with half-pixel centres.
    It is never larger than the image, so torchvision's ``antialias`` makes no difference. Colours
    are those of ``value_range``, mapped to [0, 1]; where colours change, values outside are first
    brought to its ends. Crop, flip and blur act on any values. No gradient is recorded.

    Args:
        scale: (lo, hi), area of the crop as a share of the image; None: no crop.
        ratio: (lo, hi), width over height of the crop, drawn log-uniformly. Where ten attempts do
            not fit into the image, the crop is in the middle.
        hflip_p: probability of a flip.
        brightness, contrast, saturation: a number v, the factor is uniform in
            [max(0, 1 - v), 1 + v], or (lo, hi).
        hue: a number v <= 0.5, the turn is uniform in [-v, v], or (lo, hi); in turns.
        jitter_p: probability of the four together, which are applied in random order.
        grayscale_p: probability of a grey image, of the same number of channels.
        kernel_size: of the blur, odd, the same both ways, borders reflected; None: no blur.
        sigma: a number, or (lo, hi): standard deviation of the blur in pixels, uniform.
        blur_p: probability of the blur.
        value_range: (lo, hi), what black and white are.

    Raises:
        TypeError, ValueError: an argument is not of its kind or out of its range.
    """

    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip_p: float = 0.0
    brightness: Factor = 0.0
    contrast: Factor = 0.0
    saturation: Factor = 0.0
    hue: Factor = 0.0
    jitter_p: float = 1.0
    grayscale_p: float = 0.0
    kernel_size: int | None = None
    sigma: float | tuple[float, float] = (0.1, 2.0)
    blur_p: float = 1.0
    value_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        if self.scale is not None:
            put("scale", _range("scale", self.scale, 0, 1, above=True))
        put("ratio", _range("ratio", self.ratio, 0, math.inf, above=True))
        for name in ("brightness", "contrast", "saturation"):
            put(name, _factor(name, getattr(self, name), 1.0, 0.0, math.inf))
        put("hue", _factor("hue", self.hue, 0.0, -0.5, 0.5))
        for name in ("hflip_p", "jitter_p", "grayscale_p", "blur_p"):
            put(name, _number(name, getattr(self, name), 0, 1))
        if self.kernel_size is not None:
            put("kernel_size", integer("kernel_size", self.kernel_size, 1, MAX_KERNEL_SIZE))
            if self.kernel_size % 2 == 0:
                raise ValueError(f"kernel_size must be odd, or None, got {self.kernel_size}")
        sigma = (self.sigma, self.sigma) if isinstance(self.sigma, Real) else self.sigma
        put("sigma", _range("sigma", sigma, 0, math.inf, above=True))
        lo, hi = _range("value_range", self.value_range, -math.inf, math.inf)
        if lo == hi:
            raise ValueError(f"value_range must be finite with lo < hi, got {self.value_range}")
        put("value_range", (lo, hi))

    @classmethod
    def preset(cls, name: str, value_range: tuple[float, float] = (0.0, 1.0)) -> Augmentation:
        """The transition that improved contrastive divergence was trained with on a data set.

        Args:
            name: cifar10, celeba, lsun, continual, imagenet, stl, object, mnist or moving_mnist
                (these two without any); or digits, ours: a crop and a little brightness and
                contrast, but no mirrored digits.

        Raises:
            ValueError: the name is not one of them.

        Source: the authors' training code of Du, Li, Tenenbaum and Mordatch, Improved contrastive
        divergence training of energy-based models, 2021, with its reservoir buffer.
        """
        if name not in _PRESETS:
            raise ValueError(f"name must be one of {', '.join(_PRESETS)}, got {name!r}")
        return cls(**_PRESETS[name], value_range=value_range)

    @property
    def parameters(self) -> list[float]:
        """What the operator reads; empty where there is nothing to do."""
        jitter = (*self.brightness, *self.contrast, *self.saturation, *self.hue)
        jitters = self.jitter_p > 0 and jitter != (1, 1, 1, 1, 1, 1, 0, 0)
        blurs = self.kernel_size is not None and self.blur_p > 0
        if not (self.scale or self.hflip_p or jitters or self.grayscale_p or blurs):
            return []
        return [
            *(*(self.scale or (0.0, 0.0)), *self.ratio, self.hflip_p, *jitter, self.jitter_p),
            *(self.grayscale_p, float(self.kernel_size or 0), *self.sigma, self.blur_p),
        ]

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises a ValueError naming the argument that makes no sense for samples of ``shape``."""
        if not self.parameters:
            return
        kind = f"samples of shape {tuple(shape)}"
        if len(shape) != 3:
            asked = next(n for n, on in self._asked_for().items() if on)
            raise ValueError(f"{asked} needs images (C, H, W), got {kind}")
        for name, on in self._asked_for().items():
            if not on or name in ("scale", "hflip_p", "kernel_size"):
                continue
            if shape[0] != 3 and (shape[0] != 1 or name not in ("brightness", "contrast")):
                wanted = "1 or 3 channels" if name in ("brightness", "contrast") else "3 channels"
                raise ValueError(f"{name} needs images of {wanted}, got {kind}")
        if self.kernel_size is not None and self.kernel_size // 2 >= min(shape[1:]):
            raise ValueError(
                f"kernel_size must be less than twice the shorter side, got {self.kernel_size} for"
                f" {kind}"
            )

    def _asked_for(self) -> dict[str, bool]:
        return {
            "scale": self.scale is not None,
            "hflip_p": self.hflip_p > 0,
            "brightness": self.brightness != (1, 1),
            "contrast": self.contrast != (1, 1),
            "saturation": self.saturation != (1, 1),
            "hue": self.hue != (0, 0),
            "grayscale_p": self.grayscale_p > 0,
            "kernel_size": self.kernel_size is not None,
        }

    def __call__(
        self,
        x: Tensor,
        seed: int | ChainRNG | None = None,
        generator: Generator | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """Every image of ``x`` (B, C, H, W), floating point, moved once, into a new tensor.

        Args:
            seed, generator: as in ``LangevinDynamics.sample``; a ``ChainRNG`` advances by a step.
            sample_ids: int64 (B,), whose random numbers each image gets; default: its row.
        """
        rng = as_rng(seed, generator)
        rng.check_room(1)
        out = self.transform(x, rng.state(x.device, len(x)), sample_ids=sample_ids)
        rng.advance(1)
        return out

    @torch.no_grad()
    def transform(
        self, x: Tensor, rng: Tensor, t: int = 0, sample_ids: Tensor | None = None
    ) -> Tensor:
        """``__call__`` at step ``t`` after that of ``rng``, ``ChainRNG.state(x.device)``."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be a floating-point tensor (B, C, H, W), got {kind}")
        self.check_shape(tuple(x.shape[1:]))
        check_sample_ids(sample_ids, len(x))
        index = torch.arange(len(x), device=x.device)
        wide = x if x.dtype in (torch.float32, torch.bfloat16) else x.float()
        out, _ = replay_gather(
            *(wide, index, rng),
            t=t,
            sample_ids=sample_ids,
            value_range=self.value_range,
            augmentation=self.parameters,
        )
        return out.to(x.dtype)


def _authors(smallest_crop: float, strength: float, kernel_size: int | None = None) -> dict:
    return {
        "scale": (smallest_crop, 1.0),
        "hflip_p": 0.5,
        "brightness": 0.8 * strength,
        "contrast": 0.8 * strength,
        "saturation": 0.8 * strength,
        "hue": 0.4 * strength,
        "jitter_p": 0.8,
        "grayscale_p": 0.2,
        "kernel_size": kernel_size,
        "blur_p": 0.5,
    }


_PRESETS: dict[str, dict] = {
    "cifar10": _authors(0.08, 1.0),
    "celeba": _authors(0.08, 0.5, 5),
    "lsun": _authors(0.08, 0.5, 5),
    "continual": _authors(0.08, 0.5, 5),
    "imagenet": _authors(0.6, 0.5, 11),
    "stl": _authors(0.04, 0.5, 11),
    "object": _authors(0.08, 0.5),
    "mnist": {},
    "moving_mnist": {},
    "digits": {"scale": (0.7, 1.0), "brightness": 0.2, "contrast": 0.2},
}


def _number(name: str, value: float, lo: float, hi: float) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (lo <= value <= hi and math.isfinite(value)):
        raise ValueError(f"{name} must be in [{lo}, {hi}], got {value}")
    return float(value)


def _range(name: str, value, lo: float, hi: float, above: bool = False) -> tuple[float, float]:
    """A checked pair in [lo, hi], or in (lo, hi] with ``above``."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a pair (lo, hi), got {value!r}") from None
    pair = (_number(name, first, lo, hi), _number(name, second, lo, hi))
    if pair[0] > pair[1] or (above and pair[0] <= lo):
        raise ValueError(
            f"{name} must be (lo, hi) with {lo} {'<' if above else '<='} lo <= hi, got {value}"
        )
    return pair


def _factor(name: str, value: Factor, center: float, lo: float, hi: float) -> tuple[float, float]:
    """The range of a factor: a pair, or a number around ``center``."""
    if not isinstance(value, Real):
        return _range(name, value, lo, hi)
    v = _number(name, value, 0.0, hi)
    return max(lo, center - v), center + v
