"""Gibbs with gradients on discrete samples: the operator's wrapper and fake."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops import library
from fastebm.ops.langevin import per_sample


def gwg_step_(
    x: Tensor,
    energy: Tensor,
    grad: Tensor,
    log_q: Tensor,
    site: Tensor,
    acceptance: Tensor,
    y: Tensor,
    e_y: Tensor | None,
    grad_y: Tensor | None,
    temperature: float | Tensor,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    accept: bool = True,
    propose: bool = True,
    n_categories: int = 0,
) -> None:
    """Accept or refuse the last proposals ``y``, then make the next ones, of density
    exp(-E / temperature): one call for each gradient.

    A proposal changes one site: of all such moves y is drawn with probability q(y|x) in proportion
    to exp(d / 2), d the change of -E / temperature to first order by the gradient at x. It is
    accepted with probability min(1, r), log r = (E(x) - E(y)) / temperature + log q(x|y) -
    log q(y|x), where q(x|y) is by the gradient at y. So the law is exact for any differentiable E.

    The first call has ``accept=False``, the last one may have ``propose=False``; between calls
    energy and gradient at ``y`` are the caller's to find, and all else is left as it is. The draws
    have tags ``SITE`` and ``ACCEPT`` and those of one call the step ``t``; they are alike on every
    device, and a sample's do not depend on those beside it. No gradient is recorded.

    Args:
        x: (B, *event) float32, contiguous: 0 and 1, or with ``n_categories`` K (B, ..., K) one-hot;
            which is not looked at. Overwritten, as all to ``y`` are.
        energy, grad: (B,) float32, and as ``x``: energy and gradient at ``x``.
        log_q, site: (B,) float32 and int64: log q(y|x), and the element of the flattened sample
            that flips, or that becomes 1. Written where proposals are made, read where they are
            accepted.
        acceptance: (B,) float32, to which min(1, r) is added.
        y: as ``x``: the proposals.
        e_y, grad_y: energy and gradient at ``y``; None with ``accept=False``.
        temperature: > 0, or a tensor with 1 or B values. A sample whose value in a tensor is not
            finite and > 0 stays where it is.
        rng, t, sample_ids: as in ``langevin_step_``.
        n_categories: 0 for binary samples, or the last size of ``x``, at least 2.

    NaN in an energy or gradient at ``y``: refused.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.

    Source: Grathwohl, Swersky, Hashemi, Duvenaud and Maddison, Oops I took a gradient, 2021.
    """
    library.check_overwritten(
        "gwg_step_", x=x, energy=energy, grad=grad, log_q=log_q, acceptance=acceptance, y=y
    )
    value, values = per_sample("temperature", temperature, x)
    library.call(
        library.op.gwg_step_.default,
        *(x, energy, grad, log_q, site, acceptance, y, e_y, grad_y),
        *(1.0 if values is not None else value, values),
        *(rng, t, sample_ids, accept, propose, n_categories),
    )


def register_operators(namespace: str) -> None:
    """The fake of one built library, as ``fastebm.ops.langevin.register_operators``."""
    library.record_no_gradient(namespace, "gwg_step_")

    @torch.library.register_fake(f"{namespace}::gwg_step_")
    def _(x, energy, grad, *rest):
        torch._check(x.dim() > 0, lambda: "x must have a batch dimension, (B, ...)")
        torch._check(grad.shape == x.shape, lambda: "grad must have the shape of x")


register_operators("fastebm")
