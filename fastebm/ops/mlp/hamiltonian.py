"""Hamiltonian Monte Carlo on the energy of a small perceptron: the operator's wrapper and fake."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops import library
from fastebm.ops.metropolis import box
from fastebm.ops.mlp.chain import number_or_table
from fastebm.ops.mlp.network import Network


def mlp_hmc_chain_(
    x: Tensor,
    energy: Tensor,
    grad: Tensor,
    acceptance: Tensor,
    divergent: Tensor,
    network: Network,
    n_steps: int,
    n_leapfrog: int,
    jitter: float,
    step_size: float | Tensor,
    temperature: float | Tensor,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    known: bool = False,
    lo: float | Tensor | None = None,
    hi: float | Tensor | None = None,
) -> None:
    """``n_steps`` trajectories in place that leave exp(-E / T) as it is, on the energy of a small
    perceptron: each of ``n_leapfrog`` leapfrog steps from a velocity drawn anew from N(0, T),
    accepted or refused by Metropolis' rule (Duane et al. 1987; Neal 2011).

    The random numbers are those of ``hmc_step_`` with ``t``, ``t + 1``, ..., bit for bit; the
    results differ from it by rounding. A sample's result does not depend on those beside it, nor on
    the number of threads, nor on how the trajectories are cut into calls where ``t`` goes on and
    ``known`` is true.

    Args:
        x: (B, D) float32, contiguous; overwritten.
        energy, grad: (B,) and (B, D) float32, contiguous; get E and its gradient at the last x.
        acceptance: (B,) float32, contiguous; min(1, r) of each trajectory is added.
        divergent: (B,) int32, contiguous; 1 is added for each trajectory whose |log r| is above
            1000, or not finite.
        network: the energy, float32 on a CPU.
        n_steps: >= 0. n_leapfrog: >= 1.
        jitter: in [0, 1): steps are of size step_size * (1 + jitter (2u - 1)), u uniform for each
            sample and trajectory.
        step_size: >= 0, temperature: > 0, a number or a float32 tensor (n_steps or 1, B or 1).
            Where a tensor has another value, the sample's trajectories are refused.
        rng, t, sample_ids: as in ``langevin_step_``.
        known: ``energy`` and ``grad`` are those of x; else they are computed first.
        lo, hi: the box that trajectories may not end outside of, numbers or tensors (D,); None for
            no bound.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    step, steps = number_or_table(step_size)
    temperature, temperatures = number_or_table(temperature)
    written = {"x": x, "energy": energy, "grad": grad, "acceptance": acceptance}
    library.check_overwritten("mlp_hmc_chain_", **written)
    library.call(
        library.op.mlp_hmc_chain_.default,
        *(x, energy, grad, acceptance, divergent, *network.arguments, n_steps, n_leapfrog, jitter),
        *(step, temperature, steps, temperatures, rng, t, sample_ids, known),
        *box("mlp_hmc_chain_", x, lo, hi),
    )


@torch.library.register_fake("fastebm::mlp_hmc_chain_")
def _(x, energy, grad, acceptance, divergent, weights, *rest):
    torch._check(x.dim() == 2, lambda: f"x must be (B, D), got {tuple(x.shape)}")
    torch._check(x.dtype == torch.float32, lambda: f"x must be float32, got {x.dtype}")


library.record_no_gradient("fastebm", "mlp_hmc_chain_")
