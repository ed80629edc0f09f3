"""Improved contrastive divergence: terms that CD leaves out, through the chains' last step."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastebm.arguments import Setting, integer, one_of, optional
from fastebm.chains.second_order import eager_code, uncompiled
from fastebm.distributed.collectives import uneven_rows
from fastebm.distributed.world import world
from fastebm.energies.sampling_mode import modules_of
from fastebm.entropy.estimators import nn_log_distance
from fastebm.losses.chain_checks import check_buffer, check_jumps
from fastebm.losses.contrastive import ContrastiveDivergence
from fastebm.losses.mlp_loss import LastStepWeights, terms_by_formulas
from fastebm.losses.nonfinite import counts_of_ranks
from fastebm.losses.terms import Batch, Terms
from fastebm.replay.buffer import ReplayBuffer
from fastebm.replay.references import References
from fastebm.rng import ChainRNG, DeviceRNG
from fastebm.samplers.gibbs import NO_DERIVATIVE
from fastebm.samplers.langevin import LangevinDynamics
from fastebm.samplers.settings import number, real


class ImprovedContrastiveDivergence(ContrastiveDivergence):
    """CD, and terms that reach the parameters through the last Langevin step.

    ``loss = mean E(x) - mean E(sg x_neg) + energy_reg_weight (mean E(x)^2 + mean E(x_neg)^2)
    + kl_weight mean E_sg(x_kl) - entropy_weight H(x_kl)``

    x_kl has the values of x_neg, but depends on the parameters through the gradient of the last
    step (second derivatives are exact); E_sg is the energy with its parameters held constant. H is
    the mean of ``log(d^2 + entropy_eps^2) / 2``, d the distance to the nearest reference: a
    nearest-neighbour estimate of the entropy, without its factor D.

    What the KL term is: with q the law of the chains' ends and p the model, ``mean E_sg(x_kl) - H``
    estimates KL(q || sg p) up to a constant. Added (weights > 0, as in the paper) it trains the
    short chain to end where the energy is low: a regulariser, which keeps training stable at steps
    so large that CD diverges. What it is not: the term that CD leaves out of its gradient. That one
    has the opposite sign: ``kl_weight=-1`` (and -1 for an exact entropy) gives the gradient of
    KL(data || p) - KL(q || p), up to the earlier steps. Where steps are small for the data, CD
    alone does as well. The total says nothing about the fit, as E(x_neg) cancels in its value.

    The last step is differentiated again in ``backward()``. So attention runs by its formula there
    and what ``torch.compile`` made as it is written, and activation checkpointing, or any other
    hook on saved tensors, saves no memory there. The other steps and the data's energies have all
    of these; those of the chains' ends are not compiled.

    Args:
        buffer: where chains start and end; None: they start at the data.
        kl_weight, entropy_weight: any real numbers.
        entropy_eps: the distance below which two samples count as equal, > 0.
        n_entropy_refs: how many samples of the buffer are references, chosen anew in each call;
            None: all. They are taken before the new chains come in, less the slot that a chain
            started from. Without a buffer the references are the other chains. With fewer than two
            references the entropy term is zero.
        jumps: as in ``PersistentContrastiveDivergence``, of all steps but the last.
        n_chains: how many chains there are, >= 1, where there is a buffer: the negative phase, the
            KL term and the entropy are means over them, whatever the batch. None: as many as it.
        local_refs: of several ranks, whether the references are this rank's own samples alone. Else
            they are of all ranks, and travel in each call: ``n_entropy_refs`` of them, or all, in
            the buffer's dtype; without a buffer the chains, in float32.
        others, metrics: as ``ContrastiveDivergence``, and ``kl_energy``, ``entropy``, unweighted.

    Source: Du, Li, Tenenbaum, Mordatch, Improved contrastive divergence training of energy-based
    models, 2021.
    """

    kl_weight, entropy_weight = Setting(real), Setting(real)
    entropy_eps = Setting(partial(number, above_zero=True))
    n_entropy_refs = Setting(optional(partial(integer, least=2)))
    local_refs = Setting(one_of(False, True))

    def __init__(
        self,
        model,
        sampler: LangevinDynamics,
        buffer: ReplayBuffer | None = None,
        k_steps: int = 10,
        kl_weight: float = 1.0,
        entropy_weight: float = 0.3,
        entropy_eps: float = 1e-3,
        n_entropy_refs: int | None = None,
        energy_reg_weight: float = 0.0,
        on_nonfinite: str = "raise",
        jumps: int = 0,
        local_refs: bool = False,
        n_chains: int | None = None,
    ) -> None:
        super().__init__(model, sampler, k_steps, energy_reg_weight, on_nonfinite)
        if not isinstance(sampler, LangevinDynamics):
            raise TypeError(NO_DERIVATIVE)
        if buffer is not None:
            check_buffer(buffer)
        self.buffer, self.jumps, self.n_chains = buffer, jumps, n_chains
        check_jumps(sampler, buffer, jumps)
        self.kl_weight, self.entropy_weight = kl_weight, entropy_weight
        self.entropy_eps, self.n_entropy_refs = entropy_eps, n_entropy_refs
        self.local_refs = local_refs

    def _sees_points(self, n: int) -> bool:
        return False

    def _check(self, x: Tensor) -> None:
        super()._check(x)
        if any(hasattr(m, "set_reshard_after_backward") for m in modules_of(self.model)):
            raise NotImplementedError(
                "FSDP2 (fully_shard) loses gradients of a second derivative, which the last step"
                " needs: train by ContrastiveDivergence or PersistentContrastiveDivergence, or by"
                " DistributedDataParallel in place of FSDP2"
            )

    def _batch(self, x: Tensor, start: Tensor, slots: Tensor | None, kwargs: dict) -> Batch:
        """With stored samples, and for each chain which of them is its own slot (or -1)."""
        batch = super()._batch(x, start, slots, kwargs)
        if self._gathers_chains and self.on_nonfinite != "count":  # which waits for no device
            counts_of_ranks(0, 0, len(x))  # refuses batches of other sizes, before they travel
        if self.buffer is None or not self.entropy_weight:
            return batch
        found = self.buffer.references(slots, self.n_entropy_refs, self.local_refs)
        y, own = found.y.to(x.device), found.own.to(x.device)
        return batch._replace(references=found._replace(y=y, own=own))

    def _by_formulas(
        self, batch: Batch, rng: ChainRNG | DeviceRNG
    ) -> tuple[Terms, Tensor, bool] | None:
        if self._gathers_chains:  # which the operator's last step could not wait for
            return None
        last_step = LastStepWeights(self.kl_weight, self.entropy_weight, self.entropy_eps)
        return terms_by_formulas(
            *(self.model, self.sampler, batch, self.k_steps, rng, self.energy_reg_weight, last_step)
        )

    @property
    def _gathers_chains(self) -> bool:
        """Whether the chains of other ranks are references."""
        alone = self.local_refs or world().size == 1
        return self.buffer is None and bool(self.entropy_weight) and not alone

    @uncompiled
    @torch.enable_grad()
    def _by_graph(self, batch: Batch, rng: ChainRNG | DeviceRNG) -> Terms:
        # The negative phase and the KL term are energies of the same points, so one forward serves
        # both. mean_neg, taken at a leaf, has a graph to the parameters: the negative phase. Its
        # gradient v at the leaf gives the KL term to first order: d E_sg(x_kl) = <v, d x_kl>, and
        # the first derivative in the parameters, all that backward() computes, is exact. (One
        # forward of data and chains together would double the work of v: measured slower.)
        x_kl, grad = self._last_step(batch, rng, create_graph=True)
        x_neg, leaf = x_kl.detach(), x_kl.detach().requires_grad_()
        terms = self._phases(batch, leaf, grad)
        (v,) = torch.autograd.grad(terms.mean_neg, leaf, retain_graph=True)
        kl = terms.mean_neg.detach() + (v * (x_kl - x_neg)).sum()
        entropy = self._entropy(x_kl, batch)
        if entropy is None:
            entropy = torch.zeros_like(kl)
        last = self.kl_weight * kl - self.entropy_weight * entropy
        if batch.weights[1] != 1:
            last = batch.weights[1] * last
        terms.metrics.update(kl_energy=kl.detach(), entropy=entropy.detach())
        return terms._replace(loss=terms.loss + last, x_neg=x_neg)

    def _energy_neg(self, batch: Batch, x_neg: Tensor) -> Tensor:
        with eager_code():  # its graph is walked twice
            return super()._energy_neg(batch, x_neg)

    def _entropy(self, x_kl: Tensor, batch: Batch) -> Tensor | None:
        """None where there is no entropy term, or too few references for it."""
        references = batch.references
        if self.entropy_weight and self.buffer is None:
            y, own = x_kl.detach(), torch.arange(len(x_kl), device=x_kl.device)
            if self._gathers_chains:
                y, first = uneven_rows(y, batch.chains_of_ranks)
                own = torch.where(own + first < len(y), own + first, -1)  # a stand-in is none
            references = References(y, own, (1.0, 0.0))
        if references is None or len(references.y) < 2:
            return None
        y, own, y_scale = references
        return nn_log_distance(x_kl, y, own, self.entropy_eps, y_scale=y_scale)
