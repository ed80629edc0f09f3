"""Networks that are energies, and ways to combine energies.

A moving average of the weights is torch's own, ``torch.optim.swa_utils.AveragedModel(net,
multi_avg_fn=get_ema_multi_avg_fn(0.999))``: samplers take it as it is, and compositions as
``GivenEnergy(ema)``. Leave its ``use_buffers`` at False: averages of the unit vectors of
spectral norm are no unit vectors.
"""

from fastebm.energies.compose import (
    Energy,
    EnergyFromLogProb,
    GivenEnergy,
    MixtureEnergy,
    SumEnergy,
    TemperedEnergy,
)
from fastebm.energies.conv import ConvEnergy
from fastebm.energies.layers import WeightStandardization
from fastebm.energies.mlp import MLPEnergy
from fastebm.energies.multiscale import MultiScaleEnergy
from fastebm.energies.rbm import RBM, GaussianRBM
from fastebm.energies.resnet import ResNetEnergy
from fastebm.energies.standardized import Standardized

__all__ = [
    "RBM",
    "ConvEnergy",
    "Energy",
    "EnergyFromLogProb",
    "GaussianRBM",
    "GivenEnergy",
    "MLPEnergy",
    "MixtureEnergy",
    "MultiScaleEnergy",
    "ResNetEnergy",
    "Standardized",
    "SumEnergy",
    "TemperedEnergy",
    "WeightStandardization",
]
