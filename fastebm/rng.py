"""Random streams: a key and a step counter, from which every element's noise follows."""

from __future__ import annotations

from array import array
from functools import partial

import torch
from torch import Generator, Tensor

from fastebm.arguments import integer, optional
from fastebm.distributed.world import world

NOISE = 0x80  # tag of the noise of Langevin steps
INIT = 0x82  # tag of starting points
REPLAY = 0x84  # tag of a replayed sample's elements: dither, initial values
TRANSITION = 0x85  # tag of a replayed sample's restart and augmentation
HIDDEN = 0x86  # tag of hidden units drawn given visible ones
VISIBLE = 0x87  # tag of visible units drawn given hidden ones
ACCEPT = 0x88  # tag of what accepts or refuses a Metropolis proposal
CHOICE = 0x89  # tag of the choice of distinct slots
JUMP = 0x8A  # tag of jumps between modes of a population
STRATUM = 0x8B  # tag of a row's slot in its stratum
VELOCITY = 0x8C  # tag of initial velocities
JITTER = 0x8D  # tag of what varies the step of a Hamiltonian trajectory
SITE = 0x8E  # tag of which element of a discrete sample is proposed to change
SWAP = 0x8F  # tag of swaps between replicas

_STEPS, _SAMPLES = 2**32, 2**56  # of a stream


