"""A small perceptron as an energy: its gradients by autograd, its chains step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastebm.ops.reference.langevin import langevin_step


def mlp_energy(network: tuple, x: Tensor) -> Tensor:
    """Energy (B,) of x (B, D) by the fields of ``fastebm.ops.mlp.network.Network``, of which the
    last three may be left out or None: weights, biases, activation, beta, threshold,
    base_precision, base_mean, row_bias."""
    weights, biases, activation, beta, threshold, *rest = network
    precision, mean, row_bias = (*rest, None, None, None)[:3]
    act = {
        "silu": F.silu,
        "tanh": torch.tanh,
        "relu": F.relu,
        "softplus": lambda z: F.softplus(z, beta, threshold),
        "gelu": F.gelu,
        "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
        "leaky_relu": lambda z: F.leaky_relu(z, beta),
        "elu": lambda z: F.elu(z, beta),
    }[activation]
    first = biases[0] if row_bias is None else row_bias
    h = x
    for weight, bias in zip(weights[:-1], [first, *biases[1:-1]], strict=True):
        z = F.linear(h, weight)
        h = act(z if bias is None else z + bias)
    e = F.linear(h, weights[-1], biases[-1])[:, 0]
    if precision is not None:
        u = x if mean is None else x - mean
        e = e + (precision * u.square()).sum(1) / 2
    return e


def mlp_gradient(
    network: tuple,
    x: Tensor,
    n_data: int = 0,
    factor: float = 0.0,
    square_factor: float = 0.0,
    v: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``mlp_energy`` (B,), its gradient (B, D) in x, and the gradient (P,) in the parameters of
    ``sum_i c_i E(x_i) + square_factor E(x_i)^2 / 2 + v_i . dE(x_i)/dx``, c_i = factor for the first
    ``n_data`` samples, -factor for the others; a missing bias counts as one of zeros. Last that in
    each sample's first-layer biases (B, width_1), whose sum stands for the layer's."""
    weights, biases, activation, beta, threshold, *rest = network
    precision, mean, row_bias = (*rest, None, None, None)[:3]
    biases = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
    biases[0] = biases[0].expand(len(x), -1) if row_bias is None else row_bias
    weights, biases = (
        [p.detach().clone().requires_grad_() for p in of] for of in (weights, biases)
    )
    x = x.detach().requires_grad_()
    e = mlp_energy((weights, biases, activation, beta, threshold, precision, mean), x)
    (grad,) = torch.autograd.grad(e.sum(), x, create_graph=True)
    total = factor * (e[:n_data].sum() - e[n_data:].sum())
    if square_factor:
        total = total + square_factor * e.square().sum() / 2
    if v is not None:
        total = total + (v * grad).sum()
    own = [p for pair in zip(weights, biases, strict=True) for p in pair]
    of_own = list(torch.autograd.grad(total, own))
    of_rows, of_own[1] = of_own[1], of_own[1].sum(0)
    return e.detach(), grad.detach(), torch.cat([g.flatten() for g in of_own]), of_rows


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
