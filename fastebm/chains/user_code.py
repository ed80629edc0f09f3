"""What functions and classes hold: the code of the user's own, and the globals that it reads."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
import types
from collections.abc import Iterator

import torch
from torch import nn


class Same:
    """Equal to itself alone, whatever the thing thinks about equality."""

    __slots__ = ("thing",)

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def of_function(f: types.FunctionType) -> Iterator[tuple[object, object]]:
    """What a function holds, and where: code, defaults, closure, and globals that it reads."""
    original = vars(f).get("_torchdynamo_orig_callable")  # of torch.compile
    if original is not None:
        yield original, "()"
        return
    yield f.__code__, ".__code__"
    yield from ((value, f" default {i}") for i, value in enumerate(f.__defaults__ or ()))
    yield from ((value, f" default {name}") for name, value in (f.__kwdefaults__ or {}).items())
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        try:
            yield cell.cell_contents, f" closure {name}"
        except ValueError:  # not filled yet
            yield None, f" closure {name}"
    if _is_library(f.__code__.co_filename):
        return
    names = _names(f.__code__)
    for name in names:
        if name in f.__globals__:
            value = f.__globals__[name]
            yield value, f" global {name}"
            if isinstance(value, types.ModuleType) and not _is_library(_file(value.__name__)):
                for attribute in names:
                    if attribute in vars(value):
                        yield vars(value)[attribute], f" global {name}.{attribute}"


def of_class(kind: type) -> Iterator[tuple[object, object]]:
    """What a class holds, and where: methods and values."""
    yield Same(kind), ""
    if issubclass(kind, nn.Module):  # of torch's own modules as well: a patch is a change
        yield kind.forward, ".forward"
    for c in filter(may_change, kind.__mro__):
        for name, value in vars(c).items():
            is_code = isinstance(value, _CODE)
            if is_code or not (name.startswith("__") or isinstance(value, _DESCRIPTORS)):
                yield value, f".{name}"


def may_change(kind: type) -> bool:
    """Whether it is a class of the user's."""
    return bool(kind.__flags__ & IS_PYTHON) and not _is_library(_file(kind.__module__))


@functools.lru_cache(4096)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Names of globals and attributes that the code may read."""
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return tuple(dict.fromkeys((*code.co_names, *(name for names in inner for name in names))))


@functools.lru_cache(4096)
def _is_library(file: str) -> bool:
    """Whether the source is torch's, Python's or another installed package's, or our own."""
    return (
        "site-packages" in file
        or "dist-packages" in file
        or file.startswith(("<frozen", *(d + os.sep for d in _LIBRARIES)))
    )


_LIBRARIES = (
    os.path.dirname(os.path.dirname(__file__)),
    os.path.dirname(torch.__file__),
    os.path.realpath(sysconfig.get_path("stdlib")),
    sysconfig.get_path("stdlib"),
)


def _file(module: str) -> str:
    """Where a module is from: "" is the user's, as in a notebook."""
    if module in sys.builtin_module_names:
        return "<frozen>"
    return getattr(sys.modules.get(module), "__file__", None) or ""


IS_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that is no part of the interpreter
WRAPPERS = (
    *((property, "fget"), (functools.cached_property, "func"), (staticmethod, "__func__")),
    *((classmethod, "__func__"), (functools._lru_cache_wrapper, "__wrapped__")),
)
_CODE = (types.FunctionType, *(t for t, _ in WRAPPERS))
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)
