"""Divergence guard: sees at logging points that a run is being lost, and goes back."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastebm.app.training import Trainer

ACTIONS = ("stop", "step", "lr")
WELL = 0.25  # a run within this share of every limit is worth going back to


class DivergedError(RuntimeError):
    """A run that went on diverging after every roll-back allowed; the message is one line."""


@dataclass(frozen=True)
class Limits:
    """What a run that is going well stays below, by the numbers of `Trainer.probe`.

    Measured in runs of CD, CD + L2, ICD and ICD + L2 on 2-D sets at effective temperature 1. Where
    that is above 1 the first three are in units of it, since E means something only relative to it.

    Attributes:
        energy: mean |E| on data; 43 at most in runs that were not lost, and none above 2000 came
            back.
        gap: |mean E(data) - mean E(chains)|; at most 99 at the end of a run that was not lost
            (CD + L2 0.01, whose samples were bad already), above 2100 in all that were.
        grad_norm: norm of the parameters' gradient before it is clipped; at most 16 in runs that
            were not lost, above 1000 in those that were.
        clamp: share of the chains' elements on a face of the box, of those that data has inside:
            (share - data's share) / (1 - data's share), as pictures have many elements on a face.
            All of them in lost runs, at most 0.13 in the others.
    """

    energy: float = 2000.0
    gap: float = 200.0
    grad_norm: float = 1000.0
    clamp: float = 0.9

    def broken(self, values: dict[str, float], share: float = 1.0) -> str | None:
        """The first limit, times `share`, that the values of `Trainer.probe` break, in words, or
        None."""
        scale = max(1.0, values["effective_temperature"])
        sizes = {"mean |E| on data": (values["energy_abs"], self.energy * scale)}
        if "energy_gap" in values:  # not of wake-sleep
            gap = abs(values["energy_gap"])
            sizes["the gap E(data) - E(chains)"] = (gap, self.gap * scale)
        norm = values["param_grad_norm"]
        sizes["the norm of the parameters' gradient"] = (norm, self.grad_norm * scale)
        if "clamp_share" in values:  # of Langevin chains
            data_share = values["data_clamp_share"]
            clamp = (values["clamp_share"] - data_share) / max(1 - data_share, 1e-6)
            sizes["the share of the chains at the clamp, beyond the data's,"] = (clamp, self.clamp)
        for name, (size, limit) in sizes.items():
            if not math.isfinite(size):
                return f"{name} is not finite"
            if size > share * limit:
                return f"{name} is {size:.3g}, above {share * limit:g}"
        return None


class DivergenceGuard:
    """Keeps snapshots of a trainer while it is well, and puts it back to one when it is not.

    A snapshot is `Trainer.state_dict`: model, average, optimiser, buffer and random states. After
    a roll-back the step size (at the same effective temperature) or the learning rate is
    multiplied by `factor`. A run that breaks a limit again before a new snapshot was due goes to an
    older snapshot. `check` reads numbers that logging has brought to the host anyway; nothing else
    here waits for the device.

    Args:
        trainer: whose `step_factor` and `lr_factor` are changed.
        action: "step", "lr", or "stop": no roll-back, the first broken limit ends the run.
        factor: in (0, 1).
        max_rollbacks: the next one raises DivergedError.
        checks_per_snapshot: so many checks lie between snapshots; more, until one finds the run
            within a quarter of every limit.
        n_snapshots: how many are kept, each the size of a checkpoint, on the device of the run.

    Source: the practice of restarting from a stable checkpoint: Grathwohl et al., Your classifier
    is secretly an energy based model, 2020 (JEM), and its issue 4.
    """

    def __init__(
        self,
        trainer: Trainer,
        action: str = "step",
        factor: float = 0.5,
        max_rollbacks: int = 8,
        limits: Limits | None = None,
        checks_per_snapshot: int = 5,
        n_snapshots: int = 4,
    ):
        if action not in ACTIONS:
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}, got {action!r}")
        if not 0 < factor < 1:
            raise ValueError(f"factor must be between 0 and 1, got {factor}")
        self.trainer, self.action, self.factor = trainer, action, factor
        self.max_rollbacks, self.limits = max_rollbacks, limits or Limits()
        self._every, self._n = checks_per_snapshot, n_snapshots
        self._checks, self._retried = 0, False
        self._snapshots: list[dict] = []
        if action != "stop":
            self._keep()

    def check(self, values: dict[str, float]) -> str | None:
        """Why the run is being lost by the numbers of `Trainer.probe`, or None; then a snapshot is
        kept when one is due."""
        reason = self.limits.broken(values)
        if reason is None and self.action != "stop":
            self._checks += 1
            if self._checks >= self._every and not self.limits.broken(values, WELL):
                self._keep()
        return reason

    def roll_back(self, reason: str) -> str:
        """Put the trainer back to the last good snapshot and lower the step size or the learning
        rate; returns a line about it.

        Raises:
            DivergedError: action is "stop", or it has been done `max_rollbacks` times.
        """
        trainer = self.trainer
        where = f"diverged at step {trainer.iteration}: {reason}"
        if self.action == "stop":
            raise DivergedError(where)
        if trainer.n_rollbacks >= self.max_rollbacks:
            raise DivergedError(f"{where}; {trainer.n_rollbacks} roll-backs did not help")
        if self._retried and len(self._snapshots) > 1:
            self._snapshots.pop()
        self._retried, self._checks = True, 0
        n, step, lr = trainer.n_rollbacks + 1, trainer.step_factor, trainer.lr_factor
        trainer.load_state_dict(copy.deepcopy(self._snapshots[-1]))
        trainer.n_rollbacks = n
        if self.action == "step":
            step *= self.factor
            lowered = f"step size {trainer.config.step_size * step:.3g}"
        else:
            lr *= self.factor
            lowered = f"learning rate {trainer.config.lr * lr:.3g}"
        trainer.set_factors(step, lr)
        return f"{where}; back to step {trainer.iteration} with {lowered} (roll-back {n})"

    def _keep(self) -> None:
        self._snapshots.append(copy.deepcopy(self.trainer.state_dict()))
        del self._snapshots[: -self._n]
        self._checks, self._retried = 0, False
