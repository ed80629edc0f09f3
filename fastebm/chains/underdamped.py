"""Underdamped Langevin chains by the BAOAB splitting."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastebm.chains.adjusted import Points
from fastebm.chains.gradients import GradientAt, set_points
from fastebm.ops.langevin import langevin_step_
from fastebm.ops.underdamped import underdamped_step_
from fastebm.rng import VELOCITY

Number = float | Tensor  # of all chains, or (B,)


class UnderdampedSteps:
    """BAOAB with unit mass, one gradient and one operator a step: kick, drift, friction and noise,
    drift. The half kick that ends a step is made with the one that begins the next, so ``velocity``
    is half a kick behind until ``metrics`` is asked for.

    Args:
        gradient: of the energy.
        coefficients: k -> (step size, friction, temperature) of step k.
        rng, sample_ids: the noise.
        lo, hi: a box whose faces reflect, or None.
        velocity: (B, *event), or None: drawn from the Maxwell distribution of step 0.
        unit: (*event) or None for 1: what ``metrics`` gives the velocity in units of.
    """

    def __init__(
        self,
        gradient: GradientAt,
        coefficients: Callable[[int], tuple[Number, Number, Number]],
        rng: Tensor,
        sample_ids: Tensor | None,
        lo: Tensor | None,
        hi: Tensor | None,
        x: Tensor,
        velocity: Tensor | None = None,
        unit: Tensor | None = None,
    ) -> None:
        self._gradient, self._coefficients = gradient, coefficients
        self._noise, self._box = (rng, sample_ids), (lo, hi)
        self._unit = unit
        self._kick: Number = 0.0  # what the velocity is behind
        if velocity is None:
            spread = coefficients(0)[2] ** 0.5
            velocity = langevin_step_(
                torch.zeros_like(x), None, 0.0, spread, rng, sample_ids=sample_ids, tag=VELOCITY
            )
        self.velocity = velocity

    def __call__(self, points: Points, first: int, n: int, known: bool) -> None:
        x, (rng, ids), (lo, hi) = points.x, self._noise, self._box
        grad, e = (points.grad, points.energy) if known else self._gradient(x)
        for k in range(first, first + n):
            step, friction, temperature = self._coefficients(k)
            decay = _exp(-friction * step)
            noise_std = ((1 - decay * decay) * temperature) ** 0.5
            kick, self._kick = self._kick + step / 2, step / 2
            underdamped_step_(
                *(x, self.velocity, grad, kick, step / 2, decay, noise_std, rng),
                t=k,
                sample_ids=ids,
                lo=lo,
                hi=hi,
            )
            grad, e = self._gradient(x)
        set_points(points, grad, e)

    def metrics(self, points: Points, n_steps: int) -> dict[str, Tensor]:
        """``velocity`` after the last step, and ``kinetic_temperature``, the mean square of its
        elements: the temperature where steps are small."""
        kick = self._kick
        if isinstance(kick, Tensor):
            kick = kick.view(-1, *(1,) * (points.x.dim() - 1))
        v = self.velocity - kick * points.grad
        return {
            "velocity": v if self._unit is None else v * self._unit,
            "kinetic_temperature": v.square().mean(dtype=torch.float32),
        }


def _exp(value: Number) -> Number:
    return value.exp() if isinstance(value, Tensor) else math.exp(value)
