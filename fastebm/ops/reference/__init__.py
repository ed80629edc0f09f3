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
from fastebm.ops.reference.choice import choose_slots, choose_strata
from fastebm.ops.reference.discrete import gwg_matrix, gwg_step, proposal_logits
from fastebm.ops.reference.hamiltonian import hamiltonian_chain, leapfrog
from fastebm.ops.reference.langevin import langevin_step
from fastebm.ops.reference.metropolis import (
    State,
    adjusted_chain,
    jump_draws,
    log_ratio,
    population_jump,
    propose,
)
from fastebm.ops.reference.mlp import mlp_chain, mlp_energy, mlp_gradient
from fastebm.ops.reference.random import normals, philox4x32, words
from fastebm.ops.reference.tempering import replica_swap
from fastebm.ops.reference.underdamped import underdamped_step

__all__ = [
    "State",
    "adjust",
    "adjusted_chain",
    "augment",
    "augmentation_of",
    "bernoulli_sigmoid",
    "blur",
    "choose_slots",
    "choose_strata",
    "gwg_matrix",
    "gwg_step",
    "hamiltonian_chain",
    "jump_draws",
    "langevin_step",
    "leapfrog",
    "log_ratio",
    "mlp_chain",
    "mlp_energy",
    "mlp_gradient",
    "normals",
    "philox4x32",
    "population_jump",
    "proposal_logits",
    "propose",
    "replica_swap",
    "resized_crop",
    "underdamped_step",
    "words",
]
