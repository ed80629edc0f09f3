"""States of modules whose replay buffers are parts of one, put together for any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastebm.distributed.collectives import all_rows

ROWS = ("data", "visits")
"""What of a buffer's state has a row for each slot."""
_EXTRA = "_extra_state"


def full_state_dict(module: nn.Module) -> dict[str, Any]:
    """``module.state_dict()`` with the whole of every replay buffer in it, of which a rank has a
    part. It loads on any number of ranks, each of which takes its part.

    Every rank must call it, though one alone may save the result; the rest of the state is that of
    the rank.

    Raises:
        RankError: a rank is gone.
    """
    state = module.state_dict()
    for prefix in _parts(state):
        for name in ROWS:
            state[prefix + name] = all_rows(state[prefix + name])
        state[prefix + _EXTRA] = _whole(state[prefix + _EXTRA])
    return state


def join_state_dicts(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One state out of those that the ranks' ``state_dict()`` gave, in the order of the ranks: as
    ``full_state_dict``, without processes. The rest is that of the first.

    Raises:
        ValueError: they are not those of all ranks in their order.
    """
    joined = dict(states[0]) if states else {}
    for prefix in _parts(joined):
        shards = [tuple(s[prefix + _EXTRA].get("shard", (0, 1))) for s in states]
        if shards != [(r, len(states)) for r in range(len(states))]:
            raise ValueError(
                f"states must be those of all ranks in their order, got of {prefix or 'the buffer'}"
                f" the parts (rank, ranks) {', '.join(map(str, shards))}"
            )
        for name in ROWS:
            joined[prefix + name] = torch.cat([_at_home(s[prefix + name]) for s in states])
        joined[prefix + _EXTRA] = _whole(joined[prefix + _EXTRA])
    return joined


def _parts(state: Mapping[str, Any]) -> list[str]:
    """Prefixes of buffers that are parts."""
    ends = [k for k, v in state.items() if k.endswith(_EXTRA) and isinstance(v, dict)]
    return [k.removesuffix(_EXTRA) for k in ends if "shard" in state[k]]


def _whole(extra: dict) -> dict:
    return {k: v for k, v in extra.items() if k != "shard"}


def _at_home(x: Tensor) -> Tensor:
    """On a CPU, as the states may be of several devices."""
    return x.detach().cpu()
