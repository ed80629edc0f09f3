"""What is not found by a capture: whatever is more, or may be another, than a small perceptron."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastebm.chains.captured_mlp import captured_mlp

X = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
counts = {"calls": 0}
total = 0


class Energy(nn.Module):
    """A perceptron, and something in its forward."""

    def __init__(self, extra):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
        self.extra = extra
        self.calls, self.log, self.flags = 0, [], {}
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        e = self.net(x).squeeze(1)
        other = self.extra(self, x, e)
        return e if other is None else other

    def of(self, x):
        return self.net(x).squeeze(1)


def counter(m, x, e):
    m.calls += 1


def flag(m, x, e):
    m.flag = True


def same_flag(m, x, e):
    m.calls = 0


def list_append(m, x, e):
    m.log.append(1)


def list_extend(m, x, e):
    m.log += [1]


def dict_item(m, x, e):
    m.flags["seen"] = True


def global_dict(m, x, e):
    counts["calls"] += 1


def global_number(m, x, e):
    global total
    total += 1


def stored_energy(m, x, e):
    m.last = e


def stored_input(m, x, e):
    m.last = x


def buffer_in_place(m, x, e):
    m.n.add_(1)


def buffer_assigned(m, x, e):
    m.n = m.n + 1


def parameter_in_place(m, x, e):
    with torch.no_grad():
        m.net[0].weight.mul_(1.1)


def printed(m, x, e):
    print("energy")


def warned(m, x, e):
    import warnings

    warnings.warn("energy", stacklevel=1)


def python_random(m, x, e):
    return e * random.random()


def numpy_random(m, x, e):
    return e * np.random.rand()


def torch_random(m, x, e):
    return e + torch.randn(len(x))


def dropout(m, x, e):
    return F.dropout(e, 0.5)


def random_condition(m, x, e):
    return e + F.dropout(m.n, 0.5, True)


def seeded(m, x, e):
    torch.manual_seed(0)


def branch_on_values(m, x, e):
    return e if e.sum() > 0 else 2 * e


def item(m, x, e):
    return e * x.sum().item()


def of_batch(m, x, e):
    return e - e.mean()


def of_this_batch(m, x, e):
    return m.of(x.view(10, 3))


def per_batch(m, x, e):
    return e * len(x)


def changed_input(m, x, e):
    y = x.detach()
    y += 1


def changed_input_through_view(m, x, e):
    return m.of(x.view(-1, 3).mul_(2))


def changed_hidden(m, x, e):
    h = m.net[0](x)
    h2 = h.view(-1, 8)
    h2 += 1
    return m.net[2](m.net[1](h)).squeeze(1)


def detached(m, x, e):
    return m.of(x.detach()) + 0 * e


def without_gradient(m, x, e):
    with torch.no_grad():
        return m.of(x) + 0 * e


def in_double(m, x, e):
    return m.of(x.double().float())


def returns_double(m, x, e):
    return e.double()


def autocast(m, x, e):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.of(x)


def gradient_hook(m, x, e):
    e.register_hook(lambda g: 2 * g)


def input_hook(m, x, e):
    if x.requires_grad:
        x.register_hook(lambda g: 2 * g)


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, e):
        return e.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def own_backward(m, x, e):
    return Doubling.apply(e)


def checkpointed(m, x, e):
    return checkpoint(m.of, x, use_reentrant=False)


def graph_break(m, x, e):
    torch._dynamo.graph_break()


def is_compiling(m, x, e):
    return 2 * e if torch.compiler.is_compiling() else e


@torch.compiler.disable
def opaque(e):
    return 2 * e


def disabled(m, x, e):
    return opaque(e)


@torch.compiler.allow_in_graph
def relu(e):
    return 2 * e


def in_graph(m, x, e):
    return relu(e)


def gradient_inside(m, x, e):
    return torch.func.vmap(m.of)(x[:, None]).squeeze(1)


def two_outputs(m, x, e):
    return e, x


def scalar(m, x, e):
    return e.sum()


def two_networks(m, x, e):
    return e + m.of(2 * x)


def skip(m, x, e):
    return m.net[2](m.net[1](m.net[0](x)) + m.net[0](x)).squeeze(1)


def rows_swapped(m, x, e):
    return e.flip(0)


def rows_gathered(m, x, e):
    return e[torch.arange(len(x)) // 2]


def square_of_a_batch(m, x, e):
    return e + x.square().sum(0).sum()


def broadcast(m, x, e):
    return (e + x.square().sum(1, keepdim=True)).sum(1)


def cubic(m, x, e):
    return e + x.pow(3).sum(1)


def transposed(m, x, e):
    return m.of(x.T.reshape(-1, 3))


def divided(m, x, e):
    return 1 / e


REFUSED = {
    f.__name__: f for f in vars().copy().values() if getattr(f, "__module__", "") == __name__
}
REFUSED = {k: f for k, f in REFUSED.items() if k not in ("Energy", "Doubling", "opaque", "relu")}


@pytest.mark.parametrize("extra", REFUSED)
def test_what_is_refused(extra, capfd, recwarn):
    model = Energy(REFUSED[extra])
    state = dict(vars(model)), dict(counts), total
    random_state = random.getstate(), torch.get_rng_state().tolist()
    for _ in range(2):
        found = captured_mlp(model, X, {})
        assert isinstance(found, str) and found and "\n" not in found
    if extra not in ("parameter_in_place", "buffer_assigned"):
        assert (vars(model), counts, total) == state
    assert model.n == 0 and model.log == [] and model.flags == {}
    assert random_state == (random.getstate(), torch.get_rng_state().tolist())
    assert capfd.readouterr() == ("", "") and not recwarn.list
