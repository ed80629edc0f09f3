"""Chains on binary and categorical variables, by Gibbs with gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastebm.chains.adjusted import Points
from fastebm.chains.gradients import GradientAt, set_points
from fastebm.ops.discrete import gwg_step_


class DiscreteSteps:
    """Proposals of one change each, accepted or refused: one gradient and one operator a step.

    Args:
        gradient: of the energy.
        temperature: k -> that of step k, of all chains or (B,).
        n_categories: 0: bits; else the one-hot vectors' length.
        rng, sample_ids: the noise.
    """

    def __init__(
        self,
        gradient: GradientAt,
        temperature: Callable[[int], float | Tensor],
        n_categories: int,
        rng: Tensor,
        sample_ids: Tensor | None,
    ) -> None:
        self._gradient, self._temperature = gradient, temperature
        self._options = {"n_categories": n_categories, "sample_ids": sample_ids}
        self._rng = rng

    def __call__(self, points: Points, first: int, n: int, known: bool) -> None:
        x = points.x
        if not known:
            set_points(points, *self._gradient(x))
        log_q, y = torch.empty_like(points.energy), torch.empty_like(x)
        site = torch.empty(len(x), dtype=torch.int64, device=x.device)
        chain = x, points.energy, points.grad, log_q, site, points.acceptance[0], y
        e = grad = before = None
        for k in range(first, first + n + 1):  # the first proposes, the last only accepts
            proposes = k < first + n
            now = self._temperature(k) if proposes else before
            calls = [(now, before is not None, proposes)]
            if before is not None and before is not now:  # by a schedule: one after the other
                calls = [(before, True, False), (now, False, True)]
            for temperature, accepts, makes in calls:
                gwg_step_(
                    *(*chain, e, grad, temperature, self._rng),
                    t=k,
                    accept=accepts,
                    propose=makes,
                    **self._options,
                )
            before = now
            if proposes:
                grad, e = self._gradient(y)

    def metrics(self, points: Points, n_steps: int) -> dict[str, Tensor]:
        """``acceptance``, the mean of min(1, r) over chains and steps."""
        return {"acceptance": points.acceptance[0].mean() / n_steps} if n_steps else {}
