"""Block Gibbs sampling of restricted Boltzmann machines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from fastebm.arguments import Setting, integer
from fastebm.energies.sampling_mode import sampling_mode
from fastebm.modes import full_precision
from fastebm.rng import ChainRNG, as_rng, check_sample_ids
from fastebm.samplers.diagnostics import Log, finite_rows
from fastebm.samplers.settings import setting, value_at

__all__ = ["GibbsSampler"]


def _machine(name: str, model):
    if not hasattr(model, "gibbs_step"):
        raise TypeError(
            f"{name} must have conditional laws to draw from, as RBM and GaussianRBM do, got"
            f" {type(model).__name__}"
        )
    return model


class GibbsSampler:
    """Block Gibbs sampling: each step draws all hidden units given the visible ones, then all
    visible units given the hidden ones. Chains sample ``exp(-F / temperature)`` exactly in the
    limit of many steps, F the energy of both layers; there is no step size.

    Args:
        model: an RBM, a GaussianRBM, or what has their ``gibbs_step``, ``sample_visible``,
            ``check_data`` and sizes. In eval mode while chains run.
        temperature: a number > 0, or a schedule: a function of the step's index, an int from 0 in
            every call of ``sample``, to a number. Starting hot and cooling down to 1 lets chains
            cross between modes first (simulated tempering by a fixed schedule).

    Raises:
        TypeError, ValueError: an argument is not of its kind or out of its range.

    Source: Geman and Geman, Stochastic relaxation, Gibbs distributions, and the Bayesian
    restoration of images, 1984.
    """

    step_size_checked = True  # there is no step size
    by_points = False  # losses take a last step
    model = Setting(_machine)
    temperature = Setting(partial(setting, above_zero=True))

    def __init__(self, model, temperature: float | Callable[[int], float] = 1.0) -> None:
        self.model, self.temperature = model, temperature

    @property
    def effective_temperature(self) -> float:
        """The temperature, of the first step where there is a schedule."""
        return 1 / self._beta(0)

    @torch.no_grad()
    def sample(
        self,
        x: Tensor | None = None,
        n_steps: int = 100,
        *,
        n_samples: int | None = None,
        burn_in: int = 0,
        thin: int = 1,
        return_trajectory: bool = False,
        return_diagnostics: bool = False,
        seed: int | ChainRNG | None = None,
        generator: Generator | None = None,
        model_kwargs: dict | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor | Any:  # a union with the pair would be in every caller's way
        """Run ``burn_in + n_steps`` steps.

        Args:
            x: visible units that chains start from, (B, V) or (B, *event), not modified; give the
                result back to go on with the chains; of any dtype, taken to that of the machine's
                parameters, which draws have under autocast too. None: drawn from p(v | h = 0).
            n_steps: steps after ``burn_in``.
            n_samples: number of chains when ``x`` is None.
            burn_in: steps before the trajectory and the diagnostics begin.
            thin: keep every so-many-th of the ``n_steps`` steps, ``n_kept = n_steps // thin``.
            return_trajectory: return what was kept, not only the last state.
            return_diagnostics: return also a dict, below.
            seed: an int: the same numbers in every call; a ``ChainRNG``: goes on where it is, and
                is advanced; None: a key from ``generator``, or from torch's default generator.
            generator: see ``seed``; not both.
            model_kwargs: there can be none.
            sample_ids: int64 (B,), whose random numbers each chain gets; default: its row.

        Returns:
            The last state, of the shape of ``x``, or with ``return_trajectory``
            (B, n_kept, *event). With ``return_diagnostics`` a pair of it and a dict: ``mean`` and
            ``var`` over the chains (n_kept, *event), ``energy`` (n_kept, B), the free energy of
            the kept states, ``change`` (n_kept,), the mean absolute change of a unit in the kept
            step (0: the chains are stuck), ``n_nonfinite``, the number of chains that are not
            finite in the end, and ``effective_temperature``.

        Raises:
            ValueError, TypeError: an argument is not what it should be; nothing has run then. On a
                device the values of ``x`` are not looked at, as that would wait for it.
        """
        n_steps, burn_in = integer("n_steps", n_steps, 0), integer("burn_in", burn_in, 0)
        thin = integer("thin", thin, 1)
        if model_kwargs:
            raise ValueError(f"an RBM takes no further arguments, got {', '.join(model_kwargs)}")
        total = burn_in + n_steps
        betas = [self._beta(k) for k in range(total)]
        rng = as_rng(seed, generator)
        rng.check_room(total + (x is None))
        if x is None:
            x = self._start(n_samples, rng, sample_ids)
        elif n_samples is not None:
            raise ValueError("give x or n_samples, not both")
        elif not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor (B, V) or (B, *event), got {type(x).__name__}")
        elif x.device.type == "cpu":
            self.model.check_data(x)
        check_sample_ids(sample_ids, len(x))
        state = rng.state(x.device, len(x))
        v = x.detach().flatten(1).to(self.model.c.dtype, copy=True)
        log = Log(v.view(x.shape), burn_in, thin, energy=(len(v),), change=())
        with full_precision(x.device), sampling_mode(self.model, freeze=False):
            for k, beta in enumerate(betas):
                before = v
                v, _ = self.model.gibbs_step(v, state, t=k, sample_ids=sample_ids, beta=beta)
                if not log.keeps(k):
                    continue
                if return_trajectory:
                    log.add_state(v.view(x.shape))
                if return_diagnostics:
                    change = (v - before).abs().mean()
                    log.add_numbers(v.view(x.shape), energy=self.model(v), change=change)
        rng.advance(total)
        out = log.trajectory() if return_trajectory else v.view(x.shape)
        if not return_diagnostics:
            return out
        return out, {
            **log.diagnostics(),
            "n_nonfinite": (~finite_rows(v)).sum(),
            "effective_temperature": self.effective_temperature,
        }

    def last_step(
        self,
        x: Tensor,
        k: int = 0,
        *,
        create_graph: bool = False,
        seed: int | ChainRNG | None = None,
        generator: Generator | None = None,
        model_kwargs: dict | None = None,
        sample_ids: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Step ``k`` of a chain, as the losses ask for it.

        Returns:
            x after the step, and None where ``LangevinDynamics`` has the gradient.

        Raises:
            TypeError: ``create_graph``: a draw of units has no derivative.
        """
        if create_graph:
            raise TypeError(NO_DERIVATIVE)
        rng = as_rng(seed, generator)
        state = rng.state(x.device, len(x))
        v, _ = self.model.gibbs_step(x, state, sample_ids=sample_ids, beta=self._beta(k))
        rng.advance(1)
        return v.view(x.shape), None

    def _beta(self, k: int) -> float:
        return 1 / value_at(k, "temperature", self.temperature, above_zero=True)

    def _start(self, n: int | None, rng: ChainRNG, sample_ids: Tensor | None) -> Tensor:
        if n is None:
            raise ValueError("give x or n_samples")
        h = self.model.c.new_zeros((integer("n_samples", n, 0), self.model.n_hidden))
        return self.model.sample_visible(h, rng, sample_ids=sample_ids)


NO_DERIVATIVE = (
    "a Gibbs step draws binary units and has no derivative in the parameters, which this loss needs"
    " of the last step: give it LangevinDynamics of the RBM's free energy"
)
