"""Replay buffer: where chains wait between training steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor

from fastebm.arguments import Fixed, Setting, finite_range, integer, one_of, share, sizes
from fastebm.distributed.collectives import all_rows, rows_of_slots
from fastebm.distributed.world import World, world
from fastebm.modes import outside_inference
from fastebm.ops.choice import choose_slots, choose_strata
from fastebm.ops.replay import replay_gather
from fastebm.replay.augmentation import Augmentation
from fastebm.replay.references import References
from fastebm.replay.reservoir import push_reservoir
from fastebm.replay.state import StoredTensors
from fastebm.replay.storage import DTYPES, as_rows, converted, middle_of_steps, read, stored
from fastebm.rng import ChainRNG, as_rng

MODES = ("slot", "fifo", "reservoir")
_FILL = 1 << 24  # elements of the buffer filled at once
Init = str | Callable[[int], Tensor]


class ReplayBuffer(StoredTensors):
    """Samples of past chains, from which new chains start.

    Modes: ``"slot"``, persistent chains: full of initial samples from the start, ``sample`` lends
    distinct slots, each as probable as any other, and ``push`` writes them back; the first half of
    the rows have theirs from the first half of the buffer, and so do all parts that both can be cut
    into. ``"fifo"``, the last ``capacity`` samples pushed; ``"reservoir"``, a uniform choice of all
    samples ever pushed (Vitter's algorithm R); of both every choice is as probable as any other.

    As uint8, x in ``[lo, hi)`` is stored as ``q = floor(256 u)``, ``u = (x - lo) / (hi - lo)``, and
    read as ``u = (q + U) / 256`` with U uniform in (0, 1): a sample stays in its step however often
    it goes in and out, and the mean does not drift. Values outside are brought to the ends.

    Everything lives on the buffer's device and nothing waits for it. ``state_dict`` holds all that
    later samples depend on, the random state too: one stream, the same on every device. A state of
    another dtype is converted where float32 holds its samples exactly (uint8 at the middle of its
    steps), else refused. ``to``, ``half`` and the like of a module that holds the buffer move the
    samples to another device, but never to another dtype.

    In a process group of ``torch.distributed`` the buffers of all ranks are one, from its first use
    on: with equal settings and seeds N ranks that draw n samples each get those that one process
    gets that draws N n. In mode slot each holds ``capacity / N`` slots and draws from these alone:
    nothing travels. In the other modes each holds all samples, and what is pushed travels, once, in
    the storage's dtype. Its tensors are no buffers in ``nn.Module``'s sense, which
    DistributedDataParallel would overwrite. A ``state_dict`` is of the rank's part:
    ``fastebm.distributed.full_state_dict`` has the whole, which any number of ranks can load.

    Args:
        capacity: number of samples; of all ranks together, and then a multiple of their number.
        shape: shape of one, ``*event``; a number for vectors.
        reinit_prob: probability that a sample is replaced by an initial one as it is drawn.
        mode: above.
        init: initial samples: ``"uniform"`` in value_range, ``"normal"`` (standard), or a function
            n -> (n, *event), whose random state is its own, and called with the n of the rank.
        device, dtype: of the storage; float32, bfloat16 or uint8. Samples come out as float32.
        value_range: (lo, hi) of ``"uniform"`` and of uint8.
        augmentation: a transition that every stored sample makes as it is drawn by ``sample``;
            initial ones do not. Its value_range must be the buffer's. ``references`` and ``all``
            give samples as they are.
        seed, generator: an integer, or a generator to draw one from (None: torch's default one).
        shared: False: the buffer is this rank's alone, ``capacity`` and all, with numbers of its
            own.

    Raises:
        ValueError: an argument is out of range.
    """

    tensors = ("data", "visits", "stream")
    _outside_graphs = ("n_pushed",)  # what no graph of a step bakes in

    capacity = Fixed(partial(integer, least=1))
    shape = Fixed(sizes)
    mode = Fixed(one_of(*MODES))
    value_range = Fixed(finite_range)
    shared = Fixed(one_of(False, True))
    reinit_prob = Setting(share)

    def __init__(
        self,
        capacity: int,
        shape: int | tuple[int, ...],
        reinit_prob: float = 0.05,
        mode: str = "slot",
        init: Init = "uniform",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        value_range: tuple[float, float] = (0.0, 1.0),
        augmentation: Augmentation | None = None,
        seed: int | None = None,
        generator: Generator | None = None,
        shared: bool = True,
    ) -> None:
        super().__init__()
        self.shared, self.part = shared, World(0, 1)  # which part of the ranks' buffer this is
        self.capacity, self.shape, self.mode = capacity, shape, mode
        self.value_range, self.reinit_prob, self.init = value_range, reinit_prob, init
        if not callable(init) and init not in ("uniform", "normal"):
            raise ValueError(f"init must be 'uniform', 'normal' or a function, got {init!r}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be float32, bfloat16 or uint8, got {dtype}")
        if augmentation is not None:
            augmentation.check_shape(self.shape)
            if augmentation.value_range != self.value_range:
                raise ValueError(
                    f"augmentation must have the buffer's value_range {self.value_range}, got"
                    f" {augmentation.value_range}"
                )
        self.augmentation = augmentation
        self.n_pushed = 0
        self.is_seeded = seed is not None or generator is not None
        rng = as_rng(seed, generator)
        if not shared and world().rank:  # another stream than rank 0's of the same seed
            rng = ChainRNG((rng.seed + world().rank * 0x9E3779B97F4A7C15) % 2**64)
        with outside_inference():
            rows = self._take_part()
            size = (rows.stop - rows.start, *self.shape)
            self.data = torch.zeros(size, dtype=dtype, device=device)
            # Mode slot: how often the chain in a slot has been drawn since it started.
            self.visits = torch.zeros(size[0], dtype=torch.int32, device=self.data.device)
            self.stream = ChainRNG(rng.seed, sample_offset=0).state(self.data.device)
            if mode == "slot":
                self._fill()

    def __len__(self) -> int:
        """Number of samples stored, of all ranks."""
        return self.capacity if self.mode == "slot" else min(self.n_pushed, self.capacity)

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw ``n`` distinct samples, each replaced by an initial one with ``reinit_prob``; all
        that the buffer does not hold yet are initial ones. In a process group, with as many on
        every rank.

        Returns:
            x (n, *event) float32 and idx (n,) int64: the slot each came from, in modes fifo and
            reservoir -1 for an initial one. In mode slot give idx back to ``push``.

        Raises:
            ValueError: n is not in 1..capacity, of all ranks together.
        """
        n = integer("n", n, 0)
        rank, size = self.join()
        total, first = size * n, rank * n
        if not 1 <= total <= self.capacity:
            ranks = "" if size == 1 else f" on each of {size} ranks"
            raise ValueError(
                f"n must be in 1..{self.capacity // size}, the capacity of this ReplayBuffer, got a"
                f" batch of {n}{ranks}"
            )
        ids = None if size == 1 else first + torch.arange(n, device=self.data.device)
        if self.mode == "slot":
            idx = choose_strata(self.stream, self.capacity, n, first, total)
            return self._draw(idx - self._first, self.visits, ids)[0], idx
        n_stored = min(total, len(self))
        idx, _ = choose_slots(self.stream, len(self), n_stored)
        if n_stored < total:
            idx = torch.cat([idx, idx.new_full((total - n_stored,), -1)])
        return self._draw(idx[first : first + n].contiguous(), sample_ids=ids)

    def push(self, x: Tensor, idx: Tensor | None = None) -> None:
        """Store the samples ``x``, (n, *event) with n <= capacity. In a process group, with as many
        on every rank.

        Args:
            idx: (n,) int64, distinct: the slots to write, mode slot only (other modes ignore it);
                of those that this rank has.

        Raises:
            ValueError: a shape is wrong, or in mode slot idx is missing or no slot (on a device,
                which would have to be waited for, that is an error of its own, as of any index);
                nothing is stored then.
        """
        n = x.shape[0] if x.dim() else 0
        size = self.join().size
        most = self.capacity // size
        if x.shape[1:] != self.shape or x.dim() != len(self.shape) + 1 or n > most:
            raise ValueError(
                f"x must be (n, {', '.join(map(str, self.shape))}) with n <= {most}, the"
                f" capacity of this ReplayBuffer, got {tuple(x.shape)}"
            )
        if self.mode == "slot":
            idx = self._slots(idx, n)
        if n == 0:
            return
        q = stored(x.detach().to(self.data.device), self.data.dtype, self.value_range)
        if self.mode == "slot":
            self.data[idx - self._first] = q
        elif self.mode == "fifo":
            q = self._of_ranks(q)
            self.data[(self.n_pushed + torch.arange(len(q), device=q.device)) % self.capacity] = q
        else:
            push_reservoir(self.data, self._of_ranks(q), self.n_pushed, self.stream)
        self.count(n)

    def count(self, n: int) -> None:
        """Note that ``n`` more samples of this rank were pushed, as ``push`` does; for a graph."""
        self.n_pushed += n * self.part.size

    def all(self, of_ranks: bool = False) -> Tensor:
        """The samples stored, (len, *event) float32; uint8 at the middle of its steps, so nothing
        random is drawn. In a process group those of this rank, or with ``of_ranks``, which every
        rank must call, of all, in the order of the slots."""
        data = self.rows_of_ranks() if of_ranks else self.data
        return read(data[: len(self)], self.value_range)

    def rows_of_ranks(self) -> Tensor:
        """All ``capacity`` rows of the storage as they are; every rank must call it. Where another
        rank has some of them, they travel."""
        self.join()
        return all_rows(self.data) if self.is_sharded else self.data

    def references(self, slots: Tensor, n: int | None = None, local: bool = False) -> References:
        """``n`` distinct stored samples as they are (None, or fewer stored: all of them, as a view
        of the storage, which the next ``push`` changes).

        In a process group those of other ranks travel, in the storage's dtype: all of them, or of
        ``n`` twice as many bytes.

        Args:
            slots: (b,) int64, as ``sample`` returned them.
            local: of the samples that this rank has; nothing travels.
        """
        y_scale = middle_of_steps(self.value_range)
        n = None if n is None else integer("n", n, 0)
        data, size, first = self.data, len(self), 0
        if self.is_sharded and local:
            size, first = len(data), self._first
        if n is None or n >= size:
            y = data[:size] if local or not self.is_sharded else self.rows_of_ranks()
            return References(y, slots - first if first else slots, y_scale)
        chosen, own = choose_slots(self.stream, size, n, slots - first if first else slots)
        self.stream[1].add_(1)
        if self.is_sharded and not local:
            return References(rows_of_slots(data, chosen, self._first), own, y_scale)
        return References(data.index_select(0, chosen), own, y_scale)

    @property
    def is_sharded(self) -> bool:
        """Whether this is one of several parts."""
        return self.mode == "slot" and self.part.size > 1

    @property
    def _first(self) -> int:
        """The first slot that is here."""
        return self.part.rank * len(self.data) if self.is_sharded else 0

    def join(self) -> World:
        """Become a part of the ranks' buffer, where there is a process group and it was made
        before; returns which part.

        Raises:
            ValueError: the capacity is no multiple of the number of ranks, or this is a part of
                another number.
        """
        now = world() if self.shared else self.part
        if now == self.part:
            return now
        if self.part.size > 1:
            raise ValueError(
                f"this ReplayBuffer is part {self.part.rank} of {self.part.size} ranks' and cannot"
                f" be used by rank {now.rank} of {now.size}: load its full_state_dict into another"
            )
        rows = self._take_part()
        self.data, self.visits = self.data[rows].clone(), self.visits[rows].clone()
        return self.part

    def _take_part(self) -> slice:
        """Which of all slots are here."""
        now = world() if self.shared else self.part
        if self.mode == "slot" and self.capacity % now.size:
            raise ValueError(
                f"capacity must be a multiple of the {now.size} ranks, each of which holds as many"
                f" slots, got {self.capacity}"
            )
        self.part = now
        return now.part(self.capacity) if self.is_sharded else slice(0, self.capacity)

    def restart(self, key: int, t: int) -> None:
        """Go on with another stream; where nothing has been pushed what is initial is drawn anew.
        For ranks that were made with streams of their own."""
        self.stream[0], self.stream[1] = key, t
        if self.mode == "slot" and not self.n_pushed:
            self.stream[1] = 0
            self.visits.zero_()
            self._fill()

    def _fill(self) -> None:
        """Initial samples in all slots, in parts, as float32 may be four times the storage."""
        rows = max(1, _FILL // math.prod(self.shape))
        begin, end = self._first, self._first + len(self.data)
        for start in range(0, self.capacity, rows):
            here = range(max(start, begin), min(start + rows, end))
            if not here:
                self.stream[1].add_(1)
                continue
            ids = torch.arange(here.start, here.stop, device=self.data.device)
            x = self._draw(torch.full_like(ids, -1), sample_ids=ids - start)[0]
            part = slice(here.start - begin, here.stop - begin)
            self.data[part] = stored(x, self.data.dtype, self.value_range)

    def _of_ranks(self, q: Tensor) -> Tensor:
        return all_rows(q) if self.part.size > 1 else q

    def _slots(self, idx: Tensor | None, n: int) -> Tensor:
        """The slots that n samples go to."""
        if idx is None or idx.shape != (n,) or idx.dtype != torch.int64:
            got = None if idx is None else f"{idx.dtype} {tuple(idx.shape)}"
            raise ValueError(
                f"idx must be int64 and hold the {n} slots of x in mode slot, got {got}"
            )
        first, end = self._first, self._first + len(self.data)
        if idx.device.type != "cpu":  # where -1 would be the last slot
            return idx.masked_fill(idx < first, end)
        values = idx.numpy()  # which no mode of torch takes for a wait
        # Those before the first are large there.
        if (values - first).view("u8").max(initial=0) >= len(self.data):
            got = values.min() if values.min() < first else values.max()
            raise ValueError(f"idx must be in {first}..{end - 1}, the slots, got {got}")
        return idx

    def _draw(
        self, idx: Tensor, visits: Tensor | None = None, sample_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples float32 of rows of the storage, and which these were, -1 for initial ones."""
        stream = self.stream
        x, slot = replay_gather(
            *(self.data, idx, stream),
            value_range=self.value_range,
            reinit_prob=self.reinit_prob,
            init=self.init if isinstance(self.init, str) else None,
            augmentation=() if self.augmentation is None else self.augmentation.parameters,
            visits=visits,
            sample_ids=sample_ids,
        )
        stream[1].add_(1)
        if not isinstance(self.init, str):
            x = torch.where(as_rows(slot < 0, self.shape), self._custom_initial(len(idx)), x)
        return x, slot

    @torch.no_grad()
    def _custom_initial(self, n: int) -> Tensor:
        x, shape = self.init(n), (n, *self.shape)
        if not isinstance(x, Tensor) or x.shape != shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"init({n}) must return a tensor of shape {shape}, got {got}")
        return x.detach().to(self.data.device, torch.float32)

    def get_extra_state(self) -> dict:
        part = {"shard": tuple(self.part)} if self.is_sharded else {}
        own = {"mode": self.mode, "n_pushed": self.n_pushed, "value_range": self.value_range}
        return own | part

    def set_extra_state(self, state: dict) -> None:
        self.n_pushed = state["n_pushed"]

    def fitting(self, tensors: dict[str, Tensor], extra: dict) -> dict[str, Tensor]:
        """A state's tensors, the samples in the dtype of this buffer, of a whole one this part."""
        if extra["mode"] != self.mode:
            raise ValueError(
                f"the state is of mode {extra['mode']!r}, this buffer is {self.mode!r}"
            )
        integer("the state's n_pushed", extra["n_pushed"], 0)
        theirs, ours = tuple(extra.get("shard", (0, 1))), self.join()
        if theirs[1] > 1 and theirs != tuple(ours):
            raise ValueError(
                f"the state is of rank {theirs[0]} of {theirs[1]} and holds its part of the slots,"
                f" this is rank {ours.rank} of {ours.size}: save what"
                " fastebm.distributed.full_state_dict gives"
            )
        is_whole = self.is_sharded and theirs[1] == 1
        for name, tensor in tensors.items():
            shape = getattr(self, name).shape
            if is_whole and name != "stream":
                shape = (self.capacity, *shape[1:])
            if tensor.shape != shape:
                raise ValueError(
                    f"the state's {name} must be {tuple(shape)}, got {tuple(tensor.shape)}"
                )
            if is_whole and name != "stream":
                tensors[name] = tensor[ours.part(self.capacity)]
        if "data" in tensors:
            own = self.data.dtype, self.value_range
            tensors["data"] = converted(tensors["data"], extra.get("value_range"), *own)
        return tensors

    def extra_repr(self) -> str:
        return f"{self.capacity}, {self.shape}, mode={self.mode!r}, stored={len(self)}"
