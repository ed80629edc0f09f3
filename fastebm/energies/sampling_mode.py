"""The model while chains run: in eval mode, its parameters constants, and no other thread's."""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import Parameter
from torch.nn.utils import parametrize


def module_of(model: object) -> nn.Module | None:
    """The module behind a callable: itself, or that of a bound method, a ``functools.partial`` or
    a function wrapped by ``functools.wraps`` (as ``torch.compile`` and ``torch.no_grad`` do), also
    of one another. None: there is none to be seen, as behind a lambda or TorchScript's methods."""
    while not isinstance(model, nn.Module):
        if isinstance(model, functools.partial):
            model = model.func
        elif isinstance(model, types.MethodType):
            model = model.__self__
        elif isinstance(model, types.FunctionType) and hasattr(model, "__wrapped__"):
            model = model.__wrapped__
        else:
            return None
    return model


def modules_of(model: object) -> list[nn.Module]:
    """``module_of(model)`` and what it holds, also by a function that it keeps as ``model``, as
    composed energies do."""
    root = module_of(model)
    found = {} if root is None else {id(root): root}
    modules = list(found.values())
    for module in modules:  # which grows
        parts = module._modules.values()
        kept = vars(module).get("model")
        if kept is not None:
            parts = [*parts, module_of(kept)]
        for part in parts:
            if part is not None and id(part) not in found:
                found[id(part)] = part
                modules.append(part)
    return modules


def parameters_of(modules: list[nn.Module]) -> list[Parameter]:
    """Of initialised modules; a parameter that two of them share comes twice.

    Raises:
        ValueError: lazy modules that have not seen a batch.
    """
    lazy = [m for m in modules if isinstance(m, LazyModuleMixin) and m.has_uninitialized_params()]
    if lazy:
        raise ValueError(
            f"model has parameters that are not initialised, of a {type(lazy[0]).__name__}: run it"
            " once on a batch, model(x), before chains, losses and optimisers"
        )
    return [p for m in modules for p in m._parameters.values() if p is not None]


@contextmanager
def sampling_mode(model: Callable[..., Tensor], freeze: bool = True) -> Iterator[list[nn.Module]]:
    """The model as chains need it: in eval mode and, with ``freeze``, its parameters constants.

    Constant parameters make parametrised weights (``torch.nn.utils.parametrize``: spectral norm,
    weight standardisation) constant too: each is computed once. Gives the modules that this took
    out of training mode.

    The model is the module that ``module_of`` finds; any other function is left alone. What a
    traced module computes in its mode is what it was traced with.

    Several threads may sample a model at a time; the last to leave restores it, also by an
    exception: every parameter's ``requires_grad`` and every submodule's ``training`` are what they
    were. Any other use of it by another thread meanwhile would be in eval mode, and is refused:
    calls of it and of its parts (not of compiled code), and ``check_unsampled``. Beside other
    threads of Python, parameters keep ``requires_grad``: a backward of theirs would lose what
    belongs to a parameter that is frozen at that time; and so do DTensors. Chains only take
    gradients in x, so the values are the same and frozen parameters just save some time.

    Raises:
        RuntimeError: another thread is calling the model; or the caller's own
            ``parametrize.cached()`` is open, in which the constants would stay, so that later
            gradients would pass the weights by.
        ValueError: parameters are not initialised.
    """
    modules = modules_of(model)
    if not modules:
        yield []
        return
    hold, outside = _Hold(modules, freeze), (_thread.hold, _thread.weights)
    try:
        hold.take()
        _thread.hold, _thread.weights = hold, {} if freeze else None
        yield [*hold.changed[_set_training]]
    finally:
        _thread.hold, _thread.weights = outside
        hold.release()


def check_initialised(model: Callable[..., Tensor]) -> None:
    """ValueError if the model has lazy modules that have not seen a batch."""
    parameters_of(modules_of(model))


def check_unsampled(model: Callable[..., Tensor]) -> None:
    """RuntimeError if another thread's chains have the model in ``sampling_mode``."""
    others = [hold for hold in list(_holds) if hold.thread != get_ident()]
    if others and any(hold.has(module) for module in modules_of(model) for hold in others):
        raise RuntimeError(f"model is in eval mode for chains of another thread: {_DO}")


@contextmanager
def fresh_parametrizations() -> Iterator[None]:
    """Inside ``sampling_mode``: parametrised weights are computed anew, once, and forgotten on
    leaving. For a CUDA graph, which must not read what was computed outside."""
    outside, _thread.weights = _thread.weights, {}
    try:
        yield
    finally:
        _thread.weights = outside


class _Thread(threading.local):
    """What the innermost chains of this thread hold, and their constants: parametrised weights, by
    id; None: they have none."""

    hold: _Hold | None = None
    weights: dict[int, Tensor] | None = None


