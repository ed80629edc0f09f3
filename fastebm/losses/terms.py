"""What a loss is taken of, and what it comes to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastebm.replay.references import References


class Batch(NamedTuple):
    """Data and chains, and what the model is called with beside them.

    Attributes:
        x: (B, *event). chains: (n, *event), at their start, or before the step that the loss sees.
        kwargs_pos, kwargs_neg: further arguments of the model for data and chains.
        sample_ids: whose noise each chain gets; None: that of its row.
        references: stored samples, for losses that keep chains away from them.
        weights: of the terms of data and of chains, on this rank.
        chains_of_ranks: how many chains each rank has; None: as many as this one.
    """

    x: Tensor
    chains: Tensor
    kwargs_pos: dict
    kwargs_neg: dict
    sample_ids: Tensor | None = None
    references: References | None = None
    weights: tuple[float, float] = (1.0, 1.0)
    chains_of_ranks: list[int] | None = None

    def rows(self, pos: Tensor, neg: Tensor, sample_offset: int) -> Batch:
        """Some rows of the data and of the chains, as int64. The chains' last step comes out the
        same for some as for all: its noise goes by row number."""
        references = self.references
        return Batch(
            *(self.x[pos], self.chains[neg]),
            *(_take(self.kwargs_pos, pos, len(self.x)), _take(self.kwargs_neg, neg, len(self.x))),
            sample_ids=neg + sample_offset,
            references=references and references._replace(own=references.own[neg]),
        )


class Terms(NamedTuple):
    """A loss and what it is made of.

    Attributes:
        loss: 0-d.
        x_neg: (n, *event), the chains in the end.
        metrics: see the losses; without ``n_nonfinite``.
        e_pos, e_neg: energies of data and chains, (B,) or (B, S) and (n,) or (n, S), and
        mean_neg: the mean of the latter; with the graph that the loss has, if any.
    """

    loss: Tensor
    x_neg: Tensor
    metrics: dict[str, Tensor | float]
    e_pos: Tensor
    e_neg: Tensor
    mean_neg: Tensor


@torch.no_grad()
def spread(e: Tensor) -> Tensor:
    """Standard deviation of the samples' energies, each the mean over its scales."""
    return (e if e.dim() == 1 else e.mean(1)).std(correction=0)


@torch.no_grad()
def step_metrics(sampler, x_neg: Tensor, grad: Tensor | None) -> dict[str, Tensor]:
    """Of the last step of Langevin chains; of Gibbs chains, which have no gradient, none."""
    if grad is None:
        return {}
    return {"grad_norm": mean_norm(grad), "clamp_share": sampler.clamp_share(x_neg)}


@torch.no_grad()
def mean_norm(grad: Tensor) -> Tensor:
    """Of the chains' gradients (B, *event)."""
    return torch.linalg.vector_norm(grad.reshape(len(grad), -1), dim=1).mean()


def _take(model_kwargs: dict, rows: Tensor, n: int) -> dict:
    """The arguments for some of n samples."""
    return {
        k: v[rows] if isinstance(v, Tensor) and v.dim() and len(v) == n else v
        for k, v in model_kwargs.items()
    }
