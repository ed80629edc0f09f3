"""What a run finds by itself: its steps' size, its learning rate, how much data a step sees."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer

from fastebm.app.batch_rule import BatchRule, agreement
from fastebm.app.config import MACHINES, TrainConfig
from fastebm.app.evaluation import total_energy
from fastebm.distributed.collectives import all_rows
from fastebm.distributed.world import world
from fastebm.losses.output import LossOutput
from fastebm.losses.trust_region import TrustRegion, kl_step
from fastebm.samplers.adaptive import AdaptiveStep

KL_EVERY = 10  # steps between two looks at kl_step where nothing else needs it
LEAST_SHARE = 0.02  # of the trust region, where a schedule comes to its end


class Adaptation:
    """The parts of a run that adapt, of those that its configuration asks for.

    Args:
        config: resolved.
        optimizer: of the run.
        step_size: of its chains.
    """

    def __init__(self, config: TrainConfig, optimizer: Optimizer, step_size: object) -> None:
        self._config, self._optimizer = config, optimizer
        self.step_size = step_size if isinstance(step_size, AdaptiveStep) else None
        self.batch_rule = None
        if config.auto_batch:  # the loss looks at chains at so many of their steps
            self.batch_rule = BatchRule(next(m for m in (8, 4, 2, 1) if m <= config.k_steps))
        self.trust_region = None
        if config.trust_region:
            self.trust_region = TrustRegion(optimizer, config.trust_region, config.max_lr)

    def step(
        self, model: nn.Module, x: Tensor, out: LossOutput, iteration: int, share: float
    ) -> dict[str, Tensor | float]:
        """The step of the optimiser, its gradients being there; returns metrics of it. Of several
        ranks all take the same step.

        Args:
            x, out: the batch and what the loss gave, of this rank.
            iteration: from 0.
            share: of the learning rate that the schedule leaves; the trust region, a square, gets
                its square.
        """
        c, metrics = self._config, {}
        size = world().size
        chains = out.x_neg[-(c.batch_size // size) :]
        if self.batch_rule is not None:
            if self.batch_rule.due(iteration):
                args = (model, x, out.x_neg, c.energy_reg_weight, c.batch_size)
                self.batch_rule.update(agreement(*args))
            metrics["batch_size"] = float(size * len(x))
        if self.trust_region is not None:
            self.trust_region.nats = c.trust_region * max(share, LEAST_SHARE) ** 2
            return metrics | {"kl_step": self.trust_region.step(model, chains)}
        if c.energy in MACHINES or iteration % KL_EVERY != KL_EVERY - 1:
            self._optimizer.step()
            return metrics
        before = all_rows(total_energy(model, chains))
        self._optimizer.step()
        return metrics | {"kl_step": kl_step(before, all_rows(total_energy(model, chains)))}

    def state_dict(self) -> dict | None:
        """All of it as numbers; None where nothing adapts."""
        parts = {
            "step_size": None
            if self.step_size is None
            else {"log": float(self.step_size.log_step)},
            "batch_rule": self.batch_rule and self.batch_rule.state_dict(),
            "trust_region": self.trust_region and self.trust_region.state_dict(),
        }
        return {k: v for k, v in parts.items() if v is not None} or None

    def load_state_dict(self, state: dict | None) -> None:
        """Go on from a ``state_dict`` of a run of the same configuration."""
        if state is None:
            return
        if self.step_size is not None:
            self.step_size.log_step.fill_(state["step_size"]["log"])
        for name in ("batch_rule", "trust_region"):
            if getattr(self, name) is not None:
                getattr(self, name).load_state_dict(state[name])
