"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastebm.arguments import Setting, one_of
from fastebm.ops.langevin import Clamp
from fastebm.samplers.adaptive import AdaptiveStep
from fastebm.samplers.langevin import LangevinDynamics, Schedule


class MALA(LangevinDynamics):
    """The Metropolis-adjusted Langevin algorithm: ``LangevinDynamics`` with ``adjusted=True``, by
    the name and with the settings that it has in the literature.

    The proposal ``y = x - step_size * grad E(x) + sqrt(2 * step_size * temperature) * n``, its
    drift no longer than the noise's ``sigma sqrt(D)``, is accepted with probability
    ``min(1, p(y) q(x | y) / (p(x) q(y | x)))``: chains sample ``exp(-E / temperature)`` at any
    step, and too large ones are refused.

    Args:
        model, temperature, clamp, preconditioner, backend: as of ``LangevinDynamics``.
        step_size: as there; "auto" adapts it in every call until its ``frozen`` is set, as
            ``warm_up`` does.

    Raises:
        TypeError, ValueError: an argument is not of its kind or out of its range.

    Source: Roberts and Tweedie, Exponential convergence of Langevin distributions, 1996.
    """

    target_acceptance = 0.7
    adjusted = Setting(one_of(True))

    def __init__(
        self,
        model: Callable[..., Tensor],
        step_size: float | Tensor | Schedule | AdaptiveStep | str = "auto",
        temperature: float | Tensor | Schedule = 1.0,
        clamp: Clamp | None = None,
        preconditioner: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            model,
            step_size,
            temperature=temperature,
            clamp=clamp,
            preconditioner=preconditioner,
            backend=backend,
            adjusted=True,
        )
