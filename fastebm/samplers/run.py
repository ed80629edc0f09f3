"""One run of chains: what it is asked for, and what sees its steps."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastebm.arguments import integer
from fastebm.chains.adjusted import Points
from fastebm.chains.chain import BeforeStep, OnStep
from fastebm.chains.steps import Steps
from fastebm.rng import ChainRNG, DeviceRNG
from fastebm.samplers.units import Units


class Run(NamedTuple):
    """What a sampler is asked for.

    Attributes:
        x: chains (B, *event) in their units; changed in place.
        total: steps.
        rng: the noise, not advanced.
        model_kwargs: what the model is called with beside x.
        sample_ids: whose noise each chain gets, (B,), or None: that of its row.
        on_step, seen: ``on_step(k, x, grad, energy)`` after these steps. Of chains that are not
            adjusted, gradient and energy are those at the point that the step left.
        before_step, changed: ``before_step(k, x)`` changes x in place, before these.
        n_jumps: of the steps, jumps between the modes of a population.
        population: what they go by, (P, *event); None: the chains themselves.
    """

    x: Tensor
    total: int
    rng: ChainRNG | DeviceRNG
    model_kwargs: dict
    sample_ids: Tensor | None = None
    on_step: OnStep | None = None
    seen: range = range(0)
    before_step: BeforeStep | None = None
    changed: range = range(0)
    n_jumps: int = 0
    population: Tensor | None = None

    @property
    def callbacks(self) -> tuple:
        return self.on_step, self.seen, self.before_step, self.changed

    def in_units(self, units: Units) -> Run:
        """The same with chains, population and callbacks in other units."""
        return self._replace(
            x=units.standardize(self.x),
            on_step=self.on_step and _restoring(self.on_step, units),
            before_step=self.before_step and _changing(self.before_step, units),
            population=None if self.population is None else units.standardize(self.population),
        )


def run_steps_of(steps: Steps, points: Points, run: Run) -> None:
    """All steps of a run, by as few calls of ``steps`` as its callbacks allow."""
    known, start = False, 0
    for end in sorted({run.total, *run.changed, *(k + 1 for k in run.seen)}):
        if end > start:
            steps(points, start, end - start, known)
            known = True
            if end - 1 in run.seen:
                run.on_step(end - 1, points.x, points.grad, points.energy)
            start = end
        if end in run.changed and end < run.total:
            run.before_step(end, points.x)
            known = False


def checked_jumps(
    jumps: int, total: int, adjusted: bool, x: Tensor, population: Tensor | None
) -> int:
    """How many of ``total`` steps from ``x`` are jumps.

    Raises:
        ValueError: there are more than steps, the chains are none that jump, or there is no
            population.
    """
    jumps = integer("jumps", jumps, 0, total)
    if not jumps:
        return 0
    if not adjusted:
        raise ValueError(
            "jumps need a sampler with adjusted=True, which may refuse them: a LangevinDynamics"
            " or a MALA"
        )
    if population is None:
        if len(x) < 4:
            raise ValueError(f"jumps need a population, or 4 chains at least, got {len(x)}")
    elif population.shape[1:] != x.shape[1:] or len(population) < 2:
        event = ", ".join(map(str, x.shape[1:]))
        raise ValueError(f"population must be (P, {event}), P >= 2, got {tuple(population.shape)}")
    return jumps


def _restoring(on_step: OnStep, units: Units) -> OnStep:
    return lambda k, x, grad, e: on_step(k, units.restore(x), grad, e)


def _changing(before_step: BeforeStep, units: Units) -> BeforeStep:
    def change(k: int, x: Tensor) -> None:
        out = units.restore(x)
        before_step(k, out)
        x.copy_(units.standardize(out))

    return change
