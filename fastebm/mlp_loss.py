"""Losses of small perceptrons by formulas: value and gradient at once, without a graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastebm.chain import run_last_step
from fastebm.loss_terms import phases, step_metrics
from fastebm.mlp_gradient import mlp_gradient, with_gradient
from fastebm.ops import langevin_step_pull
from fastebm.plain_mlp import Network
from fastebm.samplers import LangevinDynamics

# (mean of E(x_neg), its gradient in x_neg, x_neg) -> value, gradient and metrics of terms in x_neg
LastStepTerms = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]


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
) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor, Tensor]:
    """The loss of ``ContrastiveDivergence``, or of a kin, on the energy of a small perceptron.

    What costs its time on a CPU is then what it computes: three calls of one operator, where a
    graph of autograd takes some hundred.

    Args:
        x, before: data, and the chains before their last step (B, *event).
        k, rng: the index of that step, and the stream's state for it.
        last_step_terms: terms that reach the parameters through the last step.

    Returns:
        The loss, with its gradient; x_neg, metrics, and the energies (B,) of data and chains.
    """
    n, points = len(x), []

    def gradient(leaf: Tensor, _: dict) -> tuple[Tensor, Tensor]:
        points.append(leaf.detach().flatten(1))
        grad = torch.empty_like(points[0])
        return grad.view_as(leaf), mlp_gradient(network, points[0], grad=grad)

    (x_neg, pull), grad = run_last_step(
        *(gradient, before, sampler.coefficients(k), rng, sampler.options, {}, None),
        step=langevin_step_pull,
    )
    both = torch.cat([x, x_neg]).flatten(1)
    sums = x.new_zeros(sum(w.numel() + len(w) for w in network.weights))
    to_x = both.new_empty((n, both.shape[1])) if last_step_terms else None
    options = {"n_data": n, "factor": 1 / n, "square_factor": 2 * energy_reg_weight / n}
    e = mlp_gradient(network, both, **options, sums=sums, grad=to_x)
    stds, means = torch.std_mean(e.view(2, n), dim=1, correction=0)
    squares = (e @ e) / n
    loss, metrics = phases(*means.unbind(), squares, stds.unbind(), energy_reg_weight)
    metrics |= step_metrics(sampler, x_neg, grad)
    if last_step_terms:
        to_x = to_x.div_(n).view_as(x_neg)
        value, to_x, more = last_step_terms(metrics["energy_neg"], to_x, x_neg)
        loss, metrics = loss + value, metrics | more
        mlp_gradient(network, points[0], v=pull(to_x).flatten(1), sums=sums)
    return with_gradient(loss, network, sums), x_neg, metrics, e[:n], e[n:]
