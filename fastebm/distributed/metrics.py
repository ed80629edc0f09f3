"""Numbers about a step, of all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastebm.distributed.collectives import all_rows
from fastebm.distributed.world import world


@torch.no_grad()
def average_metrics(metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The metrics of a loss (``LossOutput.metrics``) over the samples of all ranks, of as many on
    each: one all_gather, and a wait for the device. For where you log, on all ranks.

    Means are averaged. A ``_std`` is put together with the mean of its name, so that it is the
    standard deviation over all ranks' samples. ``n_nonfinite`` is of all ranks already, but with
    ``on_nonfinite="count"``, where it is summed.

    Raises:
        RankError: a rank is gone.
    """
    values = {name: float(value) for name, value in metrics.items()}
    size = world().size
    if size == 1:
        return values
    own = torch.tensor(list(values.values()), dtype=torch.float64)
    of_ranks = dict(zip(values, all_rows(own).view(size, -1).T.tolist(), strict=True))
    means = {name: sum(column) / size for name, column in of_ranks.items()}
    out = dict(means)
    for name in values:
        mean = name.removesuffix("_std")
        if mean != name and mean in of_ranks:  # within the ranks, and between their means
            within = sum(std**2 for std in of_ranks[name]) / size
            between = sum((m - means[mean]) ** 2 for m in of_ranks[mean]) / size
            out[name] = (within + between) ** 0.5
    if isinstance(metrics.get("n_nonfinite"), Tensor):  # a count that nobody has waited for
        out["n_nonfinite"] *= size
    return out
