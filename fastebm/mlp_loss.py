"""Losses of small perceptrons by formulas: value and gradient at once, without a graph."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastebm import ops
from fastebm.mlp_gradient import with_gradient
from fastebm.plain_mlp import ACTIVATIONS, Network
from fastebm.rng import NOISE
from fastebm.samplers import LangevinDynamics


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
    before: Tensor,
    sampler: LangevinDynamics,
    k: int,
    rng: Tensor,
    energy_reg_weight: float,
    last_step_terms: LastStepTerms | None,
) -> tuple[Tensor, Tensor, dict[str, Tensor], tuple[Tensor, Tensor], bool]:
    """The loss of ``ContrastiveDivergence``, or of a kin, on the energy of a small perceptron.

    What costs its time on a CPU is then what it computes: one operator, where a graph of autograd
    takes some hundred.

    Args:
        x, before: data, and the chains before their last step (B, *event).
        k, rng: the index of that step, and the stream's state for it.

    Returns:
        The loss, with its gradient; x_neg, metrics, the energies (B,) of data and chains, and
        whether these and x_neg are finite.
    """
    step_size, noise_std = sampler.coefficients(k)
    step, steps = ops.coefficient("step_size", step_size, x)
    sigma, sigmas = ops.coefficient("noise_std", noise_std, x)
    options, terms = sampler.options, last_step_terms or LastStepTerms(0.0, 0.0, 1.0)
    references = terms.references
    x_neg, e, sums, values, finite = ops._op.mlp_contrastive_divergence.default(
        *(x.flatten(1), before.flatten(1), network.weights, network.biases),
        *(ACTIVATIONS.index(network.activation), network.beta, network.threshold),
        *(step, sigma, steps, sigmas, rng, options.grad_clip, options.grad_norm_clip),
        *(*(options.clamp or (None, None)), NOISE, options.noise_first, energy_reg_weight),
        *(last_step_terms and terms.kl_weight, terms.entropy_weight, terms.entropy_eps),
        *(None if references is None else references.flatten(1), terms.own, *terms.y_scale),
    )
    loss, pos, neg, std_pos, std_neg, gap, squares, norm, share, entropy = values.unbind()
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
    return with_gradient(loss, network, sums), x_neg.view_as(x), metrics, e.chunk(2), finite


@torch.library.register_fake("fastebm::mlp_contrastive_divergence")
def _(x, before, weights, *rest):
    torch._check(x.dim() == 2, lambda: f"x must be (B, D), got {tuple(x.shape)}")
    torch._check(x.dtype == torch.float32, lambda: f"x must be float32, got {x.dtype}")
    n_parameters = sum(w.numel() + len(w) for w in weights)
    sizes = (2 * len(x), n_parameters, 10)
    return torch.empty_like(x), *(x.new_empty(n) for n in sizes), True


ops.record_no_gradient("fastebm", "mlp_contrastive_divergence")
