"""Metropolis-adjusted chains on the energy of a small perceptron: the operator's wrapper and
fake."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops import library
from fastebm.ops.metropolis import box
from fastebm.ops.mlp.chain import number_or_table
from fastebm.ops.mlp.network import Network


def mlp_adjusted_chain_(
    x: Tensor,
    energy: Tensor,
    grad: Tensor,
    acceptance: Tensor,
    network: Network,
    n_steps: int,
    step_size: float | Tensor,
    noise_std: float | Tensor,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    known: bool = False,
    lo: float | Tensor | None = None,
    hi: float | Tensor | None = None,
    centres: Tensor | None = None,
    scales: Tensor | None = None,
    every: int = 0,
    first: int = 0,
    uniform_share: float = 0.0,
) -> None:
    """``n_steps`` transitions in place that leave exp(-E / T) as it is, T = noise_std^2 / (2
    step_size), on the energy of a small perceptron: Langevin proposals and jumps, each accepted or
    refused by Metropolis' rule.

    A Langevin proposal is ``y = x - a g + noise_std * n`` with a = min(step_size, noise_std *
    sqrt(D) / |g|) (MALTA: Roberts and Tweedie 1996), n the noise of ``langevin_step_``; a jump is
    ``population_jump``. What is outside of the box, or has a NaN in its ratio, is refused. A
    sample's result does not depend on those beside it, nor on the number of threads, nor on how the
    transitions are cut into calls where ``t`` and ``first`` go on and ``known`` is true.

    Args:
        x: (B, D) float32, contiguous; overwritten.
        energy, grad: (B,) and (B, D) float32, contiguous; get E and its gradient at the last x.
        acceptance: (2, B) float32, contiguous; min(1, r) of each Langevin proposal is added to row
            0, and 1 for each jump that was accepted to row 1.
        network: the energy, float32 on the device of ``x``.
        n_steps: >= 0.
        step_size: >= 0, noise_std: > 0, a number or a float32 tensor (n_steps or 1, B or 1). Where
            a tensor has another value, the sample's proposals are refused.
        rng, t, sample_ids: as in ``langevin_step_``.
        known: ``energy`` and ``grad`` are those of x; else they are computed first.
        lo, hi: the box, numbers or tensors (D,); None for no bound.
        centres, scales: as in ``population_jump``; x may not be part of them. None: jumps are to
            uniform points of the box, and ``uniform_share`` is 1.
        every: transition k of the call is a jump where (first + k + 1) % every == 0; 0: no jumps,
            and what is said of them is not looked at.
        first: how many transitions were before; >= 0.
        uniform_share: as in ``population_jump``.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    step, steps = number_or_table(step_size)
    sigma, sigmas = number_or_table(noise_std)
    written = {"x": x, "energy": energy, "grad": grad, "acceptance": acceptance}
    library.check_overwritten("mlp_adjusted_chain_", **written)
    library.call(
        library.op.mlp_adjusted_chain_.default,
        *(x, energy, grad, acceptance, *network.arguments),
        *(n_steps, step, sigma, steps, sigmas, rng, t),
        *(sample_ids, known, *box("mlp_adjusted_chain_", x, lo, hi), centres, scales, every, first),
        uniform_share,
    )


def register_operators(namespace: str) -> None:
    """The fake of one built library, as ``fastebm.ops.langevin.register_operators``."""
    library.record_no_gradient(namespace, "mlp_adjusted_chain_")

    @torch.library.register_fake(f"{namespace}::mlp_adjusted_chain_")
    def _(x, energy, grad, acceptance, weights, *rest):
        torch._check(x.dim() == 2, lambda: f"x must be (B, D), got {tuple(x.shape)}")
        torch._check(x.dtype == torch.float32, lambda: f"x must be float32, got {x.dtype}")
        for weight in weights:
            torch._check(weight.device == x.device, lambda: "weights and x are on other devices")


register_operators("fastebm")
