"""Contrastive divergence, plain and persistent: losses for a training loop of your own."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial

import torch
from torch import Generator, Tensor

from fastebm.arguments import Setting, integer, one_of, optional
from fastebm.distributed.world import together, world
from fastebm.energies.protocol import check_batch, energy
from fastebm.energies.sampling_mode import check_initialised, check_unsampled
from fastebm.losses.chain_checks import check_jumps, check_rows, check_starts
from fastebm.losses.loss import Loss
from fastebm.losses.mlp_loss import points_by_formulas, terms_by_formulas
from fastebm.losses.nonfinite import ON_NONFINITE, all_finite, counts_of_ranks, report
from fastebm.losses.output import LossOutput
from fastebm.losses.points import run_to_points
from fastebm.losses.ranks import check_ranks, left_of
from fastebm.losses.same_model import check_given, check_same_model
from fastebm.losses.terms import Batch, Terms, spread, step_metrics
from fastebm.modes import ordinary
from fastebm.replay.buffer import ReplayBuffer
from fastebm.rng import ChainRNG, DeviceRNG, as_rng
from fastebm.samplers.adaptive import AdaptiveStep
from fastebm.samplers.diagnostics import finite_rows
from fastebm.samplers.gibbs import GibbsSampler
from fastebm.samplers.sampler import Sampler
from fastebm.samplers.scale import MIN_POINTS
from fastebm.samplers.settings import callable_model, real


def _sampler(name: str, sampler: Sampler | GibbsSampler):
    if not isinstance(sampler, (Sampler, GibbsSampler)):
        raise TypeError(f"{name} must be one of fastebm's samplers, got {type(sampler).__name__}")
    return sampler


class ContrastiveDivergence(Loss):
    """CD-k: ``mean E(x) - mean E(sg x_neg) + energy_reg_weight (mean E(x)^2 + mean E(x_neg)^2)``.

    The chains start at the data and take ``k_steps`` steps; sg stops the gradient. Energies (B, S)
    of S scales enter by their mean, and drive the chains by their sum.

    On a CPU, a small plain perceptron (one whose chains are fused, see ``LangevinDynamics``) gets
    its gradient by formulas, at the time of the call: the same numbers up to rounding, but
    differentiable once only. A sampler with ``backend="eager"`` keeps to autograd.

    The model is not a submodule, so its parameters are not listed twice; a buffer is. The first
    batch of 32 samples or more goes through ``sampler.check_step_size``, unless you called it.

    Args:
        model: the energy, (B, *event) -> (B,), (B, 1) or (B, S).
        sampler: its chains, a LangevinDynamics or, for an RBM, a GibbsSampler; ``sampler.model`` is
            this model (or what it wraps, for DDP).
        k_steps: steps of a chain, >= 1.
        energy_reg_weight: weight of the energies' squares.
        on_nonfinite: what to do about samples with a non-finite state or energy, which
            ``metrics["n_nonfinite"]`` counts and which never enter a buffer: ``"raise"`` a
            NonFiniteError; ``"warn"`` and compute the loss with them; ``"skip"`` them: leave them
            out of every mean, and raise only if nothing is left (on all ranks; the metrics of one
            that has nothing left are NaN). These read one number from the
            device in each call. ``"count"`` reads nothing: as ``"warn"``, but silent, and
            the count stays on the device. A buffer gets back what such a chain started from.

    Metrics: ``energy_pos``, ``energy_neg`` and their ``_std`` over the batch; ``loss_cd`` =
    ``energy_gap`` = energy_pos - energy_neg; ``energy_reg`` (without its weight); ``grad_norm``,
    the mean of |grad E| in the last step; ``clamp_share``, of the chains' elements on a face of the
    box (these two of Langevin chains, the latter not of adjusted ones); of adjusted chains
    ``acceptance`` and ``jump_acceptance``, as in ``LangevinDynamics.sample``, and ``step_size`` of
    an adaptive step; ``n_nonfinite``.

    Source: Hinton, Training products of experts by minimizing contrastive divergence, 2002.
    """

    model = Setting(callable_model)
    sampler = Setting(_sampler)
    k_steps = Setting(partial(integer, least=1))
    energy_reg_weight = Setting(real)
    on_nonfinite = Setting(one_of(*ON_NONFINITE))
    jumps = Setting(partial(integer, least=0))
    n_chains = Setting(optional(partial(integer, least=1)))  # None: as many as the batch

    def __init__(
        self,
        model,
        sampler: Sampler | GibbsSampler,
        k_steps: int = 10,
        energy_reg_weight: float = 0.0,
        on_nonfinite: str = "raise",
    ) -> None:
        super().__init__()
        self.model, self.sampler, self.k_steps = model, sampler, k_steps
        self.energy_reg_weight, self.on_nonfinite = energy_reg_weight, on_nonfinite
        self.buffer: ReplayBuffer | None = None
        self.jumps, self.n_chains = 0, None
        step_size = getattr(sampler, "step_size", None)
        if isinstance(step_size, AdaptiveStep):
            self.step_size = step_size  # so that it moves, and is saved, with the loss
        check_same_model(model, sampler.model)
        self._check_skip()

    def forward(
        self,
        x: Tensor,
        model_kwargs: dict | None = None,
        seed: int | ChainRNG | DeviceRNG | None = None,
        generator: Generator | None = None,
    ) -> LossOutput:
        """The loss of one batch.

        Args:
            x: data (B, *event), floating point.
            model_kwargs: further arguments of the model. With ``on_nonfinite="skip"``, tensors of
                B rows are taken to belong to the samples.
            seed, generator: the noise of the chains, as in ``LangevinDynamics.sample``; an int
                repeats the same noise in every call.

        Raises:
            NonFiniteError: see ``on_nonfinite``.
            ValueError, TypeError: an argument is not what it should be; nothing has run then.
        """
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(x, model_kwargs, seed, generator)
        check_ranks(self, x, seed)
        self._check(x)
        rng, x = as_rng(seed, generator), ordinary(x.detach())
        rng.check_room(self.k_steps)
        kwargs = {k: ordinary(v) for k, v in (model_kwargs or {}).items()}
        check_rows(kwargs, len(x), self.n_chains)
        if not self.sampler.step_size_checked and len(x) >= MIN_POINTS:
            with suppress(ValueError):  # no scale: points that coincide, or not finite
                self.sampler.check_step_size(x)
        start, slots = self._start(x, rng)
        self.calls += 1
        batch = self._batch(x, start, slots, kwargs)
        with together():
            terms, before, finite = self._terms(batch, rng)
        loss, x_neg, metrics, e_pos, e_neg, _ = terms
        ends = slice(-len(start), None)  # of chains that are looked at several times
        stored, n_nonfinite, n_pos, n_neg = x_neg[ends], 0.0, 0, 0
        if not finite:
            pos, neg = finite_rows(e_pos), finite_rows(x_neg) & finite_rows(e_neg)
            stored = torch.where(neg[ends].view(-1, *(1,) * (x.dim() - 1)), stored, start)
            n_pos, n_neg = len(x) - pos.sum(), len(x_neg) - neg.sum()
            n_nonfinite = n_pos + n_neg
        if self.on_nonfinite != "count" and not (finite and world().size == 1):
            counts = counts_of_ranks(int(n_pos), int(n_neg), len(x), len(x_neg))
            where = f"call {self.calls} of {type(self).__name__}"
            n_nonfinite = report(where, self.on_nonfinite, counts)
            if self.on_nonfinite == "skip" and n_nonfinite:
                if finite:  # here, but not on another rank
                    pos, neg = finite_rows(e_pos), finite_rows(e_neg)
                first = rng.first_sample(len(start))
                left = left_of(batch._replace(chains=before), pos, neg, first, counts.kept)
                at_points = self._sees_points(len(x))
                found = self._phases(left, left.chains, None) if at_points else None
                loss, _, of_left, *_ = found or self._by_graph(left, rng)
                metrics |= of_left if all(left.weights) else dict.fromkeys(of_left, math.nan)
        metrics["n_nonfinite"] = n_nonfinite
        rng.advance(1)
        if self.buffer is not None:
            self.buffer.push(stored, slots)
        return LossOutput(loss if torch.is_grad_enabled() else loss.detach(), x_neg, metrics)

    @property
    def _starts_at_data(self) -> bool:
        return self.buffer is None

    def _start(self, x: Tensor, rng: ChainRNG) -> tuple[Tensor, Tensor | None]:
        """Where the chains start, and the slots of the buffer that they go back to."""
        if self.buffer is None:
            return x, None
        start, slots = self.buffer.sample(self.n_chains or len(x))
        return start.to(x), slots

    def _batch(self, x: Tensor, start: Tensor, slots: Tensor | None, kwargs: dict) -> Batch:
        """What the loss is taken of."""
        return Batch(x, start, kwargs, kwargs)

    def _times(self, n: int) -> int:
        """How many times of the chains the loss of n data sees."""
        return 1

    def _sees_points(self, n: int) -> bool:
        """Whether the loss of n data takes chains as points, and no derivative of a step."""
        return self.sampler.by_points or self._times(n) > 1

    def _terms(self, batch: Batch, rng: ChainRNG | DeviceRNG) -> tuple[Terms, Tensor, bool]:
        """The loss of chains at their start; what ``_by_graph`` would take of it again, the chains
        before their last step or the points; and whether energies and chains are finite."""
        if self._sees_points(len(batch.x)):
            terms, finite = self._at_points(batch, rng)
            return terms, terms.x_neg, finite
        found = self._by_formulas(batch, rng)
        if found is not None:
            return found
        population = self._population(batch.x)
        more = {"jumps": self.jumps, "population": population} if self.jumps else {}
        before = self.sampler.sample(
            batch.chains, self.k_steps - 1, seed=rng, model_kwargs=batch.kwargs_neg, **more
        )
        terms = self._by_graph(batch._replace(chains=before), rng)
        return terms, before, self._is_finite(terms)

    @torch.enable_grad()
    def _at_points(self, batch: Batch, rng: ChainRNG | DeviceRNG) -> tuple[Terms, bool]:
        jumps, times = (self.jumps, self._population(batch.x)), self._times(len(batch.x))
        if times * len(batch.chains) == len(batch.x):
            found = points_by_formulas(
                *(self.model, self.sampler, batch, self.k_steps, rng, self.energy_reg_weight),
                *jumps,
            )
            if found is not None:
                return found
        negatives = run_to_points(
            *(self.sampler, batch.chains, self.k_steps, times, rng, batch.kwargs_neg, *jumps)
        )
        terms = self._phases(batch, negatives.x, None)
        terms.metrics.update(negatives.metrics)
        return terms, self._is_finite(terms)

    def _is_finite(self, terms: Terms) -> bool:
        """Whether all is; False where nobody asks."""
        return self.on_nonfinite != "count" and all_finite(terms.metrics, terms.x_neg)

    def _population(self, x: Tensor) -> Tensor | None:
        """What jumps go by, on the device of ``x``: all chains that wait."""
        return self.buffer.rows_of_ranks().to(x.device) if self.jumps else None

    def _by_formulas(
        self, batch: Batch, rng: ChainRNG | DeviceRNG
    ) -> tuple[Terms, Tensor, bool] | None:
        """The loss of chains at their start without a graph, where that is possible."""
        return terms_by_formulas(
            self.model, self.sampler, batch, self.k_steps, rng, self.energy_reg_weight
        )

    @torch.enable_grad()
    def _by_graph(self, batch: Batch, rng: ChainRNG | DeviceRNG) -> Terms:
        """The loss of chains before their last step."""
        x_neg, grad = self._last_step(batch, rng, create_graph=False)
        return self._phases(batch, x_neg.detach(), grad)

    def _last_step(
        self, batch: Batch, rng: ChainRNG | DeviceRNG, create_graph: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self.sampler.last_step(
            batch.chains,
            self.k_steps - 1,
            create_graph=create_graph,
            seed=rng.copy(),
            model_kwargs=batch.kwargs_neg,
            sample_ids=batch.sample_ids,
        )

    def _phases(self, batch: Batch, x_neg: Tensor, grad: Tensor | None) -> Terms:
        """The positive phase, the negative phase, and the energies' squares."""
        e_pos = energy(self.model, batch.x, **batch.kwargs_pos)
        e_neg = self._energy_neg(batch, x_neg)
        mean_pos, mean_neg = e_pos.mean(), e_neg.mean()
        squares = e_pos.square().mean() + e_neg.square().mean()
        std_pos, std_neg = spread(e_pos), spread(e_neg)
        loss = gap = mean_pos - mean_neg
        if self.energy_reg_weight:
            loss = loss + self.energy_reg_weight * squares
        if batch.weights != (1.0, 1.0):
            loss = self._weighted(batch.weights, e_pos, e_neg)
        gap = gap.detach()
        metrics = {
            "loss_cd": gap,
            "energy_pos": mean_pos.detach(),
            "energy_neg": mean_neg.detach(),
            "energy_pos_std": std_pos,
            "energy_neg_std": std_neg,
            "energy_gap": gap,
            "energy_reg": squares.detach(),
            **step_metrics(self.sampler, x_neg, grad),
        }
        return Terms(loss, x_neg, metrics, e_pos, e_neg, mean_neg)

    def _weighted(self, weights: tuple[float, float], e_pos: Tensor, e_neg: Tensor) -> Tensor:
        """The loss of the phases on a rank that has more rows than others, or fewer."""
        pos, neg = (
            w * (sign * e.mean() + self.energy_reg_weight * e.square().mean())
            for w, sign, e in zip(weights, (1, -1), (e_pos, e_neg), strict=True)
        )
        return pos + neg

    def _energy_neg(self, batch: Batch, x_neg: Tensor) -> Tensor:
        return energy(self.model, x_neg, **batch.kwargs_neg)

    def _check(self, x: Tensor) -> None:
        check_unsampled(self.model)
        if not self.calls:
            check_initialised(self.model)
        check_batch(x)
        check_same_model(self.model, self.sampler.model)
        self._check_skip(len(x))
        integer("jumps", self.jumps, 0, self.k_steps - (not self._sees_points(len(x))))
        check_jumps(self.sampler, self.buffer, self.jumps)
        check_starts(x, self.buffer, self.n_chains, self._starts_at_data)
        # On a device, which this waits for, the first batch only.
        if isinstance(self.sampler, GibbsSampler) and (x.device.type == "cpu" or not self.calls):
            self.sampler.model.check_data(x)

    def _check_skip(self, n: int = 0) -> None:
        """ValueError where no rows of n samples could be left out, and might have to be."""
        if self.on_nonfinite != "skip":
            return
        per_chain = [getattr(self.sampler, name, None) for name in ("step_size", "noise_std")]
        if any(isinstance(v, Tensor) and v.dim() for v in per_chain):
            raise ValueError('on_nonfinite="skip" needs one step_size and noise_std for all chains')
        check_given((self.model, self.sampler.model), n)
