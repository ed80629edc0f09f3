"""Chains as CUDA graphs: when they are captured, what a graph is good for, and when it is not."""

from __future__ import annotations

import itertools
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fastebm.chains.capture as cuda
from fastebm.caller import warn
from fastebm.chains.capture import Body
from fastebm.chains.snapshot import Snapshot

UNROLL = 32  # steps of a graph; 10-40 us a launch are then nothing, and memory is that of one step
MAX_GRAPHS = 16
_MAX_SEEN = 64  # kinds of chains of a model, and states of the model in each
_MISSES = 8  # states that did not come again, after which it is said
# How well a graph must agree with the eager chain: of how far that went, or, where a chain makes
# the smallest difference grow, of how far each step goes: products rounded to TF32 change that of
# a ResNetEnergy by up to 1e-2.
_CLOSE, _CLOSE_STEP = 1e-3, 2e-2

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
        look: what ``body`` reads beside these, as it is now; but for the places of tensors of some
            names, see ``Snapshot``.
    """

    body: Callable[[Tensors, int], None]
    inputs: Tensors
    by_step: Tensors
    look: Callable[[frozenset[str]], Snapshot]


class ChainGraphs:
    """The graphs of a process, the least recently used ones dropped, and those of a model with it.

    The first chain of a kind runs eagerly. The second one does too, is then captured, and replayed
    from the same start: only if that agrees, at its end or step by step, do later chains replay. A
    kind that fails stays eager.
    Of one kind are chains with one key, of a model that holds the same.

    Args:
        runtime: has ``capture``, ``warm_up``, ``ordered`` and ``forget_pools`` of
            ``fastebm.chains.capture``; tests give their own.
    """

    def __init__(
        self,
        runtime=cuda,
        device_types: tuple[str, ...] = ("cuda",),
        max_graphs: int = MAX_GRAPHS,
    ) -> None:
        self._runtime, self.device_types, self._max = runtime, device_types, max_graphs
        self._models: dict[int, _OfModel] = {}  # by id, without keeping them alive
        self._clock = itertools.count()

    @property
    def graphs(self) -> list[_Graph]:
        return [graph for known in list(self._models.values()) for graph in known.graphs.values()]

    def run(
        self,
        model: nn.Module,
        key: Hashable,
        program: Program,
        n_steps: int,
        eager: Body,
        required: bool,
    ) -> None:
        """Take the steps, ``program.inputs["x"]`` in place.

        Args:
            model: whose chain it is.
            key: all that a graph bakes in beside what ``program.look`` sees. Programs with equal
                keys, of models that hold the same, differ in the values of their inputs only.
            eager: takes the steps without a graph.
            required: capture at once, and raise where it does not work.

        Raises:
            RuntimeError: there is no graph of this chain, and it is required; the reason.
        """
        known = self._of(model)
        kind = known.kinds.get(key)
        if kind is None:
            kind = _put(known.kinds, key, _Kind())
        if kind.unstable and not required:
            return eager()
        before, lengths = program.look(kind.rewritten), segments(n_steps)
        state, x = hash(before.key), program.inputs["x"]
        graph = known.graphs.get((key, before.key))
        if graph is not None and graph.lengths >= set(lengths):
            graph.used = next(self._clock)
            with self._runtime.ordered(x.device):
                graph.replay(program, lengths)
                x.copy_(graph.static["x"])
            return
        if not required and graph is None and state not in kind.states:
            eager()
            return _first_of(kind, before, program)
        if not required and kind.states.get(state):  # a reason
            return eager()
        start = {name: t.clone() for name, t in program.inputs.items()}
        eager()  # the result, and what the graph is compared with
        with self._runtime.ordered(x.device):
            graph = graph or _Graph(program, before)
            reason = before.unseen or self._build(graph, program, lengths, start)
            change = program.look(kind.rewritten).difference(before)
            if change is not None:
                kind.changes += 1
                reason = f"the model changes as it runs, {change}"
            if reason is None:
                known.graphs[key, before.key], kind.misses = graph, 0
                return self._evict()
            known.graphs.pop((key, before.key), None)
        _put(kind.states, state, reason)
        if required:
            raise RuntimeError(f"graph=True: no CUDA graph of this chain, {reason}")
        _warn(reason)

    def clear(self) -> None:
        """Forget all graphs, and why others failed; their memory is free once nothing uses it."""
        self._runtime.forget_pools()
        self._models.clear()

    def _of(self, model: nn.Module) -> _OfModel:
        known = self._models.get(id(model))
        if known is None:
            known = self._models[id(model)] = _OfModel()
            weakref.finalize(model, self._models.pop, id(model), None).atexit = False
        return known

    def _build(self, graph: _Graph, program: Program, lengths: list[int], start: Tensors):
        """Capture what is missing; returns why that does not work, or None."""
        end = program.inputs["x"]
        try:
            self._capture(graph, program, set(lengths), start)
            graph.replay(program._replace(inputs=start), lengths)
            moved = (end - start["x"]).abs().amax().nan_to_num(0.0, 0.0).item()
            if not torch.allclose(graph.static["x"], end, _CLOSE, _CLOSE * moved, equal_nan=True):
                self._capture(graph, program, {1}, start)
                apart = _steps_apart(graph, program, start, sum(lengths))
                if apart > _CLOSE_STEP:
                    return (
                        f"steps of its replay differ from the eager ones by {apart:.1%} of how far "
                        "they go (does the model branch on values?)"
                    )
        except Exception as error:  # anything a model or CUDA can raise
            return f"{type(error).__name__}: {error}".split("\n")[0]
        graph.used = next(self._clock)
        return None

    def _capture(self, graph: _Graph, program: Program, lengths: set[int], start: Tensors) -> None:
        """What is missing of these."""
        graph.load(start)
        device = start["x"].device
        self._runtime.warm_up(lambda: graph.take(program, min(lengths)), device)
        for length in lengths - graph.lengths:
            graph.replays[length] = self._runtime.capture(
                lambda n=length: graph.take(program, n), device
            )

    def _evict(self) -> None:
        graphs = self.graphs
        if len(graphs) <= self._max:
            return
        oldest = min(graphs, key=lambda graph: graph.used)
        for known in list(self._models.values()):
            for key, state in [k for k, graph in known.graphs.items() if graph is oldest]:
                del known.graphs[key, state]
                known.kinds.get(key, _Kind()).states.pop(hash(state), None)


class _OfModel:
    """What is known of a model's chains."""

    def __init__(self) -> None:
        self.graphs: dict[Hashable, _Graph] = {}
        self.kinds: OrderedDict[Hashable, _Kind] = OrderedDict()


