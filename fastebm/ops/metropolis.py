"""Transitions under Metropolis' rule, and jumps between the modes of a population: the operators'
wrappers and fakes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastebm.ops import library
from fastebm.ops.langevin import coefficients


def metropolis_step_(
    x: Tensor,
    energy: Tensor,
    grad: Tensor,
    acceptance: Tensor,
    y: Tensor,
    e_y: Tensor | None,
    grad_y: Tensor | None,
    step_size: float | Tensor,
    noise_std: float | Tensor,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    lo: float | Tensor | None = None,
    hi: float | Tensor | None = None,
    log_factor: Tensor | None = None,
    next_step: tuple[float | Tensor, float | Tensor] | None = None,
) -> None:
    """A transition in place that leaves exp(-E / T) as it is, T = noise_std^2 / (2 step_size), on
    any energy: Metropolis' decision about ``y``, and the next proposal, in one pass.

    A Langevin proposal is ``y = x - a(x) g(x) + noise_std * n`` with a = min(step_size, noise_std *
    sqrt(D) / |g|), n the noise of ``langevin_step_``, and

        log r = (E(x) - E(y)) / T
            - (|x - y + a(y) g(y)|^2 - |y - x + a(x) g(x)|^2) / (2 noise_std^2);

    of a jump log r = (E(x) - E(y)) / T + log_factor. It is accepted with probability min(1, r);
    outside of the box, or with NaN for r, it is refused. What a call does depends on what it gets:

    - without ``e_y`` and ``grad_y``: y becomes a proposal from x, by these coefficients and the
      noise of step t;
    - with them: y is accepted or refused, by these coefficients, with which it was proposed, and
      the numbers of step t. Where ``next_step`` is given, y then becomes a proposal from the new x,
      by those coefficients and the noise of step t + 1.

    So n transitions take n evaluations of the energy and n + 1 calls. A sample's result does not
    depend on those beside it, nor on the device: sums over its elements have one order.

    Args:
        x: (B, *event) float32 or float64, of D elements each; gets y where that is accepted.
        energy, grad: (B,) and (B, *event) of the dtype of x, E and its gradient at x; they get e_y
            and grad_y there.
        acceptance: (2, B) float32, contiguous; min(1, r) of each Langevin proposal is added to row
            0, and 1 for each jump that was accepted to row 1.
        y: (B, *event) of the dtype of x, in memory of its own.
        e_y, grad_y: E and its gradient at y, as ``energy`` and ``grad``; None both for no decision.
        step_size: >= 0, noise_std: > 0, a number or a tensor with 1 or B values. Where a tensor has
            another value, the sample's proposals are NaN, and refused.
        rng, t, sample_ids: as in ``langevin_step_``.
        lo, hi: the box, numbers or tensors of the event's shape, or of that of x; None for no
            bound. On a device tensors are not looked at.
        log_factor: (B,) of the dtype of x: y is a jump (``population_jump``); None: by a Langevin
            proposal.
        next_step: (step_size, noise_std) of the proposal after a decision; None for none.

    Source: Roberts and Tweedie, Exponential convergence of Langevin distributions, 1996 (MALTA).

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    if next_step is not None and e_y is None:
        raise RuntimeError(
            "metropolis_step_: next_step needs e_y and grad_y: it is after a decision"
        )
    now = after = coefficients(x, step_size, noise_std)
    if next_step is not None:
        after = coefficients(x, *next_step, ("next_step_size", "next_noise_std"))
    library.check_overwritten(
        "metropolis_step_", x=x, energy=energy, grad=grad, acceptance=acceptance, y=y
    )
    library.call(
        library.op.metropolis_step_.default,
        *(x, energy, grad, acceptance, y, e_y, grad_y, *now),
        *(e_y is None or next_step is not None, *after, rng, t, sample_ids),
        *(*box("metropolis_step_", x, lo, hi, per_sample=True), log_factor),
    )


