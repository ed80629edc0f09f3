"""The step size of a warm-up, by dual averaging."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_SHRINKAGE, _DELAY, _FORGETTING = 0.05, 10.0, 0.75  # gamma, t_0, kappa


class DualAveraging(nn.Module):
    """A step size that goes to a mean acceptance probability, and the average that it is frozen at:
    Nesterov's dual averaging, of ``log step``.

    All that changes is a buffer, so ``state_dict`` resumes it exactly.

    Args:
        initial: the step size to begin with, which it is pulled to.
        target: the acceptance probability, in (0, 1).

    Attributes:
        state: float64 (6,) = {log step, its average, mean error, updates, log of what pulls it,
            target}.

    Source: Hoffman and Gelman, The No-U-Turn sampler, 2014, section 3.2.
    """

    def __init__(self, initial: float, target: float) -> None:
        super().__init__()
        self.register_buffer("state", torch.full((6,), target, dtype=torch.float64))
        self.restart(initial)

    def restart(self, initial: float) -> None:
        """Begin again, from a step size."""
        log = math.log(initial)
        self.state[:5] = torch.tensor([log, log, 0.0, 0.0, log], dtype=torch.float64)

    @property
    def step(self) -> float:
        """The step to take next. Waits for its device."""
        return math.exp(float(self.state[0]))

    @property
    def average(self) -> float:
        """The step to freeze. Waits for its device."""
        return math.exp(float(self.state[1]))

    @torch.no_grad()
    def update(self, acceptance: Tensor | float) -> None:
        """By a mean acceptance probability at ``step``; what is not finite counts as 0."""
        a = float(acceptance)
        _, average, error, n, pull, target = self.state.tolist()
        n += 1
        share = 1 / (n + _DELAY)
        error = (1 - share) * error + share * (target - (a if math.isfinite(a) else 0.0))
        log = pull - math.sqrt(n) / _SHRINKAGE * error
        weight = n**-_FORGETTING
        average = weight * log + (1 - weight) * average
        self.state[:4] = torch.tensor([log, average, error, n], dtype=torch.float64)
