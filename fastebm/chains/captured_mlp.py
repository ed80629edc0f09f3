"""Small perceptrons inside other code: what torch.compile captures of a forward, and its guards."""

from __future__ import annotations

import threading
import types
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, fx, nn

from fastebm.chains.capture import is_active
from fastebm.chains.compiled import with_code_of_its_own
from fastebm.chains.plain_mlp import has_hooks, unfit_call
from fastebm.chains.traced_network import recipe
from fastebm.chains.traced_terms import NoNetwork
from fastebm.chains.unguarded import Code, is_plain, seen_modules
from fastebm.energies.protocol import leaf_gradient, sum_scales
from fastebm.energies.sampling_mode import guard, modules_of, parameters_of, sampling_mode
from fastebm.ops.mlp.chain import mlp_chain_
from fastebm.ops.mlp.network import Network
from fastebm.rng import ChainRNG

STEPS = 2000  # about a second of eager chains, which is what a process's first capture takes
MAX_CAPTURES = 6  # of a model; torch's own limit on the variants of a function is 8
MAX_MODELS = 256
MAX_PARAMETERS = 2**23
CLOSE = 1e-3  # of the largest: float32 against float32


def captured_mlp(
    model: Callable[..., Tensor],
    x: Tensor,
    model_kwargs: dict,
    n_steps: int | None = None,
    training: bool = False,
) -> Network | str:
    """The network of an energy whose forward torch.compile captures as one graph that
    ``fastebm.chains.traced_network`` reads; or the reason why there is none.

    The graph is captured once (0.1 s; a second where the process has compiled nothing yet), and
    compared with the eager energy and gradient. In every call torch asks its guards whether it
    still is what the model does, ``fastebm.chains.unguarded`` whether its code is what it was, and
    hooks are looked for. What does not hold is captured anew, ``MAX_CAPTURES`` times at most. A
    forward with effects (attributes, lists, prints), randomness, other operations or branches on
    values is not found. Nothing is raised, and nothing is written to logs.

    Args:
        x: (B, *event), where chains start.
        n_steps: of the chains about to run. A forward is captured once the chains of its model come
            to ``STEPS``; None: at once.
        training: the model as it is now, for its loss; else in ``sampling_mode``, for chains.
    """
    if torch.compiler.is_dynamo_compiling() or torch.jit.is_tracing() or is_active():
        return "it is being compiled or captured"
    reason = unfit_call((), x) or _unfit(x, model_kwargs, training)
    if reason is not None:
        return reason
    try:
        known = _known(model, training)
    except TypeError:
        return f"{type(model).__name__} cannot be referred to weakly"
    if known.refused is not None:
        return known.refused
    if n_steps is not None and known.steps < STEPS:
        known.steps += n_steps
        if known.steps < STEPS:
            return f"it is looked at once its chains have come to {STEPS} steps"
    return known.ask(model, x, model_kwargs)


def _unfit(x: Tensor, model_kwargs: dict, training: bool) -> str | None:
    if x.dim() < 2 or len(x) == 0:
        return f"x must be (B, *event), got {tuple(x.shape)}"
    if type(x) is not Tensor or torch.is_inference_mode_enabled() or x.is_inference():
        return "x is no plain tensor"
    if torch._C._functorch.maybe_current_level() is not None:
        return "it is inside a transform of torch.func"
    for name, value in model_kwargs.items():
        if type(value) not in _ARGUMENTS:
            return f"the model is called with {name}, {type(value).__name__}"
        if training and isinstance(value, Tensor) and value.requires_grad:
            return f"{name} requires a gradient"
    return None


_ARGUMENTS = (Tensor, nn.Parameter, int, float, bool, str, type(None))
_INPUTS = {Tensor, nn.Parameter, int, float}


class _Proven(Exception):
    """Leaves compiled code where its graph is called, with the network of this call: so nothing of
    what comes after the graph is run."""

    def __init__(self, network: Network) -> None:
        self.network = network


class _Failed(Exception):
    """There was no graph to ask later; says why."""


class _Variant:
    """A captured graph, called in its place.

    Attributes:
        reason: why there is no network; None: there is one.
    """

    def __init__(self, graph: fx.GraphModule, training: bool) -> None:
        self.training, self.recipe = training, None
        x = [n for n in graph.graph.nodes if n.op == "placeholder" and n.target == _X]
        try:
            if len(x) != 1:
                raise NoNetwork("it does not depend on x")
            self.recipe, self.reason = recipe(graph.graph, x[0], not training), None
        except NoNetwork as error:
            self.reason = str(error)

    def __call__(self, *inputs: Tensor | int | float):
        if self.reason is None and not _INPUTS.issuperset(map(type, inputs)):
            raise NoNetwork("its parameters are no plain tensors")
        if self.reason is not None:
            raise NoNetwork(self.reason)
        with torch.set_grad_enabled(self.training):
            network = self.recipe.network(*inputs)
        if not _is_usable(network):
            raise NoNetwork("its quadratic is not one that opens upwards")
        raise _Proven(network)


