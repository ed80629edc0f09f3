"""The operators: for each one a documented wrapper, its fake (shapes only) and its gradient."""

from fastebm.ops.hamiltonian import hmc_step_
from fastebm.ops.langevin import langevin_step, langevin_step_
from fastebm.ops.metropolis import metropolis_step_
from fastebm.ops.replay import replay_gather

__all__ = ["hmc_step_", "langevin_step", "langevin_step_", "metropolis_step_", "replay_gather"]
