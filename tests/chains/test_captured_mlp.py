"""When an energy's code is captured, how often, and that a capture leaves no traces."""

import gc
import logging
import threading
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from fastebm.chains import captured_mlp as module
from fastebm.chains.captured_mlp import MAX_CAPTURES, STEPS, captured_mlp
from fastebm.chains.mlp_chain import MLPChain, mlp_chain
from fastebm.energies.sampling_mode import sampling_mode
from fastebm.ops.mlp.network import Network

X = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))


class Energy(nn.Module):
    def __init__(self, *extra):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), *extra, nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x).squeeze(-1)


@pytest.fixture
def captures(monkeypatch):
    """What comes of every capture."""
    results, capture = [], module._Known._capture

    def counted(self, *args):
        results.append(None)
        results[-1] = capture(self, *args)
        return results[-1]

    monkeypatch.setattr(module._Known, "_capture", counted)
    return results


def test_code_is_looked_at_once_chains_have_come_to_so_many_steps(captures):
    model = Energy()
    for _ in range(3):
        assert f"come to {STEPS} steps" in captured_mlp(model, X, {}, STEPS // 3)
    assert f"come to {STEPS} steps" in captured_mlp(model, X, {}, 0)
    assert not captures
    for n in (STEPS, 0, 1, None):
        assert isinstance(captured_mlp(model, X, {}, n), Network)
    assert len(captures) == 1
    assert isinstance(captured_mlp(Energy(), X, {}, STEPS), Network)
    assert isinstance(captured_mlp(Energy(), X, {}, None), Network)


def test_other_batches_and_values_need_no_other_capture(captures):
    model = Energy()
    for n in (10, 7, 2, 1000, 128):
        assert isinstance(captured_mlp(model, torch.randn(n, 3), {}), Network)
    model.load_state_dict(Energy().state_dict())
    assert isinstance(captured_mlp(model, X, {}), Network)
    assert len(captures) == 1
    for _ in range(2):
        assert isinstance(captured_mlp(model, X[:1], {}), Network)
    assert len(captures) == 2


def test_a_failure_is_remembered(captures):
    calls = []

    def e(x):
        calls.append(len(x))
        return x.sum(1) if x.sum() > 0 else x.sum(1)

    for _ in range(5):
        assert "Data-dependent" in captured_mlp(e, X, {})
    assert len(captures) == 1 and not calls
    broken = Energy(nn.Linear(9, 9))
    for _ in range(5):
        assert "Error" in captured_mlp(broken, X, {})
    assert len(captures) == 2


def test_a_model_that_is_another_one_in_each_call_is_left_alone(captures, capfd, caplog):
    model = Energy()
    kinds = [type(f"Tanh{i}", (nn.Tanh,), {"slope": i}) for i in range(3 * MAX_CAPTURES)]
    with caplog.at_level(logging.WARNING):
        found = []
        for kind in kinds:
            model.net[1] = kind()
            found.append(captured_mlp(model, X, {}))
    assert len(captures) == MAX_CAPTURES
    assert [isinstance(f, Network) for f in found] == [i < MAX_CAPTURES for i in range(len(kinds))]
    assert "another one" in found[-1]
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_recompile_limits_of_the_user_are_left_alone(captures, caplog):
    model = Energy()
    with torch._dynamo.config.patch(recompile_limit=3), caplog.at_level(logging.WARNING):
        for n in (1, 5):
            assert isinstance(captured_mlp(model, torch.randn(n, 3), {}), Network)
            model.requires_grad_(False)
        assert torch._dynamo.config.recompile_limit == 3
    assert not caplog.records


@pytest.mark.parametrize(
    "model, reason",
    [
        (nn.Sequential(nn.Conv1d(1, 1, 1)), "more than two dimensions"),
        (nn.Sequential(nn.Linear(4096, 4096)), "parameters"),
        (torch.jit.script(Energy()), "TorchScript"),
    ],
)
def test_what_is_not_captured(model, reason, captures):
    assert reason in captured_mlp(model, X, {})
    assert len(captures) == (reason == "TorchScript")


class Wrapped(torch.Tensor):
    """Of another kind: its operations may be anything."""

    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None):
        return super().__torch_function__(f, types, args, kwargs or {})