def _is_usable(network: Network) -> bool:
    """Whether operators take its base; a device is not waited for."""
    base = [t for t in (network.base_precision, network.base_mean) if t is not None]
    if not base or base[0].device.type != "cpu":
        return True
    return bool(base[0].min() >= 0) and all(bool(t.isfinite().all()) for t in base)


class _Known:
    """What is known of a model in one mode."""

    def __init__(self, model: Callable[..., Tensor], training: bool) -> None:
        self.refused = _too_large(model)
        self.steps = 0
        self._training = training
        self._captures = 0
        self._failed: dict[Hashable, str] = {}  # reasons, by kinds of calls
        self._lock = threading.RLock()
        self._code: Code | None = None  # that of the variants; None: there are none
        self._is_capture = self._missed = False
        self._variant: _Variant | None = None  # the last

    def _start(self) -> None:
        """Without variants. The first such call of a process takes a second."""
        self._code = None
        self._function = with_code_of_its_own(_call)
        self._compiled = torch.compile(self._function, backend=self._backend, fullgraph=True)

    def _backend(self, graph: fx.GraphModule, _: list[Tensor]) -> _Variant:
        if not self._is_capture:
            self._missed = True
            raise NoNetwork("no guards hold")
        self._variant = _Variant(graph, self._training)
        return self._variant

    def ask(self, model: Callable[..., Tensor], x: Tensor, model_kwargs: dict) -> Network | str:
        call = _key(x, model_kwargs)
        with self._lock:
            if call in self._failed:
                return self._failed[call]
            modules = self._modules(model)
            if has_hooks(modules):
                return "modules have hooks"
            try:
                mode = nullcontext() if self._training else sampling_mode(model)
                with mode, torch.enable_grad():
                    return self._network(model, x, model_kwargs, modules)
            except _Failed as error:
                self._failed[call] = str(error)
                if len(self._failed) == MAX_CAPTURES:
                    self.refused = str(error)
                return str(error)
            except Exception as error:  # the model's own, which eager chains will raise
                return _first_line(error)

    def _modules(self, model: Callable[..., Tensor]) -> list[nn.Module]:
        """Also those in closures and the like, which need a longer look."""
        hides = self._code is not None and self._code.hides_modules
        return seen_modules(model) if hides else modules_of(model)

    def _network(
        self, model: Callable[..., Tensor], x: Tensor, model_kwargs: dict, modules: list[nn.Module]
    ) -> Network | str:
        if self._code is None or not self._code.is_same():
            self._start()
        arguments = (model, *_marked(x, model_kwargs))
        self._missed = self._code is None
        if not self._missed:
            try:
                return self._run(*arguments)
            except Exception:
                if not self._missed:
                    raise
        if self._captures == MAX_CAPTURES:
            raise _Failed(f"its forward has been another one {MAX_CAPTURES} times")
        try:
            return self._capture(arguments, modules)
        except Exception as error:
            raise _Failed(_first_line(error)) from None

    def _run(self, *arguments) -> Network | str:
        try:
            self._compiled(*arguments)
        except _Proven as proven:
            return proven.network
        except NoNetwork as error:
            return str(error)
        return "torch.compile does nothing here"

    def _capture(self, arguments: tuple, modules: list[nn.Module]) -> Network | str:
        model, x, model_kwargs = arguments
        code = Code(model)
        if code.unseen is not None:
            raise _Failed(code.unseen)
        if has_hooks(seen_modules(model)):
            return "modules have hooks"
        self._captures += 1
        self._is_capture, self._variant = True, None
        try:
            with _unhooked(modules), _quiet(), _written(self._function.__code__) as written:
                found = self._run(*arguments)
        finally:
            self._is_capture = False
        variant = self._variant
        if variant is None:
            return found
        self._code = code
        if variant.reason is not None:
            return variant.reason
        if not (len(written) == 1 and is_plain(written[0])):
            variant.reason = "its forward has effects beside the energy"
        elif not _agrees(found, model, x, model_kwargs):
            variant.reason = "the network that was captured differs from the eager energy"
        elif not code.is_same():
            variant.reason = "its code changes as it runs"
        return found if variant.reason is None else variant.reason


