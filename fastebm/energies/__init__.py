"""Networks that are energies, and ways to combine energies."""

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
from fastebm.energies.resnet import ResNetEnergy

__all__ = [
    "ConvEnergy",
    "Energy",
    "EnergyFromLogProb",
    "GivenEnergy",
    "MLPEnergy",
    "MixtureEnergy",
    "MultiScaleEnergy",
    "ResNetEnergy",
    "SumEnergy",
    "TemperedEnergy",
    "WeightStandardization",
]
