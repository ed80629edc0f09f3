"""How many samples a step takes, by how well the gradients of its halves agree."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fastebm.distributed.collectives import sum_of_ranks
from fastebm.distributed.world import world
from fastebm.energies.protocol import energy
from fastebm.energies.sampling_mode import sampling_mode

EVERY = 10  # iterations between two looks
KEPT, TAKEN = 0.8, 0.2  # of the average and of the cosine, at each look
LOW, HIGH, AFRESH = 0.5, 0.9, 0.7  # the average that doubles, that halves, and after either


class BatchRule:
    """How many times the configured batch a step takes: twice as many while the gradients of its
    two halves disagree, half as many while they agree.

    Args:
        largest: power of two, >= 1, that ``multiple`` does not pass.

    Attributes:
        multiple: 1, 2, 4, ..., `largest`; 1 at first.
        average: of the cosines so far, each look 0.2 of it; 1 at first, 0.7 after a change.
    """

    def __init__(self, largest: int = 8):
        if type(largest) is not int or largest < 1 or largest & (largest - 1):
            raise ValueError(f"largest must be a power of two >= 1, got {largest!r}")
        self.largest, self.multiple, self.average = largest, 1, 1.0

    def due(self, iteration: int) -> bool:
        """Whether the step of this iteration is to be looked at."""
        return iteration % EVERY == 0

    def update(self, cosine: float) -> None:
        """Take in a cosine of `agreement`; one that is NaN, of gradients that are not finite, says
        nothing and is left out."""
        if math.isnan(cosine):
            return
        self.average = KEPT * self.average + TAKEN * cosine
        if self.average < LOW and self.multiple < self.largest:
            self.multiple, self.average = self.multiple * 2, AFRESH
        elif self.average > HIGH and self.multiple > 1:
            self.multiple, self.average = self.multiple // 2, AFRESH

    def state_dict(self) -> dict[str, int | float]:
        return {"multiple": self.multiple, "average": self.average}

    def load_state_dict(self, state: dict[str, int | float]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: it is none of a rule with this `largest`; nothing has been loaded.
        """
        if set(state) != {"multiple", "average"}:
            raise ValueError(f"state must hold multiple and average, got {sorted(state)}")
        multiple, average = state["multiple"], state["average"]
        allowed = [2**i for i in range(self.largest.bit_length())]
        if type(multiple) is not int or multiple not in allowed:
            raise ValueError(f"multiple must be one of {allowed}, got {multiple!r}")
        if type(average) not in (int, float) or not -1.01 < average < 1.01:
            raise ValueError(f"average must be a cosine, got {average!r}")
        self.multiple, self.average = multiple, float(average)


def agreement(model, x: Tensor, x_neg: Tensor, energy_reg_weight: float, group: int) -> float:
    """Cosine of the gradients of two halves of the chains: near 1 where noise is small, near 0
    where it is all that there is.

    Each gradient is that of ``mean E(x) - mean E(x_neg) + energy_reg_weight (mean E(x)^2 + mean
    E(x_neg)^2)`` over its half, scales averaged, in all parameters at once. Rows come in blocks of
    `group` chains, each block the same chains at another time; a half is the first ``group // 2``
    of each block, or the others, so that no chain is in both. The model is in eval mode meanwhile,
    and ``.grad`` is left alone. In a process group a block is of all ranks, each of which has as
    many of its rows; all must call this, and get one number.

    Args:
        x, x_neg: (m * group, *event), of which a rank has its part of each block.

    Returns:
        The cosine; 0 where a gradient is, NaN where one is not finite.
    """
    rank, size = world()
    n, own = size * len(x), group // size
    if len(x_neg) != len(x) or group < 2 or n == 0 or n % group or group % size:
        raise ValueError(
            f"x and x_neg must be equally many blocks of group={group} >= 2 rows, got {n} and"
            f" {size * len(x_neg)} rows"
        )
    parameters = [p for p in model.parameters() if p.requires_grad]
    first = torch.arange(len(x), device=x.device) % own + rank * own < group // 2
    gradients = []
    with sampling_mode(model, freeze=False), torch.enable_grad():
        for half, rows in ((first, group // 2), (~first, group - group // 2)):
            share = int(half.sum()) / (n // group * rows)  # of the half, on this rank
            if share == 0:
                gradients.append(torch.cat([p.new_zeros(p.numel()).double() for p in parameters]))
                continue
            pos, neg = energy(model, x[half]), energy(model, x_neg[half])
            loss = pos.mean() - neg.mean()
            loss = loss + energy_reg_weight * (pos.square().mean() + neg.square().mean())
            grads = torch.autograd.grad(share * loss, parameters, materialize_grads=True)
            gradients.append(torch.cat([g.double().flatten() for g in grads]))
    return cosine_similarity(*sum_of_ranks(torch.stack(gradients)), dim=0).item()
