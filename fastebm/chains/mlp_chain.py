"""Chains on the energy of a small perceptron: the one door to them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.chains.adjusted import Moves, Points
from fastebm.chains.chain import BeforeStep, Coefficients, OnStep, StepOptions, on_device
from fastebm.chains.plain_mlp import plain_mlp
from fastebm.ops.mlp.adjusted import mlp_adjusted_chain_
from fastebm.ops.mlp.chain import PRECISIONS, mlp_chain_
from fastebm.ops.mlp.network import Network

__all__ = ["PRECISIONS", "MLPChain", "mlp_chain", "steps_of_a_call", "tables"]

# Work of one call on a CPU for each thread, in multiply-adds of a step: 0.1 to 0.2 s (AVX-512).
# Python looks at its signals between calls.
MAX_WORK = 2**29


class MLPChain(NamedTuple):
    """Chains on the energy of a small perceptron, many steps in one call of an operator.

    ``precision`` is as in ``mlp_chain_``.
    """

    network: Network
    precision: str

    def rescaled(self, scale: Tensor) -> MLPChain:
        """The chains of ``z``, where the energy is that of ``scale z``, scale (D,)."""
        first, *others = self.network.weights
        return self._replace(network=self.network._replace(weights=[first * scale, *others]))

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
    ) -> None:
        """``run_steps``, by as few calls of the operator as the callbacks and Ctrl-C allow.

        Args:
            x: (B, *event) contiguous, the events of as many elements as the network has inputs.
            seen: the steps after which ``on_step`` is called.
            changed: the steps before which ``before_step`` is called.
        """
        total, start = len(coefficients), 0
        rows = x.flatten(1)
        step_sizes, noise_stds = tables(coefficients, x) if total else (0.0, 0.0)
        whole = range(0, total, steps_of_a_call(self.network, x))
        for end in sorted({total, *whole, *changed, *(k + 1 for k in seen)}):
            if end > start:
                last_seen = end - 1 in seen
                e = x.new_empty(len(x)) if last_seen else None
                grad = torch.empty_like(rows) if last_seen else None
                mlp_chain_(
                    *(rows, self.network, end - start),
                    *(_part(step_sizes, start, end), _part(noise_stds, start, end), rng),
                    t=start,
                    sample_ids=sample_ids,
                    grad_clip=options.grad_clip,
                    grad_norm_clip=options.grad_norm_clip,
                    clamp=options.clamp,
                    noise_first=options.noise_first,
                    precision=self.precision,
                    energy=e,
                    grad=grad,
                )
                if last_seen:
                    on_step(end - 1, x, grad.view_as(x), e)
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
        a_call = steps_of_a_call(self.network, points.x)
        for start in range(0, n, a_call):
            end = min(start + a_call, n)
            mlp_adjusted_chain_(
                *(rows, points.energy, points.grad.flatten(1), points.acceptance),
                *(self.network, end - start),
                *(_part(step_sizes, start, end), _part(noise_stds, start, end), moves.rng),
                t=first + start,
                sample_ids=moves.sample_ids,
                known=known or start > 0,
                lo=None if moves.lo is None else moves.lo.flatten(),
                hi=None if moves.hi is None else moves.hi.flatten(),
                centres=centres,
                scales=scales,
                every=every,
                first=first + start,
                uniform_share=moves.uniform_share,
            )


def mlp_chain(
    model: Callable[..., Tensor], x: Tensor, model_kwargs: dict, precision: str = "fp32"
) -> MLPChain | str:
    """The chains of a model in one kernel, or the reason why there are none. All that chains know
    of small perceptrons is behind this function.

    Args:
        x, model_kwargs: see ``plain_mlp``.

    Raises:
        ValueError: no chain on the device of ``x`` has this precision.
    """
    if precision == "bf16" and x.device.type != "cuda":
        raise ValueError(f"precision='bf16' needs chains on a CUDA device, got {x.device}")
    found = plain_mlp(model, x, model_kwargs)
    return found if isinstance(found, str) else MLPChain(found, precision)


def steps_of_a_call(network: Network, x: Tensor) -> int:
    """How many steps of the chains ``x`` one call of an operator may take, so that Ctrl-C does not
    wait for it. On a device calls do not wait, and what was launched runs to its end."""
    if x.device.type != "cpu":
        return sys.maxsize
    # A unit's activation and an element's noise take the time of some ten weights.
    of_a_chain = sum(w.numel() + 10 * sum(w.shape) for w in network.weights)
    work = 4096 + len(x) * of_a_chain
    return max(1, MAX_WORK * torch.get_num_threads() // work)


def tables(coefficients: Sequence[Coefficients], x: Tensor) -> tuple[float | Tensor, ...]:
    """Step sizes and noises of all steps, each a number or a tensor (K or 1, B or 1)."""
    if len(set(map(id, coefficients))) == 1:
        coefficients = coefficients[:1]
    return tuple(_table([c[i] for c in coefficients], x) for i in (0, 1))


def _table(values: list[float | Tensor], x: Tensor) -> float | Tensor:
    first = values[0]
    if isinstance(first, Tensor):
        if all(v is first for v in values):
            return first.to(x.dtype).reshape(1, -1)
        return torch.stack([v.to(x.dtype).reshape(-1) for v in values])
    if all(v == first for v in values):
        return first
    return on_device(values, x.dtype, x.device).unsqueeze(1)


def _part(table: float | Tensor, start: int, end: int) -> float | Tensor:
    whole = not isinstance(table, Tensor) or len(table) == 1
    return table if whole else table[start:end]
