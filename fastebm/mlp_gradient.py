"""Gradients of the energy of a small perceptron in its parameters, by formulas: no graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastebm import ops
from fastebm.plain_mlp import ACTIVATIONS, Network


def mlp_gradient(
    network: Network,
    x: Tensor,
    *,
    factor: float = 0.0,
    square_factor: float = 0.0,
    v: Tensor | None = None,
    sums: Tensor | None = None,
    grad: Tensor | None = None,
) -> Tensor:
    """Energies of a small perceptron, and the gradient in its parameters of
    ``sum_i factor E(x_i) + square_factor E(x_i)^2 / 2 + v_i . dE(x_i)/dx``; on a CPU.

    Exact up to float32 rounding, second derivatives included. The order of its sums depends on the
    number of threads.

    Args:
        network: the energy, float32 on a CPU; ``plain_mlp`` makes one of a module.
        x: (B, D) float32, contiguous, as are v and grad.
        v: (B, D), or None for zeros.
        sums: (P,) float32, or None: the gradient is added to it. P counts the parameters: of each
            layer its weights, row by row, then its biases (also of a layer that has none).
        grad: (B, D), or None: gets dE/dx.

    Returns:
        The energies (B,).

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit.
    """
    return ops._op.mlp_gradient.default(
        *(x, network.weights, network.biases, ACTIVATIONS.index(network.activation)),
        *(network.beta, network.threshold, factor, square_factor, v, sums, grad),
    )


def with_gradient(value: Tensor, network: Network, sums: Tensor) -> Tensor:
    """``value``, 0-d, as what has the gradient ``sums`` (see ``mlp_gradient``) in the parameters of
    the module that the network was made of; differentiable once."""
    sizes = [n for w in network.weights for n in (w.numel(), len(w))]
    parts = sums.split(sizes)
    n_layers = len(network.weights)
    pairs = [
        (part, p)
        for layer in range(n_layers)
        for part, p in zip(
            parts[2 * layer : 2 * layer + 2], network.parameters[layer::n_layers], strict=True
        )
        if p is not None and p.requires_grad
    ]
    with torch.enable_grad():
        return _WithGradient.apply(value, [part for part, _ in pairs], *(p for _, p in pairs))


class _WithGradient(torch.autograd.Function):
    """A value whose gradient was computed with it."""

    @staticmethod
    def forward(ctx, value, gradients, *parameters):
        ctx.gradients, ctx.shapes = gradients, [p.shape for p in parameters]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        pairs = zip(ctx.gradients, ctx.shapes, strict=True)
        return None, None, *((grad * g).view(shape) for g, shape in pairs)


@torch.library.register_fake("fastebm::mlp_gradient")
def _(x, *rest):
    torch._check(x.dim() == 2, lambda: f"x must be (B, D), got {tuple(x.shape)}")
    torch._check(x.dtype == torch.float32, lambda: f"x must be float32, got {x.dtype}")
    return x.new_empty(x.shape[:1])
