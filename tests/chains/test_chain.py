"""Chains by every way: one result; and what the eager one costs: nothing is read back, computed
twice, or computed for the parameters."""

import pytest
import torch
from conftest import FAKE_CUDA
from mlp_networks import double, network, noise
from readback import NothingIsReadBack
from test_graph import Captures
from torch import nn

from fastebm import ImprovedContrastiveDivergence, LangevinDynamics, ReplayBuffer, clear_graphs
from fastebm.chains import chain, graph
from fastebm.ops import reference
from fastebm.rng import ChainRNG

WAYS = {
    "eager": {"backend": "eager", "graph": False},
    "compiled": {"backend": "eager", "graph": False, "compile": True},
    "graph": {"backend": "eager", "graph": True},
    "compiled, graph": {"backend": "eager", "graph": True, "compile": True},
    "fused": {"backend": "fused"},
}
OPTIONS = {
    "plain": {},
    "clamp and clip": {"clamp": (-0.5, 0.7), "grad_clip": 0.3},
    "noise first, norm clip": {"noise_first": True, "grad_norm_clip": 0.2},
}


@pytest.fixture
def captures(device, monkeypatch):
    """Graphs as on a device, of three steps and two; without one a capture that repeats them."""
    monkeypatch.setattr(graph, "UNROLL", 3)
    clear_graphs()  # of other tests
    if device == "cpu" or FAKE_CUDA:
        fake = Captures()
        graphs = graph.ChainGraphs(fake, (device,))
        monkeypatch.setattr(chain, "GRAPHS", graphs)
        # All of torch.compile but its slow last stage, code generation.
        monkeypatch.setattr(torch._inductor, "compile", torch._dynamo.lookup_backend("aot_eager"))
    clear_graphs()  # a device's are there from other tests
    yield chain.GRAPHS
    clear_graphs()


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_one_result(device, captures, way, options, schedule):
    net, x = network(3, (16, 16), "tanh", device=device), torch.randn(9, 3, device=device)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
    model.append(nn.Linear(16, 1)).to(device)
    for layer, weight, bias in zip(model[::2], net.weights, net.biases, strict=True):
        layer.weight.data, layer.bias.data = weight, bias
    step = (lambda k: 0.1 / (k + 1)) if schedule else (lambda k: 0.1)
    sampler = LangevinDynamics(
        model, step if schedule else 0.1, noise_std=0.2, **options, **WAYS[way]
    )
    steps = [step(k) for k in range(8)]
    for seed in (11, 12, 13):  # the later graphs are replays
        state = ChainRNG(seed).state(device)
        n = torch.stack([noise(x.shape, k, state) for k in range(8)]).double()
        expected, *_ = reference.mlp_chain(double(net), x.double(), steps, [0.2] * 8, n, **options)
        # A step of 0.1 on curvatures of about 3 makes errors grow no more than 1.3-fold.
        torch.testing.assert_close(
            sampler.sample(x, 8, seed=seed).double(), expected, rtol=0, atol=3e-5
        )
    assert len(captures.graphs) == ("graph" in way)


class Counting(nn.Sequential):
    """Counts its calls; no plain nn.Sequential, so chains run step by step."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def mlp():
    return Counting(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1))


@pytest.mark.parametrize("noise_first", [False, True])
@pytest.mark.parametrize("step_size", [0.1, lambda k: 0.1 / (k + 1)])
def test_an_eager_chain_is_one_input_gradient_and_one_step_each(noise_first, step_size):
    model, x, k = mlp(), torch.randn(5, 2), 7
    sampler = LangevinDynamics(model, step_size, noise_first=noise_first, graph=False)
    with NothingIsReadBack() as mode:
        sampler.sample(x, k, seed=1)
    assert model.calls == k
    layers = 3  # forward: one product each; backward: one each, for the input alone
    assert mode.calls["addmm"] == layers * k and mode.calls["mm"] == layers * k
    assert mode.calls["langevin_step_"] == (2 if noise_first else 1) * k
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("way", ["eager", "compiled"])
def test_autocast_around_a_chain_sees_every_step(device, captures, way):
    # Its cache of casts would hold the leaf, which a chain moves in place, as it was at first.
    model, x = nn.Sequential(*mlp()).to(device), torch.randn(5, 2, device=device)
    sampler = LangevinDynamics(model, 0.1, **WAYS[way])
    with torch.autocast(device, torch.bfloat16):
        end = sampler.sample(x, 7, seed=1)
        assert torch.is_autocast_cache_enabled()
    rng = ChainRNG(1)
    for _ in range(7):
        with torch.autocast(device, torch.bfloat16):
            x = sampler.sample(x, 1, seed=rng)
    assert torch.equal(end, x)


def test_the_loss_shares_the_last_step():
    model, x, k = mlp(), torch.randn(5, 2), 7
    buffer = ReplayBuffer(20, (2,), seed=0)
    sampler = LangevinDynamics(model, 0.1)
    loss = ImprovedContrastiveDivergence(model, sampler, buffer, k)
    loss(x, seed=ChainRNG(1))
    assert model.calls == k + 2  # the steps, the data, and one for negative phase and KL term
