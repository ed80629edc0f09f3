"""Chains on the energy of a small perceptron: the operator's wrapper and fake."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops import library
from fastebm.ops.langevin import Clamp
from fastebm.ops.metropolis import box
from fastebm.ops.mlp.network import Network
from fastebm.rng import NOISE

PRECISIONS = ("fp32", "bf16")


def mlp_chain_(
    x: Tensor,
    network: Network,
    n_steps: int,
    step_size: float | Tensor,
    noise_std: float | Tensor,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    grad_clip: float | None = None,
    grad_norm_clip: float | None = None,
    displacement_clip: float | None = None,
    clamp: Clamp | None = None,
    tag: int = NOISE,
    noise_first: bool = False,
    precision: str = "fp32",
    energy: Tensor | None = None,
    grad: Tensor | None = None,
) -> Tensor:
    """``n_steps`` Langevin steps in place, ``x <- langevin_step_(x, grad E(x), ...)``, on the
    energy of a small perceptron: forward and backward pass, noise and step inside one kernel.

    The noise is that of ``langevin_step_`` with ``t``, ``t + 1``, ..., bit for bit; the results
    differ from it by the rounding of the gradients. A sample's result does not depend on those
    beside it, nor on the number of threads.

    Args:
        x: (B, D) float32, contiguous; overwritten.
        network: the energy, float32 on the device of ``x``; ``plain_mlp`` makes one of a module.
        n_steps: >= 0.
        step_size, noise_std: >= 0, a number or a float32 tensor (n_steps or 1, B or 1). A value in
            a tensor that is negative or not finite makes its samples NaN.
        rng, t, sample_ids, grad_clip, grad_norm_clip, displacement_clip, tag: as in
            ``langevin_step_``.
        clamp: (lo, hi), the box that every step ends in: numbers or tensors (D,), which on a device
            are not looked at; either may be None.
        noise_first: a step is ``x <- x + noise_std * n``, then the gradient there, then the rest,
            of which alone ``displacement_clip`` is the bound.
        precision: "fp32", or on a CUDA device "bf16": products of bfloat16, sums of float32.
        energy: (B,) float32, or None: gets E at the point whose gradient the last step used.
        grad: (B, D) float32, or None: gets that gradient, unclipped.

    Returns:
        ``x``.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    step, steps = number_or_table(step_size)
    sigma, sigmas = number_or_table(noise_std)
    numbers = clamp or (None, None)
    tensors = None, None
    if any(isinstance(face, Tensor) for face in numbers):
        numbers, tensors = tensors, box("mlp_chain_", x, *numbers)
    if precision not in PRECISIONS:
        raise RuntimeError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    library.check_overwritten("mlp_chain_", x=x, energy=energy, grad=grad)
    library.call(
        library.op.mlp_chain_.default,
        *(x, *network.arguments, n_steps, step, sigma, steps, sigmas, rng, t),
        *(sample_ids, grad_clip, grad_norm_clip, displacement_clip, *numbers, *tensors),
        *(tag, noise_first),
        *(PRECISIONS.index(precision) == 1, energy, grad),
    )
    return x


def number_or_table(value: float | Tensor) -> tuple[float, Tensor | None]:
    """A coefficient as operators take it."""
    return (0.0, value) if isinstance(value, Tensor) else (value, None)


def register_operators(namespace: str) -> None:
    """The fake of one built library, as ``fastebm.ops.langevin.register_operators``."""
    library.record_no_gradient(namespace, "mlp_chain_")

    @torch.library.register_fake(f"{namespace}::mlp_chain_")
    def _(x, weights, *rest):
        torch._check(x.dim() == 2, lambda: f"x must be (B, D), got {tuple(x.shape)}")
        torch._check(x.dtype == torch.float32, lambda: f"x must be float32, got {x.dtype}")
        for weight in weights:
            torch._check(weight.device == x.device, lambda: "weights and x are on other devices")


register_operators("fastebm")