def population_jump(
    x: Tensor,
    centres: Tensor | None,
    scales: Tensor | None,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    lo: float | Tensor | None = None,
    hi: float | Tensor | None = None,
    uniform_share: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Where samples jump to: ``c_i + (s_i / s_j) (x - c_j)``, c_j the nearest to x of 16 centres in
    a row from a random one (of all, where there are fewer), c_i another one of them; or with
    probability ``uniform_share`` a uniform point of the box.

    Metropolis' rule accepts y with probability min(1, exp((E(x) - E(y)) / T + log_factor)), where
    log_factor is D log(s_i / s_j), -inf where c_i is not the nearest to y, so that there is no way
    back, and 0 for a uniform point. The draws have tag ``JUMP``, are alike on every device, and a
    sample's do not depend on those beside it.

    Args:
        x: (B, *event) float32, of D elements each.
        centres: (M, D) float32, M >= 2; None for none, which takes ``uniform_share`` 1.
        scales: (M,) float32, > 0, with ``centres``; on a device they are not looked at.
        rng, t, sample_ids: as in ``langevin_step_``.
        lo, hi: corners of the box, numbers or tensors of the event's shape; they are needed, and
            finite, for a ``uniform_share`` above 0. On a device tensors are not looked at.
        uniform_share: in [0, 1].

    Returns:
        y (B, *event) and log_factor (B,), float32. No gradient is recorded.

    Source: the nearest of few centres, and back, is that of smart darting: Andricioaei, Straub and
    Voter, Smart darting Monte Carlo, 2001.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    if x.dim() < 1:
        raise RuntimeError("population_jump: x must be (B, *event), got a 0-d tensor")
    flat = x.flatten(1) if x.dim() > 1 else x[:, None]
    y, log_factor = library.call(
        library.op.population_jump.default,
        *(flat, centres, scales, rng, t, sample_ids, *box("population_jump", x, lo, hi)),
        uniform_share,
    )
    return y.view(x.shape), log_factor


def box(
    operator: str,
    x: Tensor,
    lo: float | Tensor | None,
    hi: float | Tensor | None,
    per_sample: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """The corners of a box for samples of ``x`` as operators take them, (D,) both or None both; a
    number is that of every element, and a single None is infinite. ``per_sample``: tensors may have
    the shape of x too, for corners (B, D).

    Raises:
        RuntimeError: a tensor is not of the event's shape.
    """
    if lo is None and hi is None:
        return None, None
    event, corners = x.shape[1:], []
    whole = per_sample and any(isinstance(v, Tensor) and v.shape != event for v in (lo, hi))
    for name, value, missing in (("lo", lo, -math.inf), ("hi", hi, math.inf)):
        if isinstance(value, Tensor):
            if value.shape != event and not (whole and value.shape == x.shape):
                of_x = f", or of that of x, {tuple(x.shape)}" if per_sample else ""
                raise RuntimeError(
                    f"{operator}: {name} must be a number or of the event's shape"
                    f" {tuple(event)}{of_x}, got {tuple(value.shape)}"
                )
            if whole and value.shape == event:
                value = value.expand(x.shape)
            corners.append(value.reshape(len(x), -1) if whole else value.flatten())
        else:
            value = missing if value is None else value
            shape = (len(x), math.prod(event)) if whole else (math.prod(event),)
            corners.append(x.new_full(shape, value))
    return corners[0], corners[1]


def register_operators(namespace: str) -> None:
    """The fakes of one built library, as ``fastebm.ops.langevin.register_operators``."""
    library.record_no_gradient(namespace, "metropolis_step_", "population_jump")

    @torch.library.register_fake(f"{namespace}::metropolis_step_")
    def _(x, energy, grad, acceptance, y, e_y, grad_y, *rest):
        library.check_rows(
            x, {"energy": energy, "e_y": e_y}, {"grad": grad, "y": y, "grad_y": grad_y}
        )

    @torch.library.register_fake(f"{namespace}::population_jump")
    def _(x, *rest):
        torch._check(x.dim() == 2, lambda: f"x must be (B, D), got {tuple(x.shape)}")
        torch._check(x.dtype == torch.float32, lambda: f"x must be float32, got {x.dtype}")
        return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(len(x))


register_operators("fastebm")
