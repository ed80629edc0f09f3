"""Graphs without a GPU: a capture that, as a real one, records what operators are called on which
memory, and so bakes in every number; a replay runs no Python of the model."""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.tape = []

    @classmethod
    def is_infra_mode(cls):  # torch.compile works as it does outside
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        # Aliases: a graph knows memory, not tensors and what hangs on them.
        call = tree_map(lambda v: v.detach() if isinstance(v, torch.Tensor) else v, (args, kwargs, out))
        self.tape.append((func, *call))
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
        """Unlike a real one it runs ``body``; what that changed in place is put back by tests that
        need it."""
        with _Recorder() as recorder:
            body()
        self.captured += 1

        def replay():
            self.replayed += 1
            with torch.no_grad():
                for func, args, kwargs, recorded in recorder.tape:
                    _again(recorded, func(*args, **(kwargs or {})))

        return replay


def _again(recorded, out):
    """What came out goes where it came out then."""
    for old, new in zip(tree_leaves(recorded), tree_leaves(out), strict=True):
        if isinstance(old, torch.Tensor) and _storage(old) != _storage(new):
            old.copy_(new)


def _storage(tensor):
    return tensor.untyped_storage().data_ptr()
