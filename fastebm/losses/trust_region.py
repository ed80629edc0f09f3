"""The learning rate from how far a step moves the density: a trust region in nats."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastebm.arguments import Setting, integer, optional
from fastebm.distributed.collectives import all_rows
from fastebm.distributed.world import world
from fastebm.energies.protocol import checked_energies, sum_scales, uncached_casts
from fastebm.energies.sampling_mode import modules_of, parameters_of, sampling_mode
from fastebm.losses.nonfinite import NonFiniteError, counts_of_ranks
from fastebm.samplers.settings import callable_model, number

LARGEST_RATE = torch.finfo(torch.float32).max  # from an infinite one no factor leads back
GAIN, MOST_DOWN = 0.2, 2.0  # of the logarithm of the rate: in a usual step, and at a back-tracking


def kl_step(before: Tensor, after: Tensor) -> Tensor:
    """``Var[after - before] / 2`` in nats: how far a training step moved the density.

    Over samples of the model before the step it is ``KL(p_before || p_after)`` up to the third
    order of the change. Levels do not count: a change of every energy by one number is none.

    Args:
        before, after: energies (B,) of the same B >= 2 samples, or (B, S), whose scales are summed.

    Returns:
        0-d float64; the variance is the unbiased one.

    Raises:
        ValueError: they have not one such shape.
    """
    if before.shape != after.shape or before.dim() not in (1, 2) or len(before) < 2:
        raise ValueError(
            "before and after must be energies (B,) or (B, S) of the same samples, B >= 2, got"
            f" {tuple(before.shape)} and {tuple(after.shape)}"
        )
    return (sum_scales(after.double()) - sum_scales(before.double())).var() / 2


def _optimizer(name: str, optimizer: Optimizer) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{name} must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def _backtrack(name: str, value: float) -> float:
    if number(name, value) < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")
    return float(value)


class TrustRegion:
    """Steps of an optimiser that move the density by about ``nats``, at any initial learning rate.

        trust = TrustRegion(torch.optim.Adam(model.parameters(), lr=0.01))
        out = loss(x)
        trust.optimizer.zero_grad()
        out.loss.backward()
        trust.step(model, out.x_neg)  # in place of optimizer.step()

    A step's ``kl_step``, over the chains that its gradient was taken of, says by how much to
    multiply the learning rates (of every group): by ``exp(0.2 c)``, c = log(nats / kl_step) / 2
    clipped to -1..1. A step of more than ``backtrack * nats`` is also shortened: the parameters
    become ``old + sqrt(nats / kl_step) (new - old)``, and the rates are multiplied by
    ``exp(max(-2, log(nats / kl_step) / 2))``. A step after which energies are not finite is undone,
    in the parameters and in the optimiser's state, bit for bit, and the rates multiplied by
    ``exp(-2)``.

    Each step takes the energies of the chains twice more, keeps a copy of the parameters and of the
    optimiser's state meanwhile, and waits for the device. A scheduler of learning rates would
    overwrite what is found here: schedule ``nats``. In a process group of ``torch.distributed`` the
    change is that of all ranks' chains, as many on each, and the step the same on all: reduce the
    gradients before, as for any optimiser.

    Args:
        optimizer: of the parameters, all of its groups.
        nats: aim of a step, > 0; may be set between steps, such as to ``0.2 * max(c, 0.02)**2``
            with c from 1 to 0 over a run.
        max_lr: bound on every group's rate, in every step; None: none.
        backtrack: steps of more than this times ``nats`` are shortened, >= 1.

    Attributes:
        n_backtracks: how many steps were shortened or undone.

    Raises:
        TypeError, ValueError: an argument is not of its kind or out of its range.

    Source: Schulman, Levine, Abbeel, Jordan, Moritz, Trust region policy optimization, 2015, for
    the bound on a divergence; the rule for the rate is this package's own.
    """

    optimizer = Setting(_optimizer)
    nats = Setting(partial(number, above_zero=True))
    max_lr = Setting(optional(partial(number, above_zero=True)))
    backtrack = Setting(_backtrack)

    def __init__(
        self,
        optimizer: Optimizer,
        nats: float = 0.2,
        max_lr: float | None = None,
        backtrack: float = 4.0,
    ) -> None:
        self.optimizer, self.nats, self.max_lr = optimizer, nats, max_lr
        self.backtrack = backtrack
        self.n_backtracks = 0

    def step(
        self,
        model: Callable[..., Tensor],
        x_neg: Tensor,
        model_kwargs: dict | None = None,
    ) -> Tensor:
        """``optimizer.step()``, within the region.

        Args:
            model: the energy that the optimiser trains. It is in eval mode for its energies here.
            x_neg: chains (B, *event) of the model as it is, B >= 2, of all ranks together.
            model_kwargs: further arguments of the model.

        Returns:
            ``kl_step``, 0-d float64, of the step as the optimiser made it, before it is shortened.

        Raises:
            NonFiniteError: energies of ``x_neg`` are not finite before the step.
            TypeError, ValueError: an argument is not what it should be, or of ranks not as large.
                After any of these nothing has been changed.
        """
        self._check(model, x_neg)
        own = _energies(model, x_neg, model_kwargs)
        counts = counts_of_ranks(0, int((~own.isfinite()).sum()), len(own))
        if counts.n_neg:
            raise NonFiniteError(
                f"not finite are {counts.n_neg} of {counts.n} energies of x_neg before the step"
            )
        before = all_rows(own)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        old, state = [p.detach().clone() for p in parameters], self._copied_state()
        self._multiply_rates(1.0)  # which may have been set above the bound
        self.optimizer.step()
        kl = kl_step(before, all_rows(_energies(model, x_neg, model_kwargs)))
        share, change = self._verdict(kl.item())
        if share == 0:
            self.optimizer.state.clear()
            self.optimizer.state.update(state)
        if share < 1:
            self.n_backtracks += 1
            _go_back(parameters, old, share)
        self._multiply_rates(math.exp(change))
        return kl

    def _verdict(self, kl: float) -> tuple[float, float]:
        """How much of a step is kept, and what is added to the logarithm of the rates."""
        if not math.isfinite(kl):
            return 0.0, -MOST_DOWN
        change = (math.log(self.nats) - math.log(kl)) / 2 if kl > 0 else math.inf
        if kl > self.backtrack * self.nats:
            return math.sqrt(self.nats / kl), max(-MOST_DOWN, change)
        return 1.0, GAIN * min(max(change, -1.0), 1.0)

    def state_dict(self) -> dict[str, int]:
        """The count; the rates are in the optimiser's."""
        return {"n_backtracks": self.n_backtracks}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a ``state_dict``.

        Raises:
            ValueError: it is none.
        """
        if set(state) != {"n_backtracks"}:
            raise ValueError(f"state must hold n_backtracks, got {', '.join(map(str, state))}")
        self.n_backtracks = integer("n_backtracks", state["n_backtracks"], 0)

    def _check(self, model: Callable[..., Tensor], x_neg: Tensor) -> None:
        callable_model("model", model)
        if not isinstance(x_neg, Tensor) or not x_neg.is_floating_point() or x_neg.dim() == 0:
            kind = type(x_neg).__name__
            got = f"{x_neg.dtype} {tuple(x_neg.shape)}" if isinstance(x_neg, Tensor) else kind
            raise TypeError(f"x_neg must be a floating-point tensor (B, *event), got {got}")
        n = world().size * len(x_neg)
        if n < 2:
            raise ValueError(f"x_neg must hold at least 2 chains, got {n}")
        theirs = {id(p) for p in parameters_of(modules_of(model))}
        ours = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if theirs and theirs.isdisjoint(ours):
            raise ValueError(
                "model must be what optimizer trains: they have no parameter in common"
            )

    def _copied_state(self) -> dict:
        return {
            parameter: {k: v.clone() if isinstance(v, Tensor) else v for k, v in values.items()}
            for parameter, values in self.optimizer.state.items()
        }

    @torch.no_grad()
    def _multiply_rates(self, factor: float) -> None:
        bound = LARGEST_RATE if self.max_lr is None else self.max_lr
        for group in self.optimizer.param_groups:
            rate = group["lr"]
            if isinstance(rate, Tensor):  # which a graph or compiled code holds
                rate.mul_(factor).clamp_(max=bound)
            else:
                group["lr"] = min(rate * factor, bound)


@torch.no_grad()
def _energies(model: Callable[..., Tensor], x: Tensor, model_kwargs: dict | None) -> Tensor:
    """(B,) float64 as chains see them. No cast of a parameter is kept: it is about to change."""
    with sampling_mode(model), uncached_casts():
        return sum_scales(checked_energies(model, x.detach(), model_kwargs or {}).double())


@torch.no_grad()
def _go_back(parameters: list[Tensor], old: list[Tensor], share: float) -> None:
    """To ``old``, but for a share of the way from it."""
    for parameter, start in zip(parameters, old, strict=True):
        if share:
            parameter.sub_(start).mul_(share).add_(start)
        else:  # the way may be NaN
            parameter.copy_(start)
