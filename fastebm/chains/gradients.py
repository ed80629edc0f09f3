"""The energy and its gradient at points, as chains of any kind ask for them once a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastebm.chains.adjusted import Points
from fastebm.chains.mlp_chain import mlp_chain
from fastebm.energies.protocol import input_gradient, uncached_casts
from fastebm.energies.sampling_mode import sampling_mode
from fastebm.ops.mlp.gradient import mlp_gradient
from fastebm.ops.mlp.network import Network

GradientAt = Callable[[Tensor], tuple[Tensor, Tensor]]  # (B, *event) -> grad, energies (B,)


@contextmanager
def gradients(
    model: Callable[..., Tensor],
    x: Tensor,
    model_kwargs: dict,
    scale: Tensor | None = None,
    eager: bool = False,
) -> Iterator[GradientAt]:
    """Gradients of ``model(scale x)`` at points like ``x`` (B, *event), the model in
    ``sampling_mode`` and its scales summed: of a small perceptron on a CPU by one operator, unless
    they are to be eager; else by autograd.

    Args:
        scale: (*event) or None for 1.
    """
    if not eager and x.device.type == "cpu":
        found = mlp_chain(model, x, model_kwargs)
        if not isinstance(found, str):
            found = found if scale is None else found.rescaled(scale.flatten())
            yield _by_network(found.network)
            return

    def scaled(z: Tensor, **kwargs) -> Tensor:
        return model((z * scale).to(z.dtype), **kwargs)

    with sampling_mode(model), uncached_casts():
        of = model if scale is None else scaled
        yield lambda points: input_gradient(of, points, model_kwargs)


def set_points(points: Points, grad: Tensor, e: Tensor) -> None:
    """Energies and gradients of ``points.x``."""
    points.grad.copy_(grad)
    points.energy.copy_(e)


def _by_network(network: Network) -> GradientAt:
    def gradient(points: Tensor) -> tuple[Tensor, Tensor]:
        grad = torch.empty_like(points)
        e = mlp_gradient(network, points.flatten(1), grad=grad.flatten(1))
        return grad, e

    return gradient
