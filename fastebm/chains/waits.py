"""What operators do that a CUDA graph must know: wait for the device, read a tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")  # by a mask or by numbers
_COPIES = ("copy_", "_to_copy")


class NoWaits(TorchDispatchMode):
    """Inside, what reads a value or a number of rows from tensors of ``device`` is an error, and so
    is a copy to or from it that is waited for. For this thread only, unlike torch's own mode.

    Raises:
        RuntimeError: an operator waits; which one.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._type = device.type

    @classmethod
    def is_infra_mode(cls) -> bool:  # so that torch.compile works as it does outside
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self._waits_by_tag(func, args):
            raise RuntimeError(f"{func} waits for the device")
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _COPIES and self._waits_as_copy(args, kwargs or {}, out):
            raise RuntimeError(f"{func} waits for the device")
        return out

    def _waits_by_tag(self, func, args) -> bool:
        name = func.overloadpacket.__name__
        if name in _INDEXING:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            fills = name != "index" and args[2].numel() == 1
            return any(self._is_here(mask) for mask in masks) and not fills
        return any(tag in func.tags for tag in _TAGS) and any(map(self._is_here, args))

    def _waits_as_copy(self, args, kwargs, out) -> bool:
        source = args[1] if len(args) > 1 and isinstance(args[1], Tensor) else args[0]
        kinds = {source.device.type, out.device.type}
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
        return len(kinds) > 1 and self._type in kinds and not non_blocking

    def _is_here(self, thing: object) -> bool:
        return isinstance(thing, Tensor) and thing.device.type == self._type


class Reads(TorchDispatchMode):
    """Notes which of some tensors operators are called with, by their memory."""

    def __init__(self) -> None:
        super().__init__()
        self._memory: set[int] = set()

    def saw(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._memory

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in filter(lambda a: isinstance(a, Tensor), tree_leaves((args, kwargs))):
            self._memory.add(tensor.untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))
