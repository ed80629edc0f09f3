"""Finds, on a CPU, where the host would wait for a device."""

from collections import Counter

import torch

from fastebm.chains.waits import NoWaits


class NothingIsReadBack(NoWaits):
    """Fails where, on a device, the host would wait for a value or a number of rows.

    Attributes:
        calls: how often each operator was called, by name.
    """

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.calls[func.overloadpacket.__name__] += 1
        return out
