"""Fused Langevin sampling and improved contrastive divergence for energy-based models."""

import torch  # noqa: F401  (loads libtorch before the extension)

import fastebm._C  # noqa: F401  (registers torch.ops.fastebm)
from fastebm import ops
from fastebm.buffer import ReplayBuffer
from fastebm.entropy import nearest_neighbor
from fastebm.info import build_info
from fastebm.losses import (
    ContrastiveDivergence,
    ImprovedContrastiveDivergence,
    LossOutput,
    NonFiniteError,
    PersistentContrastiveDivergence,
)
from fastebm.rng import ChainRNG
from fastebm.samplers import LangevinDynamics, StepSizeWarning

__all__ = [
    "ChainRNG",
    "ContrastiveDivergence",
    "ImprovedContrastiveDivergence",
    "LangevinDynamics",
    "LossOutput",
    "NonFiniteError",
    "PersistentContrastiveDivergence",
    "ReplayBuffer",
    "StepSizeWarning",
    "build_info",
    "nearest_neighbor",
    "ops",
]
