"""A capture that only repeats the body, for chains on a CPU: counts, and fails when told to."""

from contextlib import contextmanager

import torch
from torch import nn


class Captures:
    """Stands for a device: counts captures and replays, and fails when told to."""

    def __init__(self):
        self.captured = self.replayed = 0
        self.is_warm = self.is_ordered = False
        self.error = self.error_of_warm_up = None

    @contextmanager
    def ordered(self, device):
        assert not self.is_ordered
        self.is_ordered = True
        yield
        self.is_ordered = False

    def forget_pools(self):
        pass

    def warm_up(self, body, device):
        if self.error_of_warm_up is not None:
            raise self.error_of_warm_up
        self.is_warm = True
        body()

    def capture(self, body, device):
        if self.error is not None:
            raise self.error
        assert self.is_warm  # so that libraries choose and allocate before
        assert self.is_ordered
        self.captured += 1

        def replay():
            assert self.is_ordered
            self.replayed += 1
            self.is_warm = False
            body()

        return replay


def mlp(dtype=torch.float64):
    return nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)).to(dtype)
