"""Hamiltonian Monte Carlo."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from fastebm.arguments import Setting, integer
from fastebm.chains.adjusted import ROUND, Points
from fastebm.chains.hamiltonian import FusedHamiltonianSteps, HamiltonianSteps
from fastebm.chains.steps import Steps
from fastebm.ops.langevin import Clamp
from fastebm.samplers.adaptive import AdaptiveStep, step_setting
from fastebm.samplers.run import Run
from fastebm.samplers.sampler import Sampler
from fastebm.samplers.settings import number, setting, value_at
from fastebm.samplers.units import box_in

Schedule = Callable[[int], float]


def _jitter(name: str, value: float) -> float:
    value = number(name, value)
    if value >= 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return value


class HMC(Sampler):
    """Hamiltonian Monte Carlo: each step draws a momentum for each chain, follows Hamilton's
    equations by ``n_leapfrog`` leapfrog steps, and accepts where that leads with probability
    ``min(1, exp(-dH / temperature))``: chains sample ``exp(-E / temperature)`` at any step size.

    ``H = E(x) + |v|^2 / 2``, momenta are drawn from N(0, temperature), and a leapfrog step is
    ``v - h grad E / 2``, ``x + h v``, ``v - h grad E / 2``. A step costs ``n_leapfrog`` gradients:
    the one at its start is known.

    Args:
        model: the energy, as of ``LangevinDynamics``.
        step_size: h of a leapfrog step: a number > 0, a tensor of B numbers, a schedule (a
            function of the step's index to a number), or "auto" or an ``AdaptiveStep``, which every
            call of ``sample`` adapts until its ``frozen`` is set, as ``warm_up`` does.
        n_leapfrog: leapfrog steps of a trajectory, >= 1.
        jitter: each trajectory of each chain has its own step size, uniform in ``h (1 - jitter)``
            to ``h (1 + jitter)``, so that no path length is in step with a period of the energy; in
            [0, 1).
        temperature: a number > 0, a tensor of B numbers, or a schedule.
        clamp: (lo, hi), a box: trajectories that end outside are refused; either may be None.
        preconditioner: (*event), scales of the coordinates, such as standard deviations: a mass
            matrix of scale^-2. ``warm_up`` finds it.

    Diagnostics beside those of all samplers: ``acceptance``, the mean acceptance probability, and
    ``n_divergent``, the number of trajectories with ``|dH| > 1000 temperature`` or not finite.

    Raises:
        TypeError, ValueError: an argument is not of its kind or out of its range.

    Source: Duane et al., Hybrid Monte Carlo, 1987; Neal, MCMC using Hamiltonian dynamics, 2011
    (jitter: section 3.2).
    """

    dtypes = torch.float32, torch.float64
    step_size = Setting(step_setting)
    n_leapfrog = Setting(partial(integer, least=1))
    jitter = Setting(_jitter)
    temperature = Setting(partial(setting, above_zero=True, per_chain=True))

    def __init__(
        self,
        model: Callable[..., Tensor],
        step_size: float | Tensor | Schedule | AdaptiveStep | str = "auto",
        n_leapfrog: int = 10,
        jitter: float = 0.2,
        temperature: float | Tensor | Schedule = 1.0,
        clamp: Clamp | None = None,
        preconditioner: Tensor | None = None,
    ) -> None:
        self.model, self.step_size, self.n_leapfrog = model, step_size, n_leapfrog
        self.jitter, self.temperature, self.clamp = jitter, temperature, clamp
        self.preconditioner = preconditioner

    @property
    def effective_temperature(self) -> float | Tensor:
        """The temperature, of the first step where there is a schedule."""
        return value_at(0, "temperature", self.temperature, above_zero=True)

    def coefficients(self, k: int, device) -> tuple[float | Tensor, float | Tensor]:
        """Step size and temperature of step ``k``, for chains on a device."""
        step = self.step_size
        if isinstance(step, AdaptiveStep):
            step = step.value(device)
        else:
            step = value_at(k, "step_size", step, above_zero=True)
        return step, value_at(k, "temperature", self.temperature, above_zero=True)

    @contextmanager
    def steps(self, run: Run) -> Iterator[Steps]:
        """The steps of a run, in the chains' units."""
        x = run.x
        lo, hi = box_in(self.units, self.clamp, x)
        settings = (lambda k: self.coefficients(k, x.device)), self.n_leapfrog, self.jitter
        settings += run.rng.state(x.device, len(x)), run.sample_ids, lo, hi
        chain = self.cpu_chain(run, self.n_leapfrog)
        if chain is not None:
            yield FusedHamiltonianSteps(chain, *settings)
            return
        with self.gradients(run) as gradient:
            yield HamiltonianSteps(gradient, *settings)

    def _run(self, run: Run) -> tuple[Points, dict[str, Tensor]]:
        points, metrics = super()._run(run)
        step = self.step_size
        if isinstance(step, AdaptiveStep) and not step.frozen and run.total:
            step.update(metrics["acceptance"], min(run.total, ROUND))
        return points, metrics

    def _adjusted_kin(self) -> Sampler:
        return copy.copy(self)
