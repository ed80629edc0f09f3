"""Block Gibbs sampling of restricted Boltzmann machines."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Generator, Tensor

from fastebm.energies.protocol import sampling_mode
from fastebm.rng import ChainRNG, as_rng
from fastebm.samplers.langevin import finite_rows

__all__ = ["GibbsSampler"]


class GibbsSampler:
    """Block Gibbs sampling: each step draws all hidden units given the visible ones, then all
    visible units given the hidden ones. Chains sample ``exp(-F / temperature)`` exactly in the
    limit of many steps, F the energy of both layers; there is no step size.

    Args:
        model: an RBM, a GaussianRBM, or what has their ``gibbs_step``, ``sample_visible``,
            ``check_data`` and sizes. In eval mode while chains run.
        temperature: > 0; a number, or a schedule: a function of the step's index, an int from 0 in
            every call of ``sample``, to a number. Starting hot and cooling down to 1 lets chains
            cross between modes first (simulated tempering by a fixed schedule).

    Raises:
        TypeError, ValueError: an argument is not of its kind or out of its range.

    Source: Geman and Geman, Stochastic relaxation, Gibbs distributions, and the Bayesian
    restoration of images, 1984.
    """

    step_size_checked = True  # there is no step size

    def __init__(self, model, temperature: float | Callable[[int], float] = 1.0) -> None:
        if not hasattr(model, "gibbs_step"):
            raise TypeError(
                f"model must have conditional laws to draw from, as RBM and GaussianRBM do, got"
                f" {type(model).__name__}"
            )
        self.model = model
        if not callable(temperature):
            _temperature("temperature", temperature)
        self.temperature = temperature

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
                result back to go on with the chains. None: drawn from p(v | h = 0).
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
        for name, value, least in (
            ("n_steps", n_steps, 0),
            ("burn_in", burn_in, 0),
            ("thin", thin, 1),
        ):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
        if model_kwargs:
            raise ValueError(f"an RBM takes no further arguments, got {', '.join(model_kwargs)}")
        total = burn_in + n_steps
        betas = [self._beta(k) for k in range(total)]
        rng = as_rng(seed, generator)
        if x is None:
            x = self._start(n_samples, rng, sample_ids)
        elif n_samples is not None:
            raise ValueError("give x or n_samples, not both")
        elif x.device.type == "cpu":
            self.model.check_data(x)
        state, event = rng.state(x.device), x.shape[1:]
        kept: list[Tensor] = []
        log: dict[str, list[Tensor]] = {"mean": [], "var": [], "energy": [], "change": []}
        v = x.detach().flatten(1).clone()
        with sampling_mode(self.model, freeze=False):
            for k, beta in enumerate(betas):
                before = v
                v, _ = self.model.gibbs_step(v, state, t=k, sample_ids=sample_ids, beta=beta)
                if k < burn_in or (k - burn_in + 1) % thin:
                    continue
                if return_trajectory:
                    kept.append(v)
                if return_diagnostics:
                    log["mean"].append(v.mean(0).view(event))
                    log["var"].append(v.var(0, correction=0).view(event))
                    log["energy"].append(self.model(v))
                    log["change"].append((v - before).abs().mean())
        rng.advance(total)
        out = v.view(x.shape)
        if return_trajectory:
            out = torch.stack(kept, 1) if kept else v.new_empty((len(v), 0, v.shape[1]))
            out = out.view(*out.shape[:2], *event)
        if not return_diagnostics:
            return out
        empty = {"mean": event, "var": event, "energy": (len(v),), "change": ()}
        diagnostics: dict[str, Tensor | float] = {
            name: torch.stack(e) if e else v.new_empty((0, *empty[name])) for name, e in log.items()
        }
        diagnostics["n_nonfinite"] = (~finite_rows(v)).sum()
        diagnostics["effective_temperature"] = self.effective_temperature
        return out, diagnostics

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
        state = rng.state(x.device)
        v, _ = self.model.gibbs_step(x, state, sample_ids=sample_ids, beta=self._beta(k))
        rng.advance(1)
        return v.view(x.shape), None

    def _beta(self, k: int) -> float:
        if not callable(self.temperature):
            return 1 / self.temperature
        return 1 / _temperature(f"temperature({k})", self.temperature(k))

    def _start(self, n: int | None, rng: ChainRNG, sample_ids: Tensor | None) -> Tensor:
        if n is None:
            raise ValueError("give x or n_samples")
        if not isinstance(n, Integral) or isinstance(n, bool) or n < 0:
            raise ValueError(f"n_samples must be an integer >= 0, got {n!r}")
        h = self.model.c.new_zeros((n, self.model.n_hidden))
        return self.model.sample_visible(h, rng, sample_ids=sample_ids)


NO_DERIVATIVE = (
    "a Gibbs step draws binary units and has no derivative in the parameters, which this loss needs"
    " of the last step: give it LangevinDynamics of the RBM's free energy"
)


def _temperature(name: str, value) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value}")
    return float(value)
