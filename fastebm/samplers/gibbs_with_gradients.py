"""Gibbs with gradients: chains on binary and categorical variables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from fastebm.arguments import Setting, one_of
from fastebm.chains.adjusted import Points
from fastebm.chains.discrete import DiscreteSteps
from fastebm.chains.steps import Steps
from fastebm.energies.standardized import Standardized
from fastebm.rng import ChainRNG
from fastebm.samplers.run import Run
from fastebm.samplers.sampler import Sampler
from fastebm.samplers.settings import callable_model, setting, value_at


def _model(name: str, model: Callable[..., Tensor]) -> Callable[..., Tensor]:
    if isinstance(model, Standardized):
        raise TypeError(f"{name} must be an energy of 0 and 1, got Standardized, which shifts them")
    return callable_model(name, model)


class GibbsWithGradients(Sampler):
    """Gibbs with gradients: each step proposes to change one variable, the sooner the more the
    gradient says that it lowers the energy, and accepts or refuses it: chains on {0, 1}^D, or on
    one-hot vectors, sample ``exp(-E / temperature)`` exactly.

    A change i is proposed with probability proportional to ``exp(d_i / 2)``, where d_i is what
    ``-E / temperature`` gains by it to first order: ``(2 x_i - 1) dE/dx_i / temperature`` for the
    flip of a bit, ``(dE/dx_(s,old) - dE/dx_(s,new)) / temperature`` for another category of a site.
    It is accepted with probability ``min(1, p(y) q(x | y) / (p(x) q(y | x)))``, q(x | y) by the
    gradient at y. One gradient a step: that of the point which was accepted is known.

    Args:
        model: the energy, (B, *event) -> (B,), (B, 1) or (B, S), differentiable, and given
            floating-point tensors of 0 and 1.
        temperature: a number > 0, a tensor of B numbers, or a schedule.
        categorical: samples are (*sites, K): one-hot vectors of K >= 2 categories. Else each
            element is a bit.

    ``sample``: where ``x`` is None chains start at uniform states. Diagnostics beside those of all
    samplers: ``acceptance``, the mean acceptance probability. There is nothing to warm up, and
    ImprovedContrastiveDivergence does not take it: a change of a bit has no derivative.

    Raises:
        TypeError, ValueError: an argument is not of its kind or out of its range.

    Source: Grathwohl et al., Oops I took a gradient: scalable sampling for discrete distributions,
    2021.
    """

    dtypes = (torch.float32,)
    clamp = preconditioner = None
    model = Setting(_model)
    temperature = Setting(partial(setting, above_zero=True, per_chain=True))
    categorical = Setting(one_of(False, True))

    def __init__(
        self,
        model: Callable[..., Tensor],
        temperature: float | Tensor | Callable[[int], float] = 1.0,
        categorical: bool = False,
    ) -> None:
        self.model, self.temperature, self.categorical = model, temperature, categorical

    @property
    def effective_temperature(self) -> float | Tensor:
        """The temperature, of the first step where there is a schedule."""
        return self._temperature(0)

    def _temperature(self, k: int) -> float | Tensor:
        return value_at(k, "temperature", self.temperature, above_zero=True)

    def check_states(self, x: Tensor) -> None:
        """ValueError unless x (B, *event) is of 0 and 1, or one-hot. Values on a device are not
        looked at, as that would wait for it."""
        if self.categorical and (x.dim() < 2 or x.shape[-1] < 2):
            raise ValueError(f"x must be (B, *sites, K), K >= 2, one-hot, got {tuple(x.shape)}")
        if x.device.type != "cpu":
            return
        bad = ~((x == 0) | (x == 1))
        if bad.any():
            raise ValueError(
                f"x must be of 0 and 1, got {x[bad][0].item():g} (a ReplayBuffer of bits needs"
                " init= a function that draws some)"
            )
        if self.categorical and not bool((x.sum(-1) == 1).all()):
            raise ValueError("x must be one-hot: a single 1 along its last dimension")

    def run(self, x: Tensor, *args, **more) -> tuple[Points, dict[str, Tensor]]:
        """As of any sampler; ValueError unless x is of states, as a buffer's may not be."""
        self.check_states(x)
        return super().run(x, *args, **more)

    def _start(self, n, dim, rng: ChainRNG, ids: Tensor | None) -> Tensor:
        noise = super()._start(n, dim, rng, ids)
        if not self.categorical:
            return (noise > 0).to(noise.dtype)
        places = noise.argmax(-1, keepdim=True)
        return torch.zeros_like(noise).scatter_(-1, places, 1.0)

    @contextmanager
    def steps(self, run: Run) -> Iterator[Steps]:
        """The steps of a run."""
        state = run.rng.state(run.x.device, len(run.x))
        n_categories = run.x.shape[-1] if self.categorical else 0
        with self.gradients(run) as gradient:
            yield DiscreteSteps(gradient, self._temperature, n_categories, state, run.sample_ids)
