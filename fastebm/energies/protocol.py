"""What an energy is: how it is called, and its input gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def energy(model: Callable[..., Tensor], x: Tensor, **model_kwargs) -> Tensor:
    """Energies of ``x``, where ``p(x)`` is proportional to ``exp(-E(x))``.

    Args:
        model: a module or function, ``model(x, **model_kwargs)`` -> (B,), (B, 1), or (B, S) for an
            energy at S scales: chains follow the sum of the scales, losses take their mean.
        x: (B, *event).

    Returns:
        (B,), also for a model that returns (B, 1), or (B, S).

    Raises:
        TypeError: the model does not return a floating-point tensor.
        ValueError: its shape is none of these.
    """
    e = checked_energies(model, x, model_kwargs)
    return e.squeeze(1) if e.dim() == 2 and e.shape[1] == 1 else e


def input_gradient(
    model: Callable[..., Tensor],
    x: Tensor,
    model_kwargs: dict | None = None,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradient of the energy in ``x`` and the energy itself, scales summed.

    Args:
        x: (B, *event); nothing flows further back than to its values.
        model_kwargs: further arguments of the model.
        create_graph: keep both differentiable in the model's parameters.

    Returns:
        grad (B, *event) and energy (B,).

    Raises:
        ValueError: the energy does not depend on ``x``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        grad, e = leaf_gradient(model, leaf, model_kwargs or {}, create_graph)
        return grad, sum_scales(e if create_graph else e.detach())


def leaf_gradient(
    model: Callable[..., Tensor], x: Tensor, model_kwargs: dict, create_graph: bool
) -> tuple[Tensor, Tensor]:
    """``input_gradient`` without its preparations, for loops: ``x`` is a leaf that requires a
    gradient, gradients are enabled, and the energies come as the model gave them."""
    e = checked_energies(model, x, model_kwargs)
    grad = None
    if e.requires_grad:  # maybe by parameters alone
        (grad,) = torch.autograd.grad(e.sum(), x, create_graph=create_graph, allow_unused=True)
    if grad is None:
        raise ValueError("model must return an energy that depends on x, with its graph to x")
    return grad, e


def check_batch(x: Tensor) -> None:
    """ValueError unless x can be a batch of data."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() == 0 or x.shape[0] == 0:
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a floating-point tensor (B, *event), B >= 1, got {got}")


def sum_scales(e: Tensor) -> Tensor:
    """(B, S) as (B,)."""
    return e.sum(1) if e.dim() == 2 else e


def checked_energies(model: Callable[..., Tensor], x: Tensor, model_kwargs: dict) -> Tensor:
    """What the model returns, checked."""
    e = model(x, **model_kwargs)
    if not isinstance(e, Tensor) or not e.is_floating_point():
        kind = f"a tensor of {e.dtype}" if isinstance(e, Tensor) else type(e).__name__
        raise TypeError(f"model must return a floating-point tensor of energies, got {kind}")
    if e.dim() not in (1, 2) or e.shape[0] != x.shape[0] or e.shape[1:] == (0,):
        raise ValueError(
            f"model must return energies of shape (B,), (B, 1) or (B, S) with B = {x.shape[0]}"
            f" and S >= 1, got {tuple(e.shape)}"
        )
    return e


@contextmanager
def uncached_casts() -> Iterator[None]:
    """Autocast keeps casts of leaves for as long as it is on: of a leaf that moves in place, as a
    chain's does, it would go on using where that was at first."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
