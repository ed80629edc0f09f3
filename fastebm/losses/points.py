"""Losses that see chains only where they are, with no derivative of a step: the points, and the
terms of contrastive divergence at them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.losses.terms import mean_norm
from fastebm.rng import ChainRNG, DeviceRNG
from fastebm.samplers.adaptive import AdaptiveStep
from fastebm.samplers.gibbs import GibbsSampler
from fastebm.samplers.sampler import Sampler


class Negatives(NamedTuple):
    """Where chains are at some times.

    Attributes:
        x: (times * n, *event), time after time; the last n rows are the chains' ends.
        metrics: of the chains.
    """

    x: Tensor
    metrics: dict[str, Tensor]


def run_to_points(
    sampler: Sampler | GibbsSampler,
    start: Tensor,
    k_steps: int,
    times: int,
    rng: ChainRNG | DeviceRNG,
    model_kwargs: dict,
    n_jumps: int = 0,
    population: Tensor | None = None,
) -> Negatives:
    """``k_steps`` steps of the chains, and where they are after the last one and at ``times - 1``
    times before, evenly spread over the second half of the steps. The stream is advanced by all but
    the last step, as by all losses."""
    thin = max(1, k_steps // (2 * times))
    if isinstance(sampler, GibbsSampler):
        path = sampler.sample(
            *(start, times * thin),
            burn_in=k_steps - times * thin,
            thin=thin,
            return_trajectory=True,
            seed=rng.copy(),
            model_kwargs=model_kwargs,
        )
        rng.advance(k_steps - 1)
        return Negatives(path.transpose(0, 1).flatten(0, 1), {})
    seen = range(k_steps - 1 - (times - 1) * thin, k_steps - 1, thin)
    kept: list[Tensor] = []
    stream = rng.copy()
    points, metrics = sampler.run(
        *(start, k_steps, stream, model_kwargs, None),
        *(lambda k, x, grad, e: kept.append(x.clone()), seen, None, range(0), n_jumps, population),
    )
    rng.advance(k_steps - 1)
    if points.grad is not None:
        metrics = {"grad_norm": mean_norm(points.grad), **metrics}
    step_size = getattr(sampler, "step_size", None)
    if isinstance(step_size, AdaptiveStep):
        metrics["step_size"] = step_size.value(start.device)
    return Negatives(torch.cat([*kept, points.x]) if kept else points.x, metrics)
