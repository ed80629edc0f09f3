"""Chains at several temperatures that exchange their states."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.chains.adjusted import Points
from fastebm.chains.chain import on_device
from fastebm.chains.steps import Steps
from fastebm.ops.tempering import replica_swap_


class TemperingSteps:
    """Steps of all replicas, and after every so-many-th an exchange of neighbours: of (0, 1),
    (2, 3), ... and of (1, 2), (3, 4), ... in turn.

    Args:
        steps: of the R B chains of all replicas, replica by replica.
        temperatures: (R,) float64, ascending, on the device of the chains.
        swap_every: steps between exchanges.
        rng: the stream's state. sample_ids: (B,), the chains' own.

    Attributes:
        swaps: (R - 1, B): sums of the probabilities of exchanges. attempts: of each pair.
    """

    def __init__(
        self, steps: Steps, temperatures: Tensor, swap_every: int, rng: Tensor, sample_ids: Tensor
    ) -> None:
        self._steps, self._temperatures, self._every = steps, temperatures, swap_every
        self._rng, self._ids = rng, sample_ids
        pairs = len(temperatures) - 1
        self.swaps = torch.zeros((pairs, len(sample_ids)), device=sample_ids.device)
        self.attempts = [0] * pairs

    def __call__(self, points: Points, first: int, n: int, known: bool) -> None:
        start, end = first, first + n
        while start < end:
            stop = min(end, start - start % self._every + self._every)
            self._steps(points, start, stop - start, known)
            known, start = True, stop
            if stop % self._every == 0:
                self._swap(points, stop - 1)

    def _swap(self, points: Points, k: int) -> None:
        r, b = len(self._temperatures), len(self._ids)
        parity = (k // self._every) % 2
        velocity = getattr(self._steps, "velocity", None)
        shape = r, b, points.x.shape[1:].numel()
        replica_swap_(
            *(points.x.view(shape), points.energy.view(r, b), points.grad.view(shape)),
            *(None if velocity is None else velocity.view(shape), self._temperatures),
            *(parity, self.swaps, self._rng),
            t=k,
            sample_ids=self._ids,
        )
        for pair in range(parity, r - 1, 2):
            self.attempts[pair] += 1

    def metrics(self, points: Points, n_steps: int) -> dict[str, Tensor]:
        """Those of the steps, of the coldest replica where they are a chain's; and ``swap_rates``
        (R - 1,): of each pair the mean probability of an exchange, NaN where there was none."""
        r, b = len(self._temperatures), len(self._ids)
        found = self._steps.metrics(points, n_steps)
        if "acceptance" in found:
            found["acceptances"] = points.acceptance[0].view(r, b).mean(1) / n_steps
            found["acceptance"] = found["acceptances"][0]
        if "velocity" in found:
            found["velocity"] = found["velocity"][:b]
        attempts = on_device(self.attempts, self.swaps.dtype, self.swaps.device)
        return {**found, "swap_rates": self.swaps.mean(1) / attempts}
