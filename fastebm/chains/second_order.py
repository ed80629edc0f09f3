"""Torch as it must be where a step is differentiated twice, for the losses that see it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock

import torch
from torch import Tensor, nn


class SharedSetting:
    """A setting of the whole process that threads hold together: the first in changes it, the last
    out puts it back, however they overlap.

    Args:
        change: changes the setting, and returns what puts it back.
    """

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self._change, self._lock, self._holders = change, Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._holders:
                self._put_back = self._change()
            self._holders += 1

    def __exit__(self, *exception) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._put_back()


def _choose_math_attention() -> Callable[[], None]:
    cuda = torch.backends.cuda
    enable = (cuda.enable_math_sdp, cuda.enable_flash_sdp)
    enable += (cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp)
    found = (cuda.math_sdp_enabled(), cuda.flash_sdp_enabled())
    found += (cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled())

    def choose(*values: bool) -> None:
        for enable_one, value in zip(enable, values, strict=True):
            enable_one(value)

    choose(True, False, False, False)
    return lambda: choose(*found)


def _choose_eager_code() -> Callable[[], None]:
    stance = torch.compiler.set_stance("force_eager")
    return lambda: stance.__exit__(None, None, None)


MATH_ATTENTION = SharedSetting(_choose_math_attention)  # the fused kernels differentiate once
_EAGER_CODE = SharedSetting(_choose_eager_code)


def eager_code() -> AbstractContextManager:
    """What ``torch.compile`` made runs uncompiled: compiled code is differentiated once, and its
    graph walked once. Not to be entered in code that is being compiled: see ``uncompiled``."""
    return _EAGER_CODE if _has_compiler() else nullcontext()


@contextmanager
def twice_differentiable(switched: Iterable[nn.Module]) -> Iterator[None]:
    """Graphs made inside can be differentiated twice, and go on holding what they were made of.

    Attention runs by its formula and compiled code as written. Saved-tensor hooks, those of
    activation checkpointing above all, do not act: it would compute in ``backward()``, with modules
    in training mode again, what was computed in eval mode here. Buffers that a forward in training
    mode may update in place are copies, since some of torch's own (those of batch normalisation)
    would be read by ``backward()`` as they are by then.

    Args:
        switched: the modules that ``sampling_mode`` took out of training mode.
    """
    autograd = torch._C._autograd
    with MATH_ATTENTION, eager_code(), _copied_buffers(switched):
        had_none = autograd._saved_tensors_hooks_set_tracing(True)  # of this thread
        try:
            yield
        finally:
            autograd._saved_tensors_hooks_set_tracing(had_none)


@contextmanager
def _copied_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Copies in the place of the modules' buffers; an update in place reaches the buffer after."""
    copies: dict[int, tuple[Tensor, Tensor]] = {}  # a buffer may be that of two modules
    places = []
    for module in modules:
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and not buffer.requires_grad:
                if id(buffer) not in copies:
                    copies[id(buffer)] = buffer, buffer.clone()
                places.append((module, name, *copies[id(buffer)]))
    try:
        for module, name, _, copy in places:
            _assign(module, name, copy)
        yield
    finally:
        for module, name, buffer, copy in places:
            if getattr(module, name, None) is copy:  # else the module has replaced it
                _assign(module, name, buffer)
        with torch.no_grad():
            for buffer, copy in copies.values():
                # Not every update shows in the version, so all are taken over; but graphs made of a
                # buffer that has not changed go on.
                (buffer if copy._version else buffer.data).copy_(copy)


def _assign(module: nn.Module, name: str, buffer: Tensor) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        setattr(module, name, buffer)
    else:  # past nn.Module's own assignment, which takes longer than the copies
        module._buffers[name] = buffer


def uncompiled(function: Callable) -> Callable:
    """A function that ``torch.compile`` calls, and does not look into, where it compiles a caller.
    ``torch.compiler.disable``, without a compiler being loaded for it."""

    disabled = None

    @functools.wraps(function)
    def call(*args, **kwargs):
        nonlocal disabled
        if not _has_compiler():
            return function(*args, **kwargs)
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*args, **kwargs)

    return call


def _has_compiler() -> bool:
    """Whether anything can have been compiled."""
    return "torch._dynamo" in sys.modules
