"""What the ranks of a process group agree on in a call of a loss."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from fastebm.chains.capture import is_active
from fastebm.distributed.collectives import gather_objects
from fastebm.distributed.gradients import check_parameters
from fastebm.distributed.world import world
from fastebm.energies.sampling_mode import modules_of, parameters_of
from fastebm.losses.terms import Batch
from fastebm.replay.ranks import agree
from fastebm.rng import ChainRNG, DeviceRNG, as_rng

_FROM_THE_START = (
    "build the model after the same torch.manual_seed on all ranks, or wrap it in"
    " DistributedDataParallel first, which copies rank 0's"
)
_NOT_REDUCED = (
    "their gradients were not reduced. Give the loss DistributedDataParallel(model) and the sampler"
    " model, or call fastebm.distributed.average_gradients(model.parameters()) before"
    " optimizer.step()"
)


def check_ranks(loss, x: Tensor, seed: int | ChainRNG | DeviceRNG | None = None) -> None:
    """Before a call of ``loss``: in the first whether all ranks train the same thing, and in the
    first, second, third, fifth, ninth ... whether their parameters are the same.

    Raises:
        ValueError: ranks differ in a setting, a size or a dtype, or by ``seed`` number their chains
            alike; on all ranks.
        RuntimeError: they differ in their parameters; on all ranks.
    """
    n = loss.calls
    if world().size == 1 or n & (n - 1) or is_active() and n:
        return
    parameters = list(parameters_of(modules_of(loss.model)))
    if n == 0:
        _check_settings(loss, x, parameters)
        _check_streams(loss, x, seed)
        if getattr(loss, "buffer", None) is not None:
            agree(loss.buffer)
    where = f"call {n + 1} of {type(loss).__name__}"
    check_parameters(parameters, where, _NOT_REDUCED if n else _FROM_THE_START)


def _check_settings(loss, x: Tensor, parameters: list[Tensor]) -> None:
    shape, buffer = tuple(getattr(x, "shape", ())), getattr(loss, "buffer", None)
    names = ("k_steps", "on_nonfinite", "n_entropy_refs", "local_refs", "jumps", "n_chains")
    weights = ("energy_reg_weight", "kl_weight", "entropy_weight", "entropy_eps")
    sampler = getattr(loss, "sampler", None)
    own = {
        "loss": type(loss).__name__,
        "batch size": shape[0] if shape else None,
        "sample shape": shape[1:],
        "dtype of x": str(getattr(x, "dtype", type(x))),
        "parameters": [(tuple(p.shape), str(p.dtype)) for p in parameters],
        "buffer": None if buffer is None else (buffer.mode, str(buffer.data.dtype), buffer.shape),
        **{name: getattr(buffer, name, None) for name in ("capacity", "shared")},
        **{name: getattr(loss, name, None) for name in names + weights},
        **{name: _number(getattr(sampler, name, None)) for name in ("step_size", "noise_std")},
    }
    others = gather_objects(own)
    for name, value in others[0].items():
        values = [other[name] for other in others]
        if any(v != value for v in values):
            got = "; ".join(f"rank {r}: {str(v)[:80]}" for r, v in enumerate(values))
            raise ValueError(f"all ranks must have the same {name}, got {got}")


def _number(value: object) -> float | None:
    """None for a setting of another kind, which is not compared."""
    return value if isinstance(value, (int, float)) else None


def _check_streams(loss, x: Tensor, seed: int | ChainRNG | DeviceRNG | None) -> None:
    """Chains of two ranks with one number would have the same noise."""
    rng = None if seed is None else as_rng(seed)
    rng = rng.host() if isinstance(rng, DeviceRNG) else rng
    n = getattr(loss, "n_chains", None) or len(x)
    found = gather_objects(None if rng is None else (rng.seed, rng.first_sample(n)))
    known = sorted(stream for stream in found if stream is not None)
    if any(a[0] == b[0] and b[1] - a[1] < n for a, b in pairwise(known)):
        got = "; ".join(f"rank {r}: {s and s[1]}" for r, s in enumerate(found))
        raise ValueError(
            f"seed must number the {n} chains of each rank by themselves, their first ones are"
            f" {got}: leave sample_offset of ChainRNG at None, which does"
        )


def left_of(batch: Batch, pos: Tensor, neg: Tensor, first: int, kept: list[list[int]]) -> Batch:
    """The rows of a batch to be kept, of which each rank may have another number, with the weights
    that make the mean of the ranks' losses that of all rows.

    Args:
        pos, neg: bool, rows of the data and of the chains.
        first: id of the first chain.
        kept: of every rank, how many rows that is.
    """
    rows = [mask.nonzero()[:, 0] for mask in (pos, neg)]
    if len(kept) == 1:
        return batch.rows(*rows, first)
    # Where a rank keeps nothing a sample of zeros stands in, which counts for nothing: wrappers of
    # the model need as many forward passes on all ranks.
    some = [r if len(r) else r.new_zeros(1) for r in rows]
    left = batch.rows(*some, first)
    x, chains = (
        v if len(r) else torch.zeros_like(v)
        for v, r in zip((left.x, left.chains), rows, strict=True)
    )
    totals = [sum(column) for column in zip(*kept, strict=True)]
    own = kept[world().rank]
    weights = tuple(len(kept) * n / total for n, total in zip(own, totals, strict=True))
    return left._replace(x=x, chains=chains, weights=weights, chains_of_ranks=[n for _, n in kept])