def _known(model: Callable[..., Tensor], training: bool) -> _Known:
    with _lock:
        of_model = _models.get(id(model))
        if of_model is None:
            weakref.finalize(model, _models.pop, id(model), None).atexit = False
            of_model = _models[id(model)] = {}
            while len(_models) > MAX_MODELS:
                _models.popitem(last=False)
        if training not in of_model:
            of_model[training] = _Known(model, training)
        return of_model[training]


_models: OrderedDict[int, dict[bool, _Known]] = OrderedDict()
_lock = threading.Lock()


def _call(model: Callable[..., Tensor], fastebm_x: Tensor, model_kwargs: dict) -> Tensor:
    return model(fastebm_x, **model_kwargs)


_X = "L_fastebm_x_"  # as Dynamo calls that argument


def _key(x: Tensor, model_kwargs: dict) -> Hashable:
    """What of a call may make another graph, roughly."""
    key = [x.dtype, x.device.type, x.shape[1:], x.stride(), len(x) == 1]
    for name, value in model_kwargs.items():
        if isinstance(value, Tensor):
            rows = value.shape[:1] == x.shape[:1]
            key += [name, value.dtype, value.dim(), value.shape[1:], rows]
        else:
            key += [name, type(value) if type(value) in (int, float) else value]
    return tuple(key)


def _marked(x: Tensor, model_kwargs: dict) -> tuple[Tensor, dict]:
    """As a chain calls its model; the number of rows may be another one later."""
    leaf = x.detach().requires_grad_()
    kwargs = {
        k: v.detach().requires_grad_(v.requires_grad) if isinstance(v, Tensor) else v
        for k, v in model_kwargs.items()
    }
    for value in (leaf, *kwargs.values()):
        if isinstance(value, Tensor):
            of_rows = len(x) > 1 and value.shape[:1] == x.shape[:1]
            if of_rows:
                torch._dynamo.maybe_mark_dynamic(value, 0)
            for dim in range(of_rows, value.dim()):
                torch._dynamo.mark_static(value, dim)
    return leaf, kwargs


def _too_large(model: Callable[..., Tensor]) -> str | None:
    """Why it can be no small perceptron, at a glance."""
    parameters = parameters_of(modules_of(model))
    if any(p.dim() > 2 for p in parameters):
        return "it has weights of more than two dimensions"
    if sum(p.numel() for p in parameters) > MAX_PARAMETERS:
        return f"it has more than {MAX_PARAMETERS} parameters"
    return None


def _agrees(network: Network, model: Callable[..., Tensor], x: Tensor, model_kwargs: dict) -> bool:
    """Whether energies and gradients are the model's, up to rounding."""
    grad, e = leaf_gradient(model, x.detach().requires_grad_(), model_kwargs, False)
    rows = x.detach().flatten(1).clone(memory_format=torch.contiguous_format)
    ours = torch.empty_like(rows[:, 0]), torch.empty_like(rows)
    state = ChainRNG(0).state(x.device, len(x))
    with torch.no_grad():
        mlp_chain_(rows, network, 1, 0.0, 0.0, state, energy=ours[0], grad=ours[1])
        theirs = sum_scales(e), grad.flatten(1)
        pairs = zip(ours, theirs, strict=True)
        errors = [(a - b).abs().max() / (b.abs().max() + 1) for a, b in pairs]
    return not any(error.item() > CLOSE for error in errors)  # NaN is what both may give


@contextmanager
def _unhooked(modules: list[nn.Module]) -> Iterator[None]:
    """Without the hooks of ``sampling_mode`` against other threads, which are new in every call."""
    taken = []
    for module in modules:
        hooks = module._forward_pre_hooks
        for key in [k for k, hook in hooks.items() if hook is guard]:
            taken.append((hooks, key))
            del hooks[key]
    try:
        yield
    finally:
        for hooks, key in taken:
            hooks[key] = guard


@contextmanager
def _quiet() -> Iterator[None]:
    settings = torch._dynamo.config.patch(suppress_errors=False, recompile_limit=4 * MAX_CAPTURES)
    with settings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _written(of: types.CodeType) -> Iterator[list[types.CodeType]]:
    """The code that Dynamo writes in place of another one."""
    written: list[types.CodeType] = []

    def see(code: types.CodeType, new: types.CodeType) -> None:
        if code is of:
            written.append(new)

    handle = torch._dynamo.convert_frame.register_bytecode_hook(see)
    try:
        yield written
    finally:
        handle.remove()


def _first_line(error: Exception) -> str:
    """That of an error, which an error of ours is all of."""
    text = str(error) if isinstance(error, _Failed) else f"{type(error).__name__}: {error}"
    return text.split("\n")[0]
