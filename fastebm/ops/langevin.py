"""The Langevin step: its operators' wrappers, fakes and gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastebm.ops import library
from fastebm.rng import NOISE

Clamp = tuple[float | Tensor | None, float | Tensor | None]


def langevin_step_(
    x: Tensor,
    grad: Tensor | None,
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
) -> Tensor:
    """One Langevin step in place: ``x <- clamp(x + clip(noise_std * n - step_size * clip(grad)))``.

    ``n`` is standard normal, the same for every device, data type and batch split: a function of
    the key and step in ``rng``, ``t``, the sample's id, the element's index in its sample, ``tag``.
    No gradient is recorded; ``langevin_step`` is the differentiable twin.

    Args:
        x: (B, ...) float32, float64, bfloat16 or float16, any strides; overwritten. Arithmetic is
            float64 for float64 and float32 for the rest, rounded once on the way out.
        grad: energy gradient at ``x``, same shape, dtype, device; None for a step of noise only.
        step_size: a number >= 0, or a tensor with 1 or B values. A value in a tensor that is
            negative or not finite makes its sample NaN (nothing is read back from the device).
        noise_std: standard deviation of the noise, the same rules. Not a multiplier.
        rng: int64 (4,), ``ChainRNG.state(x.device)``.
        t: steps taken since ``rng`` was made.
        sample_ids: int64 (B,), who the samples are; default: sample_offset of ``rng`` + row.
        grad_clip: bound on |grad|, element by element.
        grad_norm_clip: bound on each sample's gradient norm, applied before ``grad_clip``.
        displacement_clip: bound on how far the step moves, element by element, before ``clamp``
            (Florence et al., Implicit Behavioral Cloning, 2021).
        clamp: (lo, hi), each a number, a tensor that broadcasts to the shape of ``x`` (a face a
            dimension or a sample, without NaN; one pass more over ``x``), or None.
        tag: which stream of the key, 1..255.

    Returns:
        ``x``. NaN in ``x`` or ``grad`` stays NaN.

    Raises:
        RuntimeError: shapes, dtypes or devices differ, or a value is out of range.
    """
    pair = coefficients(x, step_size, noise_std)
    (lo, hi), faces = _box(clamp, x)
    library.check_overwritten("langevin_step_", x=x)
    library.call(
        library.op.langevin_step_.default,
        *(x, grad, *pair, rng, t, sample_ids),
        *(grad_clip, grad_norm_clip, displacement_clip, lo, hi, tag),
    )
    if faces:
        with torch.no_grad():
            x.clamp_(**faces)
    return x


def langevin_step(
    x: Tensor,
    grad: Tensor,
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
) -> Tensor:
    """The step of ``langevin_step_`` into a new tensor, differentiable any number of times in
    ``x`` and ``grad``.

    With m = 1 where the result was not clamped and c = 1 where neither gradient nor displacement
    was clipped (bounds included, as in ``torch.clamp``): d/dx = m, d/dgrad = -step_size * m * c. A
    quarter of a byte per element is kept for the backward pass. Not differentiable in step_size and
    noise_std.

    Arguments, returns and errors as in ``langevin_step_``; ``grad`` is required.
    """
    if grad_norm_clip is not None:
        grad = _clip_norm(grad, grad_norm_clip)
    pair = coefficients(x, step_size, noise_std)
    (lo, hi), faces = _box(clamp, x)
    out = library.call(
        library.op.langevin_step.default,
        *(x, grad, *pair, rng, t, sample_ids, grad_clip, displacement_clip, lo, hi, tag),
    )[0]
    return out.clamp(**faces) if faces else out


def coefficients(
    x: Tensor,
    step_size: float | Tensor,
    other: float | Tensor,
    names: tuple[str, str] = ("step_size", "noise_std"),
) -> tuple[float, float, Tensor | None, Tensor | None]:
    """Two coefficients of steps as operators on ``x`` (B, ...) take them: the numbers, then the
    contiguous (B,) tensors of the compute type, or None."""
    a, of_samples = per_sample(names[0], step_size, x)
    b, others = per_sample(names[1], other, x)
    return a, b, of_samples, others


def per_sample(name: str, value: float | Tensor, x: Tensor) -> tuple[float, Tensor | None]:
    """``value`` as operators on ``x`` (B, ...) take it: a number, and a contiguous (B,) tensor of
    the compute type or None."""
    if not isinstance(value, Tensor):
        return value, None
    if value.requires_grad:
        raise RuntimeError(f"{name} must not require a gradient: the step does not provide one")
    if x.dim() == 0:
        raise RuntimeError("x must have a batch dimension, (B, ...), got a 0-d tensor")
    if value.numel() not in (1, x.shape[0]):
        raise RuntimeError(
            f"{name} must hold 1 or B = {x.shape[0]} values, got shape {tuple(value.shape)}"
        )
    return 0.0, value.to(_compute_dtype(x)).reshape(-1).expand(x.shape[0]).contiguous()


def broadcasts(t: Tensor, shape: torch.Size) -> bool:
    """Whether ``t`` broadcasts to ``shape``."""
    sizes = zip(reversed(t.shape), reversed(shape), strict=False)
    return t.dim() <= len(shape) and all(a in (1, b) for a, b in sizes)


def _box(clamp: Clamp | None, x: Tensor) -> tuple[Clamp, dict[str, Tensor]]:
    """Of a box the faces that are numbers, which the operators take, and the others as arguments of
    ``torch.clamp``."""
    faces = {}
    for name, face in zip(("min", "max"), clamp or (), strict=False):
        if isinstance(face, Tensor):
            if not broadcasts(face, x.shape):
                raise RuntimeError(
                    f"clamp must hold tensors that broadcast to the shape of x, {tuple(x.shape)},"
                    f" got {tuple(face.shape)}"
                )
            faces[name] = face.to(x.dtype)
    numbers = (None if isinstance(face, Tensor) else face for face in clamp or (None, None))
    return tuple(numbers), faces


def _clip_norm(grad: Tensor, bound: float) -> Tensor:
    """Each sample's gradient scaled to a norm of at most ``bound``, by torch, so differentiable."""
    if not bound > 0:
        raise RuntimeError(f"langevin_step: grad_norm_clip must be > 0, got {bound}")
    rows = grad.unsqueeze(-1).flatten(1)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    scale = torch.where(norm > bound, bound / norm, 1.0).to(_compute_dtype(grad))
    return (rows * scale).to(grad.dtype).reshape(grad.shape)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _blocks_per_row(x: Tensor) -> int:
    return (math.prod(x.shape[1:]) + 3) // 4


