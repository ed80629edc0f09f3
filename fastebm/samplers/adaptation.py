"""What a warm-up learns of chains: a step size and the scale of each coordinate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastebm.distributed.collectives import mean_of_ranks
from fastebm.distributed.world import is_together
from fastebm.samplers.diagnostics import finite_rows
from fastebm.samplers.dual_averaging import DualAveraging

ROUND = 5  # steps between two updates of the step size
_FIRST = 20  # steps until states are looked at; then windows of 40, 80, 160, ...
_PRIOR = 5  # states that the mean of the variances counts for in each of them


class Adaptation(nn.Module):
    """The adaptation of a sampler by its warm-ups, however many calls they are.

    Step sizes go by dual averaging, updated every 5 steps to the mean acceptance probability of all
    chains since. Scales are standard deviations over chains and steps of a window: the first 20
    steps are left out, then windows of 40, 80, 160, ... steps end with new scales, from which the
    averaging begins again. Nothing depends on how many steps there will be, so a warm-up that goes
    on is the same as a longer one.

    Args:
        event: shape of a sample.
        step: the step size to begin with.
        target: acceptance probability.
        power: of a coordinate's unit in a step size: 2 for Langevin steps, 1 for leapfrog steps.
        preconditioner: the scales to begin with, or None for 1.

    Source: Hoffman and Gelman, The No-U-Turn sampler, 2014; the windows are those of Stan.
    """

    def __init__(
        self,
        event: torch.Size,
        step: float,
        target: float,
        power: int,
        preconditioner: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.dual, self.power = DualAveraging(step, target), power
        ones = torch.ones(event, dtype=torch.float64)
        scale = ones if preconditioner is None else preconditioner.double().cpu()
        self.register_buffer("scale", scale.clone())
        self.register_buffer("mean", torch.zeros_like(ones))
        self.register_buffer("squares", torch.zeros_like(ones))  # sum of squared deviations
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))  # steps, states

    @torch.no_grad()
    def update(self, x: Tensor, acceptance: Tensor, n_steps: int, rescales: bool) -> None:
        """After ``n_steps`` of chains that are at x (B, *event) now, in the model's units."""
        if is_together():
            acceptance = mean_of_ranks(acceptance.double())
        self.dual.update(acceptance)
        self.counts[0] += n_steps
        steps = int(self.counts[0])
        if not rescales:
            return
        if steps > _FIRST:
            self._add(x[finite_rows(x)].double().cpu())
        window = (steps - _FIRST) // (2 * _FIRST) + 1  # a power of two where one ends
        if steps > _FIRST and (steps - _FIRST) % (2 * _FIRST) == 0 and window & (window - 1) == 0:
            self._rescale()

    def _add(self, x: Tensor) -> None:
        """States, by the moments of two samples together."""
        if not len(x):
            return
        old = int(self.counts[1])
        n, apart = old + len(x), x.mean(0) - self.mean
        self.squares += (x - x.mean(0)).square().sum(0) + apart.square() * (old * len(x) / n)
        self.mean += apart * (len(x) / n)
        self.counts[1] = n

    def _rescale(self) -> None:
        n = int(self.counts[1])
        variance = self.squares / max(n - 1, 1)
        if is_together():
            variance = mean_of_ranks(variance)
        middle = variance.mean()
        if n > 1 and bool(middle > 0):
            scale = ((n * variance + _PRIOR * middle) / (n + _PRIOR)).sqrt()
            ratio = (scale / self.scale).log().mean().exp()
            self.scale.copy_(scale)
            self.dual.restart(self.dual.average / float(ratio) ** self.power)
        self.mean.zero_()
        self.squares.zero_()
        self.counts[1] = 0
