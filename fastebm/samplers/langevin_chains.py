"""Runs of Langevin chains, in the way that the sampler's settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastebm.chains.adjusted import (
    ROUND,
    Mover,
    Moves,
    Points,
    move_any,
    run_adjusted,
)
from fastebm.chains.chain import Chain
from fastebm.chains.gradients import GradientAt, set_points
from fastebm.chains.local_means import local_means
from fastebm.chains.steps import Steps
from fastebm.energies.sampling_mode import sampling_mode
from fastebm.rng import ChainRNG, DeviceRNG
from fastebm.samplers.adaptive import AdaptiveStep
from fastebm.samplers.diagnostics import acceptances
from fastebm.samplers.run import Run
from fastebm.samplers.units import box_in, uniform_share


def run_langevin(sampler, run: Run) -> tuple[Points, dict[str, Tensor]]:
    """A run of a ``LangevinDynamics``; an adaptive step is adapted.

    Returns:
        The last points, without energies where the chains are not adjusted, and what is to be said
        of the chains.
    """
    if sampler.adjusted:
        points = _adjusted(sampler, run)
        return points, acceptances(points, run.total - run.n_jumps, run.n_jumps)
    _unadjusted(sampler, run)
    if run.total:
        observe(sampler, run.x, run.total, run.rng, run.model_kwargs, run.sample_ids)
    return Points(run.x, None, None, None), {}


def observe(
    sampler,
    x: Tensor,
    n_steps: int,
    rng: ChainRNG | DeviceRNG,
    model_kwargs: dict,
    sample_ids: Tensor | None = None,
) -> None:
    """Adapt the step of chains that are not adjusted, which have got to ``x`` in their units by
    ``n_steps``: by what Metropolis' rule would say of one step more."""
    adaptive = sampler.step_size
    if sampler.adjusted or not isinstance(adaptive, AdaptiveStep) or adaptive.frozen:
        return

    def update(acceptance: Tensor, _: int) -> None:
        adaptive.update(acceptance, min(n_steps, ROUND))

    _run_adjusted(sampler, Run(x.clone(), 1, rng, model_kwargs, sample_ids), update)


def _adjusted(sampler, run: Run) -> Points:
    adaptive = sampler.step_size
    adapts = isinstance(adaptive, AdaptiveStep) and not adaptive.frozen
    return _run_adjusted(sampler, run, adaptive.update if adapts else None)


def _run_adjusted(
    sampler, run: Run, after_round: Callable[[Tensor, int], None] | None = None
) -> Points:
    x, points = run.x, Points.at(run.x)
    transitions = transitions_of(sampler, run)
    adapts = isinstance(sampler.step_size, AdaptiveStep)
    plan = sampler.plan(range(1 if adapts else run.total), x.device)

    def coefficients(start: int, end: int) -> list:
        if not adapts:
            return plan[start:end]
        if sampler.is_scheduled:
            return sampler.plan(range(start, end), x.device)
        plan[1:] = ()
        plan[:] = (plan or sampler.plan(range(1), x.device)) * (end - start)
        return plan

    def adapt(acceptance: Tensor, n_proposals: int) -> None:
        after_round(acceptance, n_proposals)
        plan.clear()

    with adjusted_mover(sampler, x, run.model_kwargs) as move:
        run_adjusted(
            *(move, points, run.total, coefficients, transitions),
            *(after_round and adapt, *run.callbacks),
        )
    return points


def transitions_of(sampler, run: Run) -> Moves:
    """What the transitions of a run of adjusted chains have in common."""
    x, ids, n_jumps = run.x, run.sample_ids, run.n_jumps
    if n_jumps and run.population is None and ids is None:
        ids = run.rng.first_sample(len(x)) + torch.arange(len(x), device=x.device)
    lo, hi = box_in(sampler.units, sampler.clamp, x)
    state = run.rng.state(x.device, len(x))
    given = n_jumps and run.population is not None
    modes = local_means(run.population, state, n_jumps=n_jumps) if given else None
    share = uniform_share(sampler.units, sampler.clamp) if n_jumps else 0.0
    return Moves(state, ids, lo, hi, n_jumps, share, modes)


@contextmanager
def adjusted_mover(sampler, x: Tensor, model_kwargs: dict) -> Iterator[Mover]:
    """Adjusted transitions on the sampler's energy, by one kernel where it has one."""
    fused = sampler.fused_chain(x, model_kwargs)
    if fused is not None:
        yield fused.move
        return
    with sampling_mode(sampler.inner_model):
        yield move_any(sampler.inner_model, model_kwargs)


@contextmanager
def langevin_steps(sampler, run: Run) -> Iterator[Steps]:
    """Steps of a ``LangevinDynamics`` with a plan that is fixed, a few at a time."""
    if sampler.adjusted:
        with adjusted_mover(sampler, run.x, run.model_kwargs) as move:
            yield _AdjustedSteps(sampler, move, transitions_of(sampler, run))
    else:
        with sampler.gradients(run) as gradient:
            yield _PlainSteps(sampler, run, gradient)


class _AdjustedSteps:
    def __init__(self, sampler, move: Mover, transitions: Moves) -> None:
        self._sampler, self._move, self._transitions = sampler, move, transitions

    def __call__(self, points: Points, first: int, n: int, known: bool) -> None:
        plan = self._sampler.plan(range(first, first + n), points.x.device)
        self._move(points, first, plan, self._transitions, 0, known)

    def metrics(self, points: Points, n_steps: int) -> dict[str, Tensor]:
        return acceptances(points, n_steps, 0)


class _PlainSteps:
    def __init__(self, sampler, run: Run, gradient: GradientAt) -> None:
        self._sampler, self._run, self._gradient = sampler, run, gradient

    def __call__(self, points: Points, first: int, n: int, known: bool) -> None:
        rng = self._run.rng.copy()
        rng.advance(first)
        part = Run(points.x, n, rng, self._run.model_kwargs, self._run.sample_ids)
        _unadjusted(self._sampler, part, first)
        set_points(points, *self._gradient(points.x))

    def metrics(self, points: Points, n_steps: int) -> dict[str, Tensor]:
        return {}


def _unadjusted(sampler, run: Run, first: int = 0) -> None:
    x, model, state = run.x, sampler.inner_model, run.rng.state(run.x.device, len(run.x))
    plan = sampler.plan(range(first, first + run.total), x.device)
    fused = sampler.fused_chain(x, run.model_kwargs)
    if fused is not None:
        return fused.run(x, plan, state, sampler.options, run.sample_ids, *run.callbacks)
    chain = Chain(x, plan, state, sampler.options, run.model_kwargs, run.sample_ids)
    freeze = not sampler.compile  # whose code takes no gradients of autograd's
    with torch.enable_grad(), sampling_mode(model, freeze):
        sampler.runner.run(
            *(model, chain, sampler.compile, sampler.graph),
            *(_only(run.on_step, run.seen), _only(run.before_step, run.changed)),
        )


def _only(call, steps: range):
    """A callback of some steps as one of all steps; None for none."""
    if call is None or not steps:
        return None

    def at_some(k: int, *args) -> None:
        if k in steps:
            call(k, *args)

    return at_some