class _Kind:
    """Chains with one key.

    Attributes:
        states: of the model, by hash, after which there was one: why it has no graph; None: seen.
        last: the last of them.
        misses: chains since the last capture that found the model in a state not seen before.
        changes: chains that left it in another state.
        rewritten: names of tensors that each chain replaces.
    """

    def __init__(self) -> None:
        self.states: OrderedDict[int, str | None] = OrderedDict()
        self.last: Snapshot | None = None
        self.misses = self.changes = 0
        self.rewritten: frozenset[str] = frozenset()

    @property
    def unstable(self) -> bool:
        """Whether no graph can be right. One change may be what a first call sets up."""
        return self.changes > 1


def _first_of(kind: _Kind, before: Snapshot, program: Program) -> None:
    """Notes a chain that ran eagerly, the first of its kind in this state of the model."""
    after = program.look(kind.rewritten)
    replaced = after.replaced(before)
    change = after.difference(before, replaced)
    if replaced:  # whether a graph is right all the same, its comparison will tell
        kind.rewritten |= replaced.keys()
        after = program.look(kind.rewritten)
    if change is not None:
        kind.changes += 1
        if kind.unstable:
            _warn(f"the model changes as it runs, {change}")
        return
    last, kind.last = kind.last, after
    after.tensors.clear()  # they may know their model
    _put(kind.states, hash(after.key), None)
    kind.misses += 1
    if kind.misses == _MISSES and last is not None:
        change = after.difference(last)
        _warn(f"the model is another one in each call, {change}; a tensor may change in place")


def _put(known: OrderedDict, key: Hashable, value):
    """Adds it, the first of too many goes; returns it."""
    known[key] = value
    while len(known) > _MAX_SEEN:
        known.popitem(last=False)
    return value


class _Graph:
    """The static tensors of a key, and what replays so many steps on them."""

    def __init__(self, program: Program, state: Snapshot) -> None:
        self.static = {name: t.clone() for name, t in program.inputs.items()}
        self.rows = {
            name: t.new_zeros((UNROLL, *t.shape[1:])) for name, t in program.by_step.items()
        }
        self.replays: dict[int, Body] = {}
        self.read = [t.detach() for t in state.tensors]  # kept: their memory, not their modules
        self.used = 0

    @property
    def lengths(self) -> set[int]:
        return set(self.replays)

    def take(self, program: Program, n: int) -> None:
        """The steps on the static tensors, to be captured."""
        program.body(self.static | {name: t[:n] for name, t in self.rows.items()}, n)

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


def _steps_apart(graph: _Graph, program: Program, start: Tensors, n_steps: int) -> float:
    """The largest difference of a graph's step from the eager one, from all points of the eager
    chain, as a share of how far that step goes; beyond what rounding makes of a point."""
    here, worst = {name: t.clone() for name, t in start.items()}, []
    for k in range(n_steps):
        step = {name: t[k : k + 1] for name, t in program.by_step.items()}
        graph.replay(program._replace(inputs=here, by_step=step), [1])
        before, ours = here["x"].clone(), graph.static["x"]
        program.body(here | step, 1)
        theirs = here["x"]
        rounding = 4 * torch.finfo(theirs.dtype).eps * theirs.abs()
        is_same = torch.isclose(ours, theirs, 0, 0, equal_nan=True)
        apart = ((ours - theirs).abs() - rounding).nan_to_num(math.inf, math.inf).clamp_min(0)
        moved = (theirs - before).abs().nan_to_num(0.0, 0.0).amax()
        apart = apart.masked_fill(is_same, 0).amax()
        worst.append(torch.where(apart > 0, apart / moved, 0.0))
    return torch.stack(worst).amax().item()


def segments(n_steps: int) -> list[int]:
    """The steps of each replay: whole graphs, and a tail."""
    tail = n_steps % UNROLL
    return [UNROLL] * (n_steps // UNROLL) + ([tail] if tail else [])


def _warn(reason: str) -> None:
    warn(f"the chain runs eagerly, not as a CUDA graph: {reason}", GraphWarning)


GRAPHS = ChainGraphs()


def clear_graphs() -> None:
    """Forget all CUDA graphs of chains, which hold memory and inputs; the next ones are captured
    anew, also those that had failed."""
    GRAPHS.clear()
