"""What Python objects hold, written down to be compared later: all that a CUDA graph has baked in
beside the memory that it reads."""

from __future__ import annotations

import enum
import functools
import logging
import threading
import types
import weakref
from collections import deque
from collections.abc import Container, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fastebm.chains.user_code import (
    IS_PYTHON,
    WRAPPERS,
    Same,
    may_change,
    of_class,
    of_function,
)
from fastebm.energies.sampling_mode import guard

MAX_VALUES = 20_000  # about 10 ms to look at
MAX_BYTES = 1 << 16  # of an array, or of a tensor on another device, that counts by value

Path = tuple["Path | None", object]  # what holds it, and under which name or index


class Snapshot:
    """All that can be seen from some objects, as values to compare.

    Numbers and the like count by value; tensors by place, as they may change in place; modules,
    containers and other objects by what they hold; functions by their code, their closures,
    defaults and the globals that they read; classes by their methods and values. Classes and
    functions of installed packages are taken not to change. Nothing is called, so what objects
    implemented in C or running generators hold is not seen.

    Args:
        device: where tensors count by place. On a CPU, when this is another device, they count by
            value: torch bakes those into what it launches.
        rewritten: names of tensors whose place does not count, see ``replaced``.
        objects: by the names that messages call them.

    Attributes:
        key: hashable; equal ones hold the same. Holds no model and no tensor.
        tensors: those that count by place.
        unseen: what cannot be watched; None: nothing.
    """

    def __init__(
        self, device: torch.device, rewritten: frozenset[str] = frozenset(), **objects: object
    ) -> None:
        self.tensors: list[Tensor] = []
        self.unseen: str | None = None
        self._device, self._rewritten = device, rewritten
        self._values: list[object] = []
        self._paths: list[Path] = []
        self._tensors_at: list[int] = []
        self._numbers: dict[int, int] = {}  # of what has been looked at, by id
        try:
            for name, thing in objects.items():
                self._look(thing, (None, name))
        except RecursionError:
            self._not_seen((None, name), "is nested too deeply to be watched")
        except _TooMany as error:
            self._not_seen(*error.args)
        self.key = tuple(self._values)
        self._numbers.clear()

    def replaced(self, before: Snapshot) -> dict[str, Tensor]:
        """Tensors of ``before`` that others stand for now, alike but for their place, by name.
        Where a model does so itself, as with torch's older spectral and weight norm, a graph is
        right if it writes them before it reads them."""
        pairs = zip(self._tensor_entries(), before._tensor_entries(), before.tensors, strict=False)
        return {
            _name(path): tensor
            for (path, ours), (_, theirs), tensor in pairs
            if _is_elsewhere(ours, theirs)
        }

    def difference(self, other: Snapshot, but: Container[str] = ()) -> str | None:
        """The first value that ``other`` has not, where it is and what it was; None: no other, but
        for the places of tensors of some names."""
        if self.key == other.key:
            return None
        for ours, theirs, path in zip(self.key, other.key, self._paths, strict=False):
            if ours != theirs and not (_name(path) in but and _is_elsewhere(ours, theirs)):
                values = [_short(value) for value in (theirs, ours)]
                return _name(path) + (": {} -> {}".format(*values) if all(values) else "")
        longer, n = max(self._paths, other._paths, key=len), min(len(self.key), len(other.key))
        return _name(longer[n]) if n < len(longer) else None

    def _tensor_entries(self) -> Iterator[tuple[Path, tuple]]:
        return ((self._paths[i], self._values[i]) for i in self._tensors_at)

    def _add(self, value: object, path: Path) -> None:
        if len(self._values) == MAX_VALUES:
            raise _TooMany(path, f"comes after {MAX_VALUES} other values, too many to watch")
        self._values.append(value)
        self._paths.append(path)

    def _not_seen(self, path: Path, why: str) -> None:
        if self.unseen is None:
            self.unseen = f"{_name(path)} {why}"

    def _is_new(self, thing: object, path: Path) -> bool:
        """Whether it is looked at for the first time; if not, it is noted which one it is."""
        number = self._numbers.get(id(thing))
        self._add(type(thing) if number is None else number, path)
        if number is None:
            self._numbers[id(thing)] = len(self._numbers)
        return number is None

    def _look(self, thing: object, path: Path) -> None:
        kind = type(thing)
        if kind in _PLAIN:
            self._add((kind, thing), path)
        elif kind is tuple and _PLAIN.issuperset(map(type, thing)):
            self._add((kind, thing, *map(type, thing)), path)
        elif kind in (float, complex):  # NaN is not equal to itself, and 0.0 is to -0.0
            self._add((kind, thing if thing and thing == thing else repr(thing)), path)
        elif isinstance(thing, Tensor):
            self._tensor(thing, path)
        elif isinstance(thing, nn.Module):
            self._module(thing, path)
        elif kind is Same:
            self._add(thing, path)
        elif isinstance(thing, _BY_IDENTITY):
            self._add(Same(thing), path)
        elif isinstance(thing, enum.Enum):
            self._add((kind, thing.name), path)
        elif isinstance(thing, (np.ndarray, np.generic, bytearray)):
            self._array(np.asarray(thing), path)
        elif isinstance(thing, types.ModuleType):
            self._add(thing.__name__, path)
        elif isinstance(thing, _INERT):
            return
        elif isinstance(thing, _METHODS):
            self._method(thing, path)
        elif isinstance(thing, torch.jit.ScriptFunction):
            self._not_seen(path, "is TorchScript, which cannot be watched")
        elif self._is_new(thing, path):
            for value, name in self._parts(thing, path):
                self._look(value, (path, name))

    def _module(self, module: nn.Module, path: Path) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            self._not_seen(path, "is TorchScript, which cannot be watched")
        elif "dynamo_ctx" in vars(module):  # of torch.compile
            self._look(module._orig_mod, path)
        elif self._is_new(module, path):
            hidden = getattr(type(module), "_outside_graphs", ())
            for name, value in vars(module).items():
                if name in _HOLDERS:
                    for key, part in value.items():
                        self._look(part, (path, f".{key}"))
                elif name not in hidden and not (name in _OFTEN_EMPTY and _is_empty(value)):
                    self._look(value, (path, f".{name}"))
            self._look(type(module), (path, ".__class__"))

    def _parts(self, thing: object, path: Path) -> Iterator[tuple[object, object]]:
        """What it holds, and where."""
        if isinstance(thing, types.FunctionType):
            return of_function(thing)
        if isinstance(thing, type):
            return of_class(thing)
        wrapped = next((getattr(thing, a) for t, a in WRAPPERS if isinstance(thing, t)), None)
        if wrapped is not None:
            return iter([(wrapped, "()")])
        if isinstance(thing, weakref.ref):
            return iter([(thing(), "()")])
        return self._of_object(thing, path)

    def _of_object(self, thing: object, path: Path) -> Iterator[tuple[object, object]]:
        base = next(c for c in type(thing).__mro__ if not c.__flags__ & IS_PYTHON)
        if isinstance(thing, Mapping):
            in_order = sorted(thing) if all(isinstance(key, str) for key in thing) else thing
            pairs = [(key, thing[key]) for key in in_order if thing[key] is not guard]
            for i, (key, value) in enumerate(pairs):
                yield key, f" key {i}"
                yield value, key
        elif isinstance(thing, (set, frozenset)):
            yield from ((value, i) for i, value in enumerate(sorted(thing, key=repr)))
        elif isinstance(thing, (list, tuple, deque)):
            yield len(thing), "length"
            yield from ((value, i) for i, value in enumerate(thing))
        elif isinstance(thing, (slice, functools.partial)):
            names = ("start", "stop", "step", "func", "args", "keywords")
            yield from ((getattr(thing, n), f".{n}") for n in names if hasattr(thing, n))
        elif base in (str, bytes, int, float, complex):
            yield base(thing), "value"
        elif base not in (object, types.SimpleNamespace):
            self._not_seen(path, f"is a {type(thing).__name__}, which cannot be watched")
        hidden = getattr(type(thing), "_outside_graphs", ())
        for name, value in getattr(thing, "__dict__", {}).items():
            if name not in hidden:
                yield value, f".{name}"
        for c in type(thing).__mro__:
            slots = vars(c).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(thing, name):
                    yield getattr(thing, name), f".{name}"
        if may_change(type(thing)):
            yield type(thing), ".__class__"

    def _tensor(self, t: Tensor, path: Path) -> None:
        kind = t.shape, t.dtype, t.device
        try:
            if t.device.type == "cpu" and self._device.type != "cpu":
                self._array(t.detach().contiguous().flatten().view(torch.uint8).numpy(), path)
                self._add((t.requires_grad, kind), path)
                return
            place = t.data_ptr(), t.stride(), t.requires_grad
        except (RuntimeError, NotImplementedError):  # sparse, nested, wrapped
            place = 0, (), False
        if not place[0] and t.numel():
            self._not_seen(path, f"is a {type(t).__name__} whose memory cannot be watched")
        if self._rewritten and _name(path) in self._rewritten:
            place = None
        self._tensors_at.append(len(self._values))
        self.tensors.append(t)
        self._add(_Placed((place, kind)), path)

    def _array(self, a: np.ndarray, path: Path) -> None:
        if a.nbytes > MAX_BYTES or a.dtype.hasobject:
            self._not_seen(path, f"is an array of {a.nbytes} bytes of {a.dtype}, too much to watch")
        else:
            self._add((a.dtype.str, a.shape, a.tobytes()), path)

    def _method(self, method, path: Path) -> None:
        function, owner = getattr(method, "__func__", None), getattr(method, "__self__", None)
        if function is None or isinstance(owner, types.ModuleType):
            self._add((method.__qualname__, getattr(method, "__module__", None)), path)
        else:
            self._look(function, path)
        if not isinstance(owner, (types.ModuleType, types.NoneType)):
            self._look(owner, (path, ".__self__"))


