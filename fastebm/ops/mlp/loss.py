"""Loss and gradient of contrastive divergence on a small perceptron: the operators' wrappers and
fakes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.ops import library
from fastebm.ops.langevin import Clamp
from fastebm.ops.mlp.chain import number_or_table
from fastebm.ops.mlp.network import Network
from fastebm.rng import NOISE


def mlp_contrastive_divergence(
    x: Tensor,
    start: Tensor,
    network: Network,
    n_before: int,
    step_size: float | Tensor,
    noise_std: float | Tensor,
    rng: Tensor,
    *,
    data_row_bias: Tensor | None = None,
    grad_clip: float | None = None,
    grad_norm_clip: float | None = None,
    displacement_clip: float | None = None,
    clamp: Clamp | None = None,
    noise_first: bool = False,
    energy_reg_weight: float = 0.0,
    kl_weight: float | None = None,
    entropy_weight: float = 0.0,
    entropy_eps: float = 1.0,
    references: Tensor | None = None,
    own: Tensor | None = None,
    y_scale: tuple[float, float] = (1.0, 0.0),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor], bool]:
    """``n_before`` Langevin steps from ``start`` and the one that the loss sees, then the loss and
    its gradient in the parameters, by formulas; on a CPU.

    The loss is mean(E(x) - E(x_neg)) + energy_reg_weight * mean(E(x)^2 + E(x_neg)^2), where
    ``kl_weight`` is a number with the terms of ICD (Du et al. 2021) that reach the parameters
    through the last step: see ``fastebm.losses``.

    Args:
        x, start: (B, *event) float32: data, and where the chains start.
        network: the energy, float32 on a CPU.
        step_size, noise_std: as in ``mlp_chain_``, for n_before + 1 steps.
        rng, grad_clip, grad_norm_clip, displacement_clip, clamp, noise_first: as in
            ``mlp_chain_``.
        references: (m, *event), what the entropy term measures distances to, with ``own`` (B,)
            int64, which of them each chain may not choose, and ``y_scale`` as in
            ``nearest_neighbor``; None: the other chains.

    Returns:
        The chains before the last step, x_neg, the energies (B,) of data and chains, the gradient
        (P,) as ``mlp_gradient`` sums it, ten 0-d values (loss, mean energy of data and chains,
        their standard deviations, their gap, mean square energy, gradient norm, share of clamped
        elements, entropy), and whether energies and x_neg are finite.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    step, steps = number_or_table(step_size)
    sigma, sigmas = number_or_table(noise_std)
    return library.call(
        library.op.mlp_contrastive_divergence.default,
        *(x, start, *network.arguments, data_row_bias, n_before),
        *(step, sigma, steps, sigmas, rng),
        *(grad_clip, grad_norm_clip, displacement_clip, *(clamp or (None, None))),
        *(NOISE, noise_first),
        *(energy_reg_weight, kl_weight, entropy_weight, entropy_eps, references, own, *y_scale),
    )


class AdaptedStep(NamedTuple):
    """A step that follows what is accepted: see ``AdaptiveStep`` of the samplers.

    Attributes:
        log_step: where it is. least, largest: what it may be, logarithms as well.
        every: transitions between two changes.
    """

    log_step: float | None
    target_acceptance: float
    gain: float
    least: float
    largest: float
    every: int


class Jumps(NamedTuple):
    """Jumps between the modes of a population.

    Attributes:
        number: of the transitions, evenly spread.
        population: (P, *event) float32. n_centres, n_neighbors: of its local means.
        uniform_share: as in ``population_jump``.
    """

    number: int
    population: Tensor | None
    n_centres: int
    n_neighbors: int
    uniform_share: float


def mlp_adjusted_contrastive_divergence(
    x: Tensor,
    start: Tensor,
    network: Network,
    n_steps: int,
    step_size: float | AdaptedStep,
    noise: tuple[float | None, float, float],
    rng: Tensor,
    *,
    data_row_bias: Tensor | None = None,
    clamp: Clamp | None = None,
    jumps: Jumps | None = None,
    units: tuple[Tensor, Tensor] | None = None,
    energy_reg_weight: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], bool, Tensor]:
    """``n_steps`` transitions of Metropolis-adjusted chains from ``start``, as
    ``mlp_adjusted_chain_``, then the loss of ``mlp_contrastive_divergence`` without its terms of
    the last step, and its gradient, by formulas; on a CPU.

    Args:
        x: (m n, *event) float32, data. start: (n, *event), where the chains start. They are looked
            at m times in the second half of their steps, the last time in the end.
        network: the energy, float32 on a CPU.
        noise: (noise_std, noise_scale, temperature); noise_std None stands for noise_scale *
            sqrt(2 temperature step).
        clamp: the box that no proposal may leave.
        units: mean and std (*event) float32: chains and network are in units of
            ``(x - mean) / std``, all else is in those of x.

    Returns:
        The chains' points (m n, *event), time after time, the energies (m n,) of data and points,
        the gradient (P,) as ``mlp_gradient`` sums it, ten 0-d values (the first seven as those of
        ``mlp_contrastive_divergence``, gradient norm in the end, mean acceptance probability of the
        Langevin proposals, share of the jumps that were accepted), whether energies and points are
        finite, and the logarithm of the step in the end, 0-d float64.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    adapted = step_size if isinstance(step_size, AdaptedStep) else AdaptedStep(None, 0, 0, 0, 0, 1)
    return library.call(
        library.op.mlp_adjusted_contrastive_divergence.default,
        *(x, start, *network.arguments, data_row_bias, n_steps),
        *(0.0 if adapted is step_size else step_size, *noise, *adapted, rng),
        *(*(clamp or (None, None)), *(jumps or Jumps(0, None, 0, 0, 0.0))),
        *(*(units or (None, None)), energy_reg_weight),
    )


@torch.library.register_fake("fastebm::mlp_contrastive_divergence")
def _(x, start, *rest):
    return torch.empty_like(x), torch.empty_like(x), *_phases(x, start, *rest)


@torch.library.register_fake("fastebm::mlp_adjusted_contrastive_divergence")
def _(x, start, *rest):
    return torch.empty_like(x), *_phases(x, start, *rest), x.new_empty((), dtype=torch.float64)


def _phases(x, start, weights, biases, activation, beta, threshold, base, mean, row_bias, *rest):
    torch._check(x.dim() > 0, lambda: "x must have a batch dimension, (B, *event)")
    torch._check(x.dtype == torch.float32, lambda: f"x must be float32, got {x.dtype}")
    e_pos, e_neg = (x.new_empty(x.shape[0]) for _ in range(2))
    sums = x.new_empty(sum(w.numel() + len(w) for w in weights))
    rows = 0 if row_bias is None else len(x) + len(start)
    to_row_bias = x.new_empty(rows, len(weights[0]))
    return e_pos, e_neg, sums, to_row_bias, [x.new_empty(()) for _ in range(10)], True


library.record_no_gradient(
    "fastebm", "mlp_contrastive_divergence", "mlp_adjusted_contrastive_divergence"
)
