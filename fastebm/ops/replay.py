"""Drawing samples from a replay buffer: the operator's wrapper and fake."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastebm.ops import library

_INITIAL = ("uniform", "normal", None)  # in the kernels' order


def replay_gather(
    data: Tensor,
    index: Tensor,
    rng: Tensor,
    *,
    t: int = 0,
    sample_ids: Tensor | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    dither: bool = True,
    reinit_prob: float = 0.0,
    init: str | None = None,
    augmentation: Sequence[float] = (),
    visits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Samples of a replay buffer: gathered, dequantised, a share of them restarted, the others
    moved by a random augmentation, in one pass.

    The random numbers are a function of the key and step in ``rng``, ``t``, the sample's id and,
    for dither and initial values, the element's index in its sample; the result has the same bits
    on every device and for any batch split. Not differentiable.

    Args:
        data: (N, *event) float32, bfloat16 or uint8; a uint8 q stands for
            ``lo + (q + u) (hi - lo) / 256``.
        index: (n,) int64, which samples; -1 for an initial one.
        rng: int64 (4,), ``ChainRNG.state(data.device)``.
        t: added to the step of ``rng``.
        sample_ids: int64 (n,), whose random numbers each sample gets; default: sample_offset of
            ``rng`` + row.
        value_range: (lo, hi) of uint8, of ``"uniform"`` and of colours.
        dither: u is uniform in (0, 1), else 1/2.
        reinit_prob: probability that a sample is replaced by an initial one.
        init: initial samples: ``"uniform"`` in value_range, ``"normal"``, or None: zeros.
        augmentation: ``Augmentation.parameters``; initial samples are not augmented.
        visits: (N,) int32, changed: how often each stored sample has been drawn, with this time,
            since it was an initial one. No index may be there twice then.

    Returns:
        x (n, *event) float32, and slot (n,) int64, ``index`` or -1 where a sample is an initial
        one. On a device an index out of range makes its sample NaN, and its slot -2.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or a value is out of range.
    """
    if init not in _INITIAL:
        raise RuntimeError(f"init must be one of {_INITIAL}, got {init!r}")
    return library.call(
        library.op.replay_gather.default,
        *(data, index, rng, t, sample_ids, *value_range, dither, reinit_prob),
        *(_INITIAL.index(init), augmentation, visits),
    )


def register_operators(namespace: str) -> None:
    """The fake of one built library, as ``fastebm.ops.langevin.register_operators``."""
    library.record_no_gradient(namespace, "replay_gather")

    @torch.library.register_fake(f"{namespace}::replay_gather")
    def _(data, index, *rest):
        out = data.new_empty((index.shape[0], *data.shape[1:]), dtype=torch.float32)
        return out, torch.empty_like(index)


register_operators("fastebm")
