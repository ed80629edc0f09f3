"""Laws with an exact density for `bench/auto.py`, and the divergence from them on a grid.

TUNED_ON are the sets that the rule's constants were chosen on or looked at with; UNSEEN were
written down before anything was trained on them. All are drawn afresh for each seed, and kept
within their box.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from scipy.stats import chi2
from torch import Generator, Tensor

from fastebm.app.data import Dataset, load
from fastebm.app.evaluation import mmd2

TRAIN, TEST = 10_000, 2000
SHARE_ON = -math.expm1(-4.5)  # of a 2-D Gaussian within 3 standard deviations
CHUNK = 20_000  # grid points at once for an energy,
CACHED = 500  # and for a density of many centres


class Law(Protocol):
    """A density of u (N, D), in float64."""

    def draw(self, n: int, generator: Generator) -> Tensor: ...

    def log_prob(self, u: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Mixture:
    """sum_i weights_i N(centres_i, diag(std^2))."""

    centres: Tensor
    std: Tensor
    weights: Tensor

    def draw(self, n: int, generator: Generator) -> Tensor:
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.centres.shape[1], generator=generator, dtype=torch.float64)
        return self.centres[which] + self.std * noise

    def distance(self, u: Tensor) -> Tensor:
        """Standard deviations to each centre, (N, M)."""
        return torch.cdist(u / self.std, self.centres / self.std)

    def log_prob(self, u: Tensor) -> Tensor:
        log_volume = self.std.log().sum() + u.shape[1] * math.log(2 * math.pi) / 2
        logs = self.weights.log() - 0.5 * self.distance(u).square()
        return torch.logsumexp(logs, 1) - log_volume


def equal_mixture(centres: Tensor, *std: float) -> Mixture:
    weights = torch.full((len(centres),), 1 / len(centres), dtype=torch.float64)
    spread = torch.tensor(std, dtype=torch.float64).expand(centres.shape[1])
    return Mixture(centres.double(), spread, weights)


@dataclass(frozen=True)
class StudentT:
    """Student's t in 2-D, n / sqrt(chi^2_df / df)."""

    df: int = 3

    def draw(self, n: int, generator: Generator) -> Tensor:
        normal = torch.randn(n, 2 + self.df, generator=generator, dtype=torch.float64)
        return normal[:, :2] / (normal[:, 2:].square().mean(1, keepdim=True)).sqrt()

    def log_prob(self, u: Tensor) -> Tensor:
        return -(self.df + 2) / 2 * torch.log1p(u.square().sum(1) / self.df) - math.log(2 * math.pi)


@dataclass(frozen=True)
class Funnel:
    """Neal's: u_1 ~ N(0, 3^2), u_0 ~ N(0, exp(u_1))."""

    std: float = 3.0

    def draw(self, n: int, generator: Generator) -> Tensor:
        u = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        log_variance = self.std * u[:, 1]
        return torch.stack([u[:, 0] * (log_variance / 2).exp(), log_variance], 1)

    def log_prob(self, u: Tensor) -> Tensor:
        x, y = u.unbind(1)
        squares = (y / self.std) ** 2 + x**2 * (-y).exp()
        return -0.5 * (squares + y) - math.log(2 * math.pi * self.std)


@dataclass(frozen=True)
class Square:
    """Uniform on [-1, 1]^2."""

    def draw(self, n: int, generator: Generator) -> Tensor:
        return 2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1

    def log_prob(self, u: Tensor) -> Tensor:
        return torch.where((u.abs() <= 1).all(1), -math.log(4), -math.inf)


class Axis(NamedTuple):
    """Cells of a grid: so wide within +-fine, wider by a twentieth each beyond."""

    cell: float
    fine: float

    def edges(self, half: float, parts: int = 1) -> Tensor:
        """Of cells that cover +-half, each in so many parts."""
        at = [i * self.cell for i in range(round(min(self.fine, half) / self.cell) + 1)]
        while at[-1] < half * (1 - 1e-9):
            width = self.cell if at[-1] < self.fine * (1 - 1e-9) else 1.05 * (at[-1] - at[-2])
            at.append(min(at[-1] + width, half))
        side = torch.tensor(at, dtype=torch.float64)
        if parts > 1:
            share = torch.arange(parts, dtype=torch.float64) / parts
            inner = side[:-1, None] + side.diff()[:, None] * share
            side = torch.cat([inner.flatten(), side[-1:]])
        return torch.cat([-side.flip(0)[:-1], side])


