"""Gradients of the energy of a small perceptron in its parameters, by formulas: no graph."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops import library
from fastebm.ops.mlp.network import Network


def mlp_gradient(
    network: Network,
    x: Tensor,
    *,
    n_data: int = 0,
    factor: float = 0.0,
    square_factor: float = 0.0,
    v: Tensor | None = None,
    sums: Tensor | None = None,
    grad: Tensor | None = None,
    to_row_bias: Tensor | None = None,
) -> Tensor:
    """Energies of a small perceptron, and the gradient in its parameters of
    ``sum_i c_i E(x_i) + square_factor E(x_i)^2 / 2 + v_i . dE(x_i)/dx``, c_i = factor for the first
    ``n_data`` samples, and -factor for the others; on a CPU.

    Exact up to float32 rounding, second derivatives included. The same bits for any number of
    threads.

    Args:
        network: the energy, float32 on a CPU; ``plain_mlp`` makes one of a module.
        x: (B, D) float32, contiguous, as are v and grad.
        v: (B, D), or None for zeros.
        sums: (P,) float32, or None: the gradient is added to it. P counts the parameters: of each
            layer its weights, row by row, then its biases (also of a layer that has none).
        grad: (B - n_data, D), or None: gets dE/dx of the samples after the data.
        to_row_bias: (B, width_1) float32, contiguous, with ``sums``, or None: the gradient in
            ``network.row_bias`` is added to it.

    Returns:
        The energies (B,).

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit.
    """
    library.check_overwritten("mlp_gradient", sums=sums, grad=grad, to_row_bias=to_row_bias)
    return library.call(
        library.op.mlp_gradient.default,
        *(x, *network.arguments, n_data, factor, square_factor, v, sums, grad, to_row_bias),
    )


def with_gradient(
    value: Tensor, network: Network, sums: Tensor, *row_biases: tuple[Tensor, Tensor]
) -> Tensor:
    """``value``, 0-d, as what has the gradient ``sums`` (see ``mlp_gradient``) in the network's
    parameters, and in each of ``row_biases`` the one beside it; differentiable once: with
    create_graph=True it raises a RuntimeError."""
    sizes = [n for w in network.weights for n in (w.numel(), len(w))]
    of = [*network.parameters, *(row_bias for row_bias, _ in row_biases)]
    with torch.enable_grad():
        return _WithGradient.apply(value, sums, sizes, [g for _, g in row_biases], *of)


class _WithGradient(torch.autograd.Function):
    """A value whose gradient was computed with it."""

    @staticmethod
    def forward(ctx, value, sums, sizes, of_rows, *of):
        ctx.sums, ctx.sizes, ctx.of_rows = sums, sizes, of_rows
        ctx.shapes = [t if t is None else t.shape for t in of]
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # once_differentiable would hand out constants, and say nothing
            raise RuntimeError(
                "a loss by formulas has no gradient with create_graph=True: give its sampler"
                ' backend="eager"'
            )
        parts = [*(grad * ctx.sums).split(ctx.sizes), *(grad * g for g in ctx.of_rows)]
        wanted = zip(parts, ctx.shapes, ctx.needs_input_grad[4:], strict=True)
        own = (g.view(shape) if need else None for g, shape, need in wanted)
        return None, None, None, None, *own


@torch.library.register_fake("fastebm::mlp_gradient")
def _(x, *rest):
    torch._check(x.dim() == 2, lambda: f"x must be (B, D), got {tuple(x.shape)}")
    torch._check(x.dtype == torch.float32, lambda: f"x must be float32, got {x.dtype}")
    return x.new_empty(x.shape[:1])


library.record_no_gradient("fastebm", "mlp_gradient")
