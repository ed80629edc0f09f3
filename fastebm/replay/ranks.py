"""The replay buffers of several ranks as one."""

from __future__ import annotations

from fastebm.distributed.collectives import gather_integers
from fastebm.replay.buffer import ReplayBuffer

_ADVICE = (
    "they are one buffer, of which each has other slots; for buffers of their own, shared=False"
)


def agree(buffer: ReplayBuffer) -> None:
    """Let the buffers of all ranks have one stream; every rank must call it. Where they were made
    without a ``seed`` it is rank 0's, and what is initial is drawn anew.

    Raises:
        ValueError: the ranks' buffers have other capacities, seeds or pasts, on all of them.
    """
    if not buffer.shared or buffer.join().size == 1:
        return
    key, t, _, _ = buffer.stream.tolist()
    own = [buffer.capacity, buffer.n_pushed, key, t, buffer.is_seeded]
    states = gather_integers(own)
    columns = list(zip(*states, strict=True))
    for name, values in zip(("capacity", "number of samples pushed"), columns, strict=False):
        if len(set(values)) > 1:
            got = ", ".join(map(str, values))
            raise ValueError(f"the ranks' ReplayBuffers must have one {name}, got {got}: {_ADVICE}")
    if len(set(columns[2])) == len(set(columns[3])) == 1:
        return
    if any(columns[4]):
        raise ValueError(f"the ranks' ReplayBuffers must have one seed and one past: {_ADVICE}")
    buffer.restart(columns[2][0], columns[3][0])