@dataclass(frozen=True)
class Kind:
    """What a set is.

    Attributes:
        law: its density, before it is scaled and turned.
        half: the box is [-half, half].
        variances: of its tightest part, along each coordinate; what steps are in units of.
        axes: of the grid for 2-D ones.
        n_modes: separated modes to count, 0: none.
    """

    law: Law
    half: float
    variances: tuple[float, ...]
    axes: tuple[Axis, Axis] | None = None
    n_modes: int = 0


def _even(law: Law, half: float, cell: float, variance: float, n_modes: int = 0) -> Kind:
    axis = Axis(cell, half)
    return Kind(law, half, (variance, variance), (axis, axis), n_modes)


def _named(name: str) -> Kind:
    """One of fastebm's own."""
    known = load(name, samples=100)
    law, half = equal_mixture(known.centres, known.std), known.clamp[1]
    return _even(law, half, 0.04, known.std**2, known.n_modes)


def _spiral(turns: float, start: float, end: float, n: int, arms: int = 1) -> Tensor:
    """Centres along Archimedean arms, about as far from each other everywhere."""
    share = ((torch.arange(n) + 0.5) / n).double()
    r = (start**2 + share * (end**2 - start**2)).sqrt()
    angle = 2 * math.pi * turns * (r - start) / (end - start)
    arm = r[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return torch.cat([arm, -arm][:arms])


def _aniso() -> Kind:
    axes = Axis(0.1, 6.0), Axis(0.004, 0.16)
    return Kind(equal_mixture(torch.zeros(1, 2), 1.0, 0.03), 4.0, (1.0, 0.0009), axes)


def _unequal() -> Kind:
    centres = torch.tensor([[-1.5, 0.0], [1.5, 0.0]], dtype=torch.float64)
    weights = torch.tensor([1 / 21, 20 / 21], dtype=torch.float64)
    law = Mixture(centres, torch.full((2,), 0.25, dtype=torch.float64), weights)
    return _even(law, 4.0, 0.04, 0.0625, 2)


def _modes(dim: int) -> Kind:
    """8 Gaussians of std 0.15 at random points of the sphere of radius 2."""
    directions = torch.randn(8, dim, generator=Generator().manual_seed(1), dtype=torch.float64)
    centres = 2 * directions / directions.norm(dim=1, keepdim=True)
    return Kind(equal_mixture(centres, 0.15), 4.0, (0.0225,) * dim, None, 8)


_FAR, _NECK = Axis(0.1, 5.0), Axis(0.003, 0.03)
KINDS: dict[str, Callable[[], Kind]] = {
    "ring": lambda: _named("ring"),
    "25gaussians": lambda: _named("25gaussians"),
    "rings": lambda: _named("rings"),
    "spirals": lambda: _even(equal_mixture(_spiral(1.5, 0.0, 3.0, 512, 2), 0.1), 4.0, 0.04, 0.01),
    "gaussian": lambda: _named("gaussian"),
    "aniso": _aniso,
    "moons": lambda: _named("moons"),
    "student_t": lambda: Kind(StudentT(), 40.0, (1.0, 1.0), (_FAR, _FAR)),
    "funnel": lambda: Kind(Funnel(), 30.0, (math.exp(-3), 9.0), (_NECK, Axis(0.1, 10.0))),
    "unequal": _unequal,
    "thin_spiral": lambda: _even(equal_mixture(_spiral(2, 0.5, 2.5, 640), 0.04), 3.0, 0.02, 0.0016),
    "square": lambda: _even(Square(), 2.0, 0.02, 1 / 3),
    "8 modes, 10-D": lambda: _modes(10),
    "8 modes, 50-D": lambda: _modes(50),
}
KINDS = {name: functools.cache(new) for name, new in KINDS.items()}
TUNED_ON = ("ring", "25gaussians", "rings", "spirals", "gaussian", "aniso", "moons")
UNSEEN = ("student_t", "funnel", "unequal", "thin_spiral", "square")
HIGH = ("8 modes, 10-D", "8 modes, 50-D")


@dataclass(frozen=True)
class KnownSet(Dataset):
    """Samples x = turn u of a law of u.

    Attributes:
        kind: the law of u.
        turn: (D, D) float64, a scale times a rotation.
    """

    kind: Kind = field(default=None)
    turn: Tensor = field(default=None)

    @property
    def variances(self) -> Tensor:
        """Of its tightest part, along each coordinate; where it is turned, the least."""
        found = self.turn[0].square().sum().float() * torch.tensor(self.kind.variances)
        return found if self.turn[0, 1] == 0 else found.min().expand(len(found))

    def plain(self, x: Tensor) -> Tensor:
        """x before it was scaled and turned, in float64."""
        return torch.linalg.solve(self.turn, x.double().T).T

    def log_prob(self, x: Tensor) -> Tensor:
        return self.kind.law.log_prob(self.plain(x)) - torch.linalg.slogdet(self.turn)[1]


def make(name: str, seed: int, scale: float = 1.0, degrees: float = 0.0) -> KnownSet:
    """The samples of a set, times `scale`, turned by `degrees` (2-D only)."""
    kind = KINDS[name]()
    turn = scale * torch.eye(len(kind.variances), dtype=torch.float64)
    if degrees:
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turn = scale * torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    half, generator = scale * kind.half, Generator().manual_seed(seed)

    def draw(n: int) -> Tensor:
        x = (kind.law.draw(2 * n, generator) @ turn.T).float()
        return x[(x.abs() <= half).all(1)][:n].clone()

    train, test = draw(TRAIN), draw(TEST)
    return KnownSet(name, train, test, (-half, half), n_modes=kind.n_modes, kind=kind, turn=turn)


class Grid(NamedTuple):
    """Cells of the box: middles (N, 2) float32, log of the areas and of the density (N,)."""

    points: Tensor
    log_area: Tensor
    log_prob: Tensor


_grids: dict[tuple, Grid] = {}


def grid(known: KnownSet, parts: int = 1) -> Grid:
    """The cells of a 2-D set, in coordinates before its turn; `parts`: each side in so many."""
    key = (known.name, parts, *known.turn.flatten().tolist())
    if key not in _grids:
        half, scale = known.clamp[1], known.turn[0].norm().item()
        reach = (half / scale) * (1.0 if known.turn[0, 1] == 0 else math.sqrt(2))
        edges = [axis.edges(reach, parts) for axis in known.kind.axes]
        u = torch.cartesian_prod(*((e[1:] + e[:-1]) / 2 for e in edges))
        log_area = torch.cartesian_prod(*(e.diff().log() for e in edges)).sum(1)
        points = u @ known.turn.T
        inside = (points.abs() <= half).all(1)
        log_area = log_area[inside] + 2 * math.log(scale)
        points = points[inside].float()
        log_p = torch.cat([known.log_prob(part) for part in points.split(CACHED)])
        _grids[key] = Grid(points, log_area, log_p)
    return _grids[key]


@torch.no_grad()
def divergence(
    known: KnownSet,
    energy: Callable[[Tensor], Tensor],
    inside: Callable[[Tensor], Tensor] | None = None,
    parts: int = 1,
) -> dict[str, float]:
    """KL(data || model) and total variation on the grid.

    Args:
        energy: (N, 2) -> (N,).
        inside: (N, 2) -> (N,) bool, where the model is a density; the data's is renormalised there.
            None: on all of the box.
    """
    points, log_area, log_p = grid(known, parts)
    if inside is not None:
        there = inside(points)
        points, log_area, log_p = points[there], log_area[there], log_p[there]
    e = torch.cat([energy(part).double() for part in points.split(CHUNK)])
    if not e.isfinite().all():
        return {"kl": math.inf, "tv": 1.0}
    p, q = (v + log_area - torch.logsumexp(v + log_area, 0) for v in (log_p, -e))
    kl = torch.where(p > -math.inf, p.exp() * (p - q), 0.0).sum()
    return {"kl": kl.item(), "tv": 0.5 * (p.exp() - q.exp()).abs().sum().item()}


def quality(known: KnownSet, x: Tensor) -> dict[str, float]:
    """Of samples: MMD^2 to as many of the test part; where the law is a mixture, the share within
    what holds SHARE_ON of a Gaussian about a centre; of modes to count, the least and the largest
    share that one holds, over its weight."""
    found = {"mmd2": mmd2(x, known.test[: len(x)])}
    law = known.kind.law
    if isinstance(law, Mixture):
        distance, nearest = law.distance(known.plain(x)).min(1)
        on = distance <= _radius(x.shape[1])
        found["on"] = on.double().mean().item()
        if known.n_modes:
            held = torch.bincount(nearest[on], minlength=len(law.centres)) / len(x) / SHARE_ON
            found |= {"weight_min": (held / law.weights).min().item()}
            found |= {"weight_max": (held / law.weights).max().item()}
    return found


@functools.cache
def _radius(dim: int) -> float:
    """Of the ball that holds SHARE_ON of a standard normal in `dim` dimensions."""
    return math.sqrt(chi2.ppf(SHARE_ON, dim))
