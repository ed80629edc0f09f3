"""The moves of images: what is drawn for one, and each move."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastebm.ops.reference.random import words
from fastebm.rng import TRANSITION


def augmentation_of(parameters: list[float], seed: int, step: int, sample: int, shape) -> dict:
    """What ``Augmentation.parameters`` come to for one sample (C, H, W), drawn as torchvision's
    RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale and GaussianBlur do."""
    scale, ratio, (hflip_p,), *jitter, (jitter_p, grayscale_p, size), sigma, (blur_p,) = (
        parameters[i:j]
        for i, j in ((0, 2), (2, 4), (4, 5), (5, 7), (7, 9), (9, 11), (11, 13), (13, 16), (16, 18))
        + ((18, 19),)
    )
    w = words(seed, step, torch.tensor([sample]), 52, TRANSITION)[0].tolist()
    u = [[v / 2**32 for v in block] for block in w]
    within = lambda pair, share: pair[0] + (pair[1] - pair[0]) * share  # noqa: E731
    height, width = shape[-2:]
    crop = (0, 0, height, width)
    if scale[1] > 0:
        r = width / height
        w_mid = max(1, round(height * ratio[1])) if r > ratio[1] else width
        h_mid = max(1, round(width / ratio[0])) if r < ratio[0] else height
        crop = ((height - h_mid) // 2, (width - w_mid) // 2, h_mid, w_mid)
        for area, log_ratio, top, left in u[3:13]:
            target = height * width * within(scale, area)
            aspect = math.exp(within([math.log(v) for v in ratio], log_ratio))
            cw, ch = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < cw <= width and 0 < ch <= height:
                crop = (int(top * (height - ch + 1)), int(left * (width - cw + 1)), ch, cw)
                break
    colors, digits = [], int(u[0][3] * 24)
    if u[0][2] < jitter_p:
        order = ["brightness", "contrast", "saturation", "hue"]
        names = list(order)
        for i in range(4):
            digits, j = divmod(digits, 4 - i)
            order[i], order[i + j] = order[i + j], order[i]
            k = names.index(order[i])
            if tuple(jitter[k]) != ((0, 0) if order[i] == "hue" else (1, 1)):
                colors.append((order[i], within(jitter[k], u[1][k])))
    if u[2][0] < grayscale_p:
        colors.append(("grayscale", 0.0))
    sigma = within(sigma, u[2][2]) if size and u[2][1] < blur_p else None
    return {
        "crop": crop,
        "flip": u[0][1] < hflip_p,
        "colors": colors,
        "kernel_size": int(size),
        "sigma": sigma,
    }


def augment(x: Tensor, drawn: dict, value_range: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """One image (C, H, W) moved by what ``augmentation_of`` drew, float64."""
    x = resized_crop(x.double(), *drawn["crop"])
    if drawn["flip"]:
        x = x.flip(-1)
    if drawn["colors"]:
        lo, hi = value_range
        x = ((x - lo) / (hi - lo)).clamp(0, 1)
        for name, factor in drawn["colors"]:
            x = adjust(x, name, factor)
        x = lo + x * (hi - lo)
    return x if drawn["sigma"] is None else blur(x, drawn["kernel_size"], drawn["sigma"])


def resized_crop(
    x: Tensor, top: int, left: int, height: int, width: int, antialias: bool = False
) -> Tensor:
    """The crop of an image, enlarged to the image's size: bilinear, half-pixel centres."""
    crop = x[None, :, top : top + height, left : left + width]
    size = tuple(x.shape[-2:])
    resize = torch.nn.functional.interpolate
    return resize(crop, size, mode="bilinear", align_corners=False, antialias=antialias)[0]


def adjust(x: Tensor, name: str, factor: float) -> Tensor:
    """brightness, contrast, saturation, hue or grayscale of an image (C, H, W) in [0, 1]."""
    gray = x if x.shape[0] == 1 else (x[0] * 0.2989 + x[1] * 0.587 + x[2] * 0.114).expand_as(x)
    if name == "grayscale":
        return gray.clone()
    if name == "hue":
        return _turn_hue(x, factor)
    other = {"brightness": 0.0, "contrast": gray.mean(), "saturation": gray}[name]
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def _turn_hue(x: Tensor, turn: float) -> Tensor:
    """To hue, saturation, value, and back (Foley and van Dam)."""
    if x.shape[0] == 1 or turn == 0:
        return x
    r, g, b = x
    v, low = x.max(0).values, x.min(0).values
    chroma = v - low
    s = torch.where(chroma > 0, chroma / v, 0.0)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    h = torch.where(v == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor)
    h = torch.where(v == r, (g - b) / divisor, h)
    h = (h / 6 + turn) % 1.0
    sector = (h * 6).floor()
    f = h * 6 - sector
    p, q, t = v * (1 - s), v * (1 - s * f), v * (1 - s * (1 - f))
    table = ((v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q))
    choices = torch.stack([torch.stack(colors) for colors in table])
    which = (sector.long() % 6).expand(1, 3, *sector.shape)
    return choices.gather(0, which)[0]


def blur(x: Tensor, kernel_size: int, sigma: float) -> Tensor:
    """Gaussian blur of an image (C, H, W), reflected borders."""
    half = kernel_size // 2
    at = torch.arange(-half, half + 1, dtype=torch.float64) / sigma
    weight = torch.exp(-(at**2) / 2)
    weight = weight / weight.sum()
    padded = torch.nn.functional.pad(x[:, None].double(), (half,) * 4, mode="reflect")
    return torch.nn.functional.conv2d(padded, torch.outer(weight, weight)[None, None])[:, 0]
