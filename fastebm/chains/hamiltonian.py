"""Hamiltonian chains: leapfrog trajectories, accepted or refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastebm.chains.adjusted import Points
from fastebm.chains.gradients import GradientAt, set_points
from fastebm.ops.hamiltonian import hmc_step_

Number = float | Tensor  # of all chains, or (B,)


class HamiltonianSteps:
    """Trajectories of ``n_leapfrog`` steps: one gradient and one operator for each of these.

    Args:
        gradient: of the energy.
        coefficients: k -> (step size, temperature) of trajectory k.
        n_leapfrog, jitter: as of ``HMC``.
        rng, sample_ids: the noise.
        lo, hi: the box that no trajectory may end outside of, or None.
    """

    def __init__(
        self,
        gradient: GradientAt,
        coefficients: Callable[[int], tuple[Number, Number]],
        n_leapfrog: int,
        jitter: float,
        rng: Tensor,
        sample_ids: Tensor | None,
        lo: Tensor | None,
        hi: Tensor | None,
    ) -> None:
        self._gradient, self._coefficients = gradient, coefficients
        self._n_leapfrog, self._jitter = n_leapfrog, jitter
        self._noise, self._box = (rng, sample_ids), (lo, hi)
        self._divergent: Tensor | None = None

    def __call__(self, points: Points, first: int, n: int, known: bool) -> None:
        x = points.x
        if not known:
            set_points(points, *self._gradient(x))
        if self._divergent is None:
            self._divergent = torch.zeros(len(x), dtype=torch.int32, device=x.device)
        y, v, kinetic = torch.empty_like(x), torch.empty_like(x), torch.empty_like(points.energy)
        chain = x, points.energy, points.grad, y, v, kinetic, points.acceptance[0], self._divergent
        (rng, ids), (lo, hi) = self._noise, self._box
        options = {"sample_ids": ids, "jitter": self._jitter, "lo": lo, "hi": hi}
        now = self._coefficients(first)
        hmc_step_(*chain, None, None, *now, rng, t=first, **options)
        for k in range(first, first + n):
            for _ in range(self._n_leapfrog - 1):
                grad, _ = self._gradient(y)
                hmc_step_(*chain, None, grad, *now, rng, t=k, **options)
            grad, e = self._gradient(y)
            after = self._coefficients(k + 1) if k + 1 < first + n else None
            hmc_step_(*chain, e, grad, *now, rng, t=k, next_step=after, **options)
            now = after

    def metrics(self, points: Points, n_steps: int) -> dict[str, Tensor]:
        """``acceptance``, the mean of min(1, r), and ``n_divergent``, of all chains and steps."""
        if not n_steps:
            return {}
        return {
            "acceptance": points.acceptance[0].mean() / n_steps,
            "n_divergent": self._divergent.sum(),
        }