def test_tensors_that_are_not_plain():
    model = Energy()
    assert "no plain tensor" in captured_mlp(model, X.as_subclass(Wrapped), {})
    assert "called with c, list" in captured_mlp(model, X, {"c": [1]})
    assert isinstance(captured_mlp(model, X, {}), Network)
    w = model.net[0].weight
    model.net[0].weight = nn.Parameter(w.detach().as_subclass(Wrapped))
    assert isinstance(captured_mlp(model, X, {}), str)
    model.net[0].weight = w
    assert isinstance(captured_mlp(model, X, {}), Network)


def test_surroundings(captures):
    model = Energy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in captured_mlp(model, X, {})
    with torch.inference_mode():
        assert "no plain tensor" in captured_mlp(model, X, {})
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        assert "modes" in captured_mlp(model, X, {})
    found = []
    torch.func.grad(lambda x: found.append(captured_mlp(model, x, {})) or x.sum())(X)
    assert "torch.func" in found[0] or "no plain" in found[0]
    assert "(B, *event)" in captured_mlp(model, X[0], {})
    assert not captures
    with torch.no_grad(), torch.device("cpu"):
        assert isinstance(captured_mlp(model, X, {}), Network)
    torch.compiler.set_stance("force_eager")
    try:
        assert "nothing here" in captured_mlp(Energy(), X, {})
    finally:
        torch.compiler.set_stance("default")
    torch.compiler.reset()
    assert isinstance(captured_mlp(model, X, {}), Network)


def function(net):
    return lambda x: net(x) + 0.5 * x.square().sum(1)


@pytest.mark.parametrize(
    "of", [lambda net: net, function, lambda net: net.forward, lambda net: partial(net)]
)
def test_models_are_not_kept(of):
    net = Energy()
    model = of(net)
    seen = weakref.ref(model), weakref.ref(net.net[0].weight)
    key = id(model)
    assert isinstance(captured_mlp(model, X, {}), Network) and key in module._models
    del model, net
    gc.collect()
    assert seen[0]() is None and seen[1]() is None and key not in module._models


def test_too_many_models_forget_the_first(monkeypatch):
    monkeypatch.setattr(module, "MAX_MODELS", 2)
    monkeypatch.setattr(module, "_models", type(module._models)())
    models = [Energy() for _ in range(4)]
    for model in models:
        captured_mlp(model, X, {}, 1)
    assert [*module._models] == [id(model) for model in models[2:]]


def test_beside_other_threads(captures):
    model, found, ready = Energy(), [], threading.Barrier(4)

    def ask():
        ready.wait()
        for n in (5, 6):
            found.append(captured_mlp(model, torch.randn(n, 3), {}))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(isinstance(f, Network) for f in found), found
    assert len(captures) == 1
    assert model.training and not any(m._forward_pre_hooks for m in model.modules())
    with sampling_mode(model):
        assert isinstance(captured_mlp(model, X, {}), Network)
    assert isinstance(captured_mlp(model, X, {}), Network)


def test_modes_of_the_model_are_each_looked_at():
    model = Energy(nn.Dropout(0.5))
    assert isinstance(captured_mlp(model, X, {}), Network)
    assert "dropout" in captured_mlp(model, X, {}, training=True)
    assert model.training and model.net[2].training
    found = captured_mlp(model.eval(), X, {}, training=True)
    assert isinstance(found, Network)


def test_networks_of_losses_have_a_graph():
    model = Energy()
    scaled = lambda x: 3 * model(x)  # noqa: E731
    found = captured_mlp(scaled, X, {}, training=True)
    (grad,) = torch.autograd.grad(found.weights[1].sum(), model.net[2].weight)
    assert torch.equal(grad, torch.full((1, 8), 3.0))
    assert not captured_mlp(scaled, X, {}).weights[1].requires_grad


def test_the_door():
    model = Energy()
    reason = mlp_chain(model, X, {}, n_steps=1)
    assert "no plain nn.Sequential, but Energy; of its code, " in reason
    chain = mlp_chain(model, X, {}, n_steps=None)
    assert isinstance(chain, MLPChain) and chain.captured
    assert chain.of_loss(model, X, {}).is_same(chain.network)
    plain = mlp_chain(model.net, X, {}, n_steps=None)
    assert not plain.captured and plain.of_loss(model.net, X, {}) is plain.network
    with torch.no_grad():
        model.net[0].weight.zero_()
    assert chain.of_loss(model, X, {}).is_same(chain.network)  # live
    model.net[0].weight = nn.Parameter(torch.ones(8, 3))
    assert chain.of_loss(model, X, {}) is None
