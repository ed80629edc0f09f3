"""Warm-ups: a sampler finds its step size and its preconditioner, and keeps them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from fastebm.arguments import integer, share
from fastebm.rng import ChainRNG, DeviceRNG, as_rng, check_sample_ids
from fastebm.samplers.adaptation import ROUND, Adaptation
from fastebm.samplers.adaptive import AdaptiveStep
from fastebm.samplers.settings import chains
from fastebm.samplers.units import units_of


class WarmsUp:
    """What a ``Sampler`` has for this."""

    target_acceptance = 0.8  # of a warm-up, where none is given
    _step_power = 1  # of a coordinate's unit in a step size
    _adaptation: Adaptation | None = None

    def warm_up(
        self,
        x: Tensor,
        n_steps: int = 500,
        *,
        target_acceptance: float | None = None,
        precondition: bool = True,
        seed: int | ChainRNG | DeviceRNG | None = None,
        generator: Generator | None = None,
        model_kwargs: dict | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """Find the step size, and with ``precondition`` the scale of each coordinate, by chains
        that are then only where the next ones start: ``step_size`` and ``preconditioner`` stay as
        they are found, so the law of what ``sample`` keeps is exact.

        Steps are adjusted ones; of a sampler without acceptance those of its kin that has one:
        MALA for Langevin dynamics, HMC of one leapfrog step for underdamped ones. Called again,
        also after ``load_state_dict``, it goes on: two warm-ups of 100 steps are one of 200.

        Args:
            x: where chains start, (B, *event).
            n_steps: rounded up to a multiple of 5; a hundred at least is sensible.
            target_acceptance: in [0, 1]; None: by the sampler, see its class.
            precondition: set ``preconditioner`` to the standard deviations over all chains.
            seed, generator, model_kwargs, sample_ids: as in ``sample``.

        Returns:
            Where the chains are, (B, *event).

        Raises:
            ValueError, TypeError: an argument is not what it should be; nothing has run then.
        """
        n_steps, rng, x = integer("n_steps", n_steps, 1), as_rng(seed, generator), chains(x)
        rounds = -(-n_steps // ROUND)
        rng.check_room(ROUND * rounds)
        check_sample_ids(sample_ids, len(x))
        if target_acceptance is not None:
            share("target_acceptance", target_acceptance)
        kin = self._adjusted_kin()
        if self._adaptation is None:
            target = self.target_acceptance if target_acceptance is None else target_acceptance
            self._adaptation = Adaptation(
                *(x.shape[1:], self._first_step(), target, self._step_power, self.preconditioner)
            )
        elif target_acceptance is not None:
            self._adaptation.dual.state[5] = target_acceptance
        found, of_model = self._adaptation, units_of(self.model)
        for _ in range(rounds):
            kin.step_size = found.dual.step
            kin.preconditioner = found.scale.to(x) if precondition else self.preconditioner
            points, _ = kin.run(x, ROUND, rng, model_kwargs or {}, sample_ids)
            x = points.x
            acceptance = points.acceptance[0].mean(dtype=torch.float64) / ROUND
            seen = x if of_model is None else of_model.standardize(x)
            found.update(seen, acceptance, ROUND, precondition)
        if precondition:
            self.preconditioner = found.scale.to(x)
        self._freeze_step(found.dual.average)
        return x

    def state_dict(self) -> dict[str, Any]:
        """What a warm-up has found and goes on from: plain numbers and tensors."""
        step = self.step_size.state_dict() if isinstance(self.step_size, nn.Module) else None
        return {
            "step_size": self.step_size if step is None else step,
            "frozen": step is not None and self.step_size.frozen,
            "preconditioner": self.preconditioner,
            "warm_up": None if self._adaptation is None else self._adaptation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        if isinstance(self.step_size, nn.Module):
            self.step_size.load_state_dict(state["step_size"])
            self.step_size.frozen = state["frozen"]
        else:
            self.step_size = state["step_size"]
        self.preconditioner = state["preconditioner"]
        warm_up = state["warm_up"]
        self._adaptation = None
        if warm_up is not None:
            self._adaptation = Adaptation(warm_up["scale"].shape, 1.0, 0.5, self._step_power)
            self._adaptation.load_state_dict(warm_up)

    def _adjusted_kin(self) -> WarmsUp:
        """A copy, or a sampler that has an accept step, whose steps a warm-up adapts."""
        raise TypeError(f"{type(self).__name__} has no step size to find")

    def _first_step(self) -> float:
        step = self.step_size
        if isinstance(step, AdaptiveStep):
            return float(step)
        if not isinstance(step, float):
            raise TypeError(
                f"step_size must be a number or 'auto' for a warm-up, got {type(step).__name__}"
            )
        return step

    def _freeze_step(self, value: float) -> None:
        if isinstance(self.step_size, AdaptiveStep):
            self.step_size.freeze(value)
        else:
            self.step_size = value
