"""A step of underdamped Langevin dynamics: the operator's wrapper and fake."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops import library
from fastebm.ops.langevin import per_sample


def underdamped_step_(
    x: Tensor,
    v: Tensor,
    grad: Tensor,
    kick: float | Tensor,
    drift: float | Tensor,
    decay: float | Tensor,
    noise_std: float | Tensor,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    lo: float | Tensor | None = None,
    hi: float | Tensor | None = None,
) -> None:
    """One step in place, of the gradient at ``x``: ``v -= kick * grad``, ``x += drift * v``,
    ``v = decay * v + noise_std * n``, ``x += drift * v``.

    With step h, friction and temperature T at unit mass: kick = h, but h / 2 in the first step of a
    chain; drift = h / 2; decay = exp(-friction * h); noise_std = sqrt((1 - decay^2) * T). So it is
    BAOAB, whose two half kicks between steps are one, and ``v`` is that of before the last half
    kick: after the last step ``v - h / 2 * grad`` is the velocity that belongs to ``x``.

    ``n`` is standard normal, the noise of ``langevin_step_`` of the same key, step and ids. A
    velocity to start from is ``langevin_step_`` on zeros with a standard deviation of sqrt(T) and
    the tag ``VELOCITY``. No gradient is recorded.

    Args:
        x: (B, ...) float32, float64, bfloat16 or float16, any strides; overwritten. Arithmetic is
            float64 for float64 and float32 for the rest, rounded once on the way out.
        v: velocities, same shape, dtype, device; overwritten.
        grad: energy gradient at ``x``, the same.
        kick, drift, decay, noise_std: numbers >= 0, or tensors with 1 or B values. A value in a
            tensor that is negative or not finite makes its sample NaN.
        rng, t, sample_ids: as in ``langevin_step_``.
        lo, hi: faces of a box, numbers or tensors of the shape of a sample or of ``x``; None for
            none. After each change of ``x`` an element that is outside is reflected at the face
            that it has passed, with its velocity; one that is then still outside is clamped. On a
            device tensors are not looked at.

    Raises:
        RuntimeError: shapes, dtypes or devices differ, or a value is out of range.

    Source: Leimkuhler and Matthews, Rational construction of stochastic numerical methods for
    molecular sampling, 2013.
    """
    coefficients = dict(kick=kick, drift=drift, decay=decay, noise_std=noise_std)
    values, tensors = zip(*(per_sample(*item, x) for item in coefficients.items()), strict=True)
    library.check_overwritten("underdamped_step_", x=x, v=v)
    library.call(
        library.op.underdamped_step_.default,
        *(x, v, grad, *values, *tensors, rng, t, sample_ids, *_faces(x, lo, hi)),
    )


def _faces(x: Tensor, lo: float | Tensor | None, hi: float | Tensor | None) -> tuple:
    """lo, hi, los and his of the operator: both numbers, or both tensors."""
    if not isinstance(lo, Tensor) and not isinstance(hi, Tensor):
        return lo, hi, None, None
    dtype = torch.promote_types(x.dtype, torch.float32)
    shapes = [v.shape for v in (lo, hi) if isinstance(v, Tensor)]
    shape = x.shape if x.shape in shapes else x.shape[1:]
    faces = []
    for name, value, missing in (("lo", lo, -torch.inf), ("hi", hi, torch.inf)):
        if not isinstance(value, Tensor):
            value = missing if value is None else value
            value = torch.full(shape, value, dtype=dtype, device=x.device)
        elif value.shape not in (x.shape, x.shape[1:]):
            raise RuntimeError(
                f"underdamped_step_: {name} must be a number or of the shape {tuple(x.shape[1:])}"
                f" of a sample or {tuple(x.shape)} of x, got {tuple(value.shape)}"
            )
        faces.append(value.to(dtype).expand(shape).contiguous())
    return None, None, *faces


def register_operators(namespace: str) -> None:
    """The fake of one built library, as ``fastebm.ops.langevin.register_operators``."""
    library.record_no_gradient(namespace, "underdamped_step_")

    @torch.library.register_fake(f"{namespace}::underdamped_step_")
    def _(x, v, grad, *rest):
        for name, tensor in (("v", v), ("grad", grad)):
            same = tensor.shape == x.shape and tensor.dtype == x.dtype
            torch._check(same, lambda name=name: f"{name} must have the shape and dtype of x")


register_operators("fastebm")
