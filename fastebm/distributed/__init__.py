"""Several processes: gradients, states and metrics of all ranks.

Under ``torch.distributed`` samplers, losses and replay buffers are those of one process with all
ranks' chains; what else a training loop needs is here.
"""

from fastebm.distributed.faults import RankError
from fastebm.distributed.gradients import average_gradients
from fastebm.distributed.metrics import average_metrics
from fastebm.distributed.states import full_state_dict, join_state_dicts
from fastebm.distributed.world import World, alone, world

__all__ = [
    "RankError",
    "World",
    "alone",
    "average_gradients",
    "average_metrics",
    "full_state_dict",
    "join_state_dicts",
    "world",
]
