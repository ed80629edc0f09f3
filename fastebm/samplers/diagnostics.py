"""What samplers keep of their chains, and say about them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm.chains.adjusted import Points


class Log:
    """States of chains, and numbers about each, from every ``thin``-th step after ``burn_in``.

    Args:
        x: chains (B, *event).
        names: shapes of the numbers, beside ``mean`` and ``var`` over the chains.
    """

    def __init__(self, x: Tensor, burn_in: int, thin: int, **names: tuple[int, ...]) -> None:
        self._x, self._burn_in, self._thin = x, burn_in, thin
        self._shapes = {"mean": x.shape[1:], "var": x.shape[1:], **names}
        self._states: list[Tensor] = []
        self._numbers: dict[str, list[Tensor]] = {name: [] for name in self._shapes}

    def keeps(self, k: int) -> bool:
        """Whether the state after step ``k`` is kept."""
        return k >= self._burn_in and (k - self._burn_in + 1) % self._thin == 0

    def add_state(self, x: Tensor) -> None:
        self._states.append(x)

    def add_numbers(self, x: Tensor, **numbers: Tensor) -> None:
        numbers = {"mean": x.mean(0), "var": x.var(0, correction=0), **numbers}
        for name, value in numbers.items():
            self._numbers[name].append(value)

    def trajectory(self) -> Tensor:
        """The states, (B, n_kept, *event)."""
        if self._states:
            return torch.stack(self._states, 1)
        return self._x.new_empty((len(self._x), 0, *self._x.shape[1:]))

    def diagnostics(self) -> dict[str, Tensor]:
        """Of each name the numbers, (n_kept, *shape)."""
        return {
            name: torch.stack(values) if values else self._x.new_empty((0, *self._shapes[name]))
            for name, values in self._numbers.items()
        }


def acceptances(points: Points, n_proposals: int, n_jumps: int) -> dict[str, Tensor]:
    """Of adjusted chains: the mean acceptance probability of their Langevin proposals, and the
    share of their jumps that were accepted, each 0-d, where there were any."""
    if points.acceptance is None:
        return {}
    names = {"acceptance": n_proposals, "jump_acceptance": n_jumps}
    means = zip(names.items(), points.acceptance.mean(1), strict=True)
    return {name: mean / n for (name, n), mean in means if n}


def finite_rows(x: Tensor) -> Tensor:
    """bool (B,): which samples of ``x`` (B, *event) have finite elements only."""
    return as_rows(x).isfinite().all(1)


def as_rows(x: Tensor) -> Tensor:
    """(B, *event) as (B, D)."""
    return x.unsqueeze(-1).flatten(1)
