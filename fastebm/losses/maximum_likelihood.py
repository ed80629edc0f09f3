"""Maximum likelihood as a loss: by enumeration, and by long chains from noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from fastebm.arguments import Setting, finite_range, one_of
from fastebm.energies.protocol import check_batch, energy, sum_scales
from fastebm.energies.sampling_mode import check_initialised, check_unsampled
from fastebm.likelihood.exact import enumerable_layer, log_partition
from fastebm.losses.contrastive import ContrastiveDivergence
from fastebm.losses.loss import Loss
from fastebm.losses.nonfinite import NonFiniteError, counts_of_ranks
from fastebm.losses.output import LossOutput
from fastebm.losses.ranks import check_ranks
from fastebm.modes import full_precision, ordinary
from fastebm.ops.langevin import langevin_step_
from fastebm.rng import INIT, ChainRNG
from fastebm.samplers.diagnostics import finite_rows
from fastebm.samplers.settings import callable_model

INITS = ("uniform", "normal")


class ExactMaximumLikelihood(Loss):
    """``mean E(x) + log Z``, minus the mean log-likelihood, with its exact gradient ``mean dE(x) -
    E_p[dE]`` by enumeration of all states.

    For machines whose smaller binary layer has at most 25 units, and energies of as few binary
    inputs: the yardstick of the other rules.

    The model is not a submodule, so its parameters are not listed twice.

    Args:
        model, n_units: as in ``log_partition``.

    Metrics: ``log_likelihood``, its mean over the batch; ``log_z``; ``energy_pos`` and its
    ``_std``; ``n_nonfinite``, which is 0.

    Raises:
        ValueError: the machine is too large to be enumerated.
    """

    model = Setting(callable_model)

    def __init__(self, model: Callable[..., Tensor], n_units: int | None = None) -> None:
        super().__init__()
        self.model, self.n_units = model, n_units
        enumerable_layer(model, n_units)

    def forward(
        self,
        x: Tensor,
        seed: int | ChainRNG | None = None,
        generator: Generator | None = None,
    ) -> LossOutput:
        """The loss of one batch; nothing is drawn, so ``seed`` and ``generator`` do not matter, and
        ``x_neg`` is empty.

        Args:
            x: data (B, *event), floating point.

        Raises:
            NonFiniteError: energies of the data are not finite.
            ValueError: x is not what the machine takes; and what ``log_partition`` raises.
        """
        check_ranks(self, x)
        check_unsampled(self.model)
        check_initialised(self.model)
        check_batch(x)
        self.calls += 1
        if hasattr(self.model, "check_data"):
            self.model.check_data(x)
        with full_precision(x.device):  # as log Z
            e = sum_scales(energy(self.model, ordinary(x))).double()
        counts = counts_of_ranks(int((~finite_rows(e)).sum()), 0, len(x))
        if counts.n_pos:
            of = f"{counts.n_pos} of {counts.n}"
            raise NonFiniteError(f"{of} energies of the data are not finite")
        log_z = log_partition(self.model, self.n_units)
        loss = e.mean() + log_z
        metrics = {
            "log_likelihood": -loss.detach(),
            "log_z": log_z.detach(),
            "energy_pos": e.detach().mean(),
            "energy_pos_std": e.detach().std(correction=0),
            "n_nonfinite": 0.0,
        }
        return LossOutput(loss, x[:0].detach(), metrics)


class MaximumLikelihood(ContrastiveDivergence):
    """Maximum likelihood by long chains: CD whose chains start at noise, not at the data.

    After enough steps they sample the model, and the loss has the gradient of minus the
    log-likelihood; until then its bias depends on how far noise is from the model, whereas that of
    CD is smallest where the model has learnt the data.

    Args:
        k_steps: long enough for the chains to forget where they started.
        init: ``"uniform"`` in ``value_range`` or ``"normal"``.
        value_range: (lo, hi).
        n_chains: how many chains there are, >= 1; None: as many as the batch.
        others, metrics: as in ``ContrastiveDivergence``.

    Source: Younes, Parametric inference for imperfectly observed Gibbsian fields, 1989; Nijkamp et
    al., On the anatomy of MCMC-based maximum likelihood learning of energy-based models, 2020.
    """

    init = Setting(one_of(*INITS))
    value_range = Setting(finite_range)

    def __init__(
        self,
        model,
        sampler,
        k_steps: int = 1000,
        init: str = "uniform",
        value_range: tuple[float, float] = (0.0, 1.0),
        energy_reg_weight: float = 0.0,
        on_nonfinite: str = "raise",
        n_chains: int | None = None,
    ) -> None:
        super().__init__(model, sampler, k_steps, energy_reg_weight, on_nonfinite)
        self.init, self.value_range, self.n_chains = init, value_range, n_chains

    @property
    def _starts_at_data(self) -> bool:
        return False

    def _start(self, x: Tensor, rng: ChainRNG) -> tuple[Tensor, None]:
        noise = x.new_zeros((self.n_chains or len(x), *x.shape[1:]))
        langevin_step_(noise, None, 0.0, 1.0, rng.state(x.device, len(noise)), tag=INIT)
        if self.init == "uniform":
            lo, hi = self.value_range
            noise = lo + (hi - lo) * torch.special.ndtr(noise)
        return noise, None
