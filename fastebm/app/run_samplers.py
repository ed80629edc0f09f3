"""The samplers of a training run: chains that count their seconds, and a machine's dreams."""

from __future__ import annotations

import time

from torch import Tensor, nn

from fastebm.app.config import LARGEST_STEP, MACHINES, TrainConfig
from fastebm.app.networks import AutocastEnergy
from fastebm.energies.helmholtz import HelmholtzMachine
from fastebm.rng import ChainRNG
from fastebm.samplers.adaptive import AdaptiveStep
from fastebm.samplers.gibbs import GibbsSampler
from fastebm.samplers.langevin import LangevinDynamics


class _Timed:
    """Counts the seconds that the host spends in `sample`; on a CPU, those of the chains."""

    seconds = 0.0

    def sample(self, *args, **kwargs):
        start = time.perf_counter()
        try:
            return super().sample(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start


class TimedLangevin(_Timed, LangevinDynamics):
    pass


class TimedGibbs(_Timed, GibbsSampler):
    pass


class Dreams:
    """A Helmholtz machine where a run expects a sampler: what it draws is exact and independent of
    the start, however many steps are asked for."""

    step_size_checked = True
    effective_temperature = 1.0
    seconds = 0.0

    def __init__(self, model: HelmholtzMachine) -> None:
        self.model = model

    def sample(self, x: Tensor, n_steps: int = 1, *, seed: int | ChainRNG | None = None) -> Tensor:
        return self.model.dream(len(x), seed)[0].view(x.shape)


def build_sampler(
    config: TrainConfig, model: nn.Module, box: tuple[float, float]
) -> TimedLangevin | TimedGibbs | Dreams:
    """The sampler of `config` for its model; Langevin chains are clamped to the box."""
    if config.energy == "helmholtz":
        return Dreams(model)
    if config.energy in MACHINES:
        return TimedGibbs(model)
    step_size: AdaptiveStep | float = config.step_size
    if config.adaptive:
        largest = LARGEST_STEP if config.standardized else None
        step_size = AdaptiveStep(config.step_size, largest=largest)
    return TimedLangevin(
        AutocastEnergy(model) if config.precision == "bfloat16" else model,
        step_size,
        noise_std=config.noise_std,
        clamp=box,
        noise_first=config.noise_first,
        adjusted=config.adjusted,
    )
