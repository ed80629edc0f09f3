"""Tensors that are a module's state and none of its buffers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from fastebm.modes import outside_inference
from fastebm.replay.storage import BITS


class StoredTensors(nn.Module, ABC):
    """A module some of whose tensors are in its ``state_dict`` and move with it, but are not among
    its buffers: DistributedDataParallel copies buffers from rank 0 before each forward pass.

    Attributes:
        tensors: their names.
    """

    tensors: tuple[str, ...] = ()

    @abstractmethod
    def fitting(self, tensors: dict[str, Tensor], extra: dict) -> dict[str, Tensor]:
        """A state's tensors as they are to be copied, given its extra state; a ValueError where
        they do not fit."""

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        for name in self.tensors:
            destination[prefix + name] = getattr(self, name)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, *rest
    ) -> None:
        """What does not fit is refused before anything changes."""
        extra = state_dict.get(f"{prefix}_extra_state")
        given = {n: state_dict[prefix + n] for n in self.tensors if prefix + n in state_dict}
        if extra is not None:
            given = self.fitting(given, extra)
        missing_keys += [prefix + n for n in self.tensors if n not in given and strict]
        with torch.no_grad(), outside_inference():
            for name, tensor in given.items():
                own = getattr(self, name)
                if local_metadata.get("assign_to_params_buffers", False):
                    setattr(self, name, tensor.to(own.device))
                else:
                    own.copy_(tensor)
        left = {k: v for k, v in state_dict.items() if k.removeprefix(prefix) not in self.tensors}
        super()._load_from_state_dict(left, prefix, local_metadata, strict, missing_keys, *rest)

    def _apply(self, fn, recurse: bool = True):
        """As nn.Module's, but the samples go as integers, which casts of floating-point tensors
        pass by."""

        def move(tensor: Tensor) -> Tensor:
            bits = tensor.view(BITS.get(tensor.dtype, tensor.dtype))
            moved = fn(bits)
            if moved.dtype != bits.dtype:  # type(...) casts integers too
                moved = bits.to(moved.device)
            return moved.view(tensor.dtype)

        if recurse:  # init may be a module
            for child in self.children():
                child._apply(fn)
        with outside_inference():
            for name in self.tensors:
                setattr(self, name, move(getattr(self, name)))
        return self
