"""Losses by formulas of perceptrons that are found in other code, and where they are not."""

import pytest
import torch
from test_mlp_loss import DIM, LOSSES, N, assert_as_good_as_the_graph, compute, formulas
from torch import nn

from fastebm.chains.mlp_chain import mlp_chain
from fastebm.samplers import langevin

assert formulas  # a fixture


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Code is looked at in the first call."""

    def at_once(model, x, model_kwargs, precision, n_steps):
        return mlp_chain(model, x, model_kwargs, precision, n_steps=None)

    monkeypatch.setattr(langevin, "mlp_chain", at_once)


class Classed(nn.Module):
    def __init__(self, inputs=DIM, outputs=1, activation=nn.Tanh, drop=0.0):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Flatten(), nn.Linear(inputs, 20), activation(), nn.Linear(20, 9), activation()),
            *(nn.Dropout(drop), nn.Linear(9, outputs)),
        )
        for layer in self.net[1::2][:2]:
            nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
        nn.init.normal_(self.net[-1].weight)

    def forward(self, x):
        return self.net(x).squeeze(-1)


class Based(Classed):
    def forward(self, x):
        return 0.5 * super().forward(x) + 0.3 * (x.flatten(1) - 1).square().sum(1) + 2


class Conditional(Classed):
    def forward(self, x, c):
        return self.net(torch.cat([x.flatten(1), c], 1)).squeeze(-1)


class LearntBase(Classed):
    def __init__(self):
        super().__init__()
        self.precision = nn.Parameter(torch.ones(DIM))

    def forward(self, x):
        return super().forward(x) + (self.precision * x.flatten(1).square()).sum(1)


class Warm(Classed):
    def forward(self, x, t):
        return super().forward(x) / t.mean()


class PerBatch(Classed):
    def forward(self, x):
        return super().forward(x) * (len(x) / N)


MODELS = {
    "class": lambda: (Classed(activation=lambda: nn.ELU(0.5)), {}),
    "base": lambda: (Based(), {}),
    "condition": lambda: (Conditional(DIM + 3), {"c": torch.randn(N, 3)}),
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("make", MODELS)
def test_as_by_a_graph(formulas, kind, make):
    model, kwargs = MODELS[make]()
    x = torch.randn(N, 1, 4, 4)
    assert_as_good_as_the_graph(kind, model, x, model_kwargs=kwargs)
    assert len(formulas) == 1
    with torch.no_grad():
        model.net[1].weight.mul_(1.5)
    assert_as_good_as_the_graph(kind, model, x, model_kwargs=kwargs)
    assert len(formulas) == 2


@pytest.mark.parametrize(
    "model",
    [Classed(outputs=3), Classed(drop=0.5), LearntBase(), PerBatch()],
    ids=["scales", "dropout", "learnt base", "batch"],
)
def test_what_the_formulas_do_not_have_is_left_to_the_graph(formulas, model):
    x = torch.randn(N, DIM)
    found = []
    for backend in ("auto", "eager"):
        torch.manual_seed(1)  # dropout's
        found.append(compute("cd reg", model, x, backend))
    assert not formulas and model.training
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)


def test_dropout_that_is_off_is_no_other_network(formulas):
    assert_as_good_as_the_graph("cd", Classed(drop=0.5).eval(), torch.randn(N, DIM))
    assert len(formulas) == 1


def test_conditions_that_are_in_the_weights(formulas):
    model, x = Warm(), torch.randn(N, DIM)
    t = torch.rand(N) + 1
    mine, graph = (compute("cd", model, x, b, model_kwargs={"t": t}) for b in ("auto", "eager"))
    torch.testing.assert_close(mine[1], graph[1], rtol=1e-4, atol=1e-5)
    buffered = [compute("pcd", model, x, b, model_kwargs={"t": t}) for b in ("auto", "eager")]
    torch.testing.assert_close(buffered[0][1], buffered[1][1], rtol=1e-4, atol=1e-5)
