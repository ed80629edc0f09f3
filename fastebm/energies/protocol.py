"""What an energy is: how it is called, its input gradient, and its state while chains run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


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
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        grad, e = leaf_gradient(model, leaf, model_kwargs or {}, create_graph)
        return grad, sum_scales(e if create_graph else e.detach())


def leaf_gradient(
    model: Callable[..., Tensor], x: Tensor, model_kwargs: dict, create_graph: bool
) -> tuple[Tensor, Tensor]:
    """``input_gradient`` without its preparations, for loops: ``x`` is a leaf that requires a
    gradient, gradients are enabled, and the energies come as the model gave them."""
    e = checked_energies(model, x, model_kwargs)
    if not e.requires_grad:
        raise ValueError("model must return an energy that depends on x, with its graph to x")
    (grad,) = torch.autograd.grad(e.sum(), x, create_graph=create_graph)
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
    if e.dim() not in (1, 2) or e.shape[0] != x.shape[0]:
        raise ValueError(
            f"model must return energies of shape (B,), (B, 1) or (B, S) with B = {x.shape[0]},"
            f" got {tuple(e.shape)}"
        )
    return e


@contextmanager
def sampling_mode(model: Callable[..., Tensor], freeze: bool = True) -> Iterator[list[nn.Module]]:
    """The model as chains need it: in eval mode and, with ``freeze``, its parameters constants.

    Constant parameters make parametrised weights (``torch.nn.utils.parametrize``: spectral norm,
    weight standardisation) constant too: each is computed once, by torch's own cache. So a model
    must not exchange its parametrised parameters from one call to the next while it is frozen.

    Gives the modules that were in training mode. On leaving, also by an exception, every
    parameter's ``requires_grad`` and every submodule's ``training`` are what they were. A plain
    function is left alone.

    Raises:
        RuntimeError: the caller's own ``parametrize.cached()`` is open; the constants would stay in
            it, and later gradients would pass the weights by.
    """
    if not isinstance(model, nn.Module):
        yield []
        return
    modules = [m for m in model.modules() if m.training]
    parameters = [p for p in model.parameters() if p.requires_grad] if freeze else []
    if parameters and parametrize._cache_enabled and _parametrized(model):
        raise RuntimeError("leave torch.nn.utils.parametrize.cached() before chains of this model")
    try:
        for module in modules:  # as attributes: nn.Module's own assignment looks for parameters
            vars(module)["training"] = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        with parametrize.cached() if freeze else nullcontext():
            yield modules
    finally:
        for module in modules:
            vars(module)["training"] = True
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def fresh_parametrizations() -> Iterator[None]:
    """Inside ``sampling_mode``: parametrised weights are computed anew, once, and forgotten on
    leaving. For a CUDA graph, which must not read what was computed outside."""
    outside, parametrize._cache = parametrize._cache, {}
    try:
        yield
    finally:
        parametrize._cache = outside


@contextmanager
def uncached_parametrizations() -> Iterator[None]:
    """What func.grad would leave in the cache is of no use outside it."""
    enabled, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        yield
    finally:
        parametrize._cache_enabled = enabled


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


def _parametrized(model: nn.Module) -> bool:
    return any(map(parametrize.is_parametrized, model.modules()))