def _is_empty(value: object) -> bool:
    """Of hooks: whether there are none, but those of ``sampling_mode``."""
    return not value or (isinstance(value, dict) and all(h is guard for h in value.values()))


class _Placed(tuple):
    """Where a tensor is, and what else tells it from others."""


class _TooMany(Exception):
    pass


def _name(path: Path) -> str:
    parent, name = path
    if parent is None:
        return str(name)
    text = name if isinstance(name, str) and name[:1] in ". (" else f"[{name!r}]"
    return _name(parent) + text


def _is_elsewhere(ours: object, theirs: object) -> bool:
    """Whether these are of two tensors that differ in their place alone."""
    both = type(ours) is type(theirs) is _Placed
    return both and ours != theirs and ours[1] == theirs[1]


def _short(value: object) -> str:
    """A number or the like, to be read; else nothing."""
    is_plain = isinstance(value, tuple) and len(value) > 1 and isinstance(value[0], type)
    return repr(value[1])[:60] if is_plain else ""


_PLAIN = {
    *(bool, int, str, bytes, types.NoneType, types.EllipsisType, range, types.CodeType),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
}
_BY_IDENTITY = (torch._ops.OperatorBase, torch._ops.OpOverloadPacket)
_INERT = (logging.Logger, type(threading.Lock()), type(threading.RLock()))
_METHODS = (
    *(types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType),
    *(types.WrapperDescriptorType,),
    *(types.MethodDescriptorType, types.ClassMethodDescriptorType),
)
_HOLDERS = ("_parameters", "_buffers", "_modules")
_OFTEN_EMPTY = frozenset(vars(nn.Module())) - {"training"}  # hooks and flags
