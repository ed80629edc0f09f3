"""Fused Langevin sampling and improved contrastive divergence for energy-based models."""

import torch  # noqa: F401  (loads libtorch before the extension)

import fastebm._C  # noqa: F401  (registers torch.ops.fastebm)
from fastebm import ops
from fastebm.info import build_info
from fastebm.rng import ChainRNG

__all__ = ["ChainRNG", "build_info", "ops"]
