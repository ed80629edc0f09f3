"""Hamiltonian chains: leapfrog trajectories, accepted or refused."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastebm.chains.adjusted import Points
from fastebm.chains.gradients import GradientAt

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
        if not known:
            grad, e = self._gradient(points.x)
            points.grad.copy_(grad)
            points.energy.copy_(e)
        if self._trajectory is None:
            self._trajectory = Trajectory.of(points.x)
