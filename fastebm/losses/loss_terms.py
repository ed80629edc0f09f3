"""The first terms of a loss by a graph, and the metrics."""

from __future__ import annotations

import torch
from torch import Tensor


def phases(
    mean_pos: Tensor,
    mean_neg: Tensor,
    squares: Tensor,
    stds: tuple[Tensor, Tensor],
    energy_reg_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss but for what goes through the last step, and its metrics.

    Args:
        mean_pos, mean_neg, squares: means of the energies, and the sum of those of their squares.
        stds: of the energies of data and chains.
    """
    loss = gap = mean_pos - mean_neg
    if energy_reg_weight:
        loss = loss + energy_reg_weight * squares
    gap = gap.detach()
    return loss, {
        "loss_cd": gap,
        "energy_pos": mean_pos.detach(),
        "energy_neg": mean_neg.detach(),
        "energy_pos_std": stds[0],
        "energy_neg_std": stds[1],
        "energy_gap": gap,
        "energy_reg": squares.detach(),
    }


@torch.no_grad()
def spread(e: Tensor) -> Tensor:
    """Standard deviation of the samples' energies, each the mean over its scales."""
    return (e if e.dim() == 1 else e.mean(1)).std(correction=0)


@torch.no_grad()
def step_metrics(sampler, x_neg: Tensor, grad: Tensor | None) -> dict[str, Tensor]:
    """Of the last step of Langevin chains; of Gibbs chains, which have no gradient, none."""
    if grad is None:
        return {}
    norms = torch.linalg.vector_norm(grad.reshape(len(grad), -1), dim=1)
    return {"grad_norm": norms.mean(), "clamp_share": sampler.clamp_share(x_neg)}