class ChainRNG:
    """The noise stream of a batch of chains: three integers.

    The noise of an element is a function of ``(seed, step, sample id, element)`` alone, where the
    step is ``t`` plus the number of steps taken since, and the sample id is ``sample_offset`` plus
    the row in the batch. So it does not depend on batch split, device, threads or data type.

    In a process group of ``torch.distributed`` rank r with B chains numbers them from r * B: where
    all ranks have as many, their chains are those of one process with all of them.

    Args:
        seed: any integer in [-2^63, 2^64); the 64-bit key of the stream.
        t: steps already taken, in [0, 2^32).
        sample_offset: id of the first chain, in [0, 2^56); None: by the rank, or 0 without a
            process group.

    Raises:
        ValueError: an argument is out of range.
    """

    __slots__ = ("seed", "t", "sample_offset")

    def __init__(self, seed: int, t: int = 0, sample_offset: int | None = None) -> None:
        self.seed = integer("seed", seed, -(2**63), 2**64 - 1)
        self.t = integer("t", t, 0, _STEPS - 1)
        self.sample_offset = _offset("sample_offset", sample_offset)

    @classmethod
    def from_generator(cls, generator: Generator | None = None) -> ChainRNG:
        """A stream whose key is drawn from ``generator`` (None: torch's default CPU generator, so
        that ``torch.manual_seed`` decides). A CUDA generator costs one synchronisation."""
        device = "cpu" if generator is None else generator.device
        key = torch.empty((), dtype=torch.int64, device=device)
        return cls(int(key.random_(-(2**63), None, generator=generator)))

    def first_sample(self, n: int) -> int:
        """Id of the first of ``n`` chains of this process."""
        return _first_sample(self.sample_offset, n)

    def state(self, device: torch.device | str = "cpu", n: int = 0) -> Tensor:
        """The stream as the operators read it, for ``n`` chains: int64 (4,) = {key, t, id of the
        first, 0}."""
        key = (self.seed + 2**63) % 2**64 - 2**63  # the same 64 bits, signed
        values, device = (key, self.t, self.first_sample(n), 0), torch.device(device)
        if device.type == "cpu":
            return torch.frombuffer(array("q", values), dtype=torch.int64)  # in half the time
        pinned = device.type == "cuda"  # or the copy would wait for the device
        host = torch.tensor(values, dtype=torch.int64, device="cpu", pin_memory=pinned)
        return host.to(device, non_blocking=True)

    def check_room(self, n_steps: int) -> None:
        """ValueError unless ``n_steps`` more steps can be counted: to be asked before they run."""
        if self.t + n_steps >= _STEPS:
            raise ValueError(
                f"t must be in 0..{_STEPS - 1}: after {self.t} steps the stream has none for"
                f" {n_steps} more; take another seed"
            )

    def advance(self, n_steps: int) -> None:
        """Count ``n_steps`` more steps as taken."""
        self.check_room(n_steps)
        self.t += integer("n_steps", n_steps, 0)

    def copy(self) -> ChainRNG:
        """The stream from here on, advanced by itself."""
        return ChainRNG(self.seed, self.t, self.sample_offset)

    def state_dict(self) -> dict[str, int | None]:
        """The stream as plain integers, for a checkpoint; the same on all ranks."""
        return {name: getattr(self, name) for name in self.__slots__}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Continue where ``state_dict`` was taken."""
        self.__init__(**state)

    def __repr__(self) -> str:
        first = "" if self.sample_offset is None else f", sample_offset={self.sample_offset}"
        return f"ChainRNG(seed={self.seed}, t={self.t}{first})"


class DeviceRNG:
    """A ``ChainRNG`` that counts its steps on a device, so that a CUDA graph, replayed, goes on in
    the stream.

    Args:
        rng: where the stream starts; not advanced.
        device: where it is used.
    """

    __slots__ = ("sample_offset", "_state")

    def __init__(self, rng: ChainRNG, device: torch.device | str) -> None:
        self.sample_offset = rng.sample_offset
        self._state = rng.state(device)

    def first_sample(self, n: int) -> int:
        """Id of the first of ``n`` chains of this process."""
        return _first_sample(self.sample_offset, n)

    def state(self, device: torch.device | str, n: int = 0) -> Tensor:
        """The stream as the operators read it, for ``n`` chains: always the same tensor, which
        ``advance`` changes, and in a process group this.

        Raises:
            ValueError: ``device`` is of another type than the stream's.
        """
        if torch.device(device).type != self._state.device.type:
            raise ValueError(f"the stream is on {self._state.device}, it was asked for on {device}")
        if self.sample_offset is None and world().size > 1:
            self._state[2].fill_(self.first_sample(n))
        return self._state

    def check_room(self, n_steps: int) -> None:
        """Nothing: the count is on the device, and goes round after 2^32 steps."""

    def advance(self, n_steps: int) -> None:
        """Count ``n_steps`` more steps as taken; does not wait for the device."""
        self._state[1].add_(n_steps)

    def copy(self) -> DeviceRNG:
        """The stream from here on, advanced by itself."""
        other = object.__new__(DeviceRNG)
        other.sample_offset, other._state = self.sample_offset, self._state.clone()
        return other

    def host(self) -> ChainRNG:
        """The stream as three integers. Waits for the device."""
        key, t, _, _ = self._state.tolist()
        return ChainRNG(key, t % 2**32, self.sample_offset)


_offset = optional(partial(integer, least=0, most=_SAMPLES - 1))


def _first_sample(sample_offset: int | None, n: int) -> int:
    return world().rank * n if sample_offset is None else sample_offset


def as_rng(
    seed: int | ChainRNG | DeviceRNG | None = None, generator: Generator | None = None
) -> ChainRNG | DeviceRNG:
    """The stream that ``seed=`` and ``generator=`` of a sampler name.

    Args:
        seed: an int starts a stream at step 0, the same one every time; a ``ChainRNG`` or
            ``DeviceRNG`` is continued, and advanced by its user; None draws a key from
            ``generator``.
        generator: torch's default CPU generator when None.

    Raises:
        ValueError: both are given.
    """
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    if isinstance(seed, (ChainRNG, DeviceRNG)):
        return seed
    return ChainRNG.from_generator(generator) if seed is None else ChainRNG(seed)


def check_sample_ids(ids: Tensor | None, n: int) -> None:
    """Whether ``ids`` can say whose random numbers each of n samples gets, or are None. Their
    values are looked at on a CPU only: a device would have to be waited for.

    Raises:
        ValueError: they are not int64 (n,), or not in [0, 2^56).
    """
    if ids is None:
        return
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.shape != (n,):
        got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"sample_ids must be an int64 tensor ({n},), got {got}")
    if ids.device.type == "cpu" and n:
        low, high = (int(v) for v in ids.aminmax())
        if low < 0 or high >= _SAMPLES:
            got = low if low < 0 else high
            raise ValueError(f"sample_ids must be in 0..{_SAMPLES - 1}, got {got}")
