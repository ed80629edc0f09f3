"""Underdamped Langevin dynamics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastebm.arguments import Setting
from fastebm.chains.steps import Steps
from fastebm.chains.underdamped import FusedUnderdampedSteps, UnderdampedSteps
from fastebm.ops.langevin import Clamp
from fastebm.samplers.hmc import HMC
from fastebm.samplers.run import Run
from fastebm.samplers.sampler import Sampler
from fastebm.samplers.settings import number, scales, setting, value_at
from fastebm.samplers.units import box_in

Schedule = Callable[[int], float]


def _mass(name: str, value: float | Tensor) -> float | Tensor:
    return scales(name, value) if isinstance(value, Tensor) else number(name, value, True)


class UnderdampedLangevin(Sampler):
    """Underdamped (kinetic) Langevin dynamics: chains with a velocity, which carries them on for a
    time of 1 / friction.

    ``dx = v dt, mass dv = -grad E dt - friction mass v dt + sqrt(2 friction mass temperature) dW``,
    by the BAOAB splitting: half a kick ``v - h grad E / (2 mass)``, half a drift ``x + h v / 2``,
    ``v e^(-friction h) + sqrt((1 - e^(-2 friction h)) temperature / mass) n``, half a drift, half a
    kick. One gradient a step. There is no accept step: the law of positions has an error of order
    h^2, and none for a Gaussian at any stable h.

    Args:
        model: the energy, as of ``LangevinDynamics``.
        step_size: h, a time: a number > 0, a tensor of B numbers, or a schedule. (It compares
            with ``LangevinDynamics.step_size`` as h with h^2 / 2.)
        friction: a number > 0, or the same kinds: an inverse time.
        mass: a number > 0, or a tensor (*event).
        temperature: a number >= 0, or the same kinds.
        clamp: (lo, hi), a box whose faces reflect chains; either may be None.
        preconditioner: (*event), scales of the coordinates: as a mass of scale^-2, beside ``mass``.

    Diagnostics beside those of all samplers: ``velocity`` (B, *event), to go on with by
    ``sample(x, velocity=...)``; ``kinetic_temperature``, the mean of mass v^2, which is the
    temperature if steps are small.

    Raises:
        TypeError, ValueError: an argument is not of its kind or out of its range.

    Source: Leimkuhler and Matthews, Rational construction of stochastic numerical methods for
    molecular sampling, 2013 (BAOAB, friction gamma as here).
    """

    adjusted = False
    target_acceptance = 0.95
    step_size = Setting(partial(setting, above_zero=True, per_chain=True))
    friction = Setting(partial(setting, above_zero=True, per_chain=True))
    temperature = Setting(partial(setting, per_chain=True))
    mass = Setting(_mass)

    def __init__(
        self,
        model: Callable[..., Tensor],
        step_size: float | Tensor | Schedule,
        friction: float | Tensor | Schedule = 1.0,
        mass: float | Tensor = 1.0,
        temperature: float | Tensor | Schedule = 1.0,
        clamp: Clamp | None = None,
        preconditioner: Tensor | None = None,
    ) -> None:
        self.model, self.step_size, self.friction = model, step_size, friction
        self.mass, self.temperature, self.clamp = mass, temperature, clamp
        self.preconditioner = preconditioner
        self._velocity: Tensor | None = None

    def sample(
        self, x: Tensor | None = None, n_steps: int = 100, *, velocity: Tensor | None = None, **more
    ) -> Tensor | Any:
        """As of any sampler; and

        Args:
            velocity: (B, *event), to start with; None: drawn, each of variance temperature / mass.
        """
        if velocity is None:
            return super().sample(x, n_steps, **more)
        if not isinstance(velocity, Tensor) or x is None or velocity.shape != x.shape:
            got = tuple(getattr(velocity, "shape", ())) or type(velocity).__name__
            wanted = "given with x" if x is None else f"of the shape of x {tuple(x.shape)}"
            raise ValueError(f"velocity must be {wanted}, got {got}")
        moving = copy.copy(self)
        moving._velocity = velocity
        return super(UnderdampedLangevin, moving).sample(x, n_steps, **more)

    @property
    def effective_temperature(self) -> float | Tensor:
        """The temperature, of the first step where there is a schedule."""
        return value_at(0, "temperature", self.temperature)

    @property
    def _scaled_by(self) -> tuple:
        return self.preconditioner, self.mass

    def _scale(self) -> Tensor | None:
        if isinstance(self.mass, float) and self.mass == 1:
            return self.preconditioner
        scale = torch.as_tensor(self.mass).rsqrt()
        return scale if self.preconditioner is None else scale * self.preconditioner

    def coefficients(self, k: int) -> tuple:
        """Step size, friction and temperature of step ``k``."""
        return (
            value_at(k, "step_size", self.step_size, above_zero=True),
            value_at(k, "friction", self.friction, above_zero=True),
            value_at(k, "temperature", self.temperature),
        )

    @contextmanager
    def steps(self, run: Run) -> Iterator[Steps]:
        """The steps of a run, in the chains' units."""
        x, units, velocity = run.x, self.units, self._velocity
        std = None if units is None else units.std
        if velocity is not None:
            velocity = velocity.detach().to(x).clone(memory_format=torch.contiguous_format)
            velocity = velocity if std is None else velocity / std
        lo, hi = box_in(units, self.clamp, x)
        state = run.rng.state(x.device, len(x))
        settings = self.coefficients, state, run.sample_ids, lo, hi, x, velocity, std
        chain = self.cpu_chain(run)
        if chain is not None:
            yield FusedUnderdampedSteps(chain, *settings)
            return
        with self.gradients(run) as gradient:
            yield UnderdampedSteps(gradient, *settings)

    @property
    def _slowness(self) -> float:
        """What a time is longer by than at unit mass, of the lightest coordinate."""
        return torch.as_tensor(self.mass).min().sqrt().item()

    def _first_step(self) -> float:
        return super()._first_step() / self._slowness  # the kin has unit mass

    def _freeze_step(self, value: float) -> None:
        super()._freeze_step(value * self._slowness)

    def _adjusted_kin(self) -> Sampler:
        return HMC(
            self.model,
            self._first_step(),
            n_leapfrog=1,
            jitter=0.0,
            temperature=self.temperature,
            clamp=self.clamp,
        )
