"""The draw of block Gibbs sampling: its operators' wrappers and fakes."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.ops import library
from fastebm.rng import HIDDEN


def bernoulli_sigmoid(
    logits: Tensor,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    beta: float = 1.0,
    tag: int = HIDDEN,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draws of Bernoulli(sigmoid(beta * logits)) in one pass: ``u < sigmoid(beta * logits)``.

    ``u`` in (0, 1) has 31 bits, and is the same for every device, data type and batch split: a
    function of the key and step in ``rng``, ``t``, the sample's id, the element's index in its
    sample, ``tag``. The sigmoid is good to 2e-7 of the smaller of p and 1 - p, and 2^-32. Draws
    have the same bits on every device. Not differentiable.

    Args:
        logits: (B, ...) float32, float64, bfloat16 or float16. float64 is rounded to float32 first.
        rng: int64 (4,), ``ChainRNG.state(logits.device)``.
        t: added to the step of ``rng``.
        sample_ids: int64 (B,), who the samples are; default: sample_offset of ``rng`` + row.
        beta: inverse temperature, >= 0; rounded to float32.
        tag: which stream of the key, 1..255.
        dtype: of the result: that of the logits (None), or torch.uint8.

    Returns:
        0 and 1, contiguous, of the shape of ``logits``; NaN for a NaN, or 255 as uint8.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    if dtype not in (None, logits.dtype, torch.uint8):
        raise RuntimeError(f"dtype must be that of logits, {logits.dtype}, or uint8, got {dtype}")
    return library.call(
        library.op.bernoulli_sigmoid.default,
        *(logits, rng, t, sample_ids, beta, dtype == torch.uint8, tag),
    )


def bernoulli_sigmoid_(
    logits: Tensor,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    beta: float = 1.0,
    tag: int = HIDDEN,
) -> Tensor:
    """``bernoulli_sigmoid`` in place: ``logits``, of any strides, become the draws."""
    library.check_overwritten("bernoulli_sigmoid_", logits=logits)
    library.call(library.op.bernoulli_sigmoid_.default, logits, rng, t, sample_ids, beta, tag)
    return logits


def register_operators(namespace: str) -> None:
    """The fakes of one built library, as ``fastebm.ops.langevin.register_operators``."""
    library.record_no_gradient(namespace, "bernoulli_sigmoid", "bernoulli_sigmoid_")

    @torch.library.register_fake(f"{namespace}::bernoulli_sigmoid")
    def _(logits, rng, t, sample_ids, beta, as_bytes, tag):
        dtype = torch.uint8 if as_bytes else logits.dtype
        return logits.new_empty(logits.shape, dtype=dtype)

    @torch.library.register_fake(f"{namespace}::bernoulli_sigmoid_")
    def _(logits, *rest):
        pass


register_operators("fastebm")
