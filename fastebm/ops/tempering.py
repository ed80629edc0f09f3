"""Swaps between replicas at different temperatures: the operator's wrapper and fake."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops import library


def replica_swap_(
    x: Tensor,
    energy: Tensor,
    grad: Tensor,
    velocity: Tensor | None,
    temperatures: Tensor,
    parity: int,
    swaps: Tensor,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
) -> None:
    """Replicas r and r + 1 of each chain, r % 2 == ``parity``, exchange their states with
    probability min(1, r), log r = (1 / T_r - 1 / T_{r+1}) (E_r - E_{r+1}), in place.

    That leaves the product of the densities exp(-E / T_r) as it is. A velocity goes along, times
    sqrt(T_new / T_old). The draws have tag ``SWAP`` and are a function of the chain and the pair,
    alike on every device. No gradient is recorded.

    Args:
        x: (R, B, ...) float32, float64, bfloat16 or float16, contiguous: replica r of B chains has
            temperature r. Overwritten, as all but ``temperatures`` are.
        energy: (R, B) float32 or float64, at ``x``.
        grad: as ``x``: the gradient there.
        velocity: as ``x``, or None.
        temperatures: (R,), finite and > 0; float64, or it is made so in each call. On a device it
            is not looked at.
        parity: 0 or 1; a sweep is one of each.
        swaps: (R - 1, B) float32, to which the pairs' min(1, r) are added.
        rng, t: as in ``langevin_step_``.
        sample_ids: int64 (B,), who the chains are; default: sample_offset of ``rng`` + the column.

    NaN: refused.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.

    Source: Geyer, Markov chain Monte Carlo maximum likelihood, 1991.
    """
    library.check_overwritten(
        "replica_swap_", x=x, energy=energy, grad=grad, velocity=velocity, swaps=swaps
    )
    library.call(
        library.op.replica_swap_.default,
        *(x, energy, grad, velocity, temperatures.to(torch.float64), parity, swaps),
        *(rng, t, sample_ids),
    )


def register_operators(namespace: str) -> None:
    """The fake of one built library, as ``fastebm.ops.langevin.register_operators``."""
    library.record_no_gradient(namespace, "replica_swap_")

    @torch.library.register_fake(f"{namespace}::replica_swap_")
    def _(x, energy, grad, *rest):
        torch._check(x.dim() >= 2, lambda: "x must be (R, B, ...), replicas first")
        torch._check(energy.shape == x.shape[:2], lambda: "energy must be (R, B)")
        torch._check(grad.shape == x.shape, lambda: "grad must have the shape of x")


register_operators("fastebm")
