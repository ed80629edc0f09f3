"""Hamiltonian Monte Carlo: the operator's wrapper and fake."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops import library
from fastebm.ops.langevin import coefficients
from fastebm.ops.metropolis import box


def hmc_step_(
    x: Tensor,
    energy: Tensor,
    grad: Tensor,
    y: Tensor,
    v: Tensor,
    kinetic: Tensor,
    acceptance: Tensor,
    divergent: Tensor,
    e_y: Tensor | None,
    grad_y: Tensor | None,
    step_size: float | Tensor,
    temperature: float | Tensor,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    jitter: float = 0.0,
    lo: float | Tensor | None = None,
    hi: float | Tensor | None = None,
    next_step: tuple[float | Tensor, float | Tensor] | None = None,
) -> None:
    """A leapfrog step in place of trajectories that leave exp(-E / T) as it is, T the temperature,
    on any energy; at their end Metropolis' decision, and the start of the next, in one pass.

    A transition draws velocities v ~ N(0, T) of unit mass, moves by leapfrog steps of size h from
    y = x, and accepts y with probability min(1, r),

        log r = (E(x) + |v_0|^2 / 2 - E(y) - |v|^2 / 2) / T;

    outside of the box, or with NaN for r, it is refused. h = step_size * (1 + jitter (2u - 1)), u
    uniform for each sample and transition. What a call does depends on what it gets:

    - neither ``e_y`` nor ``grad_y``: the trajectory of transition t begins: v is drawn, ``kinetic``
      becomes |v|^2 / 2, v -= h/2 grad, y = x + h v;
    - ``grad_y`` alone, the gradient at y: v -= h grad_y, y += h v;
    - both: v -= h/2 grad_y, y is accepted or refused; where ``next_step`` is given, the trajectory
      of transition t + 1 then begins from the new x, with that step and temperature.

    So n transitions of L steps take n L gradients and n L + 1 calls, all of a transition with the
    same t, step, temperature and jitter. A sample's result does not depend on those beside it, nor
    on the device: sums over its elements have one order.

    Args:
        x: (B, *event) float32 or float64; gets y where that is accepted.
        energy, grad: (B,) and (B, *event) of the dtype of x, E and its gradient at x; they get e_y
            and grad_y there.
        y, v: (B, *event) of the dtype of x, in memory of their own: the trajectory. At its end v is
            not changed any more.
        kinetic: (B,) of the dtype of x: |v|^2 / 2 at its start.
        acceptance: (B,) float32, contiguous; min(1, r) of each trajectory is added.
        divergent: (B,) int32, contiguous; 1 is added where \|log r\|, the box left aside, is above
            1000 or not finite.
        e_y, grad_y: E and its gradient at y, as ``energy`` and ``grad``.
        step_size: >= 0, temperature: > 0, a number or a tensor with 1 or B values. Where a tensor
            has another value, the sample's trajectory is NaN, and refused.
        rng, t, sample_ids: as in ``langevin_step_``. The draws have tags ``VELOCITY``, ``JITTER``
            and ``ACCEPT``.
        jitter: in [0, 1).
        lo, hi: as in ``metropolis_step_``; looked at where a trajectory ends.
        next_step: (step_size, temperature) of the trajectory that begins after a decision; None for
            none.

    Source: Neal, MCMC using Hamiltonian dynamics, 2011.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    if next_step is not None and e_y is None:
        raise RuntimeError("hmc_step_: next_step is after a decision: it needs e_y and grad_y")
    now = after = coefficients(x, step_size, temperature, ("step_size", "temperature"))
    if next_step is not None:
        after = coefficients(x, *next_step, ("next_step_size", "next_temperature"))
    library.check_overwritten(
        "hmc_step_",
        **{"x": x, "energy": energy, "grad": grad, "y": y, "v": v},
        **{"kinetic": kinetic, "acceptance": acceptance, "divergent": divergent},
    )
    library.call(
        library.op.hmc_step_.default,
        *(x, energy, grad, y, v, kinetic, acceptance, divergent, e_y, grad_y, *now),
        *(grad_y is None or next_step is not None, *after, jitter, rng, t, sample_ids),
        *box("hmc_step_", x, lo, hi, per_sample=True),
    )


def register_operators(namespace: str) -> None:
    """The fake of one built library, as ``fastebm.ops.langevin.register_operators``."""
    library.record_no_gradient(namespace, "hmc_step_")

    @torch.library.register_fake(f"{namespace}::hmc_step_")
    def _(x, energy, grad, y, v, kinetic, acceptance, divergent, e_y, grad_y, *rest):
        values = {"energy": energy, "kinetic": kinetic, "e_y": e_y}
        library.check_rows(x, values, {"grad": grad, "y": y, "v": v, "grad_y": grad_y})


register_operators("fastebm")
