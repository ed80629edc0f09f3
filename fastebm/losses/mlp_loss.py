"""Losses of small perceptrons by formulas: the one door to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fastebm.chains.adjusted import ROUND
from fastebm.chains.local_means import means_and_neighbors
from fastebm.chains.mlp_chain import steps_of_a_call, tables
from fastebm.distributed.collectives import mean_of_ranks
from fastebm.distributed.world import is_together
from fastebm.losses.terms import Batch, Terms
from fastebm.ops.mlp.gradient import with_gradient
from fastebm.ops.mlp.loss import (
    AdaptedStep,
    Jumps,
    mlp_adjusted_contrastive_divergence,
    mlp_contrastive_divergence,
)
from fastebm.ops.mlp.network import Network
from fastebm.ops.neighbor import queries_of_a_call
from fastebm.rng import ChainRNG, DeviceRNG
from fastebm.samplers.adaptive import AdaptiveStep
from fastebm.samplers.gibbs import GibbsSampler
from fastebm.samplers.langevin import LangevinDynamics
from fastebm.samplers.langevin_chains import observe
from fastebm.samplers.units import has_formula, uniform_share


class LastStepWeights(NamedTuple):
    """Of the terms that reach the parameters through the last step: see
    ImprovedContrastiveDivergence."""

    kl_weight: float
    entropy_weight: float
    entropy_eps: float


def terms_by_formulas(
    model: Callable[..., Tensor],
    sampler: LangevinDynamics | GibbsSampler,
    batch: Batch,
    k_steps: int,
    rng: ChainRNG | DeviceRNG,
    energy_reg_weight: float,
    last_step: LastStepWeights | None = None,
) -> tuple[Terms, Tensor, bool] | None:
    """The loss of ``ContrastiveDivergence``, or of a kin, with its gradient and its chains by
    formulas; None where it must be taken by a graph, and nothing was done: on a device, and of a
    sampler with a last step of its own. All that losses know of small perceptrons is behind this
    function.

    What costs its time on a CPU is then what it computes: one operator, where chain and graph of
    autograd take some hundred.

    Args:
        batch: the chains at their start.
        rng: the noise; advanced past all steps but the last.

    Returns:
        The terms, the chains before the last step, and whether energies and x_neg are finite.
    """
    if batch.x.device.type != "cpu":  # there a CUDA graph takes the launches off
        return None
    if len(batch.chains) != len(batch.x):
        return None
    if _inner(model) is not sampler.model or not _is_own(sampler, "last_step"):
        return None
    if sampler.adjusted or sampler.units is not None:
        return None
    found = _network(sampler, batch)
    if found is None:
        return None
    # The operator's one call has no more than Ctrl-C may wait for, and no ``sample`` of others.
    samples_here = _is_own(sampler, "sample")
    in_one_call = steps_of_a_call(found[0], batch.x) if samples_here else 1
    n_before = max(0, k_steps - in_one_call)
    if n_before or not samples_here:
        before = sampler.sample(batch.chains, n_before, seed=rng, model_kwargs=batch.kwargs_neg)
        batch = batch._replace(chains=before)
    steps = range(n_before, k_steps)
    terms, before, finite = _terms(*found, sampler, batch, steps, rng, energy_reg_weight, last_step)
    observe(sampler, terms.x_neg, len(steps), rng, batch.kwargs_neg)
    return _reduced(terms, model, batch), before, finite


@torch.no_grad()
def points_by_formulas(
    model: Callable[..., Tensor],
    sampler: LangevinDynamics,
    batch: Batch,
    k_steps: int,
    rng: ChainRNG | DeviceRNG,
    energy_reg_weight: float,
    n_jumps: int = 0,
    population: Tensor | None = None,
) -> tuple[Terms, bool] | None:
    """``run_to_points`` of adjusted chains and the loss of ``ContrastiveDivergence`` at them, with
    its gradient, by formulas in one operator; None where they must be had step by step, and nothing
    was done.

    Returns:
        The terms, with all metrics, and whether energies and points are finite.
    """
    if not isinstance(sampler, LangevinDynamics) or not sampler.adjusted:
        return None
    if batch.x.device.type != "cpu" or _inner(model) is not sampler.model:
        return None
    step, units = sampler.step_size, sampler.units
    noise = sampler.noise_std, sampler.noise_scale, sampler.temperature
    adaptive = type(step) is AdaptiveStep
    numbers = noise if adaptive else (step, *noise)
    if not all(v is None or isinstance(v, (int, float)) for v in numbers) or 0 in noise:
        return None
    if not all(_is_own(sampler, name) for name in ("plan", "coefficients")):
        return None
    if not has_formula(units):
        return None
    found = _network(sampler, batch)
    if found is None or k_steps > steps_of_a_call(found[0], batch.x):
        return None
    network, data_row_bias = found
    jumps = _jumps(sampler, n_jumps, population) if n_jumps else None
    if jumps is not None and jumps.n_centres > queries_of_a_call(population):
        return None
    adapts = adaptive and not step.frozen
    if adapts and is_together() and k_steps > ROUND:  # and so more than once, asking the others
        return None
    x_neg, e_pos, e_neg, sums, to_row_bias, values, finite, log_step = (
        mlp_adjusted_contrastive_divergence(
            *(batch.x, batch.chains, network, k_steps),
            *(_adapted(step) if adapts else step.value("cpu") if adaptive else step, noise),
            rng.state("cpu", len(batch.chains)),
            data_row_bias=data_row_bias,
            clamp=sampler.clamp,
            jumps=jumps,
            units=units and (units.mean.float(), units.std.float()),
            energy_reg_weight=energy_reg_weight,
        )
    )
    rng.advance(k_steps - 1)
    if adapts:
        # Of one adaptation the ranks' mean is the adaptation to their mean acceptance.
        step.log_step.copy_(mean_of_ranks(log_step) if is_together() else log_step)
    loss, *of_phases, norm, acceptance, jump_acceptance = values
    metrics = {**_metrics(of_phases), "grad_norm": norm}
    if k_steps > n_jumps:
        metrics["acceptance"] = acceptance
    if n_jumps:
        metrics["jump_acceptance"] = jump_acceptance
    if adaptive:
        metrics["step_size"] = step.value("cpu")
    loss = with_gradient(loss, network, sums, *_of_rows(network, data_row_bias, to_row_bias))
    terms = Terms(loss, x_neg, metrics, e_pos, e_neg, metrics["energy_neg"])
    return _reduced(terms, model, batch), finite


@torch.enable_grad()  # row biases are made of parameters
def _network(
    sampler: LangevinDynamics | GibbsSampler, batch: Batch
) -> tuple[Network, Tensor | None] | None:
    """That of the chains, and the row biases that it has for the data; None where there is none, or
    one that its formulas have no gradient for."""
    chain = sampler.fused_chain(batch.chains, batch.kwargs_neg)
    if chain is None:
        return None
    network, of_data = chain.network, chain
    base = network.base_precision, network.base_mean
    if any(t is not None and t.requires_grad for t in base):
        return None
    model_kwargs = batch.kwargs_pos
    if model_kwargs is not batch.kwargs_neg or (model_kwargs and len(batch.x) > len(batch.chains)):
        of_data = sampler.fused_chain(batch.x, model_kwargs)
    if of_data is None or (of_data.network.row_bias is None) != (network.row_bias is None):
        return None
    return network, of_data.network.row_bias


def _of_rows(
    network: Network, data_row_bias: Tensor | None, gradient: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """The row biases of data and chains, each with its gradient."""
    if data_row_bias is None:
        return []
    both = data_row_bias, network.row_bias
    return list(zip(both, gradient.split([len(rows) for rows in both]), strict=True))


def _inner(model: Callable) -> Callable:
    """What DistributedDataParallel wraps."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@torch.enable_grad()
