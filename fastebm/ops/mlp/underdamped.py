"""Underdamped Langevin chains on the energy of a small perceptron: the operator's wrapper and
fake."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops import library
from fastebm.ops.metropolis import box
from fastebm.ops.mlp.chain import number_or_table
from fastebm.ops.mlp.network import Network


def mlp_underdamped_chain_(
    x: Tensor,
    velocity: Tensor,
    energy: Tensor,
    grad: Tensor,
    network: Network,
    n_steps: int,
    first_kick: float | Tensor,
    step_size: float | Tensor,
    decay: float | Tensor,
    noise_std: float | Tensor,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    known: bool = False,
    lo: float | Tensor | None = None,
    hi: float | Tensor | None = None,
) -> None:
    """``n_steps`` steps in place of underdamped Langevin dynamics of unit mass, in the order of
    BAOAB (Leimkuhler and Matthews 2013), on the energy of a small perceptron.

    A step is ``underdamped_step_`` with the gradient at x, ``kick`` half the step before plus half
    this one, ``drift`` half this one, and the noise of ``t``, ``t + 1``, ..., bit for bit; results
    differ from it by rounding. So the velocity is half a kick behind between steps. A sample's
    result does not depend on those beside it, nor on the number of threads, nor on how the steps
    are cut into calls where ``t`` and ``first_kick`` go on and ``known`` is true.

    Args:
        x, velocity: (B, D) float32, contiguous; overwritten.
        energy, grad: (B,) and (B, D) float32, contiguous; get E and its gradient at the last x.
        network: the energy, float32 on a CPU.
        n_steps: >= 0.
        first_kick: >= 0, what the velocity is behind when the call begins: a number or (1, B or 1)
            float32.
        step_size, decay, noise_std: >= 0, a number or a float32 tensor (n_steps or 1, B or 1);
            decay = exp(-friction * step_size), noise_std = sqrt((1 - decay^2) * temperature). A
            value in a tensor that is negative or not finite makes its samples NaN.
        rng, t, sample_ids: as in ``langevin_step_``.
        known: ``grad`` is that of x; else it is computed first.
        lo, hi: the box whose faces reflect, numbers or tensors (D,); None for no bound.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    (kick, kicks), (step, steps) = number_or_table(first_kick), number_or_table(step_size)
    (decay, decays), (sigma, sigmas) = number_or_table(decay), number_or_table(noise_std)
    written = {"x": x, "velocity": velocity, "energy": energy, "grad": grad}
    library.check_overwritten("mlp_underdamped_chain_", **written)
    library.call(
        library.op.mlp_underdamped_chain_.default,
        *(x, velocity, energy, grad, *network.arguments, n_steps),
        *(kick, step, decay, sigma, kicks, steps, decays, sigmas, rng, t, sample_ids, known),
        *box("mlp_underdamped_chain_", x, lo, hi),
    )


@torch.library.register_fake("fastebm::mlp_underdamped_chain_")
def _(x, velocity, energy, grad, weights, *rest):
    torch._check(x.dim() == 2, lambda: f"x must be (B, D), got {tuple(x.shape)}")
    torch._check(x.dtype == torch.float32, lambda: f"x must be float32, got {x.dtype}")


library.record_no_gradient("fastebm", "mlp_underdamped_chain_")
