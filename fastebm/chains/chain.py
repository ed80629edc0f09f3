"""How the steps of a chain are run: eagerly, with a compiled gradient, or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastebm.chains.capture import is_active
from fastebm.chains.compiled import CompiledGradient
from fastebm.chains.graph import GRAPHS, Program
from fastebm.chains.settings import has_modes, settings_key
from fastebm.chains.snapshot import Snapshot
from fastebm.energies.protocol import leaf_gradient, sum_scales, uncached_casts
from fastebm.energies.sampling_mode import fresh_parametrizations
from fastebm.energies.score import Score
from fastebm.ops.langevin import Clamp, langevin_step, langevin_step_

Coefficients = tuple[float | Tensor, float | Tensor]  # step_size, noise_std of one step
OnStep = Callable[[int, Tensor, Tensor, Tensor | None], None]  # no energies of a score
BeforeStep = Callable[[int, Tensor], None]
Done = Callable[[int], None]  # called now and then with how many steps are done
# (x, model_kwargs, watched) of a chain that moves `x` in place -> () -> grad, energies. There may
# be no energies unless it is watched, and the next call may overwrite grad.
Gradient = Callable[[Tensor, dict, bool], Callable[[], tuple[Tensor, Tensor | None]]]


class StepOptions(NamedTuple):
    """What all steps of a chain have in common."""

    clamp: Clamp | None = None
    grad_clip: float | None = None
    grad_norm_clip: float | None = None
    noise_first: bool = False
    displacement_clip: float | None = None


class Chain(NamedTuple):
    """What is run, whichever way. ``x`` (B, *event) is changed in place."""

    x: Tensor
    coefficients: Sequence[Coefficients]
    rng: Tensor
    options: StepOptions
    model_kwargs: dict
    sample_ids: Tensor | None = None


class ChainRunner:
    """Runs the chains of models in the way asked for. All give the same result, up to rounding.
    Keeps what was compiled of the last model: for itself, so a copy of it starts afresh."""

    def __init__(self) -> None:
        self._compiled: CompiledGradient | None = None

    def __reduce__(self) -> tuple:
        return ChainRunner, ()

    def run(
        self,
        model: Callable[..., Tensor],
        chain: Chain,
        compile: bool = False,
        graph: bool | str = "auto",
        on_step: OnStep | None = None,
        before_step: BeforeStep | None = None,
        done: Done | None = None,
    ) -> None:
        """Take one step for each of ``chain.coefficients``.

        Gradients must be enabled and the model be in ``sampling_mode``. ``on_step(k, x, grad, e)``
        sees ``x`` after step k, and gradient and energy (B,) at the point that the step left;
        ``before_step(k, x)`` may change ``x`` in place. With either there is no graph. ``done`` is
        told of every step, or of a graph's last one.

        Args:
            compile, graph: as of ``LangevinDynamics``.

        Raises:
            RuntimeError: no graph is possible, and one is required.
        """
        gradient = self._gradient(model) if compile else partial(_eager_gradient, model)
        reason = self.no_graph(model, chain.x, on_step is not None or before_step is not None)
        if reason and graph is True:
            raise RuntimeError(f"graph=True: no CUDA graph of this chain, {reason}")
        if reason or not chain.coefficients or graph is False or is_active():
            return run_steps(gradient, chain, on_step, before_step, done)
        key, program = self._program(model, gradient, chain, compile)
        GRAPHS.run(
            *(model, key, program, len(chain.coefficients)),
            lambda: run_steps(gradient, chain),
            required=graph is True,
        )
        if done is not None:
            done(len(chain.coefficients))

    def _gradient(self, model: Callable[..., Tensor]) -> CompiledGradient:
        if self._compiled is None or self._compiled.model is not model:
            self._compiled = CompiledGradient(model)
        return self._compiled

    def no_graph(self, model: Callable[..., Tensor], x: Tensor, watched: bool) -> str | None:
        """Why a chain from ``x`` cannot be a graph; ``watched``: something is called at steps."""
        if x.device.type not in GRAPHS.device_types:
            return f"it is on {x.device}"
        if watched:
            return "trajectories, diagnostics and augmentation need its single steps"
        if not isinstance(model, nn.Module):
            return "the model is not an nn.Module, so its tensors cannot be watched"
        if has_modes():
            return "modes of torch's functions or operators are on"
        return None

    def _program(
        self, model: nn.Module, gradient: Gradient, chain: Chain, compile: bool
    ) -> tuple[tuple, Program]:
        """The chain for graphs, and the key: all that its graph bakes in beside the model."""
        device = chain.x.device
        tensors = {k: v.detach() for k, v in chain.model_kwargs.items() if isinstance(v, Tensor)}
        values = {k: v for k, v in chain.model_kwargs.items() if k not in tensors}
        inputs = {"x": chain.x, "rng": chain.rng} | {f"model {k}": v for k, v in tensors.items()}
        if chain.sample_ids is not None:
            inputs["sample_ids"] = chain.sample_ids
        by_step, constants = {}, []
        for i, name in enumerate(("step_size", "noise_std")):
            column = [pair[i] for pair in chain.coefficients]
            first = column[0]
            if isinstance(first, Tensor) and all(value is first for value in column):
                inputs[name], first = first.to(device), None
            elif any(isinstance(value, Tensor) for value in column):
                by_step[name], first = stacked(column, device), None
            elif any(value != first for value in column):
                by_step[name], first = on_device(column, torch.float64, device), None
            constants.append(first)
        options, clamp = chain.options, chain.options.clamp or (None, None)
        faces = {n: c for n, c in zip(("lo", "hi"), clamp, strict=True) if isinstance(c, Tensor)}
        if faces:
            inputs |= faces
            options = options._replace(clamp=tuple(faces))

        def body(t: dict[str, Tensor], n: int) -> None:
            pairs = [
                tuple(
                    t[name][k : k + 1] if name in by_step else t.get(name, value)
                    for name, value in zip(("step_size", "noise_std"), constants, strict=True)
                )
                for k in range(n)
            ]
            kwargs = values | {k: t[f"model {k}"] for k in tensors}
            box = tuple(t.get(n, c) for n, c in zip(("lo", "hi"), clamp, strict=True))
            here = chain.options._replace(clamp=box) if faces else options
            with fresh_parametrizations():  # constants of the graph's own memory
                run_steps(
                    gradient, Chain(t["x"], pairs, t["rng"], here, kwargs, t.get("sample_ids"))
                )
            t["rng"][1].add_(n)

        def look(rewritten: frozenset[str]) -> Snapshot:
            return Snapshot(device, rewritten, model=model, model_kwargs=values)

        shapes = tuple((k, v.shape, v.dtype, v.device) for k, v in inputs.items())
        key = (
            *(settings_key(device), compile, options),
            *(shapes, tuple((k, v.shape[1:]) for k, v in by_step.items()), tuple(constants)),
        )
        return key, Program(body, inputs, by_step, look)


@uncached_casts()
def run_steps(
    gradient: Gradient,
    chain: Chain,
    on_step: OnStep | None = None,
    before_step: BeforeStep | None = None,
    done: Done | None = None,
) -> None:
    """``ChainRunner.run``, step by step; nothing waits for the device."""
    x, coefficients, rng, options, model_kwargs, sample_ids = chain
    gradient_at_x = gradient(x, model_kwargs, on_step is not None)
    for t, (step_size, noise_std) in enumerate(coefficients):
        if before_step is not None:
            before_step(t, x)
        if options.noise_first:
            langevin_step_(x, None, 0.0, noise_std, rng, t=t, sample_ids=sample_ids)
            noise_std = 0.0
        grad, e = gradient_at_x()
        if on_step is not None:
            grad, e = _apart(grad, x), e if e is None else _apart(sum_scales(e.detach()), x)
        langevin_step_(
            *(x, grad, step_size, noise_std, rng),
            t=t,
            sample_ids=sample_ids,
            **bounds_of(options),
        )
        if on_step is not None:
            on_step(t, x, grad, e)
        if done is not None:
            done(t + 1)


def bounds_of(options: StepOptions) -> dict:
    """The bounds of a step, as operators name them."""
    names = ("clamp", "grad_clip", "grad_norm_clip", "displacement_clip")
    return {name: getattr(options, name) for name in names}


def _eager_gradient(
    model: Callable[..., Tensor], x: Tensor, model_kwargs: dict, watched: bool
) -> Callable[[], tuple[Tensor, Tensor | None]]:
    if isinstance(model, Score):
        return lambda: (model.gradient(x.detach(), model_kwargs), None)

    def gradient_at_x() -> tuple[Tensor, Tensor]:
        # A new leaf at each step: what a model hangs on its input, as hooks, is gone with it.
        return leaf_gradient(model, x.detach().requires_grad_(), model_kwargs, False)

    return gradient_at_x


def _apart(value: Tensor, x: Tensor) -> Tensor:
    """``value``, in memory that does not move with ``x``: a model may return parts of its input."""
    same = value.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    return value.clone() if same else value


def run_last_step(
    gradient: Callable[[Tensor, dict], tuple[Tensor, Tensor]],
    x: Tensor,
    coefficients: Coefficients,
    rng: Tensor,
    options: StepOptions,
    model_kwargs: dict,
    sample_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One step of ``run_steps`` out of place, with a graph to what the gradient has one to.

    Args:
        x: where the step starts, without a graph.
        gradient: (leaf, model_kwargs) -> grad, energies.

    Returns:
        x after the step, and the gradient it used, both (B, *event).
    """
    step_size, noise_std = coefficients
    if options.noise_first:
        x = langevin_step_(x.clone(), None, 0.0, noise_std, rng, sample_ids=sample_ids)
        noise_std = 0.0
    leaf = x.detach().requires_grad_()
    grad, _ = gradient(leaf, model_kwargs)
    after = langevin_step(
        *(x, grad, step_size, noise_std, rng),
        sample_ids=sample_ids,
        **bounds_of(options),
    )
    return after, grad


def on_device(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor, without a wait for the device; constants of a graph being captured."""
    if is_active():  # a graph would read the host's memory again when that is gone
        return torch.cat([torch.full((1,), v, dtype=dtype, device=device) for v in values])
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def stacked(values: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """Numbers and tensors (B,) or (1,) of some steps as rows of one (K, B) or (K, 1)."""
    tensors = [torch.as_tensor(v, dtype=torch.float64).reshape(-1).to(device) for v in values]
    n = max(map(len, tensors))
    return torch.stack([v.expand(n) for v in tensors])
