"""Chains that pass from a base to a model: block Gibbs of RBMs, Metropolis-adjusted Langevin."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from fastebm.energies.protocol import input_gradient
from fastebm.energies.sampling_mode import sampling_mode
from fastebm.likelihood.bases import BernoulliBase, GaussianBase, UniformBase
from fastebm.ops.bernoulli import bernoulli_sigmoid, bernoulli_sigmoid_
from fastebm.ops.langevin import langevin_step_
from fastebm.rng import ACCEPT, HIDDEN, INIT, VISIBLE, ChainRNG

TARGET_ACCEPTANCE = 0.574  # the best for Langevin proposals in many dimensions
PILOT_STEPS, PILOT_GAIN = 400, 0.3  # at least so many steps find the sizes; change at each, in logs


class GibbsChains:
    """Chains of an RBM whose weights and biases go from (0, base) to its own, linearly in beta.

    ``log p_beta(v) = ((1 - beta) b_0 + beta b) v + sum_j softplus(beta (c + W v)_j)`` + const.

    Args:
        rbm: with W (H, V), b (V,), c (H,).
        base: of V logits.
        n_steps: Gibbs steps at each beta.
    """

    needs_pilot = False

    def __init__(self, rbm, base: BernoulliBase, n_steps: int) -> None:
        if not all(hasattr(rbm, name) for name in "Wbc") or not hasattr(rbm, "flip_energies"):
            raise TypeError(f"a BernoulliBase is for an RBM, got {type(rbm).__name__}")
        self.W, self.b, self.c = (p.detach() for p in (rbm.W, rbm.b, rbm.c))
        if base.logits.shape != self.b.shape:
            raise ValueError(
                f"base must have the machine's {len(self.b)} visible units,"
                f" got {tuple(base.logits.shape)}"
            )
        self.base_logits, self.n_steps = base.logits.to(self.b), n_steps
        self.base_log_z = float(softplus(self.base_logits.double()).sum())
        self.base_log_z += len(self.c) * math.log(2)

    @property
    def device(self) -> torch.device:
        return self.b.device

    def ready(self) -> AbstractContextManager:
        return nullcontext()

    def n_draws(self, betas: list[float]) -> int:
        """How many steps of the stream a run takes."""
        return 1 + self.n_steps * (len(betas) - 2)

    def check(self, x: Tensor) -> None:
        """ValueError unless x is (B, V), or (B, *event) of V elements, of bits."""
        if x.shape[1:].numel() != len(self.b) or not bool(((x == 0) | (x == 1)).all()):
            raise ValueError(f"x must be (B, {len(self.b)}) of 0 and 1, got {tuple(x.shape)}")

    def start(self, x: Tensor | None, n: int, rng: ChainRNG) -> None:
        """At x, or at n samples of the base."""
        if x is None:
            logits = self.base_logits.repeat(n, 1)
            x = bernoulli_sigmoid_(logits, rng.state(logits.device, n), tag=INIT)
            rng.advance(1)
        self._set(x.flatten(1).to(self.b))

    def log_ratio(self, low: float, high: float) -> Tensor:
        """log p_high / p_low, unnormalised, at the chains: (B,) float64."""
        inputs = self.inputs.double()
        hidden = (softplus(high * inputs) - softplus(low * inputs)).sum(1)
        return (high - low) * self._visible_slope() + hidden

    def move(self, k: int, beta: float, rng: ChainRNG) -> Tensor:
        """Transitions that leave p_beta as it is; returns the share accepted."""
        for _ in range(self.n_steps):
            state = rng.state(self.v.device, len(self.v))
            h = bernoulli_sigmoid(self.inputs, state, beta=beta, tag=HIDDEN)
            self._set(self._draw_visible(h, beta, state))
            rng.advance(1)
        return torch.ones((), dtype=torch.float64, device=self.v.device)

    def _visible_slope(self) -> Tensor:
        """What log p_beta gains with beta by the visible units alone: (B,) float64."""
        return (self.v @ (self.b - self.base_logits)).double()

    def _draw_visible(self, h: Tensor, beta: float, state: Tensor) -> Tensor:
        logits = torch.lerp(self.base_logits, torch.addmm(self.b, h, self.W), beta)
        return bernoulli_sigmoid_(logits, state, tag=VISIBLE)

    def _set(self, v: Tensor) -> None:
        self.v, self.inputs = v, linear(v, self.W, self.c)


class GaussianGibbsChains(GibbsChains):
    """Chains of a GaussianRBM whose law goes from the base's to its own.

    ``log p_beta(v) = (1 - beta) log p_0(v) - beta |v - b|^2 / (2 sigma^2) + sum_j softplus(beta (c
    + W v / sigma^2)_j)`` + const; v given h is normal, its precision linear in beta.

    Args:
        machine: a GaussianRBM.
        base: of its V visible units.
        n_steps: Gibbs steps at each beta.
    """

    def __init__(self, machine, base: GaussianBase, n_steps: int) -> None:
        self.machine, self.b, self.n_steps = machine, machine.b.detach(), n_steps
        if base.mean.numel() != len(self.b):
            raise ValueError(
                f"base must have the machine's {len(self.b)} visible units, got {tuple(base.event)}"
            )
        self.base = GaussianBase(base.mean.flatten().to(self.b), base.std.flatten().to(self.b))
        self.base_log_z = len(machine.c) * math.log(2)
        self.precision = (-machine.log_var.detach()).exp()

    def check(self, x: Tensor) -> None:
        """ValueError unless x is (B, V), or (B, *event) of V elements."""
        if x.shape[1:].numel() != len(self.b):
            raise ValueError(f"x must be (B, {len(self.b)}), got {tuple(x.shape)}")

    def start(self, x: Tensor | None, n: int, rng: ChainRNG) -> None:
        """At x, or at n samples of the base."""
        if x is None:
            x = self.base.sample(n, rng)
            rng.advance(1)
        self._set(x.flatten(1).to(self.b))

    def _visible_slope(self) -> Tensor:
        own = ((self.v - self.b).square() * self.precision).double().sum(1) / 2
        return self.base.energy(self.v)[0] - own

    def _draw_visible(self, h: Tensor, beta: float, state: Tensor) -> Tensor:
        own, of_base = beta * self.precision, (1 - beta) * self.base.std**-2
        mean = (own * self.machine.visible_mean(h) + of_base * self.base.mean) / (own + of_base)
        noise = torch.zeros_like(mean, memory_format=torch.contiguous_format)
        langevin_step_(noise, None, 0.0, 1.0, state, tag=VISIBLE)
        return torch.addcmul(mean, noise, (own + of_base).rsqrt())

    def _set(self, v: Tensor) -> None:
        self.v, self.inputs = v, self.machine.hidden_logits(v)


class MetropolisChains:
    """Chains that leave ``p_0^(1 - beta) exp(-beta E)`` as it is by Langevin steps, accepted or
    refused (MALA).

    Args:
        model: an energy.
        base: p_0.
        n_steps: proposals at each beta.
        step_size: None: to be found by ``find_step_sizes``.

    Source: Roberts and Tweedie, Exponential convergence of Langevin distributions, 1996.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        base: GaussianBase | UniformBase,
        n_steps: int,
        step_size: float | None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        self.model, self.base, self.n_steps = model, base, n_steps
        self.base_log_z = 0.0
        self.step_sizes = step_size

    @property
    def needs_pilot(self) -> bool:
        return self.step_sizes is None

    @property
    def device(self) -> torch.device:
        return self.base.scale.device

    def ready(self) -> AbstractContextManager:
        """The model in eval mode and its parameters frozen."""
        return sampling_mode(self.model)

    def n_draws(self, betas: list[float]) -> int:
        """How many steps of the stream a run takes."""
        pilot = 1 + self._repeats(betas) * (len(betas) - 1) if self.needs_pilot else 0
        return pilot + 1 + self.n_steps * (len(betas) - 2)

    def check(self, x: Tensor) -> None:
        """ValueError unless x has the base's shape and support."""
        event = self.base.event
        if x.shape[1:] != event or not bool(self.base.inside(x).all()):
            raise ValueError(
                f"x must be (B, *event), event {tuple(event)}, where the base has density,"
                f" got {tuple(x.shape)}"
            )

    def start(self, x: Tensor | None, n: int, rng: ChainRNG) -> None:
        """At x, or at n samples of the base."""
        if x is None:
            x = self.base.sample(n, rng)
            rng.advance(1)
        self.x = x.to(self.base.scale, copy=True)  # of no inference mode
        self.at = self._look(self.x)

    def log_ratio(self, low: float, high: float) -> Tensor:
        """log p_high / p_low, unnormalised, at the chains: (B,) float64."""
        e, _, e_base, _ = self.at
        return (high - low) * (e_base - e)

    def move(self, k: int, beta: float, rng: ChainRNG) -> Tensor:
        """Transitions that leave p_beta as it is; returns the share accepted."""
        size = self.step_sizes[k] if isinstance(self.step_sizes, list) else self.step_sizes
        return torch.stack([self._step(size, beta, rng) for _ in range(self.n_steps)]).mean()

    def find_step_sizes(self, betas: list[float], rng: ChainRNG) -> None:
        """One size for each beta, by stochastic approximation along a run that is then thrown away:
        sizes that followed the chains they serve would bias them."""
        size, sizes = 0.1 * float(self.base.scale.min()) ** 2, [0.0]
        for beta in betas[1:]:
            for _ in range(self._repeats(betas)):
                accepted = float(self._step(size, beta, rng))
                size *= math.exp(PILOT_GAIN * (accepted - TARGET_ACCEPTANCE))
            sizes.append(size)
        self.step_sizes = sizes

    def _repeats(self, betas: list[float]) -> int:
        return max(1, PILOT_STEPS // len(betas))

    def _look(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Energies (B,) float64 and gradients (B, *event) of model and base."""
        grad, e = input_gradient(self.model, x)
        return e.double(), grad, *self.base.energy(x)

    def _step(self, size: float, beta: float, rng: ChainRNG) -> Tensor:
        x, here, state = self.x, self.at, rng.state(self.x.device, len(self.x))
        y = langevin_step_(x.clone(), _pull(here, beta), size, math.sqrt(2 * size), state)
        there = self._look(y)
        # log p_beta(y) q(x | y) / (p_beta(x) q(y | x)), q the law of the proposals
        log_odds = _level(here, beta) - _level(there, beta)
        log_odds -= _squares(x - y + size * _pull(there, beta)) / (4 * size)
        log_odds += _squares(y - x + size * _pull(here, beta)) / (4 * size)
        z = torch.zeros((len(x), 1), dtype=torch.float64, device=x.device)
        z = langevin_step_(z, None, 0.0, 1.0, state, tag=ACCEPT)[:, 0]
        accept = (torch.special.log_ndtr(z) < log_odds) & self.base.inside(y)  # NaN: refused
        rng.advance(1)
        self.x = _choose(accept, y, x)
        self.at = tuple(_choose(accept, b, a) for a, b in zip(here, there, strict=True))
        return accept.double().mean()


def _level(at: tuple[Tensor, ...], beta: float) -> Tensor:
    return (1 - beta) * at[2] + beta * at[0]


def _pull(at: tuple[Tensor, ...], beta: float) -> Tensor:
    return torch.lerp(at[3], at[1], beta)


def _squares(x: Tensor) -> Tensor:
    return x.double().flatten(1).square().sum(1)


def _choose(accept: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accept.view(-1, *[1] * (new.dim() - 1)), new, old)
