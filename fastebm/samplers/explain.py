"""Which way a chain takes, and why: what ``LangevinDynamics.explain`` says."""

from __future__ import annotations

from torch import Tensor

from fastebm.chains.graph import UNROLL
from fastebm.chains.mlp_chain import STEPS, MLPChain, mlp_chain
from fastebm.energies.sampling_mode import modules_of, parameters_of
from fastebm.modes import outside_inference
from fastebm.samplers.settings import chains
from fastebm.samplers.units import Preconditioned

# Multiply-adds of a step, at most, where the calls of autograd take longer than the arithmetic.
CHEAP = 2**21


def explain(sampler, x: Tensor, model_kwargs: dict | None = None) -> str:
    """Which way chains of a ``LangevinDynamics`` from ``x`` go, and why, in a short paragraph.

    "fused": all steps in one kernel. "compiled": gradients by torch.compile. "graph": CUDA graphs.
    "eager": gradients by autograd, one by one. Nothing is run but, where ``backend`` would do so
    some time, a capture of the energy's code, which later chains profit by.

    Args:
        x: (B, *event), where chains start.
        model_kwargs: further arguments of the model.

    Raises:
        ValueError, TypeError: as of ``sample``.
    """
    x, model_kwargs = chains(x), model_kwargs or {}
    with outside_inference():
        units = sampler.units
        inner = x if units is None else units.standardize(x)
        fused = sampler.fused_chain(inner, model_kwargs)  # also: whether settings go together
        if fused is not None:
            return f"fused: all steps in one kernel, as the energy is {_network(fused)}."
        asked = _asked_for(sampler)
        why = asked or _not_fused(sampler, inner, model_kwargs)
        if isinstance(why, MLPChain):
            return (
                f"eager: by autograd for the first {STEPS} steps of the model's chains, then fused,"
                f' as the energy is {_network(why)}. backend="fused" is so at once.'
            )
        if sampler.compile:
            return "compiled: gradients by torch.compile, as compile=True asks for it."
        if not sampler.adjusted and sampler.graph is not False:
            graph = sampler.runner.no_graph(sampler.inner_model, inner, False)
            if graph is None:
                when = (
                    "" if sampler.graph is True else ", from the second call with these shapes on"
                )
                return f"graph: CUDA graphs of up to {UNROLL} steps{when}. Not fused: {why}."
            why = f"{why}; no CUDA graph: {graph}"
        return f"eager: gradients by autograd, step by step. Not fused: {why}.{_hint(sampler, x)}"


def _asked_for(sampler) -> str | None:
    if sampler.backend == "eager":
        return 'backend="eager" asks for it'
    if sampler.compile:
        return "compile=True asks for it"
    return "graph=True asks for it" if sampler.graph is True else None


def _not_fused(sampler, x: Tensor, model_kwargs: dict) -> MLPChain | str:
    """Why the chains are not fused, or those that they will be."""
    units = sampler.units
    model = units.inner if isinstance(units, Preconditioned) else sampler.inner_model
    return mlp_chain(model, x, model_kwargs, sampler.precision, n_steps=None)


def _network(chain: MLPChain) -> str:
    net = chain.network
    widths = "-".join(str(n) for n in (net.weights[0].shape[1], *map(len, net.weights)))
    found = ", as a capture of its code shows" if chain.captured else ""
    base = " with a quadratic" if net.base_precision is not None else ""
    rows = " with biases for each chain" if net.row_bias is not None else ""
    return f"a perceptron {widths} of {net.activation}{base}{rows}{found}"


def _hint(sampler, x: Tensor) -> str:
    """What may be faster."""
    if sampler.adjusted:
        return ""
    n_weights = sum(p.numel() for p in parameters_of(modules_of(sampler.inner_model)))
    if x.device.type != "cpu" or len(x) * n_weights > CHEAP:
        return ""
    return (
        " compile=True is likely 2 to 5 times as fast for an energy as cheap as this, but needs a"
        " C++ compiler, and 2 to 10 s at first: it pays once chains come to some 20,000 steps."
    )
