"""What the networks are made of: activations, starting weights, constraints on weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fastebm.arguments import sizes

ACTIVATIONS = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}


def activation(name: str) -> nn.Module:
    """An activation by name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()


def start(net: nn.Module, spectral_norm: bool) -> None:
    """Weights of variance 2 / fan_in for every linear and convolutional layer, in place; with
    ``spectral_norm`` torch's parametrisation of each, which divides a weight by its norm.

    With torch's own start, six times smaller in variance, the energy is so smooth that a thousand
    training steps do not resolve the modes of a 2-D ring.
    """
    for layer in net.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if spectral_norm:
        constrain(net)


def constrain(net: nn.Module) -> None:
    """``torch.nn.utils.parametrizations.spectral_norm`` of every linear and convolutional layer.

    Its power iteration advances in training mode only, so not while chains run. The norm of a
    convolution is that of its weight as a matrix (out, in * kh * kw).

    Source: Miyato, Kataoka, Koyama, Yoshida, Spectral normalization for generative adversarial
    networks, 2018.
    """
    for layer in list(net.modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            parametrizations.spectral_norm(layer)


class WeightStandardization(nn.Module):
    """A parametrisation: weights of mean 0 and variance ``1 / fan_in`` in each output channel.

    (out, in, kh, kw) -> the same shape; a channel keeps the scale of inputs of variance 1. Chains
    compute it once, not once a step (see ``fastebm.energies.sampling_mode.sampling_mode``).

    Source: Qiao, Wang, Liu, Shen, Yuille, Micro-batch training with batch-channel normalization and
    weight standardization, 2019; the scale: Brock, De, Smith, Characterizing signal propagation to
    close the performance gap in unnormalized ResNets, 2021.
    """

    eps = 1e-5  # far below the variance, 1 / fan_in <= 1e-1, of the weights that nets start with

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        var, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
        scale = torch.rsqrt(var * rows.shape[1] + self.eps)
        return ((rows - mean) * scale).view_as(weight)


def check_event(x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless ``x`` is (B, *shape)."""
    if x.shape[1:] != shape:
        raise ValueError(f"x must be (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}")


def check_image_shape(shape: tuple[int, int, int], least: int) -> tuple[int, int, int]:
    """``shape`` as a tuple (C, H, W) of ints, H and W at least ``least``."""
    shape = sizes("shape", shape)
    if len(shape) != 3:
        raise ValueError(f"shape must be (C, H, W), three integers >= 1, got {shape}")
    if min(shape[1:]) < least:
        raise ValueError(f"shape must have H and W of at least {least}, got {shape}")
    return shape


def halvings(shape: tuple[int, int, int], until: int) -> int:
    """How often H and W are halved, rounding down, until the smaller is below ``until``."""
    return (min(shape[1:]) // until).bit_length()
