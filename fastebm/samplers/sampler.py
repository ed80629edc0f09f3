"""What all samplers have in common: how chains are started, watched and returned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Generator, Tensor

from fastebm.arguments import Setting, integer, optional, sizes
from fastebm.chains.adjusted import Points
from fastebm.chains.chain import BeforeStep, Done, OnStep
from fastebm.chains.gradients import GradientAt, cpu_chain, gradients
from fastebm.chains.mlp_chain import MLPChain
from fastebm.chains.steps import Steps
from fastebm.energies.sampling_mode import modules_of, parameters_of
from fastebm.modes import outside_inference
from fastebm.ops.langevin import langevin_step_
from fastebm.replay.augmentation import Augmentation
from fastebm.rng import INIT, ChainRNG, DeviceRNG, as_rng, check_sample_ids
from fastebm.samplers.diagnostics import Log, as_rows, finite_rows
from fastebm.samplers.progress import Progress, told
from fastebm.samplers.run import Run, checked_jumps, run_steps_of
from fastebm.samplers.settings import (
    box,
    callable_model,
    chains,
    check_box,
    check_sizes,
    scales,
)
from fastebm.samplers.units import (
    Preconditioned,
    Units,
    box_for,
    bring_into,
    has_box_each,
    units_of,
)
from fastebm.samplers.warm_up import WarmsUp


class Sampler(WarmsUp):
    """Chains on an energy, ``p(x)`` proportional to ``exp(-E(x))``: what all samplers have in
    common. A subclass says how a run of steps is made.

    Attributes:
        model: the energy, (B, *event) -> (B,), (B, 1) or (B, S) (scales, summed here).
        clamp: (lo, hi), the box of the chains: numbers, or tensors (*event) or (B, *event); either
            may be None.
        preconditioner: (*event) or None: chains run in units of these scales, ``x = scale z``, with
            the same steps: a step acts on z, and settings that have a unit have z's.
    """

    step_size_checked = True  # there is nothing to check by the data
    has_energy = True  # the model gives energies, not a score alone
    adjusted = True  # chains accept or refuse, and end at points whose energy is known
    dtypes: tuple[torch.dtype, ...] = ()  # that chains may have; none: any
    by_points = True  # losses see the chains' ends, and no derivative of a step

    model = Setting(callable_model)
    clamp = Setting(optional(box))
    preconditioner = Setting(optional(scales))

    @property
    def units(self) -> Units | None:
        """What chains run in, where that is not the user's units."""
        key = (self.model, *self._scaled_by)
        found = vars(self).get("_units")
        if found is None or any(a is not b for a, b in zip(found[0], key, strict=True)):
            found = self._units = key, units_of(self.model, self._scale())
        return found[1]

    @property
    def _scaled_by(self) -> tuple:
        """What ``_scale`` is made of."""
        return (self.preconditioner,)

    def _scale(self) -> Tensor | None:
        """The chains' units in those of the model, (*event) or 0-d."""
        return self.preconditioner

    @property
    def inner_model(self) -> Callable[..., Tensor]:
        """What chains run on, in their units."""
        units = self.units
        return self.model if units is None else units.energy

    def sample(
        self,
        x: Tensor | None = None,
        n_steps: int = 100,
        *,
        n_samples: int | None = None,
        dim: int | tuple[int, ...] | None = None,
        burn_in: int = 0,
        thin: int = 1,
        return_trajectory: bool = False,
        return_diagnostics: bool = False,
        seed: int | ChainRNG | DeviceRNG | None = None,
        generator: Generator | None = None,
        model_kwargs: dict | None = None,
        sample_ids: Tensor | None = None,
        augmentation: Augmentation | None = None,
        augment_every: int = 20,
        jumps: int = 0,
        population: Tensor | None = None,
        step_size: float | Tensor | Callable[[int], Any] | None = None,
        noise_std: float | Tensor | Callable[[int], Any] | None = None,
        temperature: float | Tensor | Callable[[int], Any] | None = None,
        progress: Progress | bool | None = None,
    ) -> Tensor | Any:  # a union with the pair would be in every caller's way
        """Run ``burn_in + n_steps`` steps.

        Args:
            x: starting points (B, *event), not modified; None: standard normal, clamped, from the
                same stream, of shape (n_samples, *dim) and on the device of the model.
            n_steps: steps after ``burn_in``.
            n_samples, dim: shape of the start when ``x`` is None.
            burn_in: steps before the trajectory and the diagnostics begin.
            thin: keep every so-many-th of the ``n_steps`` steps, ``n_kept = n_steps // thin``.
            return_trajectory: return what was kept, not only the last state.
            return_diagnostics: return also a dict, below.
            seed: an int: the same noise in every call; a ``ChainRNG``: goes on where it is, and is
                advanced; None: a key from ``generator``, or from torch's default generator.
            generator: see ``seed``; not both.
            model_kwargs: further arguments of the model.
            sample_ids: int64 (B,), whose noise each chain gets; default: its row.
            augmentation: the chains make this transition before step 0, ``augment_every``,
                2 ``augment_every``, ... (counted with burn_in): rounds that mix chains over modes,
                as trained with. Refine by a second call without it. The noise is the same with it
                and without, and so are the steps that are kept.
            augment_every: steps of a round, >= 1.
            jumps: so many of the steps, evenly spread, are jumps between modes: to
                ``c_i + (s_i / s_j) (x - c_j)``, c means and s widths of neighbours in the
                population, c_j the nearest of 16, or in one of ten, where ``clamp`` has two faces,
                to a uniform point of the box (of ``Standardized``: where it is no wider than 100
                standard deviations of any coordinate). They need ``adjusted``.
            population: (P, *event), P >= 2, such as ``buffer.all()``; None: the chains themselves,
                one half jumping by where the other is, anew after 20 steps and where states are
                kept, so B >= 4.
            step_size, noise_std, temperature: settings for this call alone, of samplers that have
                them; None: what the sampler's are.
            progress: called with (steps done, of how many), some ten times a second and in the end;
                True: a bar of rich's.

        Returns:
            The last state (B, *event), or with ``return_trajectory`` (B, n_kept, *event). With
            ``return_diagnostics`` a pair of it and a dict: ``mean`` and ``var`` over the chains
            (n_kept, *event), ``energy`` and ``grad_norm`` (n_kept, B) at the point that the kept
            step started from (they cost nothing there; of adjusted chains at the kept state),
            of adjusted chains ``acceptance``, the mean acceptance probability of the proposals, and
            ``jump_acceptance``, the share of the jumps that were accepted, ``clamp_share``, the
            share of elements of the last state on a face of the box, ``n_nonfinite``, the number of
            chains that are not finite in the end, and ``effective_temperature``.

        Raises:
            ValueError, TypeError: an argument is not what it should be, or the model is not one
                for ``backend="fused"``; nothing has run then.
        """
        own = {"step_size": step_size, "noise_std": noise_std, "temperature": temperature}
        self = self.with_settings({k: v for k, v in own.items() if v is not None})  # of this call
        n_steps, burn_in = integer("n_steps", n_steps, 0), integer("burn_in", burn_in, 0)
        thin, augment_every = integer("thin", thin, 1), integer("augment_every", augment_every, 1)
        total = burn_in + n_steps
        if total >= 2**32:  # of any stream; and before a plan of so many steps is made
            raise ValueError(f"n_steps and burn_in must be less than 2^32 together, got {total}")
        rng = as_rng(seed, generator)
        rng.check_room(total)
        if x is None:
            x = self._start(n_samples, dim, rng, sample_ids)
        elif n_samples is not None or dim is not None:
            raise ValueError("give x, or n_samples and dim, not both")
        else:
            x = chains(x)
        check_sample_ids(sample_ids, len(x))
        jumps = checked_jumps(jumps, total, self.jumps_possible, x, population)
        if augmentation is not None:
            augmentation.check_shape(tuple(x.shape[1:]))
        state = rng.state(x.device, len(x))
        names = ("energy", "grad_norm") if self.has_energy else ("grad_norm",)
        log = Log(x, burn_in, thin, **dict.fromkeys(names, (len(x),)))

        def keep(k: int, x: Tensor, grad: Tensor, e: Tensor | None) -> None:
            if return_trajectory:
                log.add_state(x.clone())
            if return_diagnostics:
                energies = {} if e is None else {"energy": e.clone()}
                log.add_numbers(x, **energies, grad_norm=as_rows(grad).norm(dim=1))

        def augment(k: int, x: Tensor) -> None:
            x.copy_(augmentation.transform(x, state, k, sample_ids))

        watched = return_trajectory or return_diagnostics
        with told(progress, total) as done:
            points, metrics = self.run(
                *(x, total, rng, model_kwargs or {}, sample_ids, keep if watched else None),
                *(range(burn_in + thin - 1, total if watched else 0, thin),),
                *(None if augmentation is None else augment,),
                *(range(0, 0 if augmentation is None else total, augment_every), jumps, population),
                done,
            )
        out = log.trajectory() if return_trajectory else points.x
        if not return_diagnostics:
            return out
        return out, {
            **log.diagnostics(),
            **metrics,
            "clamp_share": self.clamp_share(points.x),
            "n_nonfinite": (~finite_rows(points.x)).sum(),
            "effective_temperature": self.effective_temperature,
        }

    def with_settings(self, settings: dict[str, Any]) -> Sampler:
        """A copy with some settings, itself where there are none.

        Raises:
            TypeError: it has no such setting. And what setting one raises.
        """
        if not settings:
            return self
        other = copy.copy(self)
        for name, value in settings.items():
            if not isinstance(getattr(type(self), name, None), Setting):
                raise TypeError(f"{type(self).__name__} has no {name}")
            setattr(other, name, value)
        return other

    def run(
        self,
        x: Tensor,
        total: int,
        rng: ChainRNG | DeviceRNG,
        model_kwargs: dict,
        sample_ids: Tensor | None = None,
        on_step: OnStep | None = None,
        seen: range = range(0),
        before_step: BeforeStep | None = None,
        changed: range = range(0),
        n_jumps: int = 0,
        population: Tensor | None = None,
        done: Done | None = None,
    ) -> tuple[Points, dict[str, Tensor]]:
        """``total`` steps from ``x`` (B, *event), which stays as it is, arguments as of a ``Run``
        and x in the user's units in all of them; the stream is advanced.

        Returns:
            The last points, x in the user's units, and metrics of the chains.
        """
        if self.dtypes and x.dtype not in self.dtypes:
            known = " or ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            raise TypeError(f"x must be {known} for {type(self).__name__}, got {x.dtype}")
        for name in ("step_size", "noise_std", "noise_scale", "temperature"):
            check_sizes(name, getattr(self, name, None), total, len(x))
        check_box(self.clamp, x)
        callbacks = on_step, seen, before_step, changed
        with outside_inference():
            x, units = x.clone(memory_format=torch.contiguous_format), self.units
            more = n_jumps, population, done
            run = Run(x, total, rng, model_kwargs, sample_ids, *callbacks, *more)
            points, metrics = self._run(run if units is None else run.in_units(units))
            rng.advance(total)
            if units is None:
                return points, metrics
            out = bring_into(self.clamp, units.restore(points.x))  # the way back is rounded
            return points._replace(x=out), metrics

    def _run(self, run: Run) -> tuple[Points, dict[str, Tensor]]:
        """``run`` in the chains' units, in place."""
        points = Points.at(run.x)
        with self.steps(run) as steps:
            run_steps_of(steps, points, run)
        return points, steps.metrics(points, run.total)

    def steps(self, run: Run) -> AbstractContextManager[Steps]:
        """The steps of a run, in the chains' units, for as long as the context is open."""
        raise NotImplementedError

    def gradients(self, run: Run, a_step: int = 1) -> AbstractContextManager[GradientAt]:
        """Energy and gradient at points, in the chains' units, so many in each step."""
        model, scale = self._unscaled
        return gradients(model, run.x, run.model_kwargs, scale, a_step * run.total)

    def cpu_chain(self, run: Run, a_step: int = 1) -> MLPChain | None:
        """The run's chains in one operator, where the energy is a small perceptron on a CPU."""
        if has_box_each(self.clamp, run.x):
            return None
        model, scale = self._unscaled
        return cpu_chain(model, run.x, run.model_kwargs, scale, a_step * run.total)

    @property
    def _unscaled(self) -> tuple[Callable[..., Tensor], Tensor | None]:
        """What chains run on before it is scaled, and the scale."""
        units = self.units
        scaled = isinstance(units, Preconditioned)
        return (units.inner, units.scale) if scaled else (self.inner_model, None)

    def check_temperatures(self) -> None:
        """TypeError unless chains may have a temperature each."""

    @property
    def jumps_possible(self) -> bool:
        """Whether steps may be jumps between modes."""
        return False

    def clamp_share(self, x: Tensor) -> Tensor:
        """Share of elements of ``x`` on a face of the clamp box, 0-d; 0 without a box."""
        lo, hi = box_for(self.clamp, x) or (None, None)
        if lo is None and hi is None:
            return torch.zeros((), device=x.device)
        on_face = x <= lo if hi is None else x >= hi
        if lo is not None and hi is not None:
            on_face |= x <= lo
        return on_face.mean(dtype=torch.float32)

    def _start(
        self, n: int | None, dim: int | tuple[int, ...] | None, rng: ChainRNG, ids: Tensor | None
    ) -> Tensor:
        if n is None or dim is None:
            raise ValueError("give x, or n_samples and dim")
        n, event = integer("n_samples", n, 0), sizes("dim", dim)
        parameters = parameters_of(modules_of(self.model))
        like = next((p for p in parameters if p.is_floating_point()), torch.empty(0))
        x = torch.zeros((n, *event), dtype=like.dtype, device=like.device)
        check_box(self.clamp, x)
        state, box = rng.state(x.device, len(x)), box_for(self.clamp, x)
        with torch.no_grad():
            return langevin_step_(x, None, 0.0, 1.0, state, sample_ids=ids, clamp=box, tag=INIT)
