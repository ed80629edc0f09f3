"""Energy of images: a residual network with standardised weights and self-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, silu
from torch.nn.utils import parametrize

from fastebm.arguments import integer
from fastebm.energies.compose import Energy
from fastebm.energies.layers import (
    WeightStandardization,
    check_event,
    check_image_shape,
    constrain,
    halvings,
)


class ResNetEnergy(Energy):
    """Residual energy for 32x32 to 128x128 images, (B, C, H, W) -> (B,).

    A 3x3 convolution, then stages of ``blocks`` residual blocks that end in a halving, down to
    below 8 pixels (three stages at 32x32, five at 128x128), with ``width``, 2 ``width``, then 4
    ``width`` channels; self-attention at 8 to 15 pixels; SiLU, mean over pixels, a linear layer.
    Weights are standardised and every sample is normalised by itself.

    Args:
        shape: (C, H, W), H and W at least 8.
        width: channels of the first stage.
        blocks: residual blocks a stage.
        norm: "group" (32 groups, or as many as divide the channels) or "instance" (a channel each).
        attention: whether there is self-attention; it starts as the identity.
        n_classes: with it the energy is conditional, and takes labels ``y``: an int for all, or
            int64 (B,), in 0..n_classes-1; each block has gains and biases for each label, which
            start as those of no label.
        spectral_norm: as in ``MLPEnergy``, of the standardised weights; as normalisation undoes
            their scale, only the head and the attention are bounded by it.

    Raises:
        ValueError: an argument is out of its range, ``x`` is not (B, C, H, W), or ``y`` is missing
            or not wanted.

    Source: the parts that Du, Li, Tenenbaum, Mordatch, Improved contrastive divergence training of
    energy-based models, 2021, name; attention: Zhang, Goodfellow, Metaxas, Odena, Self-attention
    generative adversarial networks, 2019.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int = 64,
        blocks: int = 2,
        norm: str = "group",
        attention: bool = True,
        n_classes: int | None = None,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.shape = check_image_shape(shape, least=8)
        width, blocks = integer("width", width, 1), integer("blocks", blocks, 1)
        if norm not in ("group", "instance"):
            raise ValueError(f"norm must be group or instance, got {norm!r}")
        if n_classes is not None:
            n_classes = integer("n_classes", n_classes, 1)
        self.n_classes = n_classes
        self.stem = standardized(nn.Conv2d(shape[0], width, 3, padding=1))
        self.layers = nn.ModuleList()
        channels, side = width, min(shape[1:])
        for stage in range(halvings(self.shape, until=8)):
            if attention and side < 16:
                self.layers.append(SelfAttention(channels))
            out = width * min(2**stage, 4)
            for block in range(blocks):
                halve = block == blocks - 1
                self.layers.append(ResidualBlock(channels, out, norm, n_classes, halve))
                channels = out
            side //= 2
        self.head = nn.Linear(channels, 1)
        if spectral_norm:
            constrain(self)

    def forward(self, x: Tensor, y: int | Tensor | None = None) -> Tensor:
        check_event(x, self.shape)
        y = self._labels(x, y)
        h = self.stem(x)
        for layer in self.layers:
            h = layer(h, y)
        return self.head(silu(h).mean((2, 3))).squeeze(1)

    def _labels(self, x: Tensor, y: int | Tensor | None) -> Tensor | None:
        """Labels (B,), or (1,) for all; None without classes."""
        if (y is None) != (self.n_classes is None):
            need = "labels y" if y is None else "no y, as it was made without n_classes"
            raise ValueError(f"this energy takes {need}")
        if y is not None and not isinstance(y, Tensor):
            return torch.tensor([integer("y", y, 0, self.n_classes - 1)], device=x.device)
        if y is not None and (y.dtype != torch.int64 or y.shape != x.shape[:1]):
            raise ValueError(
                f"y must be an int, or int64 ({len(x)},), got {y.dtype} {tuple(y.shape)}"
            )
        return y


class ResidualBlock(nn.Module):
    """``x + [convolution, normalisation, gain and bias of the label, SiLU] twice``, then perhaps an
    average over 2x2 pixels; (B, C, H, W) -> (B, C', H, W) or (B, C', H // 2, W // 2)."""

    def __init__(
        self, channels: int, out: int, norm: str, n_classes: int | None, halve: bool
    ) -> None:
        super().__init__()
        self.conv1 = standardized(nn.Conv2d(channels, out, 3, padding=1, bias=False))
        self.conv2 = standardized(nn.Conv2d(out, out, 3, padding=1, bias=False))
        self.norm1 = ConditionalNorm(out, norm, n_classes)
        self.norm2 = ConditionalNorm(out, norm, n_classes)
        self.skip = nn.Identity()
        if channels != out:
            self.skip = standardized(nn.Conv2d(channels, out, 1))
        self.halve = halve

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = silu(self.norm1(self.conv1(x), y))
        h = silu(self.norm2(self.conv2(h), y))
        h = h + self.skip(x)
        return avg_pool2d(h, 2) if self.halve else h


class ConditionalNorm(nn.Module):
    """Group or instance normalisation of each sample, with a gain and a bias for each label."""

    def __init__(self, channels: int, norm: str, n_classes: int | None) -> None:
        super().__init__()
        groups = channels
        if norm == "group":
            groups = next(g for g in range(min(32, channels), 0, -1) if channels % g == 0)
        self.norm = nn.GroupNorm(groups, channels)
        self.labels = None
        if n_classes is not None:
            self.labels = nn.Embedding(n_classes, 2 * channels)
            nn.init.zeros_(self.labels.weight)

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        h = self.norm(h)
        if self.labels is None:
            return h
        gain, bias = self.labels(y)[:, :, None, None].chunk(2, 1)
        return h * (1 + gain) + bias


class SelfAttention(nn.Module):
    """``x + gamma * attention(x)`` over the pixels, gamma starting at 0; (B, C, H, W) -> the same.

    Softmax is written out, as torch's fused attention has no second derivative.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 8, 1)
        self.query = nn.Conv2d(channels, inner, 1, bias=False)
        self.key = nn.Conv2d(channels, inner, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        weights = torch.softmax(q.mT @ k * q.shape[1] ** -0.5, -1)  # (B, HW, HW), rows sum to 1
        return x + self.gamma * (v @ weights.mT).view_as(x)


def standardized(conv: nn.Conv2d) -> nn.Conv2d:
    parametrize.register_parametrization(conv, "weight", WeightStandardization())
    return conv
