"""Losses of small perceptrons by formulas: value and gradient at once, without a graph."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.chains.mlp_chain import tables
from fastebm.ops.mlp.gradient import with_gradient
from fastebm.ops.mlp.loss import mlp_contrastive_divergence
from fastebm.ops.mlp.network import Network
from fastebm.rng import ChainRNG, DeviceRNG
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
    terms = last_step_terms._asdict() if last_step_terms else {}
    before, x_neg, e_pos, e_neg, sums, values, finite = mlp_contrastive_divergence(
        *(x, start, network, len(steps) - 1, step_sizes, noise_stds, rng.state(x.device)),
        **sampler.options._asdict(),
        energy_reg_weight=energy_reg_weight,
        **terms,
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
