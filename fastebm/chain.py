"""How the steps of a chain are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from fastebm.energy import leaf_gradient, sum_scales
from fastebm.ops import Clamp, langevin_step, langevin_step_

Coefficients = tuple[float | Tensor, float | Tensor]  # step_size, noise_std of one step
OnStep = Callable[[int, Tensor, Tensor, Tensor], None]
BeforeStep = Callable[[int, Tensor], None]


class StepOptions(NamedTuple):
    """What all steps of a chain have in common."""

    clamp: Clamp | None = None
    grad_clip: float | None = None
    grad_norm_clip: float | None = None
    noise_first: bool = False


def run_chain(
    model: Callable[..., Tensor],
    x: Tensor,
    coefficients: Sequence[Coefficients],
    rng: Tensor,
    options: StepOptions,
    model_kwargs: dict,
    sample_ids: Tensor | None = None,
    on_step: OnStep | None = None,
    before_step: BeforeStep | None = None,
) -> None:
    """One Langevin step on ``x`` in place for each of ``coefficients``; nothing waits for the
    device.

    Gradients must be enabled and the model be in ``sampling_mode``. ``on_step(k, x, grad, energy)``
    sees ``x`` after step k, and gradient and energy (B,) at the point that the step left;
    ``before_step(k, x)`` may change ``x`` in place.
    """
    clamp, grad_clip, grad_norm_clip, noise_first = options
    leaf = x.detach().requires_grad_()  # the memory of x, so it need not be renewed at each step
    for t, (step_size, noise_std) in enumerate(coefficients):
        if before_step is not None:
            before_step(t, x)
        if noise_first:
            langevin_step_(x, None, 0.0, noise_std, rng, t=t, sample_ids=sample_ids)
            noise_std = 0.0
        grad, e = leaf_gradient(model, leaf, model_kwargs, False)
        langevin_step_(
            *(x, grad, step_size, noise_std, rng),
            t=t,
            sample_ids=sample_ids,
            grad_clip=grad_clip,
            grad_norm_clip=grad_norm_clip,
            clamp=clamp,
        )
        if on_step is not None:
            on_step(t, x, grad, sum_scales(e.detach()))


def run_last_step(
    model: Callable[..., Tensor],
    x: Tensor,
    coefficients: Coefficients,
    rng: Tensor,
    options: StepOptions,
    model_kwargs: dict,
    sample_ids: Tensor | None,
    create_graph: bool,
) -> tuple[Tensor, Tensor]:
    """One step of ``run_chain`` out of place, with a graph to the model's parameters if asked.

    Returns:
        x after the step and the gradient it used, both (B, *event). ``x`` itself is a constant.
    """
    step_size, noise_std = coefficients
    if options.noise_first:
        x = langevin_step_(x.clone(), None, 0.0, noise_std, rng, sample_ids=sample_ids)
        noise_std = 0.0
    leaf = x.detach().requires_grad_()
    grad, _ = leaf_gradient(model, leaf, model_kwargs, create_graph)
    x = langevin_step(
        *(leaf.detach(), grad, step_size, noise_std, rng),
        sample_ids=sample_ids,
        grad_clip=options.grad_clip,
        grad_norm_clip=options.grad_norm_clip,
        clamp=options.clamp,
    )
    return x, grad
