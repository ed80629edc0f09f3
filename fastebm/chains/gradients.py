"""The energy and its gradient at points, as chains of any kind ask for them once a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from fastebm.chains.adjusted import Points
from fastebm.chains.mlp_chain import MLPChain, mlp_chain
from fastebm.energies.protocol import input_gradient, uncached_casts
from fastebm.energies.sampling_mode import sampling_mode

GradientAt = Callable[[Tensor], tuple[Tensor, Tensor]]  # (B, *event) -> grad, energies (B,)


@contextmanager
def gradients(
    model: Callable[..., Tensor],
    x: Tensor,
    model_kwargs: dict,
    scale: Tensor | None = None,
    n_steps: int = 0,
) -> Iterator[GradientAt]:
    """Gradients of ``model(scale x)`` at points like ``x`` (B, *event), the model in
    ``sampling_mode`` and its scales summed: of a small perceptron on a CPU by one operator, else by
    autograd.

    Args:
        scale: (*event) or None for 1.
        n_steps: gradients that are about to be asked for, see ``mlp_chain``.
    """
    found = cpu_chain(model, x, model_kwargs, scale, n_steps)
    if found is not None:
        yield found.gradient
        return

    def scaled(z: Tensor, **kwargs) -> Tensor:
        return model((z * scale).to(z.dtype), **kwargs)

    with sampling_mode(model), uncached_casts():
        of = model if scale is None else scaled
        yield lambda points: input_gradient(of, points, model_kwargs)


def cpu_chain(
    model: Callable[..., Tensor], x: Tensor, model_kwargs: dict, scale: Tensor | None, n_steps: int
) -> MLPChain | None:
    """Chains of ``model(scale x)`` where it is a small perceptron on a CPU, arguments as above."""
    if x.device.type != "cpu":
        return None
    found = mlp_chain(model, x, model_kwargs, n_steps=n_steps)
    if isinstance(found, str):
        return None
    return found if scale is None else found.rescaled(scale.flatten())


def set_points(points: Points, grad: Tensor, e: Tensor) -> None:
    """Energies and gradients of ``points.x``."""
    points.grad.copy_(grad)
    points.energy.copy_(e)
