"""A step size that finds itself, from what Metropolis' rule accepts."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from fastebm.arguments import Setting, one_of, optional, share
from fastebm.distributed.collectives import mean_of_ranks
from fastebm.distributed.world import is_together
from fastebm.samplers.settings import number, setting

_above_zero = partial(number, above_zero=True)
_BOUNDS = 1e-30, 1e30  # of any step: its noise is a number in float32, and not zero


class AdaptiveStep(nn.Module):
    """A step size for ``LangevinDynamics`` that goes towards a share of accepted proposals.

    After n proposals whose mean acceptance probability is a, ``log step += gain * n * (a -
    target_acceptance)``: stochastic approximation. The logarithm lives on the device of the chains,
    so nothing waits, and in ``state_dict``; ``float(step)`` waits. An ``nn.Module``, and part of
    the losses whose sampler has it.

    Args:
        initial: where it starts, in units of E's argument squared. Of energies of standardised
            data, anything from 1e-6 to 100 will do.
        target_acceptance: in [0, 1]. 0.57 is the best for many independent dimensions; 0.7 is safer
            and hardly slower.
        gain: of a proposal.
        largest: no step is larger. Of standardised data take 0.5, half the variance of a
            coordinate: what is accepted at larger ones is refused once the energy has sharpened.
            None: any up to 1e30. None is smaller than 1e-30.

    Attributes:
        frozen: True: the step stays as it is, and the chains' law is exact. May be set at any time.
        log_step: 0-d float64.

    Raises:
        TypeError, ValueError: an argument is not of its kind or out of its range.

    Source: Andrieu and Thoms, A tutorial on adaptive MCMC, 2008; Roberts and Rosenthal, Optimal
    scaling of discrete approximations to Langevin diffusions, 1998.
    """

    target_acceptance = Setting(share)
    gain = Setting(_above_zero)
    largest = Setting(optional(_above_zero))
    frozen = Setting(one_of(False, True))

    def __init__(
        self,
        initial: float = 0.1,
        target_acceptance: float = 0.7,
        gain: float = 0.05,
        largest: float | None = None,
    ) -> None:
        super().__init__()
        self.target_acceptance, self.gain, self.largest = target_acceptance, gain, largest
        self.frozen = False
        initial = _above_zero("initial", initial)
        log_step = torch.tensor(math.log(initial), dtype=torch.float64, device="cpu")
        self.register_buffer("log_step", log_step)
        self._bound()

    def value(self, device: torch.device | str) -> float | Tensor:
        """The step for chains on a device, to which it moves, once: 0-d float64 there, so that
        nothing waits for it; on a CPU a number, as nothing would."""
        if self.log_step.device != torch.device(device):
            self.log_step = self.log_step.to(device)
        step = self.log_step.exp()
        return step.item() if self.log_step.device.type == "cpu" else step

    @torch.no_grad()
    def update(self, acceptance: Tensor, n_proposals: int) -> None:
        """Adapt to ``n_proposals`` whose mean acceptance probability is ``acceptance``, 0-d on the
        device of ``value``; nothing while ``frozen``. In a loss of several ranks, each of which has
        as many chains: to what the proposals of all of them are."""
        if self.frozen:
            return
        if is_together():
            acceptance = mean_of_ranks(acceptance.double())
        self.log_step.add_(acceptance - self.target_acceptance, alpha=self.gain * n_proposals)
        self._bound()

    def freeze(self, step: float) -> None:
        """Stay at a step from now on."""
        self.log_step.fill_(math.log(step))
        self._bound()
        self.frozen = True

    def follower(self) -> AdaptiveStep:
        """The same step for other chains: it goes along, and they do not change it."""
        other = AdaptiveStep(target_acceptance=self.target_acceptance, gain=self.gain)
        other.frozen, other._buffers = True, self._buffers
        return other

    @property
    def log_bounds(self) -> tuple[float, float]:
        """What ``log_step`` may be."""
        least, largest = _BOUNDS
        return math.log(least), math.log(min(largest, self.largest or largest))

    def _bound(self) -> None:
        self.log_step.clamp_(*self.log_bounds)

    def __float__(self) -> float:
        return math.exp(float(self.log_step))

    def _apply(self, fn, recurse: bool = True):
        """As nn.Module's, but casts of floating-point tensors pass the logarithm by."""
        moved = fn(self.log_step)
        self.log_step = self.log_step.to(moved.device)
        return self

    def extra_repr(self) -> str:
        state = ", frozen" if self.frozen else ""
        return f"{float(self):.3g}, target_acceptance={self.target_acceptance:g}{state}"


def step_setting(name: str, value):
    """A checked number, tensor, schedule, or adaptive step, which "auto" stands for."""
    if isinstance(value, str) and value == "auto":
        return AdaptiveStep()
    if isinstance(value, AdaptiveStep):
        return value
    return setting(name, value, above_zero=True, per_chain=True)
