"""What torch.compile's guards take for constant: code of classes and functions, torch's own too."""

from __future__ import annotations

import dis
import types
import weakref
from collections.abc import Callable, Iterator
from itertools import chain
from operator import is_, itemgetter

import torch
from torch import Tensor, nn

from fastebm.chains.snapshot import Path, Snapshot
from fastebm.chains.traced_ops import NAMES
from fastebm.energies.sampling_mode import modules_of

_of_torch, _of_functional = (
    itemgetter(*sorted(NAMES & vars(space).keys())) for space in (torch, nn.functional)
)


def seen_modules(model: Callable[..., Tensor]) -> list[nn.Module]:
    """All modules that can be seen from a callable, also in closures, globals and lists."""
    return _Found(model).modules


def is_plain(code: types.CodeType) -> bool:
    """Whether code that Dynamo wrote does nothing but call one graph. It stores nothing but its own
    variables, calls nothing after the graph, where effects of a forward are, and draws no numbers
    of Python's before it."""
    instructions = [*dis.get_instructions(code)]
    names = [i.opname for i in instructions]
    graphs = [k for k, i in enumerate(instructions) if str(i.argval).startswith("graph_out_")]
    if not graphs or any(name.startswith("__gen_rand") for name in code.co_names):
        return False
    known = tuple(_LOADS.split())
    loads = (i.opname.startswith(known) or i.argrepr == "[]" for i in instructions)
    return all(loads) and not any("CALL" in name for name in names[graphs[0] :])


_LOADS = """
    LOAD_ STORE_FAST DELETE_FAST CALL PRECALL PUSH_NULL KW_NAMES CACHE RESUME NOP COPY SWAP POP_TOP
    DUP_TOP ROT_ EXTENDED_ARG GEN_START BINARY_SUBSCR BUILD_ LIST_EXTEND UNPACK_SEQUENCE RETURN_
    MAKE_CELL NOT_TAKEN
"""


class Code:
    """The code that a callable may run, to be asked whether it is still the same: what is in the
    classes and functions that can be seen from it, and torch's functions by their names.

    Attributes:
        unseen: what cannot be watched; None: nothing.
        hides_modules: whether it holds modules that ``modules_of`` does not see.
    """

    def __init__(self, model: Callable[..., Tensor]) -> None:
        found = _Found(model)
        self.unseen = found.unseen
        self.hides_modules = bool({*map(id, found.modules)} - {*map(id, modules_of(model))})
        kinds = dict.fromkeys(c for kind in found.kinds for c in kind.__mro__)
        self._classes = [c for c in kinds if c not in (object, nn.Module)]
        self._functions = [weakref.ref(f) for f in found.functions]  # the model may be one
        self._held = [*self._now()]

    def is_same(self) -> bool:
        now = [*self._now()]
        return len(now) == len(self._held) and all(map(is_, now, self._held))

    def _now(self) -> Iterator[object]:
        yield from chain.from_iterable(vars(c).values() for c in self._classes)
        yield from (getattr(f(), "__code__", None) for f in self._functions)
        yield from vars(Tensor).values()
        yield from _of_torch(vars(torch))
        yield from _of_functional(vars(nn.functional))


class _Found(Snapshot):
    """The modules, classes and functions that it comes by."""

    def __init__(self, model: Callable[..., Tensor]) -> None:
        self.kinds: list[type] = []
        self.functions: list[types.FunctionType] = []
        self.modules: list[nn.Module] = []
        super().__init__(torch.device("cpu"), model=model)

    def _module(self, module: nn.Module, path: Path) -> None:
        self.modules.append(module)
        super()._module(module, path)

    def _parts(self, thing: object, path: Path) -> Iterator[tuple[object, object]]:
        if isinstance(thing, type):
            self.kinds.append(thing)
        elif isinstance(thing, types.FunctionType):
            self.functions.append(thing)
        return super()._parts(thing, path)
