"""What is said of the way that a chain takes is the way that it takes."""

import re

import pytest
import torch
from torch import nn

from fastebm import LangevinDynamics, Standardized
from fastebm.chains.captured_mlp import STEPS
from fastebm.chains.mlp_chain import mlp_chain
from fastebm.energies import ConvEnergy, MLPEnergy
from fastebm.samplers import langevin
from fastebm.samplers.explain import explain

X = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))


class Classed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, c=None):
        e = self.net(x).squeeze(1) + 0.5 * x.square().sum(1)
        return e if c is None else e.exp()


def well(x):
    return (x.square() - 1).square().sum(1)


@pytest.mark.parametrize(
    "model, options, says",
    [
        (MLPEnergy(3, (9, 8)), {}, "fused: .* a perceptron 3-9-8-1 of silu\\.$"),
        (MLPEnergy(3), {"adjusted": True}, "fused: "),
        (MLPEnergy(3), {"backend": "eager"}, 'eager: .* fused: backend="eager" asks for it'),
        (MLPEnergy(3), {"compile": True}, "compiled: "),
        (Classed(), {}, f"eager: by autograd for the first {STEPS} steps .* a quadratic, as a cap"),
        (Classed(), {"adjusted": True}, f"eager: by autograd for the first {STEPS}"),
        (
            well,
            {},
            "eager: .*square of.*no CUDA graph: it is on cpu.*compile=True is likely 2 to 5",
        ),
        (well, {"adjusted": True}, "eager: (?!.*compile=True)"),
        (ConvEnergy((1, 8, 8)), {}, "eager: .* more than two dimensions"),
    ],
)
def test_what_is_said(model, options, says):
    sampler = LangevinDynamics(model, 0.1, **options)
    x = torch.randn(4, 1, 8, 8) if isinstance(model, ConvEnergy) else X
    text = explain(sampler, x)
    assert torch.cuda.is_available() or re.match(says, text), text
    assert "\n" not in text and text.endswith(".")


def test_of_captured_chains(monkeypatch):
    def at_once(model, x, model_kwargs, precision, n_steps):
        return mlp_chain(model, x, model_kwargs, precision, n_steps=None)

    monkeypatch.setattr(langevin, "mlp_chain", at_once)
    sampler = LangevinDynamics(Classed(), 0.1)
    assert explain(sampler, X).startswith("fused: ")
    assert "exp of (energy)" in explain(sampler, X, {"c": X})
    units = LangevinDynamics(Standardized(MLPEnergy(3), torch.randn(50, 3)), 0.1)
    assert explain(units, X).startswith("fused: ")


def test_errors_are_those_of_sample():
    with pytest.raises(ValueError, match="'fused' takes small perceptrons only"):
        explain(LangevinDynamics(well, 0.1, backend="fused"), X)
    with pytest.raises(TypeError, match="x must be"):
        explain(LangevinDynamics(well, 0.1), X.int())
