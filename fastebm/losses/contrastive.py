"""Contrastive divergence, persistent and improved: losses for a training loop of your own."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from fastebm.energies.protocol import check_batch, energy
from fastebm.entropy.estimators import nn_log_distance
from fastebm.losses.loss_terms import phases, spread, step_metrics
from fastebm.losses.mlp_loss import LastStepTerms, terms_by_formulas
from fastebm.losses.nonfinite import ON_NONFINITE, all_finite, report
from fastebm.ops.mlp.network import Network
from fastebm.replay.buffer import References, ReplayBuffer
from fastebm.rng import ChainRNG, DeviceRNG, as_rng
from fastebm.samplers.gibbs import NO_DERIVATIVE, GibbsSampler
from fastebm.samplers.langevin import LangevinDynamics, finite_rows
from fastebm.samplers.scale import MIN_POINTS


class LossOutput(NamedTuple):
    """What a loss returns.

    Attributes:
        loss: 0-d, to call ``backward()`` on; of a small perceptron on a CPU without create_graph.
        x_neg: (B, *event), the chains in the end, without a graph.
        metrics: the terms, each 0-d without a graph. The total is not among them: its value is not
            comparable between losses.
    """

    loss: Tensor
    x_neg: Tensor
    metrics: dict[str, Tensor | float]


class ContrastiveDivergence(nn.Module):
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
            out of every mean, and raise only if nothing is left. These read one number from the
            device in each call. ``"count"`` reads nothing: as ``"warn"``, but silent, and
            the count stays on the device. A buffer gets back what such a chain started from.

    Metrics: ``energy_pos``, ``energy_neg`` and their ``_std`` over the batch; ``loss_cd`` =
    ``energy_gap`` = energy_pos - energy_neg; ``energy_reg`` (without its weight); ``grad_norm``,
    the mean of |grad E| in the last step; ``clamp_share``, of the chains' elements on a face of the
    box (these two of Langevin chains); ``n_nonfinite``.

    Source: Hinton, Training products of experts by minimizing contrastive divergence, 2002.
    """

    _outside_graphs = ("calls",)  # what no graph of a step bakes in

    def __init__(
        self,
        model,
        sampler: LangevinDynamics | GibbsSampler,
        k_steps: int = 10,
        energy_reg_weight: float = 0.0,
        on_nonfinite: str = "raise",
    ) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        if not isinstance(sampler, (LangevinDynamics, GibbsSampler)):
            raise TypeError(
                f"sampler must be a LangevinDynamics or a GibbsSampler, got"
                f" {type(sampler).__name__}"
            )
        if not isinstance(k_steps, int) or k_steps < 1:
            raise ValueError(f"k_steps must be an integer >= 1, got {k_steps!r}")
        if on_nonfinite not in ON_NONFINITE:
            raise ValueError(
                f"on_nonfinite must be one of {', '.join(ON_NONFINITE)}, got {on_nonfinite!r}"
            )
        per_chain = [getattr(sampler, name, None) for name in ("step_size", "noise_std")]
        if on_nonfinite == "skip" and any(isinstance(v, Tensor) and v.dim() for v in per_chain):
            raise ValueError('on_nonfinite="skip" needs one step_size and noise_std for all chains')
        self.__dict__["model"] = model  # past nn.Module, which would register it
        self.sampler = sampler
        self.buffer: ReplayBuffer | None = None
        self.k_steps = k_steps
        self.energy_reg_weight = _weight("energy_reg_weight", energy_reg_weight)
        self.on_nonfinite = on_nonfinite
        self.calls = 0

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
        self._check(x)
        rng = as_rng(seed, generator)
        kwargs, n = model_kwargs or {}, len(x)
        x = x.detach()
        if not self.sampler.step_size_checked and n >= MIN_POINTS:
            with suppress(ValueError):  # no scale: points that coincide, or not finite
                self.sampler.check_step_size(x)
        start, slots = self._start(x, rng)
        self.calls += 1
        references = self._references(x, slots)  # before the chains come in
        network = self._network(x, kwargs)
        steps, k, before = range(self.k_steps), self.k_steps - 1, start
        if network is None or not _is_own(self.sampler, "sample"):
            before = self.sampler.sample(start, k, seed=rng, model_kwargs=kwargs)
            steps = steps[k:]

        def terms(pos: Tensor | None = None, neg: Tensor | None = None):
            """The loss, of some rows of data and chains if given. The chains' last step comes out
            the same for some as for all: its noise goes by row number."""
            with torch.enable_grad():
                kwargs_neg = _take(kwargs, neg, n)
                x_kl, grad = self.sampler.last_step(
                    before if neg is None else before[neg],
                    k,
                    create_graph=self._through_last_step,
                    seed=rng.copy(),
                    model_kwargs=kwargs_neg,
                    sample_ids=None if neg is None else neg + rng.sample_offset,
                )
                x_neg = x_kl.detach()
                leaf = x_kl.detach().requires_grad_() if self._through_last_step else x_neg
                e_pos = energy(self.model, x if pos is None else x[pos], **_take(kwargs, pos, n))
                e_neg = energy(self.model, leaf, **kwargs_neg)
                mean_pos, mean_neg = e_pos.mean(), e_neg.mean()
                squares = e_pos.square().mean() + e_neg.square().mean()
                stds = spread(e_pos), spread(e_neg)
                loss, metrics = phases(mean_pos, mean_neg, squares, stds, self.energy_reg_weight)
                metrics |= step_metrics(self.sampler, x_neg, grad)
                if self._through_last_step:
                    own = references
                    if own is not None and neg is not None:
                        own = references._replace(own=references.own[neg])
                    loss = loss + self._last_step_terms(mean_neg, leaf, x_kl, own, metrics)
                sound = self.on_nonfinite != "count" and all_finite(metrics, x_neg)
                return loss, x_neg, metrics, (e_pos.detach(), e_neg.detach()), sound

        if network is None:
            loss, x_neg, metrics, (e_pos, e_neg), sound = terms()
        else:
            loss, x_neg, metrics, (e_pos, e_neg), sound, before = terms_by_formulas(
                *(network, x, before, self.sampler, steps, rng),
                *(self.energy_reg_weight, self._last_step_weights(references)),
            )
        stored, metrics["n_nonfinite"] = x_neg, 0.0
        if not sound:
            finite = finite_rows(e_pos), finite_rows(x_neg) & finite_rows(e_neg)
            stored = torch.where(finite[1].view(-1, *(1,) * (x.dim() - 1)), x_neg, start)
            count = 2 * n - finite[0].sum() - finite[1].sum()
            if self.on_nonfinite != "count":
                counts = (int(n - rows.sum()) for rows in finite)
                where = f"call {self.calls} of {type(self).__name__}"
                count = report(where, self.on_nonfinite, *counts, n)
            if self.on_nonfinite == "skip" and count:
                loss, _, metrics, *_ = terms(*(rows.nonzero()[:, 0] for rows in finite))
            metrics["n_nonfinite"] = count
        rng.advance(1)
        if self.buffer is not None:
            self.buffer.push(stored, slots)
        return LossOutput(loss if torch.is_grad_enabled() else loss.detach(), x_neg, metrics)

    def _network(self, x: Tensor, model_kwargs: dict) -> Network | None:
        """The model as a small perceptron, whose gradients are taken by formulas; else None. Not on
        a device, where a CUDA graph takes the launches off; nor with a last step of one's own."""
        sampler = self.sampler
        if not _is_own(sampler, "last_step") or self.model is not sampler.model:
            return None
        if x.device.type != "cpu":
            return None
        return sampler.network(x, model_kwargs)

    def _start(self, x: Tensor, rng: ChainRNG) -> tuple[Tensor, Tensor | None]:
        """Where the chains start, and the slots of the buffer that they go back to."""
        if self.buffer is None:
            return x, None
        start, slots = self.buffer.sample(len(x))
        return start.to(x), slots

    _through_last_step = False  # whether the loss depends on the parameters through the last step

    def _references(self, x: Tensor, slots: Tensor | None) -> References | None:
        return None

    def _last_step_terms(
        self,
        mean_neg: Tensor,
        leaf: Tensor,
        x_kl: Tensor,
        references: References | None,
        metrics: dict[str, Tensor | float],
    ) -> Tensor:
        raise NotImplementedError

    def _last_step_weights(self, references: References | None) -> LastStepTerms | None:
        """The same terms for ``terms_by_formulas``."""
        return None

    def _check(self, x: Tensor) -> None:
        check_batch(x)
        if self.buffer is not None and x.shape[1:] != self.buffer.shape:
            raise ValueError(
                f"x must have samples of the buffer's shape {self.buffer.shape},"
                f" got {tuple(x.shape[1:])}"
            )
        # On a device, which this waits for, the first batch only.
        if isinstance(self.sampler, GibbsSampler) and (x.device.type == "cpu" or not self.calls):
            self.sampler.model.check_data(x)


