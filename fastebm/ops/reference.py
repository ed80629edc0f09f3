"""The operators once more in plain torch, float64, naive and readable: the oracle of tests and
benchmarks. The package itself never uses this module."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastebm.rng import CHOICE, HIDDEN, INIT, NOISE, TRANSITION

__all__ = [
    "INIT",
    "NOISE",
    "adjust",
    "augment",
    "augmentation_of",
    "bernoulli_sigmoid",
    "blur",
    "choose_slots",
    "langevin_step",
    "mlp_chain",
    "mlp_energy",
    "mlp_gradient",
    "normals",
    "philox4x32",
    "resized_crop",
    "words",
]

_LOW = 0xFFFFFFFF


def philox4x32(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox4x32-10 (Salmon et al. 2011): (..., 4) int64 words in [0, 2^32) -> words."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # the low 64 bits, also when the sign wraps
        c0, c1, c2, c3 = (b >> 32 & _LOW) ^ c1 ^ k0, b & _LOW, (a >> 32 & _LOW) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return torch.stack([c0, c1, c2, c3], -1)


def words(seed: int, step: int, sample_ids: Tensor, dim: int, tag: int = NOISE) -> Tensor:
    """The random words behind ``normals``: int64 (B, ceil(dim / 4), 4)."""
    n_blocks = (dim + 3) // 4
    counter = torch.empty(len(sample_ids), n_blocks, 4, dtype=torch.int64)
    counter[..., 0] = step & _LOW
    counter[..., 1] = torch.arange(n_blocks)
    counter[..., 2] = (sample_ids & _LOW)[:, None]
    counter[..., 3] = (sample_ids >> 32 & 0xFFFFFF | tag << 24)[:, None]
    return philox4x32(counter, (seed & _LOW, seed >> 32 & _LOW))


def normals(seed: int, step: int, sample_ids: Tensor, dim: int, tag: int = NOISE) -> Tensor:
    """Standard normals, float64 (B, dim): Box-Muller on each pair of words."""
    w = words(seed, step, sample_ids, dim, tag).double()
    radius = torch.sqrt(-2 * torch.log((w[..., 0::2] + 0.5) / 2**32))
    angle = 2 * math.pi * w[..., 1::2] / 2**32
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1)
    return pairs.flatten(1)[:, :dim]


def choose_slots(
    seed: int, step: int, sample_id: int, size: int, n: int, slots: Tensor
) -> tuple[Tensor, Tensor]:
    """The first ``n`` values of a random permutation of 0 .. size - 1, int64 (n,), and where among
    them ``slots`` are, or -1. Every number is a cell of a table; rounds shift its columns and its
    rows in turn, each by an amount of its own."""
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    rounds = 64 if size < 128 else 16
    key = words(seed, step, torch.tensor([sample_id]), rounds, CHOICE).flatten()
    cells = torch.arange(rows * columns)
    row, column = cells // columns, cells % columns
    for down, right in key.view(-1, 2):
        row = (row + _line_shift(column, down, rows)) % rows
        column = (column + _line_shift(row, right, columns)) % columns
    image = row * columns + column
    chosen = image[:n]
    while (chosen >= size).any():
        chosen = torch.where(chosen < size, chosen, image[chosen])
    place = torch.full((size,), -1).index_copy(0, chosen, torch.arange(n))
    inside = (slots >= 0) & (slots < size)
    return chosen, torch.where(inside, place[slots.clamp(0, size - 1)], -1)


def _line_shift(line: Tensor, word: Tensor, length: int) -> Tensor:
    """A mix of 32 bits, brought to 0 .. length - 1."""
    h = (line + word) & _LOW
    h = (h ^ h >> 16) * 0x7FEB352D & _LOW
    h = (h ^ h >> 15) * 0x846CA68B & _LOW
    return (h ^ h >> 16) * length >> 32


def bernoulli_sigmoid(
    logits: Tensor, seed: int, step: int, sample_ids: Tensor, beta: float = 1.0, tag: int = HIDDEN
) -> tuple[Tensor, Tensor]:
    """``u < sigmoid(beta * logits)``, float64 (B, dim), and how far u is from the sigmoid, in
    shares of the smaller of p and 1 - p: where it is near, rounding may decide otherwise."""
    a = beta * logits.double()
    w = words(seed, step, sample_ids, logits.shape[1], tag).flatten(1)[:, : logits.shape[1]]
    u = ((w >> 1) + 0.5) / 2**31
    u = torch.where(a < 0, u, 1 - (((w ^ _LOW) >> 1) + 0.5) / 2**31)
    p = a.sigmoid()
    return (u < p).double(), (u - p).abs() / torch.where(a < 0, p, (-a).sigmoid())


def langevin_step(
    x: Tensor,
    grad: Tensor,
    step_size: float | Tensor,
    noise_std: float | Tensor,
    noise: Tensor,
    *,
    grad_clip: float | None = None,
    grad_norm_clip: float | None = None,
    clamp: tuple[float | None, float | None] | None = None,
) -> Tensor:
    """``clamp(x - step_size * clip(grad) + noise_std * noise)`` with the noise given."""
    rows = (-1,) + (1,) * (x.dim() - 1)
    if isinstance(step_size, Tensor):
        step_size = step_size.reshape(rows)
    if isinstance(noise_std, Tensor):
        noise_std = noise_std.reshape(rows)
    if grad_norm_clip is not None:
        norm = grad.unsqueeze(-1).flatten(1).norm(dim=1).reshape(rows)
        grad = grad * torch.where(norm > grad_norm_clip, grad_norm_clip / norm, 1.0)
    if grad_clip is not None:
        grad = grad.clamp(-grad_clip, grad_clip)
    out = x - step_size * grad + noise_std * noise
    return out if clamp is None else out.clamp(*clamp)


def mlp_energy(network: tuple, x: Tensor) -> Tensor:
    """Energy (B,) of x (B, D) by ``(weights, biases, activation, beta, threshold)``, the first
    fields of ``plain_mlp.Network``."""
    weights, biases, activation, beta, threshold = network[:5]
    act = {
        "silu": F.silu,
        "tanh": torch.tanh,
        "relu": F.relu,
        "softplus": lambda z: F.softplus(z, beta, threshold),
        "gelu": F.gelu,
        "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    }[activation]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = act(F.linear(x, weight, bias))
    return F.linear(x, weights[-1], biases[-1])[:, 0]


def mlp_gradient(
    network: tuple,
    x: Tensor,
    n_data: int = 0,
    factor: float = 0.0,
    square_factor: float = 0.0,
    v: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``mlp_energy`` (B,), its gradient (B, D) in x, and the gradient (P,) in the parameters of
    ``sum_i c_i E(x_i) + square_factor E(x_i)^2 / 2 + v_i . dE(x_i)/dx``, c_i = factor for the first
    ``n_data`` samples, -factor for the others; a missing bias counts as one of zeros."""
    weights, biases = network[:2]
    biases = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
    weights, biases = ([p.detach().requires_grad_() for p in of] for of in (weights, biases))
    x = x.detach().requires_grad_()
    e = mlp_energy((weights, biases, *network[2:]), x)
    (grad,) = torch.autograd.grad(e.sum(), x, create_graph=True)
    total = factor * (e[:n_data].sum() - e[n_data:].sum())
    if square_factor:
        total = total + square_factor * e.square().sum() / 2
    if v is not None:
        total = total + (v * grad).sum()
    own = [p for pair in zip(weights, biases, strict=True) for p in pair]
    sums = torch.cat([g.flatten() for g in torch.autograd.grad(total, own)])
    return e.detach(), grad.detach(), sums


def mlp_chain(
    network: tuple,
    x: Tensor,
    step_sizes: Sequence[float | Tensor],
    noise_stds: Sequence[float | Tensor],
    noise: Tensor,
    noise_first: bool = False,
    **options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Langevin steps on ``mlp_energy``, one for each row of ``noise`` (K, B, D), each with the
    ``options`` of ``langevin_step``: x after them, and energy and gradient that the last step used.
    """
    for step, sigma, n in zip(step_sizes, noise_stds, noise, strict=True):
        if noise_first:
            x = langevin_step(x, torch.zeros_like(x), 0.0, sigma, n)
        x = x.detach().requires_grad_()
        e = mlp_energy(network, x)
        (grad,) = torch.autograd.grad(e.sum(), x)
        x = langevin_step(x, grad, step, 0.0 if noise_first else sigma, n, **options)
    return x.detach(), e.detach(), grad


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
        w_mid = round(height * ratio[1]) if r > ratio[1] else width
        h_mid = round(width / ratio[0]) if r < ratio[0] else height
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
