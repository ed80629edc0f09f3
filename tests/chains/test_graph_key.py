"""What a graph bakes in is in its key: with other options, shapes or settings it is another."""

import pytest
import torch
from counted_captures import Captures, mlp
from torch import nn

from fastebm import LangevinDynamics
from fastebm.chains import chain
from fastebm.chains.graph import ChainGraphs
from fastebm.chains.settings import settings_key


@pytest.fixture
def captures(monkeypatch):
    fake = Captures()
    graphs = ChainGraphs(fake, ("cpu",), max_graphs=3)
    monkeypatch.setattr(chain, "GRAPHS", graphs)
    fake.graphs = graphs
    return fake


def reallocate(model, x, options):
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)


def move_buffer(model, x, options):
    model.offset = model.offset.clone()


def use_double(model, x, options):
    model.double()
    return x.double()


def other_options(model, x, options):
    options["grad_clip"] = 0.5


def autocast_on(model, x, options):
    torch.set_autocast_enabled("cpu", True)


def autocast_dtype(model, x, options):
    torch.set_autocast_dtype("cpu", torch.float16)


def deterministic(model, x, options):
    torch.use_deterministic_algorithms(True)


def precision(model, x, options):
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def benchmark(model, x, options):
    torch.backends.cudnn.benchmark = True


def larger_batch(model, x, options):
    return torch.cat([x, x])


@pytest.mark.parametrize(
    "change",
    [
        *(reallocate, move_buffer, use_double, other_options, autocast_on),
        *(autocast_dtype, deterministic, precision, benchmark, larger_batch),
    ],
)
def test_what_a_graph_bakes_in_is_in_its_key(captures, change):
    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(torch.float32)
            self.register_buffer("offset", torch.ones(2))

        def forward(self, x):
            return self.net(x + self.offset)

    model, x, options = Offset(), torch.randn(3, 2), {}
    sampler = LangevinDynamics(model, 0.1)
    for _ in range(3):
        sampler.sample(x, 4, seed=1)
    assert captures.captured == 1
    before = settings_key(torch.device("cpu"))
    try:
        x2 = change(model, x, options)
        for name, value in options.items():
            setattr(sampler, name, value)
        x2 = x if x2 is None else x2
        replayed = captures.replayed
        out = sampler.sample(x2, 4, seed=1)
        assert captures.replayed == replayed  # eager: the key is new
        sampler.graph = False
        assert torch.equal(out, sampler.sample(x2, 4, seed=1))
    finally:
        torch.set_autocast_enabled("cpu", False)
        torch.set_autocast_dtype("cpu", torch.bfloat16)
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.matmul.fp32_precision = "none"
        torch.backends.cudnn.benchmark = False
    assert settings_key(torch.device("cpu")) == before
