"""Restricted Boltzmann machines: binary hidden units, and binary or Gaussian visible ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import linear, softplus

from fastebm.arguments import integer
from fastebm.energies.compose import Energy
from fastebm.modes import full_precision
from fastebm.ops.bernoulli import bernoulli_sigmoid_
from fastebm.ops.langevin import langevin_step_
from fastebm.rng import HIDDEN, VISIBLE, ChainRNG, as_rng, check_sample_ids

_START = 0.01  # standard deviation of the weights that training starts from (Hinton 2010, 8)

Seed = int | ChainRNG | Tensor | None


class _Restricted(Energy):
    """What the machines share: ``E(v, h) = A(v) - c h - h W s(v)``, where A and s are the
    machine's. Given one layer the units of the other are independent. Units of any dtype are taken
    to that of the parameters, in which draws are made, under autocast too."""

    def __init__(self, n_visible: int, n_hidden: int) -> None:
        super().__init__()
        self.n_visible = integer("n_visible", n_visible, 1)
        self.n_hidden = integer("n_hidden", n_hidden, 1)
        self.W = nn.Parameter(_START * torch.randn(self.n_hidden, self.n_visible))
        self.b = nn.Parameter(torch.zeros(self.n_visible))
        self.c = nn.Parameter(torch.zeros(self.n_hidden))

    def forward(self, x: Tensor) -> Tensor:
        """``free_energy(x)``."""
        return self.free_energy(x)

    def energy(self, v: Tensor, h: Tensor) -> Tensor:
        """Joint energies (B,) of v (B, V) and h (B, H)."""
        v, h = self._visible(v), self._hidden(h)
        return self._alone(v) - h @ self.c - (h * linear(self._scaled(v), self.W)).sum(1)

    def free_energy(self, v: Tensor) -> Tensor:
        """``-log sum_h exp(-E(v, h))``, (B,)."""
        return self._alone(self._visible(v)) - softplus(self.hidden_logits(v)).sum(1)

    def hidden_free_energy(self, h: Tensor) -> Tensor:
        """``-log`` of the sum (integral) of ``exp(-E(v, h))`` over v, (B,), of h (B, H)."""
        return self._summed_visible(self._hidden(h)) - h @ self.c

    def hidden_logits(self, v: Tensor) -> Tensor:
        """(B, H): p(h_j = 1 | v) is the sigmoid of these."""
        return linear(self._scaled(self._visible(v)), self.W, self.c)

    @torch.no_grad()
    def sample_hidden(
        self,
        v: Tensor,
        seed: Seed = None,
        *,
        t: int = 0,
        sample_ids: Tensor | None = None,
        beta: float = 1.0,
        generator: Generator | None = None,
    ) -> Tensor:
        """h (B, H) in {0, 1}, of the dtype of the parameters, given v (B, V).

        Args:
            v: (B, V), or (B, *event) of V elements.
            seed: an int: the same numbers in every call; a ``ChainRNG``: those of its step, and it
                is advanced by one; None: a key from ``generator``, or from torch's default
                generator; a Tensor: ``ChainRNG.state(device)``, for chains that count ``t``.
            t: added to the step.
            sample_ids: int64 (B,), whose random numbers each row gets; default: its row.
            beta: inverse temperature, >= 0: h is drawn from the conditional law of exp(-beta E).
            generator: see ``seed``; not both.
        """
        check_sample_ids(sample_ids, len(v))
        with full_precision(self.W.device):
            logits = self.hidden_logits(v)
        state = _state(seed, generator, logits, len(logits))
        options = {"t": t, "sample_ids": sample_ids, "beta": beta}
        return bernoulli_sigmoid_(logits, state, tag=HIDDEN, **options)

    def gibbs_step(
        self, v: Tensor, seed: Seed = None, *, generator: Generator | None = None, **options
    ) -> tuple[Tensor, Tensor]:
        """h given v, then v given h: a step of block Gibbs sampling, which keeps exp(-beta E).

        Arguments as in ``sample_hidden``; the two draws have streams of their own.

        Returns:
            The new v (B, V), and the h (B, H) that it was drawn from.
        """
        state = _state(seed, generator, self.b, len(v))
        h = self.sample_hidden(v, state, **options)
        return self.sample_visible(h, state, **options), h

    def extra_repr(self) -> str:
        return f"n_visible={self.n_visible}, n_hidden={self.n_hidden}"

    def _visible(self, v: Tensor) -> Tensor:
        if v.dim() < 2 or v.shape[1:].numel() != self.n_visible:
            raise ValueError(f"v must be (B, {self.n_visible}), got {tuple(v.shape)}")
        return v.flatten(1).to(self.W.dtype)

    def _hidden(self, h: Tensor) -> Tensor:
        if h.dim() != 2 or h.shape[1] != self.n_hidden:
            raise ValueError(f"h must be (B, {self.n_hidden}), got {tuple(h.shape)}")
        return h.to(self.W.dtype)


class RBM(_Restricted):
    """Binary restricted Boltzmann machine, p(v, h) proportional to exp(-E(v, h)).

    ``E(v, h) = -b v - c h - h W v``, v in {0, 1}^V, h in {0, 1}^H. As an energy it is the free
    energy of v, ``model(v) = -b v - sum_j softplus(c_j + W_j v)``, (B, V) -> (B,).

    A v may have any shape (B, *event) of V elements, and hold values inside [0, 1], such as grey
    levels: they enter as they are, the usual stand-in for the means of binary pixels. Weights start
    at N(0, 0.01^2), biases at 0.

    Attributes:
        W: (H, V), weights.
        b: (V,), biases of visible units.
        c: (H,), of hidden units.

    Raises:
        ValueError: a size is not an integer >= 1, or v or h is of another width.

    Source: Smolensky, Information processing in dynamical systems: foundations of harmony theory,
    1986; Hinton, A practical guide to training restricted Boltzmann machines, 2010.
    """

    def visible_logits(self, h: Tensor) -> Tensor:
        """``b + h W`` (B, V): p(v_i = 1 | h) is the sigmoid of these."""
        return torch.addmm(self.b, self._hidden(h), self.W)

    def visible_mean(self, h: Tensor) -> Tensor:
        """E[v | h] (B, V)."""
        return self.visible_logits(h).sigmoid()

    @torch.no_grad()
    def sample_visible(
        self,
        h: Tensor,
        seed: Seed = None,
        *,
        t: int = 0,
        sample_ids: Tensor | None = None,
        beta: float = 1.0,
        generator: Generator | None = None,
    ) -> Tensor:
        """v (B, V) in {0, 1} given h (B, H). Other arguments as in ``sample_hidden``."""
        check_sample_ids(sample_ids, len(h))
        with full_precision(self.W.device):
            logits = self.visible_logits(h)
        state = _state(seed, generator, logits, len(logits))
        options = {"t": t, "sample_ids": sample_ids, "beta": beta}
        return bernoulli_sigmoid_(logits, state, tag=VISIBLE, **options)

    def flip_energies(self, v: Tensor) -> Tensor:
        """What the free energy gains when one v_i becomes 1 - v_i, for each i: (B, V).

        The hidden inputs of v are shared by its V neighbours, so this costs V H softplus a sample.
        """
        v = self._visible(v)
        inputs, change = self.hidden_logits(v), 1 - 2 * v
        before = softplus(inputs).sum(1, keepdim=True)
        after = [
            softplus(a + d[:, None] * self.W.T).sum(1) for a, d in zip(inputs, change, strict=True)
        ]
        return before - torch.stack(after) - change * self.b

    def binary_layers(self) -> list[tuple[int, Callable[[Tensor], Tensor]]]:
        """The layers that can be enumerated, each its number of units and its free energy."""
        return [(self.n_visible, self.free_energy), (self.n_hidden, self.hidden_free_energy)]

    @torch.no_grad()
    def fit_visible(self, v: Tensor) -> None:
        """Set the visible biases to where the machine without hidden units fits v (B, V) best: the
        logits of its means, kept off 0 and 1 by one sample more of each.

        Source: Hinton 2010, 8.1.
        """
        self.check_data(v)
        n = len(v)
        self.b.copy_(((self._visible(v).sum(0) + 1) / (n + 2)).logit())

    def check_data(self, v: Tensor) -> None:
        """Raise ValueError unless v has V elements a sample, all in [0, 1]. Waits for the device:
        for data and starting points, not for each step."""
        v = self._visible(v).detach()
        lo, hi = (float(e) for e in torch.aminmax(v)) if v.numel() else (0.0, 0.0)
        if not (lo >= 0 and hi <= 1):
            got = "NaN" if math.isnan(lo) else f"values from {lo:g} to {hi:g}"
            raise ValueError(f"v must hold values in [0, 1], got {got}")

    def _alone(self, v: Tensor) -> Tensor:
        return -(v @ self.b)

    def _scaled(self, v: Tensor) -> Tensor:
        return v

    def _summed_visible(self, h: Tensor) -> Tensor:
        return -softplus(self.visible_logits(h)).sum(1)


class GaussianRBM(_Restricted):
    """RBM with real-valued visible units, whose variances sigma^2 are learned.

    ``E(v, h) = sum_i (v_i - b_i)^2 / (2 sigma_i^2) - c h - h W (v / sigma^2)``: v given h is
    N(b + h W, sigma^2), and p(h_j = 1 | v) = sigmoid(c_j + W_j (v / sigma^2)). What is drawn of v
    is a draw, not the mean.

    Arguments, methods, W, b and c as in ``RBM``.

    Attributes:
        log_var: (V,), log sigma^2; starts at 0, so data are best brought to a variance of about 1.

    Source: Cho, Ilin, Raiko, Improved learning of Gaussian-Bernoulli restricted Boltzmann machines,
    2011.
    """

    def __init__(self, n_visible: int, n_hidden: int) -> None:
        super().__init__(n_visible, n_hidden)
        self.log_var = nn.Parameter(torch.zeros(self.n_visible))

    def visible_mean(self, h: Tensor) -> Tensor:
        """E[v | h] = ``b + h W`` (B, V)."""
        return torch.addmm(self.b, self._hidden(h), self.W)

    @torch.no_grad()
    def sample_visible(
        self,
        h: Tensor,
        seed: Seed = None,
        *,
        t: int = 0,
        sample_ids: Tensor | None = None,
        beta: float = 1.0,
        generator: Generator | None = None,
    ) -> Tensor:
        """v (B, V) from N(b + h W, sigma^2 / beta), beta > 0. Other arguments as in
        ``sample_hidden``."""
        if not beta > 0:
            raise ValueError(f"beta must be > 0 for Gaussian units, got {beta}")
        check_sample_ids(sample_ids, len(h))
        with full_precision(self.W.device):
            mean = self.visible_mean(h)
        state = _state(seed, generator, mean, len(mean))
        noise = langevin_step_(
            *(torch.zeros_like(mean), None, 0.0, beta**-0.5, state),
            t=t,
            sample_ids=sample_ids,
            tag=VISIBLE,
        )
        return mean.addcmul_(noise, (self.log_var / 2).exp())

    def binary_layers(self) -> list[tuple[int, Callable[[Tensor], Tensor]]]:
        """The hidden layer: see ``RBM``."""
        return [(self.n_hidden, self.hidden_free_energy)]

    @torch.no_grad()
    def fit_visible(self, v: Tensor) -> None:
        """Set the visible biases and variances to those of v (B, V), where the machine without
        hidden units fits it best; variances at least a hundredth of their mean."""
        self.check_data(v)
        var, mean = torch.var_mean(self._visible(v), 0, correction=0)
        self.b.copy_(mean)
        self.log_var.copy_(var.clamp(min=0.01 * float(var.mean())).log())

    def check_data(self, v: Tensor) -> None:
        """Raise ValueError unless v has V elements a sample, all finite. Waits for the device."""
        if not self._visible(v).isfinite().all():
            raise ValueError("v must be finite, got NaN or infinity")

    def _alone(self, v: Tensor) -> Tensor:
        return (v - self.b).square() @ self._precision() / 2

    def _scaled(self, v: Tensor) -> Tensor:
        return v * self._precision()

    def _summed_visible(self, h: Tensor) -> Tensor:
        gained = (self.visible_mean(h).square() - self.b.square()) * self._precision()
        return -(gained + self.log_var + math.log(2 * math.pi)).sum(1) / 2

    def _precision(self) -> Tensor:
        return (-self.log_var).exp()


def _state(seed: Seed, generator: Generator | None, like: Tensor, n: int) -> Tensor:
    """The state that ``seed`` and ``generator`` name, of ``n`` samples; a ``ChainRNG`` goes on by
    one step."""
    if isinstance(seed, Tensor):
        return seed
    rng = as_rng(seed, generator)
    state = rng.state(like.device, n)
    rng.advance(1)
    return state
