"""Fused Langevin sampling and improved contrastive divergence for energy-based models."""

from importlib.metadata import version as _version

import torch  # noqa: F401  (loads libtorch before the extension)

try:
    import fastebm._C  # noqa: F401  (registers torch.ops.fastebm)
except ModuleNotFoundError:
    raise ImportError(
        f"the fastebm in {__path__[0]} is not built: start Python in another directory to use the"
        " installed one, or install this one with pip install -e ."
    ) from None
from fastebm import diagnostics, distributed, energies, ops
from fastebm.chains.graph import GraphWarning, clear_graphs
from fastebm.energies import (
    RBM,
    EnergyFromLogProb,
    GaussianRBM,
    MixtureEnergy,
    MultiScaleEnergy,
    Standardized,
    SumEnergy,
    TemperedEnergy,
)
from fastebm.energies.helmholtz import HelmholtzMachine
from fastebm.entropy.estimators import knn_cross_entropy, knn_entropy
from fastebm.entropy.search import nearest_neighbor
from fastebm.info import build_info
from fastebm.likelihood import ais
from fastebm.likelihood.exact import log_partition, pseudo_likelihood
from fastebm.losses.contrastive import ContrastiveDivergence
from fastebm.losses.improved import ImprovedContrastiveDivergence
from fastebm.losses.maximum_likelihood import ExactMaximumLikelihood, MaximumLikelihood
from fastebm.losses.nonfinite import NonFiniteError
from fastebm.losses.output import LossOutput
from fastebm.losses.persistent import PersistentContrastiveDivergence
from fastebm.losses.train_step import GraphedTrainStep
from fastebm.losses.trust_region import TrustRegion, kl_step
from fastebm.losses.wake_sleep import WakeSleep
from fastebm.ops.bernoulli import bernoulli_sigmoid
from fastebm.replay.augmentation import Augmentation
from fastebm.replay.buffer import ReplayBuffer
from fastebm.rng import ChainRNG, DeviceRNG
from fastebm.samplers.adaptive import AdaptiveStep
from fastebm.samplers.gibbs import GibbsSampler
from fastebm.samplers.gibbs_with_gradients import GibbsWithGradients
from fastebm.samplers.hmc import HMC
from fastebm.samplers.langevin import LangevinDynamics
from fastebm.samplers.mala import MALA
from fastebm.samplers.parallel_tempering import ParallelTempering
from fastebm.samplers.scale import StepSizeWarning
from fastebm.samplers.underdamped import UnderdampedLangevin

__version__ = _version("fastebm")
__all__ = [
    "HMC",
    "MALA",
    "RBM",
    "AdaptiveStep",
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
    "GibbsWithGradients",
    "HelmholtzMachine",
    "ImprovedContrastiveDivergence",
    "LangevinDynamics",
    "LossOutput",
    "MaximumLikelihood",
    "MixtureEnergy",
    "MultiScaleEnergy",
    "NonFiniteError",
    "ParallelTempering",
    "PersistentContrastiveDivergence",
    "ReplayBuffer",
    "Standardized",
    "StepSizeWarning",
    "SumEnergy",
    "TemperedEnergy",
    "TrustRegion",
    "UnderdampedLangevin",
    "WakeSleep",
    "ais",
    "bernoulli_sigmoid",
    "build_info",
    "clear_graphs",
    "diagnostics",
    "distributed",
    "energies",
    "kl_step",
    "knn_cross_entropy",
    "knn_entropy",
    "log_partition",
    "nearest_neighbor",
    "ops",
    "pseudo_likelihood",
]
