"""Chains on the energy of a small perceptron: the one door to them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.chains.adjusted import Moves, Points
from fastebm.chains.captured_mlp import STEPS, captured_mlp
from fastebm.chains.chain import (
    BeforeStep,
    Coefficients,
    Done,
    OnStep,
    StepOptions,
    bounds_of,
    on_device,
    stacked,
)
from fastebm.chains.plain_mlp import plain_mlp
from fastebm.chains.steps import decay_and_noise
from fastebm.ops.mlp.adjusted import mlp_adjusted_chain_
from fastebm.ops.mlp.chain import PRECISIONS, mlp_chain_
from fastebm.ops.mlp.gradient import mlp_gradient
from fastebm.ops.mlp.hamiltonian import mlp_hmc_chain_
from fastebm.ops.mlp.network import Network
from fastebm.ops.mlp.underdamped import mlp_underdamped_chain_

__all__ = [
    "PRECISIONS",
    "STEPS",
    "MLPChain",
    "chains_of_a_call",
    "mlp_chain",
    "steps_of_a_call",
    "tables",
]

# Work of one call on a CPU for each thread, in multiply-adds of a step: 0.1 to 0.2 s (AVX-512).
# Python looks at its signals between calls.
MAX_WORK = 2**29


class _Part(NamedTuple):
    """Some of the chains: which rows, and their own network, stream and ids."""

    rows: slice
    network: Network
    rng: Tensor | None
    ids: Tensor | None


class MLPChain(NamedTuple):
    """Chains on the energy of a small perceptron, many steps in one call of an operator.

    ``precision`` is as in ``mlp_chain_``; ``captured`` says that the network was found by
    ``captured_mlp``.
    """

    network: Network
    precision: str
    captured: bool = False

    def of_loss(
        self, model: Callable[..., Tensor], x: Tensor, model_kwargs: dict
    ) -> Network | None:
        """The network of the chains' model as its loss is to take it: as the model is now, outside
        of ``sampling_mode``, and with a graph to its parameters; None where it is another one."""
        if not self.captured:
            return self.network
        found = captured_mlp(model, x, model_kwargs, training=True)
        return found if isinstance(found, Network) and found.is_same(self.network) else None

    def rescaled(self, scale: Tensor) -> MLPChain:
        """The chains of ``z``, where the energy is that of ``scale z``, scale (D,)."""
        first, *others = self.network.weights
        precision, mean = self.network.base_precision, self.network.base_mean
        network = self.network._replace(
            weights=[first * scale, *others],
            base_precision=None if precision is None else precision * scale**2,
            base_mean=None if mean is None else mean / scale,
        )
        return self._replace(network=network)

    def gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (B, *event) and energies (B,) at points, on a CPU."""
        grad, rows = torch.empty_like(points), points.flatten(1)
        energies = [
            mlp_gradient(part.network, rows[part.rows], grad=grad.flatten(1)[part.rows])
            for part in self._parts(points)
        ]
        return grad, energies[0] if len(energies) == 1 else torch.cat(energies)

    def _parts(
        self, x: Tensor, rng: Tensor | None = None, ids: Tensor | None = None, times: int = 1
    ) -> Iterator[_Part]:
        """The chains ``x`` by as many as one call may take ``times`` steps of."""
        most = max(1, chains_of_a_call(self.network, x) // times)
        if len(x) <= most:
            yield _Part(slice(None), self.network, rng, ids)
            return
        for first in range(0, len(x), most):
            rows, bias = slice(first, first + most), self.network.row_bias
            own = None if rng is None else rng.clone()
            if own is not None:
                own[2] += first  # the id of the first
            yield _Part(
                rows,
                self.network if bias is None else self.network._replace(row_bias=bias[rows]),
                *(own, None if ids is None else ids[rows]),
            )

    def run(
        self,
        x: Tensor,
        coefficients: Sequence[Coefficients],
        rng: Tensor,
        options: StepOptions,
        sample_ids: Tensor | None = None,
        on_step: OnStep | None = None,
        seen: range = range(0),
        before_step: BeforeStep | None = None,
        changed: range = range(0),
        done: Done | None = None,
    ) -> None:
        """``run_steps``, by as few calls of the operator as the callbacks and Ctrl-C allow.

        Args:
            x: (B, *event) contiguous, the events of as many elements as the network has inputs.
            seen: the steps after which ``on_step`` is called.
            changed: the steps before which ``before_step`` is called.
            done: told after each call.
        """
        total, start = len(coefficients), 0
        rows = x.flatten(1)
        step_sizes, noise_stds = tables(coefficients, x) if total else (0.0, 0.0)
        bounds = bounds_of(options)
        if options.clamp is not None:  # of the event's shape, where it is of tensors
            faces = (c.flatten() if isinstance(c, Tensor) else c for c in options.clamp)
            bounds["clamp"] = tuple(faces)
        whole = range(0, total, steps_of_a_call(self.network, x))
        for end in sorted({total, *whole, *changed, *(k + 1 for k in seen)}):
            if end > start:
                last_seen = end - 1 in seen
                e = x.new_empty(len(x)) if last_seen else None
                grad = torch.empty_like(rows) if last_seen else None
                for part in self._parts(x, rng, sample_ids):
                    mlp_chain_(
                        *(rows[part.rows], part.network, end - start),
                        *(_of(step_sizes, start, end, part), _of(noise_stds, start, end, part)),
                        part.rng,
                        t=start,
                        sample_ids=part.ids,
                        **bounds,
                        noise_first=options.noise_first,
                        precision=self.precision,
                        energy=None if e is None else e[part.rows],
                        grad=None if grad is None else grad[part.rows],
                    )
                if last_seen:
                    on_step(end - 1, x, grad.view_as(x), e)
                if done is not None:
                    done(end)
                start = end
            if end in changed:
                before_step(end, x)

    def move(
        self,
        points: Points,
        first: int,
        coefficients: Sequence[Coefficients],
        moves: Moves,
        every: int,
        known: bool,
    ) -> None:
        """Metropolis-adjusted transitions: a ``Mover`` of ``fastebm.chains.adjusted``."""
        rows, n = points.x.flatten(1), len(coefficients)
        step_sizes, noise_stds = tables(coefficients, points.x)
        centres, scales = moves.modes or (None, None)
        grad = points.grad.flatten(1)
        for part in self._parts(points.x, moves.rng, moves.sample_ids):
            own = part.rows
            sums = points.acceptance[:, own].contiguous()
            for start, end in _calls(n, steps_of_a_call(self.network, rows[own])):
                mlp_adjusted_chain_(
                    *(rows[own], points.energy[own], grad[own], sums, part.network, end - start),
                    *(_of(step_sizes, start, end, part), _of(noise_stds, start, end, part)),
                    part.rng,
                    t=first + start,
                    sample_ids=part.ids,
                    known=known or start > 0,
                    **_flat(moves.lo, moves.hi),
                    centres=centres,
                    scales=scales,
                    every=every,
                    first=first + start,
                    uniform_share=moves.uniform_share,
                )
            points.acceptance[:, own] = sums

    def hmc(
        self,
        points: Points,
        divergent: Tensor,
        first: int,
        coefficients: Sequence[Coefficients],
        n_leapfrog: int,
        jitter: float,
        rng: Tensor,
        sample_ids: Tensor | None = None,
        lo: Tensor | None = None,
        hi: Tensor | None = None,
        known: bool = False,
    ) -> None:
        """Hamiltonian trajectories ``first``, ..., on a CPU: see ``mlp_hmc_chain_``.

        Args:
            points: min(1, r) is added to row 0 of its ``acceptance``.
            divergent: (B,) int32.
            coefficients: (step size, temperature) of each.
            lo, hi: of the event's shape, or None.
            known: energy and gradient of ``points`` are those of x.
        """
        if not coefficients:
            return
        rows, faces = points.x.flatten(1), _flat(lo, hi)
        step_sizes, temperatures = tables(coefficients, points.x)
        grad = points.grad.flatten(1)
        for part in self._parts(points.x, rng, sample_ids, n_leapfrog):
            own = part.rows
            a_call = max(1, steps_of_a_call(self.network, rows[own]) // n_leapfrog)
            for start, end in _calls(len(coefficients), a_call):
                mlp_hmc_chain_(
                    *(rows[own], points.energy[own], grad[own], points.acceptance[0, own]),
                    *(divergent[own], part.network, end - start, n_leapfrog, jitter),
                    *(_of(step_sizes, start, end, part), _of(temperatures, start, end, part)),
                    part.rng,
                    t=first + start,
                    sample_ids=part.ids,
                    known=known or start > 0,
                    **faces,
                )

    def underdamped(
        self,
        points: Points,
        velocity: Tensor,
        kick: float | Tensor,
        first: int,
        coefficients: Sequence[tuple[float | Tensor, ...]],
        rng: Tensor,
        sample_ids: Tensor | None = None,
        lo: Tensor | None = None,
        hi: Tensor | None = None,
        known: bool = False,
    ) -> float | Tensor:
        """Underdamped steps ``first``, ..., on a CPU: see ``mlp_underdamped_chain_``.

        Args:
            velocity: (B, *event), behind by ``kick``, a number or (B,).
            coefficients: (step size, friction, temperature) of each.
            lo, hi, known: as of ``hmc``.

        Returns:
            What the velocity is then behind.
        """
        if not coefficients:
            return kick
        x, rows, faces = points.x, points.x.flatten(1), _flat(lo, hi)
        factors = [(step, *decay_and_noise(step, *rest)) for step, *rest in coefficients]
        step_sizes, decays, noise_stds = (_table(list(c), x) for c in zip(*factors, strict=True))
        grad, behind, before = points.grad.flatten(1), velocity.flatten(1), kick
        for part in self._parts(x, rng, sample_ids):
            own, kick = part.rows, before
            for start, end in _calls(len(factors), steps_of_a_call(self.network, rows[own])):
                mlp_underdamped_chain_(
                    *(rows[own], behind[own], points.energy[own], grad[own], part.network),
                    *(end - start, _of(_table([kick], x), 0, 1, part)),
                    *(_of(table, start, end, part) for table in (step_sizes, decays, noise_stds)),
                    part.rng,
                    t=first + start,
                    sample_ids=part.ids,
                    known=known or start > 0,
                    **faces,
                )
                kick = coefficients[end - 1][0] / 2
        return kick


def mlp_chain(
    model: Callable[..., Tensor],
    x: Tensor,
    model_kwargs: dict,
    precision: str = "fp32",
    n_steps: int | None = 0,
) -> MLPChain | str:
    """The chains of a model in one kernel, or the reason why there are none. All that chains know
    of small perceptrons is behind this function.

    Args:
        x, model_kwargs: see ``plain_mlp``.
        n_steps: of the chains about to run, see ``captured_mlp``; None: the model's code is looked
            at whatever it takes.

    Raises:
        ValueError: no chain on the device of ``x`` has this precision.
    """
    if precision == "bf16" and x.device.type != "cuda":
        raise ValueError(f"precision='bf16' needs chains on a CUDA device, got {x.device}")
    plain = plain_mlp(model, x, model_kwargs)
    if isinstance(plain, Network):
        return MLPChain(plain, precision)
    found = captured_mlp(model, x, model_kwargs, n_steps)
    if isinstance(found, Network):
        return MLPChain(found, precision, captured=True)
    return plain if found == plain else f"{plain}; of its code, {found}"


def steps_of_a_call(network: Network, x: Tensor) -> int:
    """How many steps of the chains ``x`` one call of an operator may take, so that Ctrl-C does not
    wait for it. On a device calls do not wait, and what was launched runs to its end."""
    if x.device.type != "cpu":
        return sys.maxsize
    work = 4096 + len(x) * _work_of_a_chain(network)
    return max(1, MAX_WORK * torch.get_num_threads() // work)


def chains_of_a_call(network: Network, x: Tensor) -> int:
    """Of how many of the chains ``x`` one call of an operator may take a step."""
    if x.device.type != "cpu":
        return sys.maxsize
    return max(1, MAX_WORK * torch.get_num_threads() // _work_of_a_chain(network))


def _work_of_a_chain(network: Network) -> int:
    """A unit's activation and an element's noise take the time of some ten weights."""
    return sum(w.numel() + 10 * sum(w.shape) for w in network.weights)


def _calls(n_steps: int, a_call: int) -> Iterator[tuple[int, int]]:
    """First and end of the steps of each call."""
    return ((start, min(start + a_call, n_steps)) for start in range(0, n_steps, a_call))


def _flat(lo: Tensor | None, hi: Tensor | None) -> dict[str, Tensor | None]:
    faces = {"lo": lo, "hi": hi}
    return {name: None if face is None else face.flatten() for name, face in faces.items()}


def tables(coefficients: Sequence[Coefficients], x: Tensor) -> tuple[float | Tensor, ...]:
    """Step sizes and noises of all steps, each a number or a tensor (K or 1, B or 1)."""
    if len(set(map(id, coefficients))) == 1:
        coefficients = coefficients[:1]
    return tuple(_table([c[i] for c in coefficients], x) for i in (0, 1))


def _table(values: list[float | Tensor], x: Tensor) -> float | Tensor:
    first = values[0]
    if isinstance(first, Tensor) and all(v is first for v in values):
        return first.to(x.dtype).reshape(1, -1)
    if any(isinstance(v, Tensor) for v in values):
        return stacked(values, x.device).to(x.dtype)
    if all(v == first for v in values):
        return first
    return on_device(values, x.dtype, x.device).unsqueeze(1)


def _of(table: float | Tensor, start: int, end: int, part: _Part) -> float | Tensor:
    """A table for some of the steps and of the chains."""
    if not isinstance(table, Tensor):
        return table
    table = table if len(table) == 1 else table[start:end]
    return table if table.shape[1] == 1 else table[:, part.rows]
