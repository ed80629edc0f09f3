"""Langevin dynamics: its conventions, schedules and diagnostics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Generator, Tensor

from fastebm.arguments import Setting, integer, one_of, optional
from fastebm.chains.adjusted import Points
from fastebm.chains.chain import ChainRunner, Coefficients, StepOptions
from fastebm.chains.mlp_chain import PRECISIONS, MLPChain, mlp_chain
from fastebm.chains.second_order import uncompiled
from fastebm.chains.steps import Steps
from fastebm.ops.langevin import Clamp
from fastebm.rng import ChainRNG, DeviceRNG, as_rng, check_sample_ids
from fastebm.samplers.adaptive import AdaptiveStep, step_setting
from fastebm.samplers.langevin_chains import langevin_steps, run_langevin
from fastebm.samplers.last_step import take_last_step
from fastebm.samplers.run import Run
from fastebm.samplers.sampler import Sampler
from fastebm.samplers.scale import warn_of_wide_noise
from fastebm.samplers.settings import chains, number, setting, value_at
from fastebm.samplers.units import Preconditioned

Schedule = Callable[[int], float]


class LangevinDynamics(Sampler):
    """Unadjusted Langevin dynamics on an energy, ``p(x)`` proportional to ``exp(-E(x))``.

    ``x <- clamp(x - step_size * clip(grad E(x)) + sigma * n)``, with n standard normal and
    ``sigma = noise_std`` if given, else ``noise_scale * sqrt(2 * step_size * temperature)``.
    So ``noise_scale`` is a multiplier of the noise of exact Langevin dynamics at ``temperature``,
    and ``noise_std`` is absolute and wins. With small steps the chain samples
    ``exp(-E / effective_temperature)``, where ``effective_temperature = sigma^2 / (2 step_size)``.

    All arguments are attributes of the same names, which may be set at any time: they are checked
    then, and the next call goes by what they are.

    Args:
        model: the energy, (B, *event) -> (B,), (B, 1) or (B, S) (scales, summed here). A module,
            also behind a bound method or a ``functools.partial``, is in eval mode with its
            parameters frozen while chains run, and restored after; other threads may sample it
            meanwhile, and nothing else. Any other function is left alone.
        step_size: a number > 0, a tensor of B numbers (one per chain), or a schedule: a function
            of the step's index, an int from 0 in every call of ``sample``, to a number; "auto" or
            an ``AdaptiveStep``: it finds itself, by what Metropolis' rule accepts.
        noise_scale, temperature: a number >= 0, or a schedule.
        noise_std: a number >= 0, a tensor of B numbers, or a schedule; None: from the above.
        clamp: (lo, hi), the box every step ends in; either may be None.
        grad_clip: bound on |grad|, element by element.
        noise_first: ``x <- x + sigma * n``, then the gradient there, then the rest of the step.
        grad_norm_clip: bound on each chain's gradient norm, applied before ``grad_clip``.
        backend: "eager": the model's gradient by autograd, then the fused step; "fused": all steps
            of a chain in one kernel, for small perceptrons (see ``fastebm.chains.plain_mlp``);
            "auto": the latter where it is possible, unless ``compile`` or ``graph=True`` ask for
            something else. They differ by the rounding of gradients.
        compile: take the gradient of ``sample`` through ``torch.compile`` (of the gradient alone:
            ``last_step`` stays eager). The same result up to rounding. Tensors of the model may
            change from one step of a chain to the next if they change in place, and nothing else.
        graph: run ``sample`` as CUDA graphs of up to 32 steps: small energies cost less than their
            launches. ``"auto"``: from the second call with the same shapes and options on, where it
            works; else one ``GraphWarning`` says why. True: a RuntimeError does. A CPU has none.
            All that the model holds is looked at in every call: tensors may change in place, other
            numbers, tensors or modules get another graph (``fastebm.chains.snapshot`` says what is
            seen).
        precision: of the products in ``backend="fused"``: "fp32", or on a CUDA device "bf16", with
            sums, chains and noise in float32.
        adjusted: accept or refuse each step by Metropolis' rule, its drift no longer than sigma
            sqrt(D): chains sample ``exp(-E / effective_temperature)`` at any step. ``clamp``
            refuses what is outside.
        preconditioner: (*event), a scale of each coordinate, such as its standard deviation: chains
            run in these units, ``x = scale z``: step and noise, and bounds on gradients, are z's.
            None: all scales are 1. ``warm_up`` finds it.

    Raises:
        TypeError, ValueError: an argument is not of its kind or out of its range.

    Source: Roberts and Tweedie, Exponential convergence of Langevin distributions, 1996.
    """

    _outside_graphs = ("runner", "step_size_checked")  # no graph of a step bakes these in

    target_acceptance = 0.9
    _step_power = 2
    step_size = Setting(step_setting)
    noise_scale = Setting(setting)
    noise_std = Setting(optional(partial(setting, per_chain=True)))
    temperature = Setting(partial(setting, per_chain=True))
    grad_clip = Setting(optional(partial(number, above_zero=True)))
    noise_first = Setting(one_of(False, True))
    adjusted = Setting(one_of(False, True))
    grad_norm_clip = Setting(optional(partial(number, above_zero=True)))
    backend = Setting(one_of("auto", "eager", "fused"))
    compile = Setting(one_of(False, True))
    graph = Setting(one_of("auto", True, False))
    precision = Setting(one_of(*PRECISIONS))

    def __init__(
        self,
        model: Callable[..., Tensor],
        step_size: float | Tensor | Schedule,
        noise_scale: float | Schedule = 1.0,
        noise_std: float | Tensor | Schedule | None = None,
        temperature: float | Schedule = 1.0,
        clamp: Clamp | None = None,
        grad_clip: float | None = None,
        noise_first: bool = False,
        grad_norm_clip: float | None = None,
        backend: str = "auto",
        compile: bool = False,
        graph: bool | str = "auto",
        precision: str = "fp32",
        adjusted: bool = False,
        preconditioner: Tensor | None = None,
    ) -> None:
        self.model = model
        self.step_size, self.noise_scale, self.noise_std = step_size, noise_scale, noise_std
        self.temperature, self.clamp, self.noise_first = temperature, clamp, noise_first
        self.grad_clip, self.grad_norm_clip = grad_clip, grad_norm_clip
        self.backend, self.compile, self.graph = backend, compile, graph
        self.precision, self.adjusted = precision, adjusted
        self.preconditioner = preconditioner
        self._check_way()
        self.runner = ChainRunner()
        self.step_size_checked = False  # the losses look at their first batch unless it was

    @property
    def options(self) -> StepOptions:
        """What all steps of a chain have in common, of the settings."""
        return StepOptions(self.clamp, self.grad_clip, self.grad_norm_clip, self.noise_first)

    def _check_way(self) -> None:
        """ValueError where the settings of how chains run go against each other. Each of them may
        be set by itself, so all are looked at together when chains are about to run."""
        if self.precision == "bf16" and self.backend != "fused":
            raise ValueError(f"precision='bf16' needs backend='fused', got {self.backend!r}")
        if self.backend == "fused" and (self.compile or self.graph is True):
            raise ValueError("backend='fused' has nothing to compile or to capture")
        if self.clamp is not None and self.units is not None and not self.adjusted:
            raise ValueError(
                "clamp of chains in units of each coordinate needs adjusted=True: its faces differ"
            )
        if not self.adjusted:
            return
        for name, value in {"noise_first": False, "grad_clip": None, "grad_norm_clip": None,
                            "compile": False, "precision": "fp32"}.items():  # fmt: skip
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} must be {value!r} with adjusted=True, got {getattr(self, name)!r}"
                )
        if self.graph is True:
            raise ValueError("graph must be False or 'auto' with adjusted=True, got True")

    def coefficients(self, k: int, device: torch.device | str | None = None) -> Coefficients:
        """``(step_size, sigma)`` of step ``k``, each a float or a tensor (B,). An adaptive step is
        what its ``value`` is on ``device``, by default where it was last."""
        step = self.step_size
        if isinstance(step, AdaptiveStep):
            step = step.value(device or step.log_step.device)
        else:
            step = value_at(k, "step_size", step, above_zero=True)
        if self.noise_std is not None:
            return step, value_at(k, "noise_std", self.noise_std)
        scale = value_at(k, "noise_scale", self.noise_scale)
        sigma = (2 * value_at(k, "temperature", self.temperature) * step) ** 0.5
        return step, sigma if scale == 1 else scale * sigma

    @property
    def is_scheduled(self) -> bool:
        """Whether a setting is a function of the step."""
        settings = (self.step_size, self.noise_std, self.noise_scale, self.temperature)
        return any(callable(s) and not isinstance(s, AdaptiveStep) for s in settings)

    def plan(self, steps: range, device: torch.device | str | None = None) -> list[Coefficients]:
        """The coefficients of some steps, all checked."""
        if self.is_scheduled:
            plan = [self.coefficients(k, device) for k in steps]
        else:
            plan = [self.coefficients(0, device)] * len(steps)
        if self.adjusted and any(not isinstance(s, Tensor) and s == 0 for _, s in plan):
            raise ValueError(
                "adjusted=True needs noise: noise_std, noise_scale and temperature must be above 0"
            )
        return plan

    @property
    def effective_temperature(self) -> float | Tensor:
        """``sigma^2 / (2 step_size)``: at small steps, chains sample ``exp(-E / it)``. That of the
        first step where there is a schedule; a tensor (B,) where chains differ."""
        step, sigma = self.coefficients(0)
        return sigma**2 / (2 * step)

    @property
    def by_points(self) -> bool:
        """Whether losses see the chains' ends, and no derivative of a step."""
        return self.adjusted

    @property
    def jumps_possible(self) -> bool:
        """Whether steps may be jumps between modes."""
        return self.adjusted

    def _adjusted_kin(self) -> Sampler:
        kin = copy.copy(self)
        kin.adjusted = True
        kin._check_way()
        kin.plan(range(1))
        return kin

    def _run(self, run: Run) -> tuple[Points, dict[str, Tensor]]:
        return run_langevin(self, run)

    def steps(self, run: Run) -> AbstractContextManager[Steps]:
        """Steps as other samplers make them, a few at a time."""
        return langevin_steps(self, run)

    def check_temperatures(self) -> None:
        """TypeError unless chains may have a temperature each."""
        if self.noise_std is not None or callable(self.noise_scale):
            raise TypeError(
                "noise_std must be None and noise_scale a number where each chain has a temperature"
            )

    def check_step_size(self, data: Tensor) -> None:
        """Warn when the noise of one step is wider than the tightest scale of the data.

        A step adds variance sigma^2, so a chain has a mode of variance v only if sigma^2 <= v; at
        temperature 1, step_size <= v / 2. Beyond, training steepens the energy without bound. With
        ``noise_first`` the gradient acts after the noise and there is no such limit.

        Args:
            data: (N, *event), N >= 32. For v see ``data_scale``.
        """
        self.step_size_checked = True
        if self.noise_first or self.adjusted or isinstance(self.step_size, AdaptiveStep):
            return
        step, sigma = (float(torch.as_tensor(c).max()) for c in self.coefficients(0))
        warn_of_wide_noise(step, sigma, data)

    @uncompiled
    def last_step(
        self,
        x: Tensor,
        k: int = 0,
        *,
        create_graph: bool = True,
        seed: int | ChainRNG | DeviceRNG | None = None,
        generator: Generator | None = None,
        model_kwargs: dict | None = None,
        sample_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Step ``k`` of a chain, its result differentiable in the parameters of the model.

        With one ``ChainRNG`` for both, ``sample(x, K - 1)`` and then ``last_step(., K - 1)`` has
        the values of ``sample(x, K)``, up to rounding where torch has other formulas for gradients
        with a graph. The result depends on the parameters through this step's gradient; its
        starting point is a constant.

        Args:
            x: (B, *event), where the step starts; not modified.
            k: index of the step, for schedules.
            create_graph: False: no graph is kept.
            seed, generator, model_kwargs, sample_ids: as in ``sample``.

        Returns:
            x after the step, and grad E(x), both (B, *event) and with a graph.
        """
        k = integer("k", k, 0)
        rng = as_rng(seed, generator)
        x = chains(x)
        check_sample_ids(sample_ids, len(x))
        self._check_way()
        (coefficients,) = self.plan(range(k, k + 1), x.device)
        out = take_last_step(
            *(self, x, coefficients, rng.state(x.device, len(x)), create_graph),
            *(model_kwargs or {}, sample_ids),
        )
        rng.advance(1)
        return out

    def fused_chain(self, x: Tensor, model_kwargs: dict) -> MLPChain | None:
        """Chains from ``x``, in the chains' units, in one kernel; None where they are run step by
        step.

        Raises:
            ValueError: what ``backend`` and ``precision`` ask for cannot be had.
        """
        self._check_way()
        if self.backend == "eager" or self.compile or self.graph is True:
            return None
        units = self.units
        scale = units.scale if isinstance(units, Preconditioned) else None
        model = self.inner_model if scale is None else units.inner
        found = mlp_chain(model, x, model_kwargs, self.precision)
        if not isinstance(found, str):
            return found if scale is None else found.rescaled(scale.flatten())
        if self.backend == "fused":
            raise ValueError(f"backend='fused' takes small perceptrons only: {found}")
        return None
