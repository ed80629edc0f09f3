"""Chains on the energy of a small perceptron: all steps in one operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastebm import ops
from fastebm.chains.chain import BeforeStep, Coefficients, OnStep, StepOptions, on_device
from fastebm.chains.plain_mlp import ACTIVATIONS, Network
from fastebm.ops import Clamp
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
        rng, t, sample_ids, grad_clip, grad_norm_clip, clamp, tag: as in ``langevin_step_``.
        noise_first: a step is ``x <- x + noise_std * n``, then the gradient there, then the rest.
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
    lo, hi = clamp or (None, None)
    ops._op.mlp_chain_.default(
        *(x, network.weights, network.biases, ACTIVATIONS.index(network.activation)),
        *(network.beta, network.threshold, n_steps, step, sigma, steps, sigmas, rng, t),
        *(sample_ids, grad_clip, grad_norm_clip, lo, hi, tag, noise_first),
        *(PRECISIONS.index(precision) == 1, energy, grad),
    )
    return x


def run_mlp_chain(
    network: Network,
    x: Tensor,
    coefficients: Sequence[Coefficients],
    rng: Tensor,
    options: StepOptions,
    sample_ids: Tensor | None = None,
    on_step: OnStep | None = None,
    seen: range = range(0),
    before_step: BeforeStep | None = None,
    changed: range = range(0),
    precision: str = "fp32",
) -> None:
    """``run_chain`` on a network, by as few calls of the operator as the callbacks allow.

    Args:
        x: (B, *event) contiguous, the events of as many elements as the network has inputs.
        seen: the steps after which ``on_step`` is called.
        changed: the steps before which ``before_step`` is called.
        precision: as in ``mlp_chain_``.
    """
    total, start = len(coefficients), 0
    rows = x.flatten(1)
    step_sizes, noise_stds = tables(coefficients, x) if total else (0.0, 0.0)
    for end in sorted({total, *changed, *(k + 1 for k in seen)}):
        if end > start:
            last_seen = end - 1 in seen
            e = x.new_empty(len(x)) if last_seen else None
            grad = torch.empty_like(rows) if last_seen else None
            mlp_chain_(
                *(rows, network, end - start),
                *(_part(step_sizes, start, end), _part(noise_stds, start, end), rng),
                t=start,
                sample_ids=sample_ids,
                grad_clip=options.grad_clip,
                grad_norm_clip=options.grad_norm_clip,
                clamp=options.clamp,
                noise_first=options.noise_first,
                precision=precision,
                energy=e,
                grad=grad,
            )
            if last_seen:
                on_step(end - 1, x, grad.view_as(x), e)
            start = end
        if end in changed:
            before_step(end, x)


def number_or_table(value: float | Tensor) -> tuple[float, Tensor | None]:
    """A coefficient as operators take it."""
    return (0.0, value) if isinstance(value, Tensor) else (value, None)


def tables(coefficients: Sequence[Coefficients], x: Tensor) -> tuple[float | Tensor, ...]:
    """Step sizes and noises of all steps, each a number or a tensor (K or 1, B or 1)."""
    if len(set(map(id, coefficients))) == 1:
        coefficients = coefficients[:1]
    return tuple(_table([c[i] for c in coefficients], x) for i in (0, 1))


def _table(values: list[float | Tensor], x: Tensor) -> float | Tensor:
    first = values[0]
    if isinstance(first, Tensor):
        rows = values if any(v is not first for v in values) else [first]
        return torch.stack([v.to(x.dtype).reshape(-1) for v in rows])
    if all(v == first for v in values):
        return first
    return on_device(values, x.dtype, x.device).unsqueeze(1)


def _part(table: float | Tensor, start: int, end: int) -> float | Tensor:
    whole = not isinstance(table, Tensor) or len(table) == 1
    return table if whole else table[start:end]


def register_operator(namespace: str) -> None:
    """The fake of one built library; tests use it for the emulated device too."""
    ops.record_no_gradient(namespace, "mlp_chain_")

    @torch.library.register_fake(f"{namespace}::mlp_chain_")
    def _(x, weights, *rest):
        torch._check(x.dim() == 2, lambda: f"x must be (B, D), got {tuple(x.shape)}")
        torch._check(x.dtype == torch.float32, lambda: f"x must be float32, got {x.dtype}")
        for weight in weights:
            torch._check(weight.device == x.device, lambda: "weights and x are on other devices")


register_operator("fastebm")
