"""The energies that a run can name, and what is put around one: autocast, an average of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastebm.app.config import MACHINES, ConfigError, TrainConfig
from fastebm.energies import (
    RBM,
    ConvEnergy,
    GaussianRBM,
    MLPEnergy,
    MultiScaleEnergy,
    ResNetEnergy,
)
from fastebm.energies.helmholtz import HelmholtzMachine
from fastebm.energies.standardized import Standardized


def build_model(
    event_shape: tuple[int, ...], hidden: int, seed: int, box: tuple[float, float] | None = None
) -> MLPEnergy:
    """`MLPEnergy` with two hidden layers of width `hidden`, (B, *event) -> (B,).

    With `box` the first layer starts as if its input had been brought from the box to [-1, 1].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MLPEnergy(math.prod(event_shape), (hidden, hidden))
    if box is not None:
        lo, hi = box
        with torch.no_grad():  # W (2 (x - lo) / (hi - lo) - 1) + b
            first = model.net[0]
            first.bias -= first.weight.sum(1) * (hi + lo) / (hi - lo)
            first.weight *= 2 / (hi - lo)
    return model


def build_energy(config: TrainConfig, data: Tensor, box: tuple[float, float] | None) -> nn.Module:
    """The energy named by `config.energy`, its start decided by `config.seed`.

    Args:
        data: of the run, (N, *event); "conv" and "resnet" take (C, H, W).
        box: see `build_model`.
    """
    event_shape = tuple(data.shape[1:])
    if config.energy == "mlp":
        model = build_model(event_shape, config.hidden, config.seed, box)
        return Standardized(model, data) if config.standardized else model
    if config.energy in MACHINES:
        return build_machine(config, math.prod(event_shape))
    if len(event_shape) != 3:
        raise ConfigError(f"energy={config.energy!r} takes pictures, the samples are {event_shape}")
    kind = {"conv": ConvEnergy, "resnet": ResNetEnergy}[config.energy]
    channels, height, width = event_shape
    factors = [2**s for s in range(config.scales)]
    if height % factors[-1] or width % factors[-1]:
        raise ConfigError(
            f"scales={config.scales} needs sides that are multiples of {factors[-1]}, the samples"
            f" are {height}x{width}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            nets = [kind((channels, height // f, width // f), config.hidden) for f in factors]
        except ValueError as error:
            raise ConfigError(
                f"energy={config.energy!r}, scales={config.scales}: {error}"
            ) from None
    return nets[0] if len(nets) == 1 else MultiScaleEnergy(nets, factors)


def build_machine(config: TrainConfig, n_visible: int) -> RBM | GaussianRBM | HelmholtzMachine:
    """The machine named by `config.energy`, its start decided by `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.energy == "helmholtz":
            return HelmholtzMachine(n_visible, (config.hidden, config.hidden))
        kind = RBM if config.energy == "rbm" else GaussianRBM
        return kind(n_visible, config.hidden)


class AutocastEnergy(nn.Module):
    """An energy whose layers run in bfloat16; samples, energies and gradients stay float32.

    float16 would need the loss scaled, and is NaN in the second derivatives of the KL term.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, **model_kwargs) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.model(x, **model_kwargs).float()


def weight_average(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of the weights, ``.module`` the averaged energy."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
