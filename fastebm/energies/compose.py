"""Energies made of energies: conjunction, negation, disjunction, temperature, fixed arguments.

    both = a + b                            # p_a p_b
    either = a | b                          # exp(-E_a) + exp(-E_b)
    a_not_b = a - 0.1 * b                   # p_a / p_b^0.1
    all_of = sum(parts) / 2                 # (prod_i p_i)^(1/2)
    old_and_smiling = e.given(y=3) + e.given(y=5)

The parts may be any callables that `fastebm.energies.protocol.energy` accepts; for the operators
one side must be an `Energy`, and `GivenEnergy(f)` makes one of any callable ``f``. Every part gets
``x``, and the keyword arguments that the whole is called with. A part with several scales, (B, S),
counts as the sum of its scales, which is the energy that chains follow. While chains run, modules
are in eval mode and frozen, also those whose bound method or ``functools.partial`` is a part; other
functions are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from fastebm.energies.protocol import energy, sum_scales


class Energy(nn.Module):
    """A module that is an energy, (B, *event) -> (B,) or (B, S), with operators to combine it.

    ``a + b``, ``a - b``, ``-a``, ``w * a`` and ``a / w`` (w a number) are ``SumEnergy``, ``a | b``
    is ``MixtureEnergy``; parameters are shared, not copied. ``sum`` adds energies too.
    """

    __array_ufunc__ = None  # or a number of NumPy's would take ``w * a`` for its own

    def given(self, **model_kwargs) -> GivenEnergy:
        """This energy with some of its arguments fixed, such as the label: ``e.given(y=3)``."""
        return GivenEnergy(self, **model_kwargs)

    def __add__(self, other):
        return SumEnergy((self, other)) if callable(other) else NotImplemented

    def __radd__(self, other):
        if isinstance(other, Real) and other == 0:  # where sum() starts
            return self
        return SumEnergy((other, self)) if callable(other) else NotImplemented

    def __sub__(self, other):
        return SumEnergy((self, other), (1.0, -1.0)) if callable(other) else NotImplemented

    def __rsub__(self, other):
        return SumEnergy((other, self), (1.0, -1.0)) if callable(other) else NotImplemented

    def __mul__(self, weight):
        return SumEnergy((self,), (weight,)) if isinstance(weight, Real) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, weight):
        return self * (1 / weight) if isinstance(weight, Real) else NotImplemented

    def __neg__(self):
        return self * -1.0

    def __or__(self, other):
        return MixtureEnergy((self, other)) if callable(other) else NotImplemented

    def __ror__(self, other):
        return MixtureEnergy((other, self)) if callable(other) else NotImplemented


class GivenEnergy(Energy):
    """``model`` with some of its keyword arguments fixed; they win over those of the call.

    With none it lends the operators of `Energy` to any callable.

    Args:
        model: an energy, (B, *event) -> (B,), (B, 1) or (B, S).
        model_kwargs: what to fix. Tensors follow ``x`` to its device.
    """

    def __init__(self, model: Callable[..., Tensor], **model_kwargs) -> None:
        super().__init__()
        self.model = _callable(model)
        self.model_kwargs = model_kwargs

    def forward(self, x: Tensor, **model_kwargs) -> Tensor:
        fixed = {
            k: v.to(x.device) if isinstance(v, Tensor) else v for k, v in self.model_kwargs.items()
        }
        return energy(self.model, x, **{**model_kwargs, **fixed})


class SumEnergy(Energy):
    """``sum_i w_i E_i``: the density is proportional to ``prod_i p_i^w_i``, a conjunction.

    A negative weight makes a negation. Its density has a finite integral only if the sum still
    rises far away, so keep it small (``a - 0.1 * b``): where E_b rises faster than E_a, chains run
    away along it, or sit on the clamp box.

    Chains of n summed energies feel n gradients: the stable step is about n times smaller.

    Args:
        models: energies.
        weights: a finite number each; None: 1.

    Returns:
        (B,), scales of the parts summed.

    Source: Hinton, Products of experts, 1999; Du, Li, Mordatch, Compositional visual generation
    with energy based models, 2020.
    """

    def __init__(
        self, models: Sequence[Callable[..., Tensor]], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        terms = []  # a sum of sums is one sum
        for model, weight in zip(*_parts(models, weights), strict=True):
            if type(model) is SumEnergy:
                terms += [(m, weight * w) for m, w in zip(model.models, model.weights, strict=True)]
            else:
                terms.append((model, weight))
        self.models = nn.ModuleList(_module(model) for model, _ in terms)
        self.weights = tuple(weight for _, weight in terms)

    def forward(self, x: Tensor, **model_kwargs) -> Tensor:
        total = None
        for model, weight in zip(self.models, self.weights, strict=True):
            e = weight * sum_scales(energy(model, x, **model_kwargs))
            total = e if total is None else total + e
        return total


class MixtureEnergy(Energy):
    """``-log sum_i w_i exp(-E_i)``: a disjunction.

    The energies are unnormalised, so the weights are relative: the share of component i is
    ``w_i Z_i / sum_j w_j Z_j``, Z_i the unknown integral of ``exp(-E_i)``, and it equals w_i only
    for normalised densities. Two networks trained apart may differ by any constant; to be of use,
    their levels must be brought together, by ``weights``.

    Args:
        models: energies.
        weights: a finite number > 0 each; None: 1.

    Returns:
        (B,), scales of the parts summed before they are mixed.

    Source: Du, Li, Mordatch, Compositional visual generation with energy based models, 2020.
    """

    def __init__(
        self, models: Sequence[Callable[..., Tensor]], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        models, self.weights = _parts(models, weights)
        if min(self.weights) <= 0:
            raise ValueError(f"weights must be > 0, got {self.weights}")
        self.models = nn.ModuleList(_module(model) for model in models)

    def forward(self, x: Tensor, **model_kwargs) -> Tensor:
        terms = [
            math.log(weight) - sum_scales(energy(model, x, **model_kwargs))
            for model, weight in zip(self.models, self.weights, strict=True)
        ]
        return -torch.logsumexp(torch.stack(terms), 0)


class TemperedEnergy(Energy):
    """``E / temperature``: the density is proportional to ``p^(1 / temperature)``.

    A softer or sharper disjunction is a mixture between two of these:
    ``TemperedEnergy(MixtureEnergy([TemperedEnergy(e, T) for e in parts]), 1 / T)``.

    Args:
        model: an energy.
        temperature: finite and > 0; the attribute may be changed between calls.

    Returns:
        What the model returns, (B,) or (B, S).
    """

    def __init__(self, model: Callable[..., Tensor], temperature: float) -> None:
        super().__init__()
        if not isinstance(temperature, Real) or not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a finite number > 0, got {temperature!r}")
        self.model, self.temperature = _callable(model), float(temperature)

    def forward(self, x: Tensor, **model_kwargs) -> Tensor:
        return energy(self.model, x, **model_kwargs) / self.temperature


class EnergyFromLogProb(Energy):
    """``-log p(x)`` of a model of log densities, normalised or not.

    Args:
        model: has a method ``log_prob(x, **model_kwargs)`` (a flow, a ``torch.distributions``
            object), or is itself such a function or module; -> (B,), (B, 1) or (B, S).
    """

    def __init__(self, model: Callable[..., Tensor] | torch.distributions.Distribution) -> None:
        super().__init__()
        _callable(getattr(model, "log_prob", model))
        self.model = model

    def forward(self, x: Tensor, **model_kwargs) -> Tensor:
        return -energy(getattr(self.model, "log_prob", self.model), x, **model_kwargs)


def _callable(model):
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    return model


def _module(model: Callable[..., Tensor]) -> nn.Module:
    return model if isinstance(model, nn.Module) else GivenEnergy(model)


def _parts(models, weights) -> tuple[list, tuple[float, ...]]:
    """The energies and as many finite weights."""
    models = [_callable(model) for model in models]
    if not models:
        raise ValueError("models must be at least one energy, got none")
    weights = (1.0,) * len(models) if weights is None else tuple(weights)
    if len(weights) != len(models):
        raise ValueError(f"weights must be {len(models)} numbers, one a model, got {len(weights)}")
    for weight in weights:
        if not isinstance(weight, Real) or not math.isfinite(weight):
            raise ValueError(f"weights must be finite numbers, got {weight!r}")
    return models, tuple(map(float, weights))
