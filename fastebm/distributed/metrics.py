"""Numbers about a step, of all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastebm.distributed.collectives import sum_of_ranks
from fastebm.distributed.world import world

COUNTS = ("n_nonfinite",)  # which all ranks know already, see the losses
"""Names of metrics that are not averaged."""


@torch.no_grad()
def average_metrics(metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The metrics of a loss (``LossOutput.metrics``) over the samples of all ranks, of as many on
    each: one all_reduce, and a wait for the device. For where you log, on all ranks.

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
    spreads = {name: name.removesuffix("_std") for name in values if name.endswith("_std")}
    sent = {
        name: values[name] ** 2 + values[spreads[name]] ** 2 if name in spreads else value
        for name, value in values.items()
    }
    total = sum_of_ranks(torch.tensor(list(sent.values()), dtype=torch.float64)).tolist()
    out = {name: value / size for name, value in zip(sent, total, strict=True)}
    for name, mean in spreads.items():
        out[name] = max(0.0, out[name] - out[mean] ** 2) ** 0.5
    for name in COUNTS:
        if isinstance(metrics.get(name), Tensor):  # a count that nobody has waited for
            out[name] *= size
    return out
