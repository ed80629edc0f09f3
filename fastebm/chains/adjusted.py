"""Metropolis-adjusted Langevin chains with jumps between the modes of a population: their loop, and
one transition for any energy. Small perceptrons have a kernel: ``fastebm.chains.mlp_chain``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.chains.chain import BeforeStep, Coefficients, OnStep
from fastebm.chains.local_means import Modes, local_means
from fastebm.energies.protocol import input_gradient
from fastebm.ops.langevin import langevin_step_
from fastebm.ops.metropolis import metropolis_step_, population_jump
from fastebm.rng import ACCEPT

ROUND = 20  # transitions between two looks at what was accepted, and at the other chains


class Points(NamedTuple):
    """Where chains are; all of it changes in place.

    Attributes:
        x, grad: (B, *event). energy: (B,), scales summed.
        acceptance: (2, B) float32: sums of min(1, r) over the Langevin proposals, and of the jumps
            that were accepted.
    """

    x: Tensor
    energy: Tensor
    grad: Tensor
    acceptance: Tensor

    @classmethod
    def at(cls, x: Tensor) -> Points:
        """``x``, whose energies are to be found."""
        acceptance = torch.zeros((2, len(x)), dtype=torch.float32, device=x.device)
        return cls(x, x.new_empty(len(x)), torch.empty_like(x), acceptance)

    def rows(self, rows: slice) -> Points:
        """Some of the chains, with sums of their own."""
        x = self.x[rows]
        acceptance = torch.zeros((2, len(x)), dtype=torch.float32, device=x.device)
        return Points(x, self.energy[rows], self.grad[rows], acceptance)


class Moves(NamedTuple):
    """What all transitions of a chain have in common.

    Attributes:
        rng: the stream's state. sample_ids: (B,) or None.
        lo, hi: None, or of the event's shape: the box that no proposal may leave.
        n_jumps: of all transitions; every so-many-th is one, until there were as many.
        uniform_share: of the jumps, to uniform points of the box.
        modes: what jumps go by; None: those of the other half of the chains, for each half.
    """

    rng: Tensor
    sample_ids: Tensor | None = None
    lo: Tensor | None = None
    hi: Tensor | None = None
    n_jumps: int = 0
    uniform_share: float = 0.0
    modes: Modes | None = None


# (points, first, coefficients, moves, every, known): transitions first, first + 1, ..., of which
# the k-th of the chain is a jump where every > 0 and (k + 1) % every == 0; `known`: energy and grad
# are those of x.
Mover = Callable[[Points, int, Sequence[Coefficients], Moves, int, bool], None]


def run_adjusted(
    move: Mover,
    points: Points,
    total: int,
    coefficients: Callable[[int, int], Sequence[Coefficients]],
    moves: Moves,
    after_round: Callable[[Tensor, int], None] | None = None,
    on_step: OnStep | None = None,
    seen: range = range(0),
    before_step: BeforeStep | None = None,
    changed: range = range(0),
) -> None:
    """``total`` transitions of ``points`` in place, by as few calls of ``move`` as possible.

    Where no modes are given, one half of the chains moves after the other, each by where the other
    half is: so the law of all of them together stays as it is.

    Args:
        coefficients: (start, end) -> those of these transitions; asked for every ``ROUND``.
        after_round: called with the mean acceptance probability of the Langevin proposals since the
            last call, 0-d, and how many a chain made.
        on_step, seen: ``on_step(k, x, grad, energy)`` after these transitions, of the new points.
        before_step, changed: ``before_step(k, x)``, which may change x, before these.
    """
    every = total // moves.n_jumps if moves.n_jumps else 0
    last_jump, known, start, counted = every * moves.n_jumps, False, 0, 0
    before = None
    cuts = {total, last_jump, *range(0, total, ROUND), *changed, *(k + 1 for k in seen)}
    for end in sorted(cuts):
        if end > start:
            now = every if start < last_jump else 0
            _advance(move, points, start, coefficients(start, end), moves, now, known)
            n_jumps = end // now - start // now if now else 0
            counted, known = counted + end - start - n_jumps, True
            if end - 1 in seen:
                on_step(end - 1, points.x, points.grad, points.energy)
            if after_round is not None and counted and (end % ROUND == 0 or end == total):
                sums = points.acceptance[0].mean(dtype=torch.float64)
                after_round((sums if before is None else sums - before) / counted, counted)
                before, counted = sums, 0
            start = end
        if end in changed and end < total:
            before_step(end, points.x)
            known = False


def _advance(
    move: Mover,
    points: Points,
    first: int,
    coefficients: Sequence[Coefficients],
    moves: Moves,
    every: int,
    known: bool,
) -> None:
    if not every or moves.modes is not None:
        return move(points, first, coefficients, moves, every, known)
    half, end = len(points.x) // 2, first + len(coefficients)
    n_jumps = end // every - first // every
    for mine, others in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        own = points.rows(mine)
        ids = moves.sample_ids[mine]
        modes = local_means(points.x[others], moves.rng, first, n_jumps)
        part = moves._replace(sample_ids=ids, modes=modes)
        pairs = [tuple(_of_rows(c, mine) for c in pair) for pair in coefficients]
        move(own, first, pairs, part, every, known)
        points.acceptance[:, mine] += own.acceptance


def _of_rows(value: float | Tensor, rows: slice) -> float | Tensor:
    return value[rows] if isinstance(value, Tensor) and value.numel() > 1 else value


def move_any(model: Callable[..., Tensor], model_kwargs: dict) -> Mover:
    """Transitions on any energy, by autograd; the model is in ``sampling_mode``."""

    def move(
        points: Points,
        first: int,
        coefficients: Sequence[Coefficients],
        moves: Moves,
        every: int,
        known: bool,
    ) -> None:
        at, total = _wide(points), first + len(coefficients)
        lo, hi = (None if face is None else face.to(at.x.dtype) for face in (moves.lo, moves.hi))
        if not known:
            _set(at, *input_gradient(model, points.x, model_kwargs))
        y, proposed = torch.empty_like(at.x), False

        def step(k: int, e_y: Tensor | None, grad_y: Tensor | None, **options) -> None:
            metropolis_step_(
                *(*at, y, e_y, grad_y, *coefficients[k - first], moves.rng),
                **{"t": k, "sample_ids": moves.sample_ids, "lo": lo, "hi": hi, **options},
            )

        for k in range(first, total):
            log_factor = None
            if _is_jump(k, every):
                y, log_factor = _jump(at, moves, k)
            elif not proposed:
                step(k, None, None)
            grad, e = input_gradient(model, y.to(points.x.dtype), model_kwargs)
            proposed = k + 1 < total and not _is_jump(k + 1, every)
            step(
                *(k, e.to(y.dtype), grad.to(y.dtype)),
                log_factor=log_factor,
                next_step=coefficients[k + 1 - first] if proposed else None,
            )
        if at is not points:
            points.x.copy_(at.x)
            _set(points, at.grad, at.energy)

    return move


def _is_jump(k: int, every: int) -> bool:
    return every > 0 and (k + 1) % every == 0


def _wide(points: Points) -> Points:
    """Points of a type that there is an operator for: half types go on in float32, on the energy of
    their rounded values."""
    dtype = torch.promote_types(points.x.dtype, torch.float32)
    if points.x.dtype == dtype:
        return points
    return Points(*(v.to(dtype) for v in points[:3]), points.acceptance)


def _set(points: Points, grad: Tensor, e: Tensor) -> None:
    points.grad.copy_(grad)
    points.energy.copy_(e)


def _jump(points: Points, moves: Moves, k: int) -> tuple[Tensor, Tensor]:
    y, log_factor = population_jump(
        *(points.x.float(), *moves.modes, moves.rng),
        t=k,
        sample_ids=moves.sample_ids,
        lo=moves.lo,
        hi=moves.hi,
        uniform_share=moves.uniform_share,
    )
    return y.to(points.x), log_factor.to(points.x)


def drift_step(grad: Tensor, step: float | Tensor, sigma: float | Tensor) -> Tensor:
    """a(x) = min(step, sigma sqrt(D) / |grad|), (B,): see csrc/metropolis/metropolis.h."""
    g = _rows(grad)
    most = sigma * g.shape[1] ** 0.5 / torch.linalg.vector_norm(g, dim=1)
    step = _per_chain(step, len(g), g)
    return torch.where(most < step, most, step)


def log_ratio(
    points: Points,
    y: Tensor,
    e_y: Tensor,
    grad_y: Tensor,
    step: float | Tensor,
    sigma: float | Tensor,
) -> Tensor:
    """log r of Langevin proposals y, (B,): see csrc/metropolis/metropolis.h."""
    drop = 2 * step * (points.energy - e_y)
    u, g_x, g_y = _rows(y - points.x), _rows(points.grad), _rows(grad_y)
    a_x, a_y = (drift_step(g, step, sigma) for g in (g_x, g_y))
    drift = a_x * (u * g_x).sum(1) + a_y * (u * g_y).sum(1)
    drift -= (a_y.square() * g_y.square().sum(1) - a_x.square() * g_x.square().sum(1)) / 2
    return (drop + drift) / (sigma * sigma)


def is_inside(y: Tensor, lo: Tensor | None, hi: Tensor | None) -> Tensor:
    """bool (B,): all elements are in the box."""
    inside = y == y  # not NaN
    if lo is not None:
        inside &= y >= lo
    if hi is not None:
        inside &= y <= hi
    return _rows(inside).all(1)


def is_accepted(log_r: Tensor, moves: Moves, k: int) -> Tensor:
    """bool (B,): log r > log u, u uniform, by the same numbers as the kernel."""
    n = log_r.new_zeros((len(log_r), 2), dtype=torch.float32)
    langevin_step_(n, None, 0.0, 1.0, moves.rng, t=k, sample_ids=moves.sample_ids, tag=ACCEPT)
    return log_r > n.square().sum(1) / -2


def _per_chain(value: float | Tensor, n: int, like: Tensor) -> Tensor:
    """(B,) in the type of the chains."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if isinstance(value, Tensor):
        return value.to(dtype).expand(n).contiguous()
    return torch.full((n,), value, dtype=dtype, device=like.device)


def over_events(mask: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ...), to go with chains."""
    return mask.view(-1, *(1,) * (like.dim() - 1))


def _rows(x: Tensor) -> Tensor:
    return x.unsqueeze(-1).flatten(1)
