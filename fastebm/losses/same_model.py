"""Whether chains run on the energy that a loss trains, and whose rows it can leave out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType

from torch import Tensor, nn

from fastebm.energies.compose import GivenEnergy


def check_same_model(model: Callable, sampled: Callable) -> None:
    """Two models are one if they share a parameter, as a wrapper does with what it wraps. Of models
    without parameters nothing is said, nor of functions, which may call any.

    Raises:
        ValueError: they share none.
    """
    if model is sampled:
        return
    ours, theirs = _parts(model), _parts(sampled)
    if FunctionType in map(type, ours + theirs):
        return
    ours, theirs = (
        {id(p) for module in parts for p in module.parameters(recurse=False)}
        for parts in (ours, theirs)
    )
    if ours and theirs and ours.isdisjoint(theirs):
        raise ValueError(
            "sampler.model must be the loss's model, or wrap it or be wrapped by it; it has no"
            " parameter in common with it. A copy is another model"
        )


def check_given(models: tuple[Callable, ...], n: int) -> None:
    """ValueError where no rows of n samples can be left out, as ``given()`` has fixed an argument
    that has a row for each."""
    given = [
        (name, value)
        for model in models
        for part in _parts(model)
        if isinstance(part, GivenEnergy)
        for name, value in part.model_kwargs.items()
    ]
    for name, value in given:
        if isinstance(value, Tensor) and value.dim() and len(value) == n:
            raise ValueError(
                f'on_nonfinite="skip" cannot leave out rows of {name!r}, which given() has fixed to'
                f" {n} of them: give it to the loss instead, by model_kwargs"
            )


def _parts(model: object) -> list[nn.Module | FunctionType]:
    """The modules that a model is made of, registered with each other or not, and functions, which
    may call others."""
    parts, left = {}, [model]
    while left:
        part = left.pop()
        if isinstance(part, partial):
            left.append(part.func)
        elif isinstance(part, MethodType):
            left.append(part.__self__)
        elif isinstance(part, (list, tuple)):
            left += part
        elif isinstance(part, nn.Module) and id(part) not in parts:
            parts[id(part)] = part
            left += [*part.children(), *vars(part).values()]
        elif isinstance(part, FunctionType) and not str(part.__module__).startswith("torch."):
            parts[id(part)] = part
    return list(parts.values())