class PersistentContrastiveDivergence(ContrastiveDivergence):
    """CD with chains that start at samples of ``buffer`` and go back into it.

    Args, metrics: as ``ContrastiveDivergence``, and
        buffer: a ReplayBuffer of the samples' shape; it becomes a submodule.

    Source: Tieleman, Training restricted Boltzmann machines using approximations to the likelihood
    gradient, 2008; Du and Mordatch, Implicit generation and modeling with energy-based models,
    2019.
    """

    def __init__(
        self,
        model,
        sampler: LangevinDynamics | GibbsSampler,
        buffer: ReplayBuffer,
        k_steps: int = 10,
        energy_reg_weight: float = 0.0,
        on_nonfinite: str = "raise",
    ) -> None:
        super().__init__(model, sampler, k_steps, energy_reg_weight, on_nonfinite)
        _check_buffer(buffer)
        if isinstance(sampler, GibbsSampler) and buffer.data.dtype == torch.uint8:
            raise ValueError(
                "buffer must be float32 or bfloat16 for a GibbsSampler: uint8 would dither the"
                " states of its units"
            )
        self.buffer = buffer


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

    Args, metrics: as ``ContrastiveDivergence``, and
        buffer: where chains start and end; None: they start at the data.
        kl_weight, entropy_weight: any real numbers.
        entropy_eps: > 0, the distance below which two samples count as equal.
        n_entropy_refs: how many samples of the buffer are references, chosen anew in each call;
            None: all. They are taken before the new chains come in, less the slot that a chain
            started from. Without a buffer the references are the other chains. With fewer than two
            references the entropy term is zero.
    Further metrics: ``kl_energy``, ``entropy``, both without their weights.

    Source: Du, Li, Tenenbaum, Mordatch, Improved contrastive divergence training of energy-based
    models, 2021.
    """

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
    ) -> None:
        super().__init__(model, sampler, k_steps, energy_reg_weight, on_nonfinite)
        if not isinstance(sampler, LangevinDynamics):
            raise TypeError(NO_DERIVATIVE)
        if buffer is not None:
            _check_buffer(buffer)
        self.buffer = buffer
        self.kl_weight = _weight("kl_weight", kl_weight)
        self.entropy_weight = _weight("entropy_weight", entropy_weight)
        if not 0 < entropy_eps < math.inf:
            raise ValueError(f"entropy_eps must be finite and > 0, got {entropy_eps}")
        if n_entropy_refs is not None and n_entropy_refs < 2:
            raise ValueError(f"n_entropy_refs must be None or >= 2, got {n_entropy_refs}")
        self.entropy_eps, self.n_entropy_refs = float(entropy_eps), n_entropy_refs

    _through_last_step = True

    def _references(self, x: Tensor, slots: Tensor | None) -> References | None:
        """Stored samples, and for each chain which of them is its own slot (or -1)."""
        if self.buffer is None or not self.entropy_weight:
            return None
        y, own, y_scale = self.buffer.references(slots, self.n_entropy_refs)
        return References(y.to(x.device), own.to(x.device), y_scale)

    def _last_step_terms(self, mean_neg, leaf, x_kl, references, metrics):
        # The negative phase and the KL term are energies of the same points, so one forward serves
        # both. mean_neg, taken at a leaf, has a graph to the parameters: the negative phase. Its
        # gradient v at the leaf gives the KL term to first order: d E_sg(x_kl) = <v, d x_kl>, and
        # the first derivative in the parameters, all that backward() computes, is exact. (One
        # forward of data and chains together would double the work of v: measured slower.)
        (v,) = torch.autograd.grad(mean_neg, leaf, retain_graph=True)
        x_neg = x_kl.detach()
        kl = mean_neg.detach() + (v * (x_kl - x_neg)).sum()
        entropy = torch.zeros_like(kl)
        if (references := self._entropy_references(x_neg, references)) is not None:
            y, own, y_scale = references
            entropy = nn_log_distance(x_kl, y, own, self.entropy_eps, y_scale=y_scale)
        metrics["kl_energy"], metrics["entropy"] = kl.detach(), entropy.detach()
        return self.kl_weight * kl - self.entropy_weight * entropy

    def _last_step_weights(self, references):
        weights = self.kl_weight, self.entropy_weight, self.entropy_eps
        return LastStepTerms(*weights, *(references or ()))

    def _entropy_references(self, x_neg: Tensor, stored: References | None) -> References | None:
        """None where there is no entropy term, or too few references for it."""
        if not self.entropy_weight:
            return None
        if self.buffer is None:
            stored = References(x_neg, torch.arange(len(x_neg), device=x_neg.device), (1.0, 0.0))
        return stored if len(stored.y) > 1 else None


def _is_own(sampler: LangevinDynamics | GibbsSampler, name: str) -> bool:
    """Whether the method is that of LangevinDynamics, and not a subclass's or a caller's."""
    method = getattr(sampler, name, None)
    return getattr(method, "__func__", None) is vars(LangevinDynamics)[name]


def _take(model_kwargs: dict, rows: Tensor | None, n: int) -> dict:
    """The arguments for some of n samples."""
    if rows is None:
        return model_kwargs
    return {
        k: v[rows] if isinstance(v, Tensor) and v.dim() and len(v) == n else v
        for k, v in model_kwargs.items()
    }


def _weight(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    return float(value)


def _check_buffer(buffer: ReplayBuffer) -> None:
    if not isinstance(buffer, ReplayBuffer):
        raise TypeError(f"buffer must be a ReplayBuffer, got {type(buffer).__name__}")