class _Hold:
    """A model in ``sampling_mode`` by one thread."""

    def __init__(self, modules: list[nn.Module], freeze: bool) -> None:
        self.thread, self.freeze, self.modules = get_ident(), freeze, modules
        parameters = parameters_of(modules)
        self.parameters = parameters if freeze else []
        self.changed: dict[Callable, list] = {}  # things by how they are set, and set back
        self._hooks: list = []

    def has(self, thing: nn.Module | Parameter) -> bool:
        return id(thing) in self.ids

    @functools.cached_property
    def ids(self) -> set[int]:
        return {*map(id, self.modules), *map(id, self.parameters)}

    def take(self) -> None:
        with _lock:
            # FSDP2 copies requires_grad from DTensors to what it puts in their place, never back.
            own = [p for p in self.parameters if not hasattr(p, "to_local")]
            parameters = [p for p in own if p.requires_grad]
            weights = [m for m in self.modules if isinstance(m, parametrize.ParametrizationList)]
            if parameters and weights and parametrize._cache_enabled:
                raise RuntimeError(
                    "leave torch.nn.utils.parametrize.cached() before chains of this model"
                )
            if threading.active_count() > 1:
                self._refuse_others()
                parameters = []  # they stay as they are: see sampling_mode
            self.changed = {
                _set_training: [m for m in self.modules if getattr(m, "training", False)],
                _set_requires_grad: parameters,
                _set_varies: [m for m in weights if self.freeze and "forward" not in vars(m)],
            }
            _holds.append(self)
            for change, things in self.changed.items():
                for thing in things:
                    change(thing, False)

    def release(self) -> None:
        with _lock:
            if self in _holds:
                _holds.remove(self)
            for change, things in self.changed.items():
                for thing in things:
                    others = [hold for hold in _holds if hold.has(thing)] if _holds else ()
                    if others:  # the last to leave restores it
                        others[0].changed[change].append(thing)
                    else:
                        change(thing, True)
        for hook in self._hooks:
            hook.remove()

    def _refuse_others(self) -> None:
        """From here on other threads' calls of the model are refused; so is this hold if one of
        them is inside a call."""
        for module in _entries(self.modules[0]):
            if not isinstance(module, torch.jit.ScriptModule):  # has no hooks
                self._hooks.append(module.register_forward_pre_hook(guard, prepend=True))
        for thread, frame in sys._current_frames().items():
            while frame is not None and thread != self.thread:
                if frame.f_code is _CALL and self._is_used(frame.f_locals["self"], thread):
                    raise RuntimeError(f"another thread is calling the model: {_DO}")
                frame = frame.f_back

    def _is_used(self, module: nn.Module, thread: int) -> bool:
        """Whether a call of this module, or of a loss of its, is not for chains of the thread."""
        if _samples(thread, module):
            return False
        return self.has(module) or self.has(module_of(vars(module).get("model")))


def guard(module: nn.Module, args: tuple) -> None:
    """The hook of modules in ``sampling_mode`` of threads."""
    if is_compiling():
        return
    hold = _thread.hold
    if hold is not None and id(module) in hold.ids or _samples(get_ident(), module):
        return
    if isinstance(threading.current_thread(), threading._DummyThread):
        return  # autograd's own, in which checkpoints are computed again
    if not getattr(module, "_is_replica", False):  # which DataParallel calls in its threads
        check_unsampled(module)


def _samples(thread: int, module: nn.Module) -> bool:
    holds = list(_holds)  # which other threads change
    return any(hold.thread == thread and id(module) in hold.ids for hold in holds)


def _entries(module: nn.Module) -> Iterator[nn.Module]:
    """The module and its parts: what is called by who calls it, or a method of it, or a part."""
    yield module
    for part in () if isinstance(module, nn.Sequential) else module.children():
        yield from part if isinstance(part, nn.ModuleList) else [part]


def _set_training(module: nn.Module, training: bool) -> None:
    own = vars(module)
    if "training" in own:  # nn.Module's own assignment looks for parameters
        own["training"] = training
    else:  # it is in C++ in TorchScript, and of torch.compile's module in the one it is of
        module.training = training


def _set_requires_grad(parameter: Parameter, requires_grad: bool) -> None:
    parameter.requires_grad_(requires_grad)


def _set_varies(parametrizations: parametrize.ParametrizationList, varies: bool) -> None:
    if varies:
        del vars(parametrizations)["forward"]
    else:
        vars(parametrizations)["forward"] = types.MethodType(_constant, parametrizations)


def _constant(self: parametrize.ParametrizationList) -> Tensor:
    """The ``forward`` of parametrised weights in ``sampling_mode``; in other threads its own."""
    weights = None if is_compiling() else _thread.weights
    if weights is None:
        return type(self).forward(self)
    if id(self) not in weights:
        weights[id(self)] = type(self).forward(self)
    return weights[id(self)]


_DO = "sample copy.deepcopy(model), or do both from one thread"
_CALL = nn.Module._call_impl.__code__
_lock = threading.RLock()
_holds: list[_Hold] = []
_thread = _Thread()
