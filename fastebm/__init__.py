"""Fused Langevin sampling and improved contrastive divergence for energy-based models."""

import torch  # noqa: F401  (loads libtorch before the extension)

try:
    import fastebm._C  # noqa: F401  (registers torch.ops.fastebm)
except ModuleNotFoundError:
    raise ImportError(
        f"the fastebm in {__path__[0]} is not built: start Python in another directory to use the"
        " installed one, or install this one with pip install -e ."
    ) from None
from fastebm import ais, energies, ops
from fastebm.augmentation import Augmentation
from fastebm.bernoulli import bernoulli_sigmoid
from fastebm.buffer import ReplayBuffer
from fastebm.energies import (
    RBM,
    EnergyFromLogProb,
    GaussianRBM,
    MixtureEnergy,
    MultiScaleEnergy,
    SumEnergy,
    TemperedEnergy,
)
from fastebm.entropy import knn_cross_entropy, knn_entropy
from fastebm.gibbs import GibbsSampler
from fastebm.graph import GraphWarning, clear_graphs
from fastebm.helmholtz import HelmholtzMachine
from fastebm.info import build_info
from fastebm.likelihood import log_partition, pseudo_likelihood
from fastebm.losses import (
    ContrastiveDivergence,
    ImprovedContrastiveDivergence,
    LossOutput,
    PersistentContrastiveDivergence,
)
from fastebm.maximum_likelihood import ExactMaximumLikelihood, MaximumLikelihood
from fastebm.neighbor import nearest_neighbor
from fastebm.nonfinite import NonFiniteError
from fastebm.rng import ChainRNG, DeviceRNG
from fastebm.samplers import LangevinDynamics, StepSizeWarning
from fastebm.train_step import GraphedTrainStep
from fastebm.wake_sleep import WakeSleep

__all__ = [
    "RBM",
    "Augmentation",
    "ChainRNG",
    "ContrastiveDivergence",
    "DeviceRNG",
    "EnergyFromLogProb",
    "GraphWarning",
    "GraphedTrainStep",
    "ExactMaximumLikelihood",
    "GaussianRBM",
    "GibbsSampler",
    "HelmholtzMachine",
    "ImprovedContrastiveDivergence",
    "LangevinDynamics",
    "LossOutput",
    "MaximumLikelihood",
    "MixtureEnergy",
    "MultiScaleEnergy",
    "NonFiniteError",
    "PersistentContrastiveDivergence",
    "ReplayBuffer",
    "StepSizeWarning",
    "SumEnergy",
    "TemperedEnergy",
    "WakeSleep",
    "ais",
    "bernoulli_sigmoid",
    "build_info",
    "clear_graphs",
    "energies",
    "knn_cross_entropy",
    "knn_entropy",
    "log_partition",
    "nearest_neighbor",
    "ops",
    "pseudo_likelihood",
]
