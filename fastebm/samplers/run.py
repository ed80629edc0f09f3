"""One run of Langevin chains, in the way that the sampler's settings ask for."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.arguments import integer
from fastebm.chains.adjusted import ROUND, Moves, Points, move_any, run_adjusted
from fastebm.chains.chain import BeforeStep, Chain, OnStep
from fastebm.chains.local_means import local_means
from fastebm.energies.sampling_mode import sampling_mode
from fastebm.energies.standardized import Standardized
from fastebm.modes import outside_inference
from fastebm.rng import ChainRNG, DeviceRNG
from fastebm.samplers.adaptive import AdaptiveStep
from fastebm.samplers.units import box_in, inner_model, uniform_share, units_of


def run_chain(
    sampler,
    x: Tensor,
    total: int,
    rng: ChainRNG | DeviceRNG,
    model_kwargs: dict,
    sample_ids: Tensor | None = None,
    on_step: OnStep | None = None,
    seen: range = range(0),
    before_step: BeforeStep | None = None,
    changed: range = range(0),
    n_jumps: int = 0,
    population: Tensor | None = None,
) -> Points:
    """``total`` steps of a ``LangevinDynamics`` from ``x`` (B, *event), which stays as it is; the
    stream is advanced, and an adaptive step adapted.

    Args:
        on_step, seen: ``on_step(k, x, grad, energy)`` after these steps, with x in the user's
            units: gradient and energy at the point that the step left, of adjusted chains at the
            new one, in the chains' units.
        before_step, changed: ``before_step(k, x)`` changes x in place, before these.
        n_jumps, population: of adjusted chains, see ``LangevinDynamics.sample``.

    Returns:
        The last points in the user's units, without energies where the chains are not adjusted.
    """
    with outside_inference():
        units = units_of(sampler.model)
        if units is None:
            inner = x.clone(memory_format=torch.contiguous_format)
        else:
            inner = units.standardize(x)
            on_step = on_step and _restoring(on_step, units)
            before_step = before_step and _changing(before_step, units)
            population = None if population is None else units.standardize(population)
        callbacks = on_step, seen, before_step, changed
        run = (sampler, inner, total, rng, model_kwargs, sample_ids)
        if sampler.adjusted:
            points = _adjusted(*run, n_jumps, population, callbacks)
        else:
            _unadjusted(*run, callbacks)
            points = Points(inner, None, None, None)
            if total:
                observe(*run)
        rng.advance(total)
        if units is None:
            return points
        out = units.restore(inner)
        if sampler.clamp is not None:  # the way back is rounded
            out.clamp_(*sampler.clamp)
        return points._replace(x=out)


def checked_jumps(
    jumps: int, total: int, adjusted: bool, x: Tensor, population: Tensor | None
) -> int:
    """How many of ``total`` steps from ``x`` are jumps.

    Raises:
        ValueError: there are more than steps, the chains are not adjusted, or there is no
            population.
    """
    jumps = integer("jumps", jumps, 0, total)
    if not jumps:
        return 0
    if not adjusted:
        raise ValueError("jumps need a sampler with adjusted=True, which may refuse them")
    if population is None:
        if len(x) < 4:
            raise ValueError(f"jumps need a population, or 4 chains at least, got {len(x)}")
    elif population.shape[1:] != x.shape[1:] or len(population) < 2:
        event = ", ".join(map(str, x.shape[1:]))
        raise ValueError(f"population must be (P, {event}), P >= 2, got {tuple(population.shape)}")
    return jumps


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

    _run_adjusted(sampler, x.clone(), 1, rng, model_kwargs, sample_ids, after_round=update)


def _adjusted(
    sampler,
    x: Tensor,
    total: int,
    rng: ChainRNG | DeviceRNG,
    model_kwargs: dict,
    sample_ids: Tensor | None,
    n_jumps: int,
    population: Tensor | None,
    callbacks: tuple,
) -> Points:
    adaptive = sampler.step_size
    adapts = isinstance(adaptive, AdaptiveStep) and not adaptive.frozen
    on_step, seen, before_step, changed = callbacks
    return _run_adjusted(
        *(sampler, x, total, rng, model_kwargs, sample_ids, n_jumps, population),
        after_round=adaptive.update if adapts else None,
        on_step=on_step,
        seen=seen,
        before_step=before_step,
        changed=changed,
    )


def _run_adjusted(
    sampler,
    x: Tensor,
    total: int,
    rng: ChainRNG | DeviceRNG,
    model_kwargs: dict,
    sample_ids: Tensor | None,
    n_jumps: int = 0,
    population: Tensor | None = None,
    **options,
) -> Points:
    if n_jumps and population is None and sample_ids is None:
        sample_ids = rng.first_sample(len(x)) + torch.arange(len(x), device=x.device)
    lo, hi = box_in(sampler.model, sampler.clamp, x)
    state = rng.state(x.device, len(x))
    given = n_jumps and population is not None
    modes = local_means(population, state, n_jumps=n_jumps) if given else None
    share = uniform_share(sampler.model, sampler.clamp) if n_jumps else 0.0
    moves = Moves(state, sample_ids, lo, hi, n_jumps, share, modes)
    points, fused = Points.at(x), sampler.fused_chain(x, model_kwargs)
    adapts = isinstance(sampler.step_size, AdaptiveStep)
    plan = sampler.plan(range(1 if adapts else total), x.device)
    after_round = options.pop("after_round", None)

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

    options["after_round"] = after_round and adapt
    if fused is not None:
        run_adjusted(fused.move, points, total, coefficients, moves, **options)
        return points
    model = inner_model(sampler.model)
    with sampling_mode(model):
        move = move_any(model, model_kwargs)
        run_adjusted(move, points, total, coefficients, moves, **options)
    return points


def _unadjusted(
    sampler,
    x: Tensor,
    total: int,
    rng: ChainRNG | DeviceRNG,
    model_kwargs: dict,
    sample_ids: Tensor | None,
    callbacks: tuple,
) -> None:
    on_step, seen, before_step, changed = callbacks
    plan, state = sampler.plan(range(total), x.device), rng.state(x.device, len(x))
    fused = sampler.fused_chain(x, model_kwargs)
    if fused is not None:
        return fused.run(x, plan, state, sampler.options, sample_ids, *callbacks)
    model = inner_model(sampler.model)
    chain = Chain(x, plan, state, sampler.options, model_kwargs, sample_ids)
    freeze = not sampler.compile  # whose code takes no gradients of autograd's
    with torch.enable_grad(), sampling_mode(model, freeze):
        sampler.runner.run(
            *(model, chain, sampler.compile, sampler.graph),
            *(_only(on_step, seen), _only(before_step, changed)),
        )


def _only(call, steps: range):
    """A callback of some steps as one of all steps; None for none."""
    if call is None or not steps:
        return None

    def at_some(k: int, *args) -> None:
        if k in steps:
            call(k, *args)

    return at_some


def _restoring(on_step: OnStep, units: Standardized) -> OnStep:
    return lambda k, x, grad, e: on_step(k, units.restore(x), grad, e)


def _changing(before_step: BeforeStep, units: Standardized) -> BeforeStep:
    def change(k: int, x: Tensor) -> None:
        out = units.restore(x)
        before_step(k, out)
        x.copy_(units.standardize(out))

    return change
