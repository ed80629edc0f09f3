"""Graphs without a GPU: a capture that, as a real one, records what operators are called on which
memory, and so bakes in every number; a replay runs no Python of the model."""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.tape = []

    @classmethod
    def is_infra_mode(cls):  # torch.compile works as it does outside
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, out))
        return out


class RecordedCaptures:
    """A runtime for ``ChainGraphs`` on a CPU.

    Attributes:
        captured, replayed: how often.
    """

    def __init__(self):
        self.captured = self.replayed = 0

    def warm_up(self, body, device):
        body()

    def ordered(self, device):
        return nullcontext()

    def forget_pools(self):
        pass

    def capture(self, body, device):
        with _Recorder() as recorder:
            body()
        self.captured += 1

        def replay():
            self.replayed += 1
            run(recorder.tape)

        return replay


def run(tape):
    """The operators once more, on the tensors they were called on, or that came out before."""
    made = {}

    def current(value):
        return made.get(id(value), value) if isinstance(value, torch.Tensor) else value

    for func, args, kwargs, recorded in tape:
        out = func(*tree_map(current, args), **tree_map(current, kwargs))
        old = recorded if isinstance(recorded, (list, tuple)) else [recorded]
        new = out if isinstance(recorded, (list, tuple)) else [out]
        made |= {id(a): b for a, b in zip(old, new, strict=True) if isinstance(a, torch.Tensor)}
