"""The gradient of log p, where there is no energy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

NO_ENERGY = "a score says nothing of energies, which this needs: give the sampler a model"


class Score(nn.Module):
    """What chains run on in place of an energy.

    Args:
        model: the score, (B, *event) -> grad log p, (B, *event).
    """

    def __init__(self, model: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs) -> Tensor:
        raise TypeError(NO_ENERGY)

    def gradient(self, x: Tensor, model_kwargs: dict) -> Tensor:
        """Minus the score at x, which the gradient of an energy would be; without a graph.

        Raises:
            TypeError, ValueError: the score is not a floating-point tensor of the shape of x.
        """
        score = self.model(x, **model_kwargs)
        if not isinstance(score, Tensor) or not score.is_floating_point():
            kind = f"a tensor of {score.dtype}" if isinstance(score, Tensor) else type(score)
            raise TypeError(f"score must return a floating-point tensor, got {kind}")
        if score.shape != x.shape:
            raise ValueError(
                f"score must return the gradient of log p, {tuple(x.shape)} as x, got"
                f" {tuple(score.shape)}"
            )
        return torch.neg(score.detach()).to(x.dtype)
