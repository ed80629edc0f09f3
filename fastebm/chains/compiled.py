"""The input gradient by torch.compile, at the price of a call of what was compiled."""

from __future__ import annotations

import itertools
import threading
import types
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastebm.energies.protocol import checked_energies, leaf_gradient

_numbers = itertools.count()
_seen = threading.local()  # .call: code, arguments and outputs of the last compiled call


class CompiledGradient:
    """``leaf_gradient`` without a graph, by ``torch.compile``. What was compiled lives as long as
    this object; another shape of ``x`` or another model argument is compiled anew, and so are
    gradients whose energies are asked for too, as the code is faster without.

    Called with x (B, *event), model arguments and ``watched``, it gives the chain that moves x in
    place its function of no arguments to (grad, energies): ``grad`` is overwritten by
    the next call, energies are None unless ``watched``.

    In a chain, torch looks twice whether what it compiled still fits the model, which costs more
    than the gradient of a cheap energy; when both times the same code ran on the same tensors, the
    later steps run it as it is. So between the steps of a chain, tensors may change in place and
    nothing else of the model may.

    Raises:
        RuntimeError: torch.compile cannot do it, and why. A model's own errors come as they are.
    """

    def __init__(self, model: Callable[..., Tensor]) -> None:
        def total(x: Tensor, model_kwargs: dict) -> tuple[Tensor, Tensor]:
            e = checked_energies(model, x, model_kwargs)
            return e.sum(), e

        # Of autograd.grad, torch 2.13 compiles no whole graph; of func.grad it does. Written into
        # `out`, a large gradient does not cost the page faults of new memory at each step.
        def watched(x: Tensor, out: Tensor, model_kwargs: dict) -> Tensor:
            grad, e = torch.func.grad(total, has_aux=True)(x, model_kwargs)
            out.copy_(grad)
            return e

        def unwatched(x: Tensor, out: Tensor, model_kwargs: dict) -> None:
            watched(x, out, model_kwargs)

        self.model, self._functions = model, (unwatched, watched)
        self._compiled: list[Callable] = []
        self._calls: list[Callable] | None = None  # of the modules, as they were compiled
        self._checked = False

    def __call__(self, x: Tensor, model_kwargs: dict, watched: bool) -> _ChainGradient:
        modules = self.model.modules() if isinstance(self.model, nn.Module) else ()
        calls = [module.forward for module in modules]  # torch takes those of classes for constant
        if calls != self._calls:
            self._calls = calls
            self._compiled = [
                torch.compile(with_code_of_its_own(f), fullgraph=True, backend=_inductor)
                for f in self._functions
            ]
        return _ChainGradient(self, x, model_kwargs, watched)

    def run(
        self, x: Tensor, out: Tensor, model_kwargs: dict, watched: bool
    ) -> tuple[Tensor | None, tuple | None]:
        """One gradient into ``out``, compiled if need be. Returns the energies and what ``_seen``
        saw."""
        if not self._checked:  # that the energy depends on x, which func.grad does not ask
            self._eager(x, model_kwargs)
            self._checked = True
        _seen.call = None
        try:
            with torch.no_grad():
                e = self._compiled[watched](x, out, model_kwargs)
        except Exception as error:
            self._eager(x, model_kwargs)  # raises an error of the model
            raise RuntimeError(
                "compile=True: torch.compile fails on the gradient of the model; use compile=False."
                f" {type(error).__name__}: {str(error).strip()}"
            ) from error
        call, _seen.call = _seen.call, None
        return e, call

    def _eager(self, x: Tensor, model_kwargs: dict) -> None:
        leaf_gradient(self.model, x.detach().requires_grad_(), model_kwargs, False)


class _ChainGradient:
    """What ``CompiledGradient`` gives a chain."""

    def __init__(
        self, compiled: CompiledGradient, x: Tensor, model_kwargs: dict, watched: bool
    ) -> None:
        self._grad = torch.empty_like(x)
        self._arguments = (x, self._grad, model_kwargs, watched)
        self._compiled = compiled
        self._last: tuple = (None, (), None)  # code, arguments, where in its outputs energies are
        self._is_settled = False

    def __call__(self) -> tuple[Tensor, Tensor | None]:
        if not self._is_settled:
            return self._grad, self._look()
        code, args, energies_at = self._last
        outputs = code(*args)
        return self._grad, None if energies_at is None else outputs[energies_at]

    def _look(self) -> Tensor | None:
        """The energies of a call by torch; settled when it does what the one before did."""
        e, call = self._compiled.run(*self._arguments)
        if call is not None:  # torch may have been told to compile nothing
            code, args, outputs = call
            at = None if e is None else next((i for i, o in enumerate(outputs) if o is e), None)
            again = code is self._last[0] and all(map(_same, args, self._last[1]))
            self._is_settled = again and (e is None) == (at is None)
            self._last = (code, args, at)
        return e


def with_code_of_its_own(f: types.FunctionType) -> types.FunctionType:
    """torch.compile's limit on variants is for each code object, and what it takes for dynamic for
    each name: so it is for each model, not for all models of a process."""
    code = f.__code__.replace(co_name=f"{f.__name__}_{next(_numbers)}")
    return types.FunctionType(code, f.__globals__, f.__name__, f.__defaults__, f.__closure__)


def _inductor(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
    """torch.compile's default backend, telling what is called."""
    code = torch._inductor.compile(graph, inputs)

    def run(*args):
        outputs = code(*args)
        _seen.call = (code, args, outputs)
        return outputs

    return run


def _same(a: object, b: object) -> bool:
    """Whether two arguments of compiled code are one tensor, or equal sizes."""
    return a is b or not (isinstance(a, Tensor) or isinstance(b, Tensor)) and a == b