def _check_step(x: Tensor, grad: Tensor | None) -> None:
    torch._check(x.dim() > 0, lambda: "x must have a batch dimension, (B, ...)")
    if grad is not None:
        torch._check(grad.shape == x.shape, lambda: "grad must have the shape of x")
        torch._check(grad.dtype == x.dtype, lambda: "grad must have the dtype of x")
        torch._check(grad.device == x.device, lambda: "grad and x are on different devices")


def register_operators(namespace: str) -> None:
    """Fakes and gradients of one built library; tests use it for the emulated device too."""
    backward = getattr(torch.ops, namespace).langevin_step_backward.default
    library.record_no_gradient(namespace, "langevin_step_")

    @torch.library.register_fake(f"{namespace}::langevin_step_")
    def _(x, grad, *rest):
        _check_step(x, grad)

    @torch.library.register_fake(f"{namespace}::langevin_step")
    def _(x, grad, *rest):
        _check_step(x, grad)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        return out, x.new_empty((x.shape[0], _blocks_per_row(x)), dtype=torch.uint8)

    @torch.library.register_fake(f"{namespace}::langevin_step_backward")
    def _(grad_out, mask, step_size, step_sizes):
        like = torch.empty_like(grad_out, memory_format=torch.contiguous_format)
        return like, torch.empty_like(like)

    def keep_masks(ctx, inputs, output):
        ctx.step_size = inputs[2]
        ctx.save_for_backward(output[1], inputs[4])

    def step_backward(ctx, grad_out, _):
        mask, steps = ctx.saved_tensors
        grads = library.call(backward, grad_out, mask, ctx.step_size, steps)
        return (*grads, *(None,) * 12)

    def keep_masks_again(ctx, inputs, output):
        _, mask, ctx.step_size, steps = inputs
        ctx.save_for_backward(mask, steps)

    def step_backward_backward(ctx, grad_x, grad_grad):
        # The backward is linear, (m, -s m c) times grad_out, so its transpose is its own rows.
        mask, steps = ctx.saved_tensors
        to_x, _ = library.call(backward, grad_x, mask, ctx.step_size, steps)
        _, to_grad = library.call(backward, grad_grad, mask, ctx.step_size, steps)
        return to_x + to_grad, None, None, None

    torch.library.register_autograd(
        f"{namespace}::langevin_step", step_backward, setup_context=keep_masks
    )
    torch.library.register_autograd(
        f"{namespace}::langevin_step_backward",
        step_backward_backward,
        setup_context=keep_masks_again,
    )


register_operators("fastebm")
