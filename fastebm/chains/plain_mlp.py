"""Whether an energy is a small plain perceptron, whose chains run inside one operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import itemgetter

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from fastebm.chains.settings import has_modes
from fastebm.energies.sampling_mode import guard
from fastebm.ops.library import has_kernels
from fastebm.ops.mlp.network import MAX_DIM_CUDA, MAX_HIDDEN, MAX_WIDTH, Network

_PLAIN = {nn.SiLU: "silu", nn.Tanh: "tanh", nn.ReLU: "relu"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_LAYERS = (nn.Sequential, nn.Linear, *_PLAIN, nn.Softplus, nn.GELU, nn.LeakyReLU, nn.ELU)
# The calls that the formulas stand for, as torch defines them: users and libraries patch them.
_FORWARDS = {layer: layer.forward for layer in _LAYERS}
_calls = itemgetter("__call__", "_wrapped_call_impl", "_call_impl")
_functions = itemgetter("linear", "silu", "relu", "softplus", "gelu", "leaky_relu", "elu")
_CALLS, _FUNCTIONS = _calls(vars(nn.Module)), _functions(vars(nn.functional))
_hooks, _global_hooks = itemgetter(*_HOOKS), itemgetter(*(f"_global{name}" for name in _HOOKS))


def plain_mlp(model: Callable[..., Tensor], x: Tensor, model_kwargs: dict) -> Network | str:
    """The network of an energy that is one, or the reason why it is none.

    It is one if it is exactly an ``nn.Sequential`` of ``nn.Linear`` and one kind of activation
    (SiLU, Tanh, ReLU, LeakyReLU, ELU, Softplus, GELU), 1 to 4 hidden layers of at most 512, with
    one output; or a module that says so: its class defines ``forward`` and ``flat_net`` together,
    where ``forward(x)`` is ``flat_net(x.flatten(1)).squeeze(1)`` and ``flat_net`` such a
    Sequential. A subclass with another ``forward`` says nothing by what it inherits. Subclasses of
    layers, as parametrised ones are, hooks, autocast and other dtypes than float32 rule it out.
    Others: see ``fastebm.chains.captured_mlp``.

    Args:
        x: (B, *event), where chains start.
        model_kwargs: what the model is called with beside ``x``.
    """
    if model_kwargs:
        return f"the model is called with {', '.join(model_kwargs)}, which the kernel does not know"
    net = model
    if type(model) is not nn.Sequential:
        if not isinstance(model, nn.Module) or _definer(model, "forward") is not _definer(
            model, "flat_net"
        ):
            return f"the model is no plain nn.Sequential, but {_name(model)}"
        net = model.flat_net
        if type(net) is not nn.Sequential:
            return f"flat_net is no plain nn.Sequential, but {_name(net)}"
        if x.dim() < 2:
            return f"x must be (B, *event), got {tuple(x.shape)}"
    elif x.dim() != 2:
        return f"x must be (B, D), got {tuple(x.shape)}"
    layers = list(net)
    modules = layers + [model] if net is model else layers + [model, net]
    return unfit_call(modules, x) or _network(layers, x)


def _network(layers: list[nn.Module], x: Tensor) -> Network | str:
    linear, activations = layers[::2], layers[1::2]
    if len(layers) % 2 == 0 or not 1 <= len(activations) <= MAX_HIDDEN:
        return f"the layers are not Linear, activation, ..., Linear with 1..{MAX_HIDDEN} hidden"
    device, inputs = x.device, math.prod(x.shape[1:])
    if device.type == "cuda" and inputs > MAX_DIM_CUDA:
        return f"samples have {inputs} elements; the CUDA kernel takes {MAX_DIM_CUDA}"
    weights, biases = [], []
    for layer in linear:
        if type(layer) is not nn.Linear:
            return f"{_name(layer)} is not nn.Linear"
        outputs = 1 if layer is linear[-1] else layer.out_features
        if layer.in_features != inputs or layer.out_features != outputs or outputs > MAX_WIDTH:
            return (
                f"Linear({layer.in_features}, {layer.out_features}) where {inputs} inputs and"
                f" {'1 output' if layer is linear[-1] else f'up to {MAX_WIDTH} outputs'} go"
            )
        weights.append(layer.weight)
        biases.append(layer.bias)
        inputs = outputs
    for value in weights + [b for b in biases if b is not None]:
        if type(value) not in (nn.Parameter, Tensor) or value.layout != torch.strided:
            return f"a parameter is {_name(value)}, not a plain tensor"
        if value.dtype != torch.float32 or value.device != device:
            return f"a parameter is {value.dtype} on {value.device}, x float32 on {device}"
    kinds = {_activation(layer) for layer in activations}
    if None in kinds or len(kinds) > 1:
        return f"activations are {', '.join(map(_name, activations))}, not of one kind it knows"
    return Network(weights, biases, *kinds.pop())


def _activation(layer: nn.Module) -> tuple[str, float, float] | None:
    """Name, beta and threshold, as of a ``Network``."""
    if type(layer) is nn.LeakyReLU:
        return "leaky_relu", layer.negative_slope, 20.0
    if type(layer) is nn.ELU:
        return "elu", layer.alpha, 20.0
    if type(layer) is nn.GELU:
        return ("gelu_tanh" if layer.approximate == "tanh" else "gelu"), 1.0, 20.0
    if type(layer) is nn.Softplus:
        return ("softplus", layer.beta, layer.threshold) if layer.beta > 0 else None
    name = _PLAIN.get(type(layer))
    return name and (name, 1.0, 20.0)


def unfit_call(modules: list[nn.Module], x: Tensor) -> str | None:
    """Why calling these modules on ``x`` is more than their formulas, or not in float32. Written
    for speed: it is asked at every call of a sampler."""
    if x.dtype != torch.float32:
        return f"x is {x.dtype}, not float32"
    if not has_kernels(x.device):
        return f"x is on {x.device}, for which no kernel was built"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast is on"
    if has_modes():
        return "modes of torch's functions or operators are on"
    if any(_global_hooks(vars(nn_module))):
        return "modules have hooks"
    if _calls(vars(nn.Module)) != _CALLS or _functions(vars(nn.functional)) != _FUNCTIONS:
        return "functions of torch.nn were replaced"
    if has_hooks(modules):
        return "modules have hooks"
    for module in modules:
        own, kind = vars(module), type(module)
        forward = kind.forward
        as_defined = _FORWARDS.get(kind) is forward or _is_written_in(kind, forward)
        if "forward" in own or kind.__call__ is not nn.Module.__call__ or not as_defined:
            return "a module's forward or __call__ was replaced"
    return None


def has_hooks(modules: list[nn.Module]) -> bool:
    """Whether calls of these modules run more than their forward, but for ``sampling_mode``'s."""
    for module in modules:
        hooks = _hooks(vars(module))
        if any(hooks) and any(h is not guard for d in hooks for h in d.values()):
            return True
    return False


def _is_written_in(kind: type, forward: Callable) -> bool:
    """Whether a class's forward was written in its body, or in that of a class it inherits from,
    and not put there later. Of torch's layers, ``_FORWARDS`` knows better."""
    name, known = getattr(forward, "__qualname__", ""), kind in _FORWARDS
    written = any(name == f"{c.__qualname__}.forward" for c in kind.__mro__)
    return written and not known and not hasattr(forward, "__wrapped__")


def _definer(module: nn.Module, name: str) -> type | None:
    """The class that a module has ``name`` from."""
    return next((c for c in type(module).__mro__ if name in vars(c)), None)


def _name(thing: object) -> str:
    return type(thing).__name__
