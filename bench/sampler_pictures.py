"""The pictures of docs/samplers.md: `python bench/sampler_pictures.py [FOLDER]`, docs/charts by
default. Seeds are fixed; a minute on one core."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fastebm import HMC, MALA, LangevinDynamics, ParallelTempering, UnderdampedLangevin

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
MODES = torch.tensor([[-2.0, 0.0], [1.2, 1.6], [1.4, -1.6]])
STDS = torch.tensor([[0.9, 0.35], [0.45, 0.7], [0.6, 0.3]])
WEIGHTS = torch.tensor([0.4, 0.35, 0.25])


def mixture(x: Tensor) -> Tensor:
    """Three Gaussians in the plane."""
    z = (x[:, None] - MODES) / STDS
    logs = WEIGHTS.log() - STDS.log().sum(1) - z.square().sum(2) / 2
    return -logs.logsumexp(1)


def two_modes(x: Tensor) -> Tensor:
    """Gaussians at -4 and 4 of std 0.5, weights 0.3 and 0.7: a barrier of 30."""
    left = math.log(0.3) - 2 * (x + 4).square()
    right = math.log(0.7) - 2 * (x - 4).square()
    return -torch.logaddexp(left, right).sum(1)


def paths() -> Figure:
    """One chain of each sampler, with about as many gradients each."""
    tempered = ParallelTempering(MALA(mixture, 0.1), (1.0, 2.0, 4.0))
    rows = {
        "Langevin dynamics, h = 0.02": (LangevinDynamics(mixture, 0.02), 400),
        "MALA, h = 0.1": (MALA(mixture, 0.1), 400),
        "Underdamped, h = 0.2": (UnderdampedLangevin(mixture, 0.2, friction=0.5), 400),
        "HMC, 8 steps of 0.25": (HMC(mixture, 0.25, n_leapfrog=8), 50),
        "Tempering over MALA, T = 1, 2, 4": (tempered, 133),
    }
    figure = Figure((13, 3.0), layout="constrained", dpi=130)
    grid = torch.linspace(-4, 3.4, 160), torch.linspace(-3, 3.6, 140)
    points = torch.cartesian_prod(*grid)
    density = (-mixture(points)).exp().view(160, 140).T
    for axis, (name, (sampler, n)) in zip(figure.subplots(1, len(rows)), rows.items(), strict=True):
        start = MODES[:1].clone()
        x = sampler.sample(start, n, seed=5, return_trajectory=True)[0]
        axis.contourf(*grid, density, 8, cmap="Greys", alpha=0.8)
        axis.plot(*x.T, "-", lw=0.6, alpha=0.7, color=COLOURS[0])
        axis.plot(*x.T, ".", ms=3, color=COLOURS[1])
        axis.plot(*start[0], "o", ms=5, color=COLOURS[2])
        axis.set_title(name, fontsize=9)
        axis.set(xticks=[], yticks=[], xlim=(-4, 3.4), ylim=(-3, 3.6))
    return figure


def crossing() -> Figure:
    """The share of chains on the right, from the left, of ULA, MALA and two ladders."""
    n, steps, every = 4000, 600, 5
    start = -4 + 0.5 * torch.randn(n, 1, generator=torch.Generator().manual_seed(0))
    ladder = (1.0, 2.5, 6.0, 16.0, 40.0)
    ways = {
        "Langevin dynamics, h = 0.1": LangevinDynamics(two_modes, 0.1),
        "HMC, 5 steps of 0.3": HMC(two_modes, 0.3, n_leapfrog=5),
        "tempering over MALA, T = 1 ... 40": ParallelTempering(MALA(two_modes, 0.3), ladder),
    }
    figure = Figure((11, 3.2), layout="constrained", dpi=130)
    left, right = figure.subplots(1, 2)
    styles = "-", "--", "-"  # the first two lie on each other
    for colour, style, (name, sampler) in zip(COLOURS, styles, ways.items(), strict=False):
        x = sampler.sample(start, steps, thin=every, seed=1, return_trajectory=True)[..., 0]
        at = torch.arange(every, steps + 1, every)
        left.plot(at, (x > 0).float().mean(0), style, color=colour, label=name)
        right.hist(x[:, -1], torch.linspace(-6, 6, 97), density=True, histtype="step", color=colour)
    left.axhline(0.7, color="black", lw=0.8, ls=":")
    left.text(steps, 0.72, "weight of the right mode", ha="right", fontsize=8)
    left.set(xlabel="steps", ylabel="chains on the right", ylim=(-0.03, 1))
    left.legend(frameon=False, fontsize=8, loc="center right")
    grid = torch.linspace(-6, 6, 601)
    p = (-two_modes(grid[:, None])).exp()
    right.plot(grid, p / p.sum() / (grid[1] - grid[0]), color="black", lw=0.8, ls=":")
    right.set(xlabel=f"x after {steps} steps, and the density", yticks=[])
    return figure


def main(folder: str = "docs/charts") -> None:
    for name, draw in {"sampler_paths": paths, "sampler_crossing": crossing}.items():
        draw().savefig(Path(folder) / f"{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
