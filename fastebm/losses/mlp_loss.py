"""Losses of small perceptrons by formulas: value and gradient at once, without a graph."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastebm import ops
from fastebm.chains.mlp_chain import number_or_table, tables
from fastebm.chains.plain_mlp import ACTIVATIONS, Network
from fastebm.ops.mlp_gradient import with_gradient
from fastebm.rng import NOISE, ChainRNG, DeviceRNG
from fastebm.samplers.langevin import LangevinDynamics


class LastStepTerms(NamedTuple):
    """Terms that reach the parameters through the last step: see ImprovedContrastiveDivergence.

    The references are (m, *event), with ``own`` (B,) int64, which of them each chain may not
    choose, and ``y_scale`` as in ``nearest_neighbor``; None: the other chains.
    """

    kl_weight: float
    entropy_weight: float
    entropy_eps: float
    references: Tensor | None = None
    own: Tensor | None = None
    y_scale: tuple[float, float] = (1.0, 0.0)


@torch.no_grad()
def terms_by_formulas(
    network: Network,
    x: Tensor,
    start: Tensor,
    sampler: LangevinDynamics,
    steps: range,
    rng: ChainRNG | DeviceRNG,
    energy_reg_weight: float,
    last_step_terms: LastStepTerms | None,
) -> tuple[Tensor, Tensor, dict[str, Tensor], tuple[Tensor, Tensor], bool, Tensor]:
    """The loss of ``ContrastiveDivergence``, or of a kin, on the energy of a small perceptron.

    What costs its time on a CPU is then what it computes: one operator, where chain and graph of
    autograd take some hundred.

    Args:
        x, start: data, and the chains before ``steps``, (B, *event).
        steps: indices of the steps to take, one or more; the last one is the loss's.
        rng: the noise from the first of them on; advanced past all but the last.

    Returns:
        The loss, with its gradient; x_neg, metrics, the energies (B,) of data and chains, whether
        these and x_neg are finite, and the chains before the last step.
    """
    step_sizes, noise_stds = tables(sampler.plan(steps), x)
    step, step_table = number_or_table(step_sizes)
    sigma, sigma_table = number_or_table(noise_stds)
    options, terms = sampler.options, last_step_terms or LastStepTerms(0.0, 0.0, 1.0)
    before, x_neg, e_pos, e_neg, sums, values, finite = ops._op.mlp_contrastive_divergence.default(
        *(x, start, network.weights, network.biases),
        *(ACTIVATIONS.index(network.activation), network.beta, network.threshold),
        *(len(steps) - 1, step, sigma, step_table, sigma_table, rng.state(x.device)),
        *(options.grad_clip, options.grad_norm_clip, *(options.clamp or (None, None)), NOISE),
        *(options.noise_first, energy_reg_weight, last_step_terms and terms.kl_weight),
        *(terms.entropy_weight, terms.entropy_eps, terms.references, terms.own, *terms.y_scale),
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
    if last_step_terms:
        metrics |= {"kl_energy": neg, "entropy": entropy}
    loss = with_gradient(loss, network, sums)
    return loss, x_neg, metrics, (e_pos, e_neg), finite, before


@torch.library.register_fake("fastebm::mlp_contrastive_divergence")
def _(x, start, weights, *rest):
    torch._check(x.dim() > 0, lambda: "x must have a batch dimension, (B, *event)")
    torch._check(x.dtype == torch.float32, lambda: f"x must be float32, got {x.dtype}")
    e_pos, e_neg = (x.new_empty(x.shape[0]) for _ in range(2))
    sums = x.new_empty(sum(w.numel() + len(w) for w in weights))
    metrics = [x.new_empty(()) for _ in range(10)]
    return torch.empty_like(x), torch.empty_like(x), e_pos, e_neg, sums, metrics, True


ops.record_no_gradient("fastebm", "mlp_contrastive_divergence")
