"""The last step of a chain, differentiable in the parameters of the model."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from fastebm.chains.adjusted import (
    Moves,
    Points,
    drift_step,
    is_accepted,
    is_inside,
    log_ratio,
    over_events,
)
from fastebm.chains.chain import Coefficients, run_last_step
from fastebm.chains.second_order import twice_differentiable
from fastebm.energies.protocol import input_gradient, leaf_gradient, sum_scales
from fastebm.energies.sampling_mode import sampling_mode
from fastebm.modes import ordinary, outside_inference
from fastebm.ops.langevin import langevin_step
from fastebm.samplers.units import box_in


def take_last_step(
    sampler,
    x: Tensor,
    coefficients: Coefficients,
    rng: Tensor,
    create_graph: bool,
    model_kwargs: dict,
    sample_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``LangevinDynamics.last_step``, its arguments checked."""
    model, units = sampler.inner_model, sampler.units

    def gradient(leaf: Tensor, model_kwargs: dict) -> tuple[Tensor, Tensor]:
        return leaf_gradient(model, leaf, model_kwargs, create_graph)

    with (
        outside_inference(),
        torch.enable_grad(),
        sampling_mode(model, not create_graph) as switched,
        twice_differentiable(switched) if create_graph else nullcontext(),
    ):
        kwargs = {k: ordinary(v) for k, v in model_kwargs.items()}
        x = ordinary(x)
        if units is not None:
            x = units.standardize(x)
        if sampler.adjusted:
            lo, hi = box_in(units, sampler.clamp, x)
            moves = Moves(rng, sample_ids, lo, hi)
            out, grad = _adjusted(model, gradient, x, coefficients, moves, kwargs)
        else:
            out, grad = run_last_step(
                gradient, x, coefficients, rng, sampler.options, kwargs, sample_ids
            )
        return out if units is None else units.restore(out), grad


def _adjusted(
    model, gradient, x: Tensor, coefficients: Coefficients, moves: Moves, model_kwargs: dict
) -> tuple[Tensor, Tensor]:
    """A proposal, or where it is refused its start, on which no parameter has an influence."""
    step, sigma = coefficients
    grad, e = gradient(x.detach().requires_grad_(), model_kwargs)
    shortened = grad * over_events(drift_step(grad, step, sigma) / step, grad)
    proposal = langevin_step(*(x, shortened, step, sigma, moves.rng), sample_ids=moves.sample_ids)
    y = proposal.detach()
    grad_y, e_y = input_gradient(model, y, model_kwargs)
    at = Points(x, sum_scales(e.detach()), grad.detach(), None)
    log_r = log_ratio(at, y, e_y, grad_y, step, sigma)
    accept = is_accepted(log_r, moves, 0) & is_inside(y, moves.lo, moves.hi)
    return torch.where(over_events(accept, y), proposal, x), grad
