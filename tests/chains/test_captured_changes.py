"""What may change in a model whose network was found by a capture, and what is then found."""

import copy
import functools
import types

import pytest
import torch
from mlp_networks import double
from torch import nn
from torch.nn import functional as F

from fastebm.chains.captured_mlp import captured_mlp
from fastebm.ops import reference
from fastebm.ops.mlp.network import Network

X = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))


def layers(activation=nn.SiLU, dim=3, outputs=1):
    return nn.Sequential(nn.Linear(dim, 8), activation(), nn.Linear(8, outputs))


def agree(model, x=X, **model_kwargs):
    """What is found: a network with the energies that the model has now, or why there is none."""
    found = captured_mlp(model, x, model_kwargs)
    if isinstance(found, Network):
        e = reference.mlp_energy(double(found), x.double().flatten(1))
        with torch.no_grad():
            torch.testing.assert_close(e.float(), model(x, **model_kwargs), rtol=1e-4, atol=1e-5)
    return found


scale = 1.0


def helper(e):
    return 2 * e


class Energy(nn.Module):
    factor = 1.0

    def __init__(self, activation=nn.SiLU):
        super().__init__()
        self.net = layers(activation)
        self.number = 1.0
        self.register_buffer("mean", torch.ones(3))
        self.parts = [layers()]

    def term(self, x):
        return 0.5 * (x - self.mean).pow(2).sum(1)

    def forward(self, x, weight=1.0):
        net = self.net(x.flatten(1)).squeeze(-1)
        return self.number * helper(net) * self.factor + scale * self.term(x) * weight


def in_place(model):
    with torch.no_grad():
        model.net[0].weight.mul_(2)
        model.mean.add_(1)


def new_parameter(model):
    model.net[2].weight = nn.Parameter(torch.randn(1, 8))


def new_memory(model):
    model.net[0].weight.data = torch.randn(8, 3)


def new_module(model):
    model.net[0] = nn.Linear(3, 8)


def other_activation(model):
    model.net[1] = nn.Tanh()


def other_width(model):
    model.net = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 1))


def no_bias(model):
    model.net[0].bias = None


def new_buffer(model):
    model.mean = torch.randn(3)


def of_instance(model):
    model.net[1].forward = torch.sin


def method_of_instance(model):
    model.term = lambda x: x.square().sum(1)


def frozen(model):
    model.requires_grad_(False)


def into_double_and_back(model):
    model.double().float()


CHANGES = {
    change.__name__: change
    for change in (in_place, new_parameter, new_memory, new_module, other_activation, other_width)
    + (no_bias, new_buffer, of_instance, method_of_instance, frozen, into_double_and_back)
}
CHANGES["number"] = lambda model: setattr(model, "number", 3.0)
CHANGES["training"] = lambda model: model.eval()
STAY_NETWORKS = CHANGES.keys() - {"of_instance"}


@pytest.fixture
def energy():
    model = Energy()
    assert isinstance(agree(model), Network)
    return model


@pytest.fixture(scope="module")
def unchanged():
    return Energy()


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_a_model_are_followed(change):
    model = Energy()
    before = agree(model)
    assert isinstance(before, Network)
    CHANGES[change](model)
    found = agree(model)
    assert isinstance(found, Network) == (change in STAY_NETWORKS), found


def hook(*_):
    return None


@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
@pytest.mark.parametrize("which", [lambda m: m, lambda m: m.net, lambda m: m.net[2]])
def test_hooks_are_seen(unchanged, register, which):
    assert isinstance(agree(unchanged), Network)
    handle = getattr(which(unchanged), register)(hook)
    assert "hooks" in agree(unchanged)
    handle.remove()
    assert isinstance(agree(unchanged), Network)


@pytest.mark.parametrize(
    "where, name, value",
    [
        (Energy, "forward", lambda self, x: self.net(x).squeeze(1).exp()),
        (Energy, "term", lambda self, x: x.square().sum(1)),
        (Energy, "factor", 4.0),
        (nn.SiLU, "forward", lambda self, x: torch.sin(x)),
        (nn.Sequential, "forward", lambda self, x: self[2](torch.sin(self[0](x)))),
        (nn.Module, "_call_impl", lambda self, *args: self.forward(*args) * 2),
        (F, "silu", lambda x, inplace=False: torch.sin(x)),
        (torch.Tensor, "pow", lambda self, n: self.abs()),
        (torch.Tensor, "flatten", lambda self, n: 2 * self),
    ],
)
def test_what_is_replaced_in_classes_and_modules_is_followed(
    energy, monkeypatch, where, name, value
):
    monkeypatch.setattr(where, name, value)
    agree(energy)
    monkeypatch.undo()
    assert isinstance(agree(energy), Network)


def test_globals_are_followed(energy, monkeypatch):
    monkeypatch.setitem(globals(), "scale", 5.0)
    agree(energy)
    monkeypatch.setitem(globals(), "helper", torch.exp)
    assert isinstance(captured_mlp(energy, X, {}), str)


def test_code_of_functions_is_followed(energy):
    was = helper.__code__
    try:
        helper.__code__ = (lambda e: e.exp()).__code__
        assert isinstance(captured_mlp(energy, X, {}), str)
    finally:
        helper.__code__ = was


def test_other_calls_of_one_model(energy):
    for n in (10, 4, 1, 33, 1, 2):
        assert isinstance(agree(energy, torch.randn(n, 3)), Network)
    assert isinstance(agree(energy, torch.randn(3, 7).T), Network)
    for weight in (1.0, 0.5, 0.25, 0.125):
        assert isinstance(agree(energy, weight=weight), Network)
    assert "float64" in captured_mlp(energy, X.double(), {})


def function_in_closure():
    net, c = layers(), 0.5

    def e(x):
        return net(x).squeeze(1) + c * x.square().sum(1)

    def change():
        nonlocal net, c
        net, c = layers(nn.Tanh), 2.0

    def with_hook():
        nonlocal net
        net = layers()
        net[0].register_forward_hook(lambda *a: 2 * a[-1])

    return e, change, with_hook


def test_closures_are_followed():
    e, change, with_hook = function_in_closure()
    assert agree(e).activation == "silu"
    change()
    assert agree(e).activation == "tanh"
    with_hook()
    assert "hooks" in agree(e)


def test_partials_and_bound_methods(energy):
    def e(x, net, c):
        return net(x).squeeze(1) + c.sum() * x.square().sum(1)

    c = torch.ones(3)
    partial = functools.partial(e, net=layers(), c=c)
    assert isinstance(agree(partial), Network)
    c.mul_(2)
    assert isinstance(agree(partial), Network)
    partial.keywords["net"] = layers(nn.Tanh)
    assert agree(partial).activation == "tanh"

    bound = types.MethodType(lambda self, x: 2 * self(x), energy)
    assert isinstance(agree(bound), Network)
    energy.number = 7.0
    assert isinstance(agree(bound), Network)
    energy.number = 1.0


def test_wrappers_are_seen_through(energy):
    average = torch.optim.swa_utils.AveragedModel(energy)
    assert isinstance(agree(average), Network)
    energy.net[0].weight.data.mul_(3)
    average.update_parameters(energy)
    average.update_parameters(Energy())
    assert isinstance(agree(average), Network)
    assert isinstance(agree(torch.compile(Energy(), backend="eager")), Network)
    assert isinstance(agree(copy.deepcopy(energy)), Network)
