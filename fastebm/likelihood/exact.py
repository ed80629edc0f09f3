"""Likelihoods of binary energies: exact by enumeration, and the pseudo-likelihood."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from fastebm.arguments import integer
from fastebm.energies.protocol import energy, sum_scales
from fastebm.energies.sampling_mode import sampling_mode
from fastebm.modes import full_precision

MAX_UNITS = 25  # 2^25 states of 784 units take minutes
_BLOCK = 2**22  # numbers in a block of states


def log_partition(model: Callable[..., Tensor], n_units: int | None = None) -> Tensor:
    """Exact ``log Z``, Z the sum of ``exp(-E)`` over all states, in nats.

    A machine (``RBM``, ``GaussianRBM``) is enumerated over its smaller binary layer, the other
    layer being summed in closed form; any other energy over its ``n_units`` binary inputs. The
    states come in blocks, in float64, so memory stays small.

    Differentiable once in the parameters of a module: the gradient, ``-E_p[dE/d theta]``, is summed
    in the same pass.

    Args:
        model: a machine, or an energy (B, n_units) -> (B,); a module is copied to float64, any
            other energy is called with float64 on torch's default device.
        n_units: of an energy that is no machine, 1..25.

    Returns:
        0-d float64.

    Raises:
        ValueError: more than 25 units to enumerate (``fastebm.ais`` estimates then), ``n_units`` is
            missing or given to a machine, or log Z is not finite.
    """
    if isinstance(model, nn.Module):
        double = copy.deepcopy(model).double().eval()
        sources, parameters = list(model.parameters()), list(double.parameters())
    else:
        double, sources, parameters = model, [], []
    n, layer = enumerable_layer(double, n_units)
    device = sources[0].device if sources else torch.get_default_device()
    trained = [pair for pair in zip(sources, parameters, strict=True) if pair[0].requires_grad]
    if not torch.is_grad_enabled():
        trained = []
    with full_precision(device):
        log_z, gradients = _sum_states(layer, n, [p for _, p in trained], device)
    if not log_z.isfinite():
        raise ValueError(f"log Z is {float(log_z)}: the parameters or energies are not finite")
    for (source, _), g in zip(trained, gradients, strict=True):
        if g is not None:  # adds 0, and the gradient g
            log_z = log_z + (g * (source - source.detach())).sum()
    return log_z


@torch.no_grad()
def pseudo_likelihood(model: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Exact log pseudo-likelihood ``sum_i log p(x_i | x_-i)``, over all units, in nats.

    ``log p(x_i | x_-i) = log sigmoid(E(x with x_i flipped) - E(x))``; scikit-learn's
    ``score_samples`` estimates the sum by one random i times the number of units. Values between 0
    and 1 are flipped to 1 - x_i, as there, but then it is a score and no likelihood.

    Args:
        model: an ``RBM``, whose flips are computed at once, or an energy (B, V) -> (B,), which is
            called V + 1 times.
        x: (B, V) in [0, 1], or (B, *event) if the energy takes it.

    Returns:
        (B,) float64.

    Raises:
        ValueError: x has another shape, or values that are NaN or outside [0, 1].

    Source: Besag, Statistical analysis of non-lattice data, 1975.
    """
    check_unit_interval(x)
    if hasattr(model, "flip_energies"):
        with full_precision(x.device):
            return logsigmoid(model.flip_energies(x).double()).sum(1)
    with full_precision(x.device), sampling_mode(model):
        before = sum_scales(energy(model, x)).double()
        total = torch.zeros_like(before)
        for i in range(x[0].numel()):
            flipped = x.clone(memory_format=torch.contiguous_format)
            flipped.flatten(1)[:, i] = 1 - x.flatten(1)[:, i]
            total += logsigmoid(sum_scales(energy(model, flipped)).double() - before)
    return total


def check_unit_interval(x: Tensor) -> None:
    """ValueError unless x is a floating-point (B, *event) with values in [0, 1], B >= 1."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or len(x) == 0:
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a floating-point tensor (B, V), B >= 1, got {got}")
    n_bad = int((~((x >= 0) & (x <= 1))).sum())
    if n_bad:
        raise ValueError(f"x must have values in [0, 1]; {n_bad} of {x.numel()} are not, or NaN")


def enumerable_layer(model, n_units: int | None) -> tuple[int, Callable[[Tensor], Tensor]]:
    """How many units are enumerated, and the energy of their states."""
    if hasattr(model, "binary_layers"):
        if n_units is not None:
            raise ValueError(f"n_units is known of a machine, got n_units={n_units}")
        n, layer = min(model.binary_layers(), key=lambda pair: pair[0])
    else:
        if n_units is None:
            raise ValueError("n_units of the energy must be given, an integer >= 1")
        n, layer = integer("n_units", n_units, 1), lambda x: sum_scales(energy(model, x))
    if n > MAX_UNITS:
        raise ValueError(
            f"at most {MAX_UNITS} units can be enumerated, and the smallest layer has {n}:"
            " use fastebm.ais.ais"
        )
    return n, layer


def _sum_states(
    layer: Callable[[Tensor], Tensor], n: int, parameters: list[Tensor], device: torch.device
) -> tuple[Tensor, list[Tensor | None]]:
    """log Z over the 2^n states, and its gradients in ``parameters``."""
    log_z = torch.tensor(-torch.inf, dtype=torch.float64, device=device)
    gradients: list[Tensor | None] = [None] * len(parameters)
    numbers = max([n, *(p.numel() // max(n, 1) for p in parameters), 256])
    rows = max(1, _BLOCK // numbers)
    shifts = torch.arange(n, device=device)
    for first in range(0, 2**n, rows):
        index = torch.arange(first, min(first + rows, 2**n), device=device)
        states = ((index[:, None] >> shifts) & 1).double()
        with torch.set_grad_enabled(bool(parameters)):
            block = torch.logsumexp(-layer(states), 0)
        total = torch.logaddexp(log_z, block.detach())
        if block.requires_grad:  # weighted by the share of the sum that each part has
            new = torch.autograd.grad(block, parameters, allow_unused=True)
            old, own = (log_z - total).exp(), (block.detach() - total).exp()
            gradients = [
                g if b is None else own * b if g is None else old * g + own * b
                for g, b in zip(gradients, new, strict=True)
            ]
        log_z = total
    return log_z, gradients
