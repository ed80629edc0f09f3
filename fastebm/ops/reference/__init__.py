"""The operators once more in plain torch, float64, naive and readable: the oracle of tests and
benchmarks. The package itself never uses it."""

from fastebm.ops.reference.augmentation import (
    adjust,
    augment,
    augmentation_of,
    blur,
    resized_crop,
)
from fastebm.ops.reference.bernoulli import bernoulli_sigmoid
from fastebm.ops.reference.choice import choose_slots
from fastebm.ops.reference.langevin import langevin_step
from fastebm.ops.reference.mlp import mlp_chain, mlp_energy, mlp_gradient
from fastebm.ops.reference.random import normals, philox4x32, words

__all__ = [
    "adjust",
    "augment",
    "augmentation_of",
    "bernoulli_sigmoid",
    "blur",
    "choose_slots",
    "langevin_step",
    "mlp_chain",
    "mlp_energy",
    "mlp_gradient",
    "normals",
    "philox4x32",
    "resized_crop",
    "words",
]
