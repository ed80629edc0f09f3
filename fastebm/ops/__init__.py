"""The operators: for each one a documented wrapper, its fake (shapes only) and its gradient."""

from fastebm.ops.langevin import langevin_step, langevin_step_
from fastebm.ops.replay import replay_gather

__all__ = ["langevin_step", "langevin_step_", "replay_gather"]
