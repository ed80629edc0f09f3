"""Finds, on a CPU, where the host would wait for a device."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "item", "unique")


class NothingIsReadBack(TorchDispatchMode):
    """Fails where, on a device, the host would wait for a value or a number of rows.

    Attributes:
        calls: how often each operator was called, by name.
    """

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        assert name not in WAITS, func
        if name in ("index", "index_put", "index_put_"):
            assert all(i is None or i.dtype == torch.int64 for i in args[1]), "a mask as index"
        self.calls[name] += 1
        return func(*args, **(kwargs or {}))
