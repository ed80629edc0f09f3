"""Parallel tempering, over any sampler that has a temperature."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from fastebm.arguments import Setting, integer
from fastebm.chains.adjusted import Points
from fastebm.chains.chain import on_device
from fastebm.chains.tempering import TemperingSteps
from fastebm.rng import ChainRNG, DeviceRNG, as_rng, check_sample_ids
from fastebm.samplers.ladder import adapted, log_gaps
from fastebm.samplers.run import Run, run_steps_of
from fastebm.samplers.sampler import Sampler
from fastebm.samplers.settings import chains, number
from fastebm.samplers.units import bring_into, of_replicas

_REPLICA = 48  # the bit of a chain's id from which its replica is counted
_ROUND = 20  # steps of a warm-up between two looks at the swaps
_GAIN = 3.0  # of a rate, in the logarithm of a gap; less and less


def _sampler(name: str, sampler: Sampler) -> Sampler:
    if not isinstance(sampler, Sampler) or isinstance(sampler, ParallelTempering):
        raise TypeError(
            f"{name} must be a sampler with a temperature, such as MALA, HMC or LangevinDynamics,"
            f" got {type(sampler).__name__}"
        )
    return sampler


def _ladder(name: str, values: Sequence[float]) -> tuple[float, ...]:
    try:
        ladder = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r}") from None
    rising = all(a < b for a, b in zip(ladder, ladder[1:], strict=False))
    if len(ladder) < 2 or len(ladder) > 256 or not rising or not ladder[0] > 0:
        raise ValueError(f"{name} must be 2 to 256 numbers > 0, rising, got {values!r}")
    return tuple(number(name, v, above_zero=True) for v in ladder)


class ParallelTempering(Sampler):
    """Replicas of each chain at a ladder of temperatures, which exchange their states: the cold
    ones, which are the samples, go wherever the hot ones can.

    After every ``swap_every`` steps neighbours r, r + 1 exchange states with probability
    ``min(1, exp((1 / T_r - 1 / T_(r+1)) (E_r - E_(r+1))))``: pairs (0, 1), (2, 3), ... and (1, 2),
    (3, 4), ... in turn. This leaves the law of all replicas as it is, so chains are as exact as the
    sampler's own. The R B chains of all replicas run as one batch.

    Args:
        sampler: makes the steps of all replicas: any of fastebm's that has a temperature, which is
            replaced by those of the ladder; model, box and preconditioner are its own. A step size
            that suits the coldest is taken by all; an adaptive one stays as it is, so find it by
            ``sampler.warm_up`` first.
        temperatures: rising, (R,), 2 to 256; the first is that of the samples.
        swap_every: steps between exchanges, >= 1.

    Attributes:
        temperatures: may be set at any time; ``warm_up`` moves those between the first and last.

    Diagnostics: as of the sampler, energies and ``acceptance`` of the coldest replica,
    ``acceptances`` (R,) of all, and ``swap_rates`` (R - 1,), the mean probability of an exchange of
    each pair (0.2 to 0.6 is good; near 0: the ladder has a gap; NaN: there was none), ``replicas``
    (R, B, *event), where all of them are, to go on from.

    Raises:
        TypeError, ValueError: an argument is not of its kind or out of its range.

    Source: Swendsen and Wang, Replica Monte Carlo simulation of spin glasses, 1986; Geyer, Markov
    chain Monte Carlo maximum likelihood, 1991; even and odd pairs in turn: Okabe et al., 2001.
    """

    sampler = Setting(_sampler)
    temperatures = Setting(_ladder)
    swap_every = Setting(partial(integer, least=1))

    def __init__(
        self, sampler: Sampler, temperatures: Sequence[float], swap_every: int = 1
    ) -> None:
        self.sampler, self.temperatures, self.swap_every = sampler, temperatures, swap_every
        self._rounds = 0  # of warm-ups so far
        self._replicas: Tensor | None = None
        sampler.check_temperatures()

    model = property(lambda self: self.sampler.model)
    clamp = property(lambda self: self.sampler.clamp)
    preconditioner = property(lambda self: self.sampler.preconditioner)
    units = property(lambda self: self.sampler.units)
    dtypes = property(lambda self: self.sampler.dtypes)
    effective_temperature = property(lambda self: self.temperatures[0])

    def sample(
        self, x: Tensor | None = None, n_steps: int = 100, *, replicas: Tensor | None = None, **more
    ) -> Tensor | Any:
        """As of any sampler; and

        Args:
            replicas: (R, B, *event) in place of ``x``: where all replicas start, such as the
                diagnostics of the last call. Else all of a chain's start at its x.
        """
        if replicas is None:
            return super().sample(x, n_steps, **more)
        if x is not None:
            raise ValueError("give x or replicas, not both")
        r = len(self.temperatures)
        if not isinstance(replicas, Tensor) or replicas.dim() < 2 or len(replicas) != r:
            got = tuple(getattr(replicas, "shape", ())) or type(replicas).__name__
            raise ValueError(f"replicas must be a tensor ({r}, B, *event), got {got}")
        tempering = copy.copy(self)
        tempering._replicas = chains(replicas)
        return super(ParallelTempering, tempering).sample(replicas[0], n_steps, **more)

    def with_settings(self, settings: dict) -> Sampler:
        """A copy whose sampler has some settings; its temperatures are the ladder's."""
        if not settings:
            return self
        if "temperature" in settings:
            raise TypeError("ParallelTempering has no temperature but those of its ladder")
        other = copy.copy(self)
        other.sampler = self.sampler.with_settings(settings)
        other.sampler.check_temperatures()
        return other

    def _run(self, run: Run) -> tuple[Points, dict[str, Tensor]]:
        b, units = len(run.x), self.units
        with self._steps(run) as (steps, points, of_all):
            run_steps_of(steps, points, of_all)
        cold = Points(points.x[:b], points.energy[:b], points.grad[:b], points.acceptance[:, :b])
        replicas = points.x if units is None else units.restore(points.x)
        replicas = replicas.view(len(self.temperatures), *run.x.shape)
        if units is not None:
            bring_into(self.clamp, replicas)
        return cold, {**steps.metrics(points, run.total), "replicas": replicas}

    @contextmanager
    def _steps(self, run: Run) -> Iterator[tuple[TemperingSteps, Points, Run]]:
        """Steps of all replicas, where they are, and what their run is asked for."""
        x, b, r = run.x, len(run.x), len(self.temperatures)
        ids = run.sample_ids
        if ids is None:
            ids = run.rng.first_sample(b) + torch.arange(b, device=x.device)
        replicas = torch.arange(r, device=x.device) << _REPLICA
        if self._replicas is None:
            all_x = x.repeat(r, *(1,) * (x.dim() - 1))
        else:
            all_x = self._replicas.to(x).reshape(r * b, *x.shape[1:]).clone()
            all_x = all_x if self.units is None else self.units.standardize(all_x)
        ladder = on_device(self.temperatures, torch.float64, x.device)
        of_all = run._replace(
            x=all_x,
            sample_ids=(replicas[:, None] + ids).flatten(),
            model_kwargs=_repeated(run.model_kwargs, b, r),
            on_step=run.on_step and _of_cold(run.on_step, b),
            before_step=run.before_step and _of_each(run.before_step, b),
        )
        sampler = copy.copy(self.sampler)
        sampler.temperature = ladder.repeat_interleave(b)
        sampler.clamp = of_replicas(self.clamp, x, r)
        with sampler.steps(of_all) as steps:
            state = run.rng.state(x.device, b)
            tempering = TemperingSteps(steps, ladder, self.swap_every, state, ids)
            yield tempering, Points.at(all_x), of_all

    def warm_up(
        self,
        x: Tensor,
        n_steps: int = 500,
        *,
        seed: int | ChainRNG | DeviceRNG | None = None,
        generator: Generator | None = None,
        model_kwargs: dict | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """Move the temperatures between the first and the last to where all pairs exchange equally
        often; they stay there. Step sizes are the sampler's own to find, by its ``warm_up``.

        Args:
            x: where chains start, (B, *event).
            n_steps: rounded up to a multiple of 20.
            seed, generator, model_kwargs, sample_ids: as in ``sample``.

        Returns:
            Where the cold chains are, (B, *event).

        Source: after Vousden, Farr and Mandel, Dynamic temperature selection for parallel
        tempering, 2016, with both ends fixed.
        """
        n_steps, rng, x = integer("n_steps", n_steps, 1), as_rng(seed, generator), chains(x)
        rounds, every = -(-n_steps // _ROUND), _ROUND + -_ROUND % (2 * self.swap_every)
        rng.check_room(every * rounds)
        check_sample_ids(sample_ids, len(x))
        at, gaps = copy.copy(self), log_gaps(self.temperatures)
        for _ in range(rounds):
            at.temperatures = adapted(self.temperatures, gaps)
            points, found = at.run(x, every, rng, model_kwargs or {}, sample_ids)
            x, at._replicas = points.x, found["replicas"]
            self._rounds += 1
            rates = found["swap_rates"].double().cpu()
            gaps = gaps + _GAIN * (rates - rates.mean()) / math.sqrt(self._rounds)
        self.temperatures = adapted(self.temperatures, gaps)
        return x

    def state_dict(self) -> dict[str, Any]:
        """The ladder, and the sampler's own state."""
        return {
            "temperatures": self.temperatures,
            "rounds": self._rounds,
            "sampler": self.sampler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self.temperatures, self._rounds = state["temperatures"], state["rounds"]
        self.sampler.load_state_dict(state["sampler"])


def _repeated(model_kwargs: dict, b: int, r: int) -> dict:
    """Arguments of b chains for r replicas of them."""
    return {
        k: v.repeat(r, *(1,) * (v.dim() - 1))
        if isinstance(v, Tensor) and v.dim() and len(v) == b
        else v
        for k, v in model_kwargs.items()
    }


def _of_cold(on_step, b: int):
    return lambda k, x, grad, e: on_step(k, x[:b], grad[:b], e[:b])


def _of_each(before_step, b: int):
    def change(k: int, x: Tensor) -> None:
        for replica in x.split(b):
            before_step(k, replica)

    return change
