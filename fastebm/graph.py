"""Chains as CUDA graphs: when they are captured, what a graph is good for, and when it is not."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastebm.capture import Body, capture, forget_pools, warm_up

UNROLL = 32  # steps of a graph; 10-40 us a launch are then nothing, and memory is that of one step
MAX_GRAPHS = 16
_MAX_KEYS = 1024  # keys seen once, or found not to work
_CLOSE = 1e-3  # of how far the chain went: how well a graph must agree with the eager chain

Tensors = dict[str, Tensor]


class GraphWarning(UserWarning):
    """A chain cannot be a CUDA graph and runs eagerly."""


class Program(NamedTuple):
    """A chain, as graphs need it.

    Attributes:
        body: ``body(tensors, n)`` takes the next n steps: ``tensors["x"]`` and
            ``tensors["rng"]``, its step counter, are changed in place, all others are only read.
        inputs: the tensors, x and rng among them.
        by_step: further tensors (n_steps,), of which ``body`` gets the values of its n steps.
    """

    body: Callable[[Tensors, int], None]
    inputs: Tensors
    by_step: Tensors


class ChainGraphs:
    """The graphs of a process, the least recently used ones dropped.

    A key's first chain runs eagerly. Its second one does too, is then captured, and replayed from
    the same start: only if that agrees do later chains replay. A key that fails stays eager.

    Args:
        capture, warm_up, device_types: as in ``fastebm.capture``; tests give their own.
    """

    def __init__(
        self,
        capture=capture,
        warm_up=warm_up,
        device_types: tuple[str, ...] = ("cuda",),
        max_graphs: int = MAX_GRAPHS,
    ) -> None:
        self._capture, self._warm_up = capture, warm_up
        self.device_types, self._max = device_types, max_graphs
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._others: OrderedDict[Hashable, str | None] = OrderedDict()  # why it failed; None: seen

    def run(self, key: Hashable, program: Program, n_steps: int, eager: Body, required: bool):
        """Take the steps, ``program.inputs["x"]`` in place.

        Args:
            key: all that a graph bakes in. Equal keys are programs that differ in values only.
            eager: takes the steps without a graph.
            required: capture at once, and raise where it does not work.

        Raises:
            RuntimeError: there is no graph of this chain, and it is required; the reason.
        """
        graph, lengths = self._graphs.get(key), segments(n_steps)
        if graph is not None and graph.lengths >= set(lengths):
            self._graphs.move_to_end(key)
            graph.replay(program, lengths)
            program.inputs["x"].copy_(graph.static["x"])
            return
        if graph is None and not required and self._others.get(key, "unseen") is not None:
            if key not in self._others:
                self._note(key, None)
            eager()
            return
        start = {name: t.clone() for name, t in program.inputs.items()}
        eager()  # the result, and what the graph is compared with
        reason = self._build(key, program, lengths, start)
        if reason is None:
            return
        self._graphs.pop(key, None)
        self._note(key, reason)
        if required:
            raise RuntimeError(f"graph=True: no CUDA graph of this chain, {reason}")
        warnings.warn(
            f"the chain runs eagerly, not as a CUDA graph: {reason}", GraphWarning, stacklevel=2
        )

    def clear(self) -> None:
        """Forget all graphs, and why others failed; their memory is free once nothing uses it."""
        self._graphs.clear()
        self._others.clear()
        forget_pools()

    def _build(self, key: Hashable, program: Program, lengths: list[int], start: Tensors):
        """Capture what is missing; returns why that does not work, or None."""
        end, device = program.inputs["x"], program.inputs["x"].device
        try:
            graph = self._graphs.setdefault(key, _Graph(program))
            graph.load(start)
            self._warm_up(lambda: graph.body(min(lengths)), device)
            for length in set(lengths) - graph.lengths:
                graph.replays[length] = self._capture(lambda n=length: graph.body(n), device)
            graph.replay(program._replace(inputs=start), lengths)
            moved = (end - start["x"]).abs().amax().nan_to_num(0.0, 0.0).item()
            if not torch.allclose(graph.static["x"], end, _CLOSE, _CLOSE * moved, equal_nan=True):
                return "its replay differs from the eager chain (does the model branch on values?)"
        except Exception as error:  # anything a model or CUDA can raise
            return f"{type(error).__name__}: {error}".split("\n")[0]
        self._others.pop(key, None)
        self._graphs.move_to_end(key)
        while len(self._graphs) > self._max:
            self._graphs.popitem(last=False)
        return None

    def _note(self, key: Hashable, reason: str | None) -> None:
        self._others[key] = reason
        while len(self._others) > _MAX_KEYS:
            self._others.popitem(last=False)


class _Graph:
    """The static tensors of a key, and what replays so many steps on them."""

    def __init__(self, program: Program) -> None:
        self.static = {name: t.clone() for name, t in program.inputs.items()}
        self.rows = {
            name: t.new_zeros((UNROLL, *t.shape[1:])) for name, t in program.by_step.items()
        }
        self.replays: dict[int, Body] = {}
        self._body = program.body

    @property
    def lengths(self) -> set[int]:
        return set(self.replays)

    def body(self, n: int) -> None:
        self._body(self.static | {name: t[:n] for name, t in self.rows.items()}, n)

    def load(self, inputs: Tensors) -> None:
        for name, static in self.static.items():
            static.copy_(inputs[name])

    def replay(self, program: Program, lengths: list[int]) -> None:
        self.load(program.inputs)
        done = 0
        for n in lengths:
            for name, rows in self.rows.items():
                rows[:n].copy_(program.by_step[name][done : done + n])
            self.replays[n]()
            done += n


def segments(n_steps: int) -> list[int]:
    """The steps of each replay: whole graphs, and a tail."""
    tail = n_steps % UNROLL
    return [UNROLL] * (n_steps // UNROLL) + ([tail] if tail else [])


def model_key(model: nn.Module) -> Hashable:
    """Where the model's parameters and buffers are, and the modes that it is in. The same after an
    optimiser's step; another one after ``load_state_dict(assign=True)``, ``to`` and the like."""
    tensors = (*model.parameters(), *model.buffers())
    return (
        model,
        tuple((t.data_ptr(), t.shape, t.stride(), t.dtype, t.requires_grad) for t in tensors),
        tuple(m.training for m in model.modules()),
    )


def settings_key(device: torch.device) -> Hashable:
    """The settings of torch that choose kernels."""
    backends = torch.backends
    return (
        torch.is_autocast_enabled(device.type),
        torch.get_autocast_dtype(device.type),
        backends.cuda.matmul.fp32_precision,
        backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        backends.cudnn.conv.fp32_precision,
        backends.cudnn.enabled,
        backends.cudnn.benchmark,
        backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


GRAPHS = ChainGraphs()


def clear_graphs() -> None:
    """Forget all CUDA graphs of chains, which hold models, memory and inputs; the next ones are
    captured anew, also those that had failed."""
    GRAPHS.clear()