def _reduced(terms: Terms, model: Callable, batch: Batch) -> Terms:
    """With a loss whose gradient DistributedDataParallel reduces: it waits for the gradients of
    parameters that its forward pass has used."""
    if not isinstance(model, DistributedDataParallel):
        return terms
    first = torch.zeros(1, dtype=torch.int64)
    one = batch.rows(first, first, 0)
    used = model(torch.zeros_like(one.x), **one.kwargs_pos)
    return terms._replace(loss=terms.loss + 0 * used.sum())


def _adapted(step: AdaptiveStep) -> AdaptedStep:
    log_step = step.log_step.item()
    return AdaptedStep(log_step, step.target_acceptance, step.gain, *step.log_bounds, ROUND)


def _jumps(sampler: LangevinDynamics, n: int, population: Tensor) -> Jumps:
    share = uniform_share(sampler.units, sampler.clamp)
    return Jumps(n, population, *means_and_neighbors(len(population), n), share)


def _metrics(values: list[Tensor]) -> dict[str, Tensor]:
    """Of what the operators give after the loss, its first six."""
    pos, neg, std_pos, std_neg, gap, squares = values
    return {
        "loss_cd": gap,
        "energy_pos": pos,
        "energy_neg": neg,
        "energy_pos_std": std_pos,
        "energy_neg_std": std_neg,
        "energy_gap": gap,
        "energy_reg": squares,
    }


def _is_own(sampler: LangevinDynamics | GibbsSampler, name: str) -> bool:
    """Whether the method is that of LangevinDynamics, and not a subclass's or a caller's."""
    method = getattr(sampler, name, None)
    return getattr(method, "__func__", None) is getattr(LangevinDynamics, name)


@torch.no_grad()
def _terms(
    network: Network,
    data_row_bias: Tensor | None,
    sampler: LangevinDynamics,
    batch: Batch,
    steps: range,
    rng: ChainRNG | DeviceRNG,
    energy_reg_weight: float,
    last_step: LastStepWeights | None,
) -> tuple[Terms, Tensor, bool]:
    """By ``steps``, of which the last one is the loss's."""
    step_sizes, noise_stds = tables(sampler.plan(steps), batch.x)
    options = sampler.options
    kl_weight, entropy_weight, entropy_eps = last_step or (None, 0.0, 1.0)
    y, own, y_scale = batch.references or (None, None, (1.0, 0.0))
    before, x_neg, e_pos, e_neg, sums, to_row_bias, values, finite = mlp_contrastive_divergence(
        *(batch.x, batch.chains, network, len(steps) - 1, step_sizes, noise_stds),
        rng.state(batch.x.device, len(batch.chains)),
        data_row_bias=data_row_bias,
        grad_clip=options.grad_clip,
        grad_norm_clip=options.grad_norm_clip,
        clamp=options.clamp,
        noise_first=options.noise_first,
        energy_reg_weight=energy_reg_weight,
        kl_weight=kl_weight,
        entropy_weight=entropy_weight,
        entropy_eps=entropy_eps,
        references=y,
        own=own,
        y_scale=y_scale,
    )
    rng.advance(len(steps) - 1)
    loss, *of_phases, norm, share, entropy = values
    metrics = {**_metrics(of_phases), "grad_norm": norm, "clamp_share": share}
    mean_neg = metrics["energy_neg"]
    if last_step:
        metrics |= {"kl_energy": mean_neg, "entropy": entropy}
    loss = with_gradient(loss, network, sums, *_of_rows(network, data_row_bias, to_row_bias))
    return Terms(loss, x_neg, metrics, e_pos, e_neg, mean_neg), before, finite
