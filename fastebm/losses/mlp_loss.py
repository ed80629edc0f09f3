"""Losses of small perceptrons by formulas: the one door to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.chains.mlp_chain import steps_of_a_call, tables
from fastebm.losses.terms import Batch, Terms
from fastebm.ops.mlp.gradient import mlp_gradient, with_gradient
from fastebm.ops.mlp.loss import mlp_contrastive_divergence
from fastebm.ops.mlp.network import Network
from fastebm.rng import ChainRNG, DeviceRNG
from fastebm.samplers.gibbs import GibbsSampler
from fastebm.samplers.langevin import LangevinDynamics
from fastebm.samplers.run import observe
from fastebm.samplers.units import units_of


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
    if model is not sampler.model or not _is_own(sampler, "last_step"):
        return None
    if sampler.adjusted or units_of(model) is not None:
        return None
    chain = sampler.fused_chain(batch.x, batch.kwargs_pos)
    if chain is None:
        return None
    # The operator's one call has no more than Ctrl-C may wait for, and no ``sample`` of others.
    samples_here = _is_own(sampler, "sample")
    in_one_call = steps_of_a_call(chain.network, batch.x) if samples_here else 1
    n_before = max(0, k_steps - in_one_call)
    if n_before or not samples_here:
        before = sampler.sample(batch.chains, n_before, seed=rng, model_kwargs={})
        batch = batch._replace(chains=before)
    steps = range(n_before, k_steps)
    found = _terms(chain.network, sampler, batch, steps, rng, energy_reg_weight, last_step)
    observe(sampler, found[0].x_neg, len(steps), rng, {})
    return found


@torch.no_grad()
def phases_by_formulas(
    model: Callable[..., Tensor],
    sampler: LangevinDynamics,
    batch: Batch,
    x_neg: Tensor,
    energy_reg_weight: float,
) -> Terms | None:
    """The loss of ``ContrastiveDivergence`` at the chains' points ``x_neg``, as many as there are
    data, with its gradient by formulas; None where it must be taken by a graph."""
    x = batch.x
    if x.device.type != "cpu" or model is not sampler.model or len(x) != len(x_neg):
        return None
    both, units = torch.cat([x, x_neg]), units_of(model)
    both = both if units is None else units.standardize(both)
    chain = sampler.fused_chain(both, batch.kwargs_pos)
    if chain is None:
        return None
    n, network = len(x), chain.network
    sums = both.new_zeros(sum(w.numel() + len(w) for w in network.weights))
    e = mlp_gradient(
        *(network, both.flatten(1)),
        n_data=n,
        factor=1 / n,
        square_factor=2 * energy_reg_weight / n,
        sums=sums,
    )
    means, squares = e.view(2, n).mean(1), e.square().sum() / n
    std_pos, std_neg = e.view(2, n).std(1, correction=0)
    pos, neg = means
    gap = pos - neg
    metrics = {
        "loss_cd": gap,
        "energy_pos": pos,
        "energy_neg": neg,
        "energy_pos_std": std_pos,
        "energy_neg_std": std_neg,
        "energy_gap": gap,
        "energy_reg": squares,
    }
    loss = with_gradient(gap + energy_reg_weight * squares, network, sums)
    return Terms(loss, x_neg, metrics, e[:n], e[n:], neg)


def _is_own(sampler: LangevinDynamics | GibbsSampler, name: str) -> bool:
    """Whether the method is that of LangevinDynamics, and not a subclass's or a caller's."""
    method = getattr(sampler, name, None)
    return getattr(method, "__func__", None) is vars(LangevinDynamics)[name]


@torch.no_grad()
def _terms(
    network: Network,
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
    before, x_neg, e_pos, e_neg, sums, values, finite = mlp_contrastive_divergence(
        *(batch.x, batch.chains, network, len(steps) - 1, step_sizes, noise_stds),
        rng.state(batch.x.device),
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
    loss, pos, neg, std_pos, std_neg, gap, squares, norm, share, entropy = values
    metrics = {
        "loss_cd": gap,
        "energy_pos": pos,
        "energy_neg": neg,
        "energy_pos_std": std_pos,
        "energy_neg_std": std_neg,
        "energy_gap": gap,
        "energy_reg": squares,
        "grad_norm": norm,
        "clamp_share": share,
    }
    if last_step:
        metrics |= {"kl_energy": neg, "entropy": entropy}
    loss = with_gradient(loss, network, sums)
    return Terms(loss, x_neg, metrics, e_pos, e_neg, neg), before, finite
