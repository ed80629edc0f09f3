"""Replay buffer: where chains wait between training steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor, nn

from fastebm.arguments import Fixed, Setting, finite_range, integer, one_of, share, sizes
from fastebm.modes import outside_inference
from fastebm.ops.choice import choose_slots
from fastebm.ops.replay import replay_gather
from fastebm.replay.augmentation import Augmentation
from fastebm.replay.references import References
from fastebm.rng import ChainRNG, as_rng

MODES = ("slot", "fifo", "reservoir")
DTYPES = (torch.float32, torch.bfloat16, torch.uint8)
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
_FILL = 1 << 24  # elements of the buffer filled at once
Init = str | Callable[[int], Tensor]


class ReplayBuffer(nn.Module):
    """Samples of past chains, from which new chains start.

    Modes: ``"slot"``, persistent chains: full of initial samples from the start, ``sample`` lends
    distinct slots and ``push`` writes them back; ``"fifo"``, the last ``capacity`` samples pushed;
    ``"reservoir"``, a uniform choice of all samples ever pushed (Vitter's algorithm R).

    As uint8, x in ``[lo, hi)`` is stored as ``q = floor(256 u)``, ``u = (x - lo) / (hi - lo)``, and
    read as ``u = (q + U) / 256`` with U uniform in (0, 1): a sample stays in its step however often
    it goes in and out, and the mean does not drift. Values outside are brought to the ends.

    Everything lives on the buffer's device and nothing waits for it. ``state_dict`` holds all that
    later samples depend on, the random state too: one stream, the same on every device. A state of
    another dtype is converted where float32 holds its samples exactly (uint8 at the middle of its
    steps), else refused. ``to``, ``half`` and the like of a module that holds the buffer move the
    samples to another device, but never to another dtype.

    Args:
        capacity: number of samples.
        shape: shape of one, ``*event``; a number for vectors.
        reinit_prob: probability that a sample is replaced by an initial one as it is drawn.
        mode: above.
        init: initial samples: ``"uniform"`` in value_range, ``"normal"`` (standard), or a function
            n -> (n, *event), whose random state is its own.
        device, dtype: of the storage; float32, bfloat16 or uint8. Samples come out as float32.
        value_range: (lo, hi) of ``"uniform"`` and of uint8.
        augmentation: a transition that every stored sample makes as it is drawn by ``sample``;
            initial ones do not. Its value_range must be the buffer's. ``references`` and ``all``
            give samples as they are.
        seed, generator: an integer, or a generator to draw one from (None: torch's default one).

    Raises:
        ValueError: an argument is out of range.
    """

    _outside_graphs = ("n_pushed",)  # what no graph of a step bakes in

    capacity = Fixed(partial(integer, least=1))
    shape = Fixed(sizes)
    mode = Fixed(one_of(*MODES))
    value_range = Fixed(finite_range)
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
    ) -> None:
        super().__init__()
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
        rng = ChainRNG(as_rng(seed, generator).seed)
        with outside_inference():
            data = torch.zeros((self.capacity, *self.shape), dtype=dtype, device=device)
            self.register_buffer("data", data)
            # Mode slot: how often the chain in a slot has been drawn since it started.
            self.register_buffer(
                "visits", torch.zeros(self.capacity, dtype=torch.int32, device=device)
            )
            self.register_buffer("stream", rng.state(data.device))
            if mode == "slot":  # in parts, as float32 may be four times the storage
                for part in data.split(max(1, _FILL // math.prod(self.shape))):
                    none = torch.full((len(part),), -1, device=data.device)
                    part.copy_(self._store(self._draw(none)[0]))

    def __len__(self) -> int:
        """Number of samples stored."""
        return self.capacity if self.mode == "slot" else min(self.n_pushed, self.capacity)

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw ``n`` distinct samples, each replaced by an initial one with ``reinit_prob``; all
        that the buffer does not hold yet are initial ones.

        Returns:
            x (n, *event) float32 and idx (n,) int64: the slot each came from, in modes fifo and
            reservoir -1 for an initial one. In mode slot give idx back to ``push``.

        Raises:
            ValueError: n is not in 1..capacity.
        """
        n = integer("n", n, 0)
        if not 1 <= n <= self.capacity:
            raise ValueError(
                f"n must be in 1..{self.capacity}, the capacity of this ReplayBuffer, got a batch"
                f" of {n}"
            )
        stored = min(n, len(self))
        idx, _ = choose_slots(self.stream, len(self), stored)
        if stored < n:
            idx = torch.cat([idx, idx.new_full((n - stored,), -1)])
        if self.mode == "slot":
            return self._draw(idx, self.visits)[0], idx
        return self._draw(idx)

    def push(self, x: Tensor, idx: Tensor | None = None) -> None:
        """Store the samples ``x``, (n, *event) with n <= capacity.

        Args:
            idx: (n,) int64, distinct: the slots to write, mode slot only (other modes ignore it).

        Raises:
            ValueError: a shape is wrong, or in mode slot idx is missing or no slot (on a device,
                which would have to be waited for, that is an error of its own, as of any index);
                nothing is stored then.
        """
        n = x.shape[0] if x.dim() else 0
        if x.shape[1:] != self.shape or x.dim() != len(self.shape) + 1 or n > self.capacity:
            raise ValueError(
                f"x must be (n, {', '.join(map(str, self.shape))}) with n <= {self.capacity}, the"
                f" capacity of this ReplayBuffer, got {tuple(x.shape)}"
            )
        if self.mode == "slot":
            idx = self._slots(idx, n)
        if n == 0:
            return
        q = self._store(x.detach().to(self.data.device))
        if self.mode == "slot":
            self.data[idx] = q
        elif self.mode == "fifo":
            self.data[(self.n_pushed + torch.arange(n, device=q.device)) % self.capacity] = q
        else:
            self._push_reservoir(q)
        self.n_pushed += n

    def all(self) -> Tensor:
        """The samples stored, (len, *event) float32; uint8 at the middle of its steps, so nothing
        random is drawn."""
        return _read(self.data[: len(self)], self.value_range)

    def references(self, slots: Tensor, n: int | None = None) -> References:
        """``n`` distinct stored samples as they are (None, or fewer stored: all of them, as a view
        of the storage, which the next ``push`` changes).

        Args:
            slots: (b,) int64, as ``sample`` returned them.
        """
        size, n = len(self), None if n is None else integer("n", n, 0)
        if n is None or n >= size:
            return References(self.data[:size], slots, self._y_scale)
        chosen, own = choose_slots(self.stream, size, n, slots)
        self.stream[1].add_(1)
        return References(self.data.index_select(0, chosen), own, self._y_scale)

    @property
    def _y_scale(self) -> tuple[float, float]:
        """(scale, offset) of a uint8 sample at the middle of its step, as ``nearest_neighbor``."""
        lo, hi = self.value_range
        scale = (hi - lo) / 256
        return scale, lo + scale / 2

    def _slots(self, idx: Tensor | None, n: int) -> Tensor:
        """The slots that n samples go to."""
        if idx is None or idx.shape != (n,) or idx.dtype != torch.int64:
            got = None if idx is None else f"{idx.dtype} {tuple(idx.shape)}"
            raise ValueError(
                f"idx must be int64 and hold the {n} slots of x in mode slot, got {got}"
            )
        if idx.device.type != "cpu":  # where -1 would be the last slot
            return idx.masked_fill(idx < 0, self.capacity)
        values = idx.numpy()  # which no mode of torch takes for a wait
        if values.view("u8").max(initial=0) >= self.capacity:  # negative ones are large there
            got = values.min() if values.min() < 0 else values.max()
            raise ValueError(f"idx must be in 0..{self.capacity - 1}, the slots, got {got}")
        return idx

    def _push_reservoir(self, q: Tensor) -> None:
        """Sample i of all (from 0) goes to slot i, or to u in 0..i where that is a slot."""
        n = len(q)
        i = self.n_pushed + torch.arange(n, device=q.device)
        # Two uniform numbers of 24 bits each make one of 48.
        nothing = torch.empty((0, 2), dtype=torch.float32, device=q.device)
        none = torch.full_like(i, -1)
        parts, _ = replay_gather(nothing, none, self.stream, init="uniform")
        self.stream[1].add_(1)
        high, low = parts.double().unbind(1)
        u = torch.where(i < self.capacity, i, ((high + low * 2**-24) * (i + 1)).long())
        keep, slot = u < self.capacity, u % self.capacity
        # The last sample for a slot wins. Every other row writes what its slot holds in the end, so
        # the order of writes does not matter and no row need be dropped (a wait for the device).
        order = torch.arange(n, device=q.device)
        last = torch.full((self.capacity,), -1, device=q.device)
        last.scatter_reduce_(0, slot, torch.where(keep, order, -1), "amax")
        winner = last[slot]
        taken = _as_rows(winner >= 0, self.shape)
        self.data[slot] = torch.where(taken, q[winner.clamp(min=0)], self.data[slot])

    def _draw(self, idx: Tensor, visits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Samples float32 and where they came from, -1 for initial ones."""
        stream = self.stream
        x, slot = replay_gather(
            *(self.data, idx, stream),
            value_range=self.value_range,
            reinit_prob=self.reinit_prob,
            init=self.init if isinstance(self.init, str) else None,
            augmentation=() if self.augmentation is None else self.augmentation.parameters,
            visits=visits,
        )
        stream[1].add_(1)
        if not isinstance(self.init, str):
            x = torch.where(_as_rows(slot < 0, self.shape), self._custom_initial(len(idx)), x)
        return x, slot

    @torch.no_grad()
    def _custom_initial(self, n: int) -> Tensor:
        x, shape = self.init(n), (n, *self.shape)
        if not isinstance(x, Tensor) or x.shape != shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"init({n}) must return a tensor of shape {shape}, got {got}")
        return x.detach().to(self.data.device, torch.float32)

    def _store(self, x: Tensor) -> Tensor:
        if self.data.dtype != torch.uint8:
            return x.to(self.data.dtype)
        lo, hi = self.value_range
        return ((x - lo) * (256 / (hi - lo))).floor().clamp(0, 255).to(torch.uint8)

    def get_extra_state(self) -> dict:
        return {"mode": self.mode, "n_pushed": self.n_pushed, "value_range": self.value_range}

    def set_extra_state(self, state: dict) -> None:
        self.n_pushed = state["n_pushed"]

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        """What does not fit is refused before anything changes."""
        extra = state_dict.get(f"{prefix}_extra_state")
        if extra is not None:
            given = {name: state_dict.get(prefix + name) for name in self._buffers}
            fitting = self._fitting({k: v for k, v in given.items() if v is not None}, extra)
            state_dict = state_dict | {prefix + name: v for name, v in fitting.items()}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _fitting(self, tensors: dict[str, Tensor], extra: dict) -> dict[str, Tensor]:
        """A state's tensors, the samples in the dtype of this buffer."""
        if extra["mode"] != self.mode:
            raise ValueError(
                f"the state is of mode {extra['mode']!r}, this buffer is {self.mode!r}"
            )
        integer("the state's n_pushed", extra["n_pushed"], 0)
        for name, tensor in tensors.items():
            own = self._buffers[name]
            if tensor.shape != own.shape:
                raise ValueError(
                    f"the state's {name} must be {tuple(own.shape)}, got {tuple(tensor.shape)}"
                )
        if "data" in tensors:
            tensors["data"] = self._converted(tensors["data"], extra.get("value_range"))
        return tensors

    def _converted(self, data: Tensor, value_range: tuple[float, float] | None) -> Tensor:
        """Samples of a state, which may not say of which value_range its uint8 is."""
        own = f"this buffer is {self.data.dtype} of value_range {self.value_range}"
        if data.dtype == torch.uint8:
            same = value_range is None or tuple(value_range) == self.value_range
            if self.data.dtype == torch.uint8 and same:
                return data
            if self.data.dtype == torch.float32 and value_range is not None:
                return _read(data, tuple(value_range))
            raise ValueError(
                f"the state's samples are torch.uint8 of value_range {value_range}, {own}"
            )
        if torch.promote_types(data.dtype, self.data.dtype) != self.data.dtype:
            raise ValueError(f"the state's samples are {data.dtype}, {own}: they would be rounded")
        return data.to(self.data.dtype)

    def _apply(self, fn, recurse: bool = True):
        """As nn.Module's, but the samples go as integers, which casts of floating-point tensors
        pass by."""

        def move(tensor: Tensor) -> Tensor:
            bits = tensor.view(_BITS.get(tensor.dtype, tensor.dtype))
            moved = fn(bits)
            if moved.dtype != bits.dtype:  # type(...) casts integers too
                moved = bits.to(moved.device)
            return moved.view(tensor.dtype)

        if recurse:  # init may be a module
            for child in self.children():
                child._apply(fn)
        with outside_inference():
            return super()._apply(move, recurse=False)

    def extra_repr(self) -> str:
        return f"{self.capacity}, {self.shape}, mode={self.mode!r}, stored={len(self)}"


def _read(data: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Stored samples as float32, uint8 at the middle of its steps; nothing random is drawn."""
    everyone = torch.arange(len(data), device=data.device)
    stream = ChainRNG(0).state(data.device)
    return replay_gather(data, everyone, stream, value_range=value_range, dither=False)[0]


def _as_rows(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(n,) as (n, 1, ..., 1), to go with (n, *shape)."""
    return mask.reshape(-1, *(1,) * len(shape))
