"""Helmholtz machine: a sigmoid belief net that generates, and one that recognises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import logsigmoid

from fastebm.arguments import integer, sizes
from fastebm.modes import full_precision
from fastebm.ops.bernoulli import bernoulli_sigmoid_
from fastebm.rng import HIDDEN, VISIBLE, ChainRNG, as_rng


class HelmholtzMachine(nn.Module):
    """Layers of binary units v = h_0, h_1 .. h_L, with a generative model p(v, h) from the top down
    and a recognition model q(h | v) from the bottom up, each layer independent given the last.

    ``p(h_L) = sigmoid(top)``, ``p(h_l-1 = 1 | h_l) = sigmoid(generative_l(h_l))`` and
    ``q(h_l = 1 | h_l-1) = sigmoid(recognition_l(h_l-1))``. A state is the list of its layers,
    [v, h_1 .. h_L], each (B, width). Values of v between 0 and 1 count as means of bits: log p(v,
    h) is then its mean over them.

    Unlike an energy, p is normalised; what has no closed form is p(v), which
    ``log_likelihood_bound`` bounds.

    Args:
        n_visible: V.
        n_hidden: widths of the hidden layers, the one next to v first.

    Raises:
        ValueError: a width is not an integer >= 1, or there is no hidden layer.

    Source: Dayan, Hinton, Neal, Zemel, The Helmholtz machine, 1995.
    """

    def __init__(self, n_visible: int, n_hidden: Sequence[int]) -> None:
        super().__init__()
        self.widths = [integer("n_visible", n_visible, 1), *sizes("n_hidden", n_hidden)]
        if len(self.widths) < 2:
            raise ValueError("n_hidden must be the width of at least one layer, got none")
        self.generative = nn.ModuleList(nn.Linear(up, down) for down, up in pairwise(self.widths))
        self.recognition = nn.ModuleList(nn.Linear(down, up) for down, up in pairwise(self.widths))
        self.top = nn.Parameter(torch.zeros(self.widths[-1]))
        for layer in (*self.generative, *self.recognition):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The Helmholtz free energy, (B,), by one h with the same noise in every call: an energy of
        x, normalised up to its gap to -log p(x)."""
        return -self.log_likelihood_bound(x, 1, 0).to(x.dtype)

    @torch.no_grad()
    def recognise(
        self, v: Tensor, seed: int | ChainRNG | None = None, generator: Generator | None = None
    ) -> list[Tensor]:
        """A state [v, h_1 .. h_L] with h from q(h | v).

        Args:
            v: (B, V), or (B, *event) of V elements; of any dtype, taken to that of the parameters.
            seed: an int: the same bits in every call; a ``ChainRNG``: those of its next L + 1
                steps; None: a key from ``generator``, or from torch's default generator.
            generator: see ``seed``; not both.
        """
        state = [self._visible(v)]
        rng = as_rng(seed, generator)
        rng.check_room(len(self.widths))
        with full_precision(self.top.device):
            for layer in self.recognition:
                state.append(_draw(layer(state[-1]), rng, HIDDEN))
        rng.advance(1)
        return state

    @torch.no_grad()
    def dream(
        self, n: int, seed: int | ChainRNG | None = None, generator: Generator | None = None
    ) -> list[Tensor]:
        """n states [v, h_1 .. h_L] from p(v, h). ``seed`` and ``generator`` as in ``recognise``."""
        n, rng = integer("n", n, 0), as_rng(seed, generator)
        rng.check_room(len(self.widths))
        state = [_draw(self.top.repeat(n, 1), rng, VISIBLE)]
        with full_precision(self.top.device):
            for layer in reversed(self.generative):
                state.insert(0, _draw(layer(state[0]), rng, VISIBLE))
        return state

    def log_joint(self, state: Sequence[Tensor]) -> Tensor:
        """log p(v, h), (B,), which depends on the generative parameters only."""
        total = _log_prob(self.top.expand_as(state[-1]), state[-1])
        for layer, (below, above) in zip(self.generative, pairwise(state), strict=True):
            total = total + _log_prob(layer(above), below)
        return total

    def log_recognition(self, state: Sequence[Tensor]) -> Tensor:
        """log q(h | v), (B,), which depends on the recognition parameters only."""
        parts = zip(self.recognition, pairwise(state), strict=True)
        return sum(_log_prob(layer(below), above) for layer, (below, above) in parts)

    @torch.no_grad()
    def log_likelihood_bound(
        self,
        v: Tensor,
        n_samples: int = 1,
        seed: int | ChainRNG | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Mean of ``log p(v, h) - log q(h | v)`` over n_samples h from q: (B,) float64. Its
        expectation is at most log p(v); minus it is the Helmholtz free energy."""
        return self._log_weights(v, n_samples, as_rng(seed, generator)).mean(0)

    @torch.no_grad()
    def log_likelihood(
        self,
        v: Tensor,
        n_samples: int = 100,
        seed: int | ChainRNG | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """log p(v) by importance sampling, ``log mean p(v, h) / q(h | v)`` over n_samples h from
        q: (B,) float64. Its expectation is at most log p(v), and rises to it with n_samples.

        Source: Burda, Grosse, Salakhutdinov, Importance weighted autoencoders, 2016.
        """
        log_w = self._log_weights(v, n_samples, as_rng(seed, generator))
        return torch.logsumexp(log_w, 0) - math.log(n_samples)

    @torch.no_grad()
    def fit_visible(self, v: Tensor) -> None:
        """Set the biases that v is generated with to the logits of its means (B, V), kept off 0 and
        1 by one sample more of each: training need not find them."""
        self.check_data(v)
        mean = (self._visible(v).sum(0) + 1) / (len(v) + 2)
        self.generative[0].bias.copy_(mean.logit())

    def check_data(self, v: Tensor) -> None:
        """Raise ValueError unless v has V elements a sample, all in [0, 1]. Waits for the
        device."""
        v = self._visible(v)
        n_bad = int((~((v >= 0) & (v <= 1))).sum())
        if n_bad:
            raise ValueError(
                f"v must hold values in [0, 1]; {n_bad} of {v.numel()} are outside, or NaN"
            )

    def _log_weights(self, v: Tensor, n_samples: int, rng: ChainRNG) -> Tensor:
        """(n_samples, B) float64."""
        n_samples = integer("n_samples", n_samples, 1)
        self.check_data(v)
        rng.check_room(n_samples * len(self.widths))
        states = (self.recognise(v, rng) for _ in range(n_samples))
        with full_precision(self.top.device):
            return torch.stack(
                [self.log_joint(s).double() - self.log_recognition(s).double() for s in states]
            )

    def _visible(self, v: Tensor) -> Tensor:
        if v.dim() < 2 or v.shape[1:].numel() != self.widths[0]:
            raise ValueError(f"v must be (B, {self.widths[0]}), got {tuple(v.shape)}")
        return v.flatten(1).to(self.top.dtype)


def _draw(logits: Tensor, rng: ChainRNG, tag: int) -> Tensor:
    drawn = bernoulli_sigmoid_(logits, rng.state(logits.device, len(logits)), tag=tag)
    rng.advance(1)
    return drawn


def _log_prob(logits: Tensor, h: Tensor) -> Tensor:
    """``sum_i h_i log sigmoid(logits_i) + (1 - h_i) log sigmoid(-logits_i)``, (B,)."""
    return (logsigmoid(logits) - (1 - h) * logits).sum(1)
