"""Graphs without a GPU: a capture that, as a real one, records what operators are called on which
memory, and so bakes in every number; a replay runs no Python of the model."""

from contextlib import nullcontext

import torch
from torch.distributed import Work
from torch.utils._pytree import tree_leaves, tree_map

from fastebm.chains.waits import Reads


class _Recorder(Reads):  # a mode that only watches, so that chains are those outside
    """Notes the calls, and what memory from before held."""

    def __init__(self):
        super().__init__()
        self.tape, self._before = [], {}

    def undo(self):
        for storage, held in self._before.values():
            storage.copy_(held)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in filter(torch.is_tensor, tree_leaves((args, kwargs))):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._before:
                self._before[storage.data_ptr()] = storage, storage.clone()
        out = func(*args, **(kwargs or {}))
        # Aliases: a graph knows memory, not tensors and what hangs on them.
        alias = lambda v: v.detach() if isinstance(v, torch.Tensor) else v  # noqa: E731
        self.tape.append((func, *tree_map(alias, (args, kwargs, out))))
        return out


class RecordedCaptures:
    """A runtime for ``ChainGraphs`` on a CPU.

    Attributes:
        captured, replayed: how often.
    """

    def __init__(self):
        self.captured = self.replayed = 0

    def warm_up(self, body, device, may_wait=False):
        body()

    def ordered(self, device):
        return nullcontext()

    def forget_pools(self):
        pass

    def capture(self, body, device, share_memory=True):
        with _Recorder() as recorder:
            body()
        recorder.undo()  # a capture runs nothing
        self.captured += 1

        def replay():
            self.replayed += 1
            with torch.no_grad():
                for func, args, kwargs, recorded in recorder.tape:
                    out = func(*args, **(kwargs or {}))
                    if func.namespace == "c10d":  # a graph's collectives are in its order
                        Work.unbox(out[-1] if isinstance(out, (tuple, list)) else out).wait()
                    _again(recorded, out)

        return replay


def _again(recorded, out):
    """What came out goes where it came out then."""
    for old, new in zip(tree_leaves(recorded), tree_leaves(out), strict=True):
        if isinstance(old, torch.Tensor) and _storage(old) != _storage(new):
            old.copy_(new)


def _storage(tensor):
    return tensor.untyped_storage().data_ptr()
