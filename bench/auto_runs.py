"""A training of `bench/auto.py`, whoever's it is, in the coordinates of the data."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastebm.app.demo_runs import LOST
from fastebm.app.training import Trainer
from fastebm.energies import MLPEnergy
from fastebm.losses.nonfinite import NonFiniteError

PROBE_EVERY = 10


@dataclass(frozen=True)
class Network:
    """Of the energy, and the steps of a chain."""

    width: int = 64
    depth: int = 2
    activation: str = "silu"
    k_steps: int = 20

    def model(self, dim: int, seed: int) -> MLPEnergy:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MLPEnergy(dim, (self.width,) * self.depth, self.activation)


@dataclass(frozen=True)
class Run:
    """What is trained, and what is to be measured of it.

    Attributes:
        trainer: new.
        energy: (N, D) -> (N,) float64.
        samplers: name -> (n, steps, seed) -> (n, D), chains from noise.
        inside: (N, D) -> (N,) bool: where it is a density; None: on the data's box.
    """

    trainer: Trainer
    energy: Callable[[Tensor], Tensor]
    samplers: dict[str, Callable[[int, int, int], Tensor]]
    inside: Callable[[Tensor], Tensor] | None = None

    def train(self, until: int | None = None) -> tuple[float, str | None]:
        """To that step, or to the end; seconds of processor time, and at the first sign of
        divergence, where it is given up, why."""
        trainer, diverged = self.trainer, None
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of steps too large, which is the point
            while trainer.iteration < (until or trainer.config.steps) and diverged is None:
                try:
                    trainer.step()
                except NonFiniteError as error:
                    diverged = str(error).splitlines()[0]
                    break
                if trainer.iteration % PROBE_EVERY == 0:
                    diverged = LOST.broken(trainer.probe())
        return time.process_time() - start, diverged
