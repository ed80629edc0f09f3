"""The wake-sleep rule of Helmholtz machines, as a loss."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fastebm.arguments import Setting
from fastebm.energies.helmholtz import HelmholtzMachine
from fastebm.energies.protocol import check_batch
from fastebm.losses.loss import Loss
from fastebm.losses.nonfinite import NonFiniteError, counts_of_ranks
from fastebm.losses.output import LossOutput
from fastebm.losses.ranks import check_ranks
from fastebm.rng import ChainRNG, as_rng


def _machine(name: str, model: HelmholtzMachine) -> HelmholtzMachine:
    if not isinstance(model, HelmholtzMachine):
        raise TypeError(f"{name} must be a HelmholtzMachine, got {type(model).__name__}")
    return model


class WakeSleep(Loss):
    """``-mean log p(x, h) - mean log q(h' | v')``: h is recognised of the data x (wake), v' and h'
    are dreamt by the machine (sleep).

    The first term trains the generative model, and is the gradient of a bound on log p(x). The
    second trains the recognition model, towards the posterior of dreams rather than of data: the
    two do not follow the gradient of one function.

    The machine is not a submodule, so its parameters are not listed twice.

    Args:
        model: the machine.

    Metrics: ``loss_wake``, ``loss_sleep``, the two terms; ``bound``, the mean of log p(x, h) - log
    q(h | x), at most the log-likelihood of the batch in expectation; ``n_nonfinite``, which is 0.

    Source: Hinton, Dayan, Frey, Neal, The wake-sleep algorithm for unsupervised neural networks,
    1995.
    """

    model = Setting(_machine)

    def __init__(self, model: HelmholtzMachine) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        x: Tensor,
        seed: int | ChainRNG | None = None,
        generator: Generator | None = None,
    ) -> LossOutput:
        """The loss of one batch; ``x_neg`` are the dreams, (B, V).

        Args:
            x: data (B, V) or (B, *event) in [0, 1], B >= 1.
            seed, generator: of the bits, as in ``HelmholtzMachine.recognise``.

        Raises:
            ValueError: x is not what it should be; nothing has run then.
            NonFiniteError: a log-probability is not finite.
        """
        check_ranks(self, x, seed)
        check_batch(x)
        self.calls += 1
        self.model.check_data(x)
        rng = as_rng(seed, generator)
        rng.check_room(2)
        awake, dream = self.model.recognise(x, rng), self.model.dream(len(x), rng)
        log_p, log_q = self.model.log_joint(awake), self.model.log_recognition(dream)
        counts = counts_of_ranks(int((~(log_p.isfinite() & log_q.isfinite())).sum()), 0, len(x))
        if counts.n_pos:
            of = f"{counts.n_pos} of {counts.n}"
            raise NonFiniteError(f"the log-probabilities of {of} are not finite")
        wake, sleep = -log_p.mean(), -log_q.mean()
        with torch.no_grad():
            bound = (log_p - self.model.log_recognition(awake)).mean()
        metrics = {
            "loss_wake": wake.detach(),
            "loss_sleep": sleep.detach(),
            "bound": bound,
            "n_nonfinite": 0.0,
        }
        return LossOutput(wake + sleep, dream[0], metrics)
