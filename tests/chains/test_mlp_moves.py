"""Whole chains of HMC and of underdamped Langevin on a perceptron, as those of a step at a time."""

import pytest
import torch
from mlp_networks import network

from fastebm.chains import mlp_chain
from fastebm.chains.adjusted import Points
from fastebm.chains.hamiltonian import HamiltonianSteps
from fastebm.chains.mlp_chain import MLPChain
from fastebm.chains.underdamped import UnderdampedSteps
from fastebm.ops.mlp.gradient import mlp_gradient
from fastebm.rng import ChainRNG

N = 40
RNG = ChainRNG(3).state()


def gradient_by(net):
    def gradient(x):
        grad = torch.empty_like(x)
        return grad, mlp_gradient(net, x.flatten(1), grad=grad.flatten(1))

    return gradient


def values(kind, scale):
    """k -> a coefficient."""
    own = scale * (0.5 + torch.rand(N))
    return {
        "number": lambda k: scale,
        "schedule": lambda k: scale / (1 + k / 10),
        "chains": lambda k: own,
        "both": lambda k: own / (1 + k / 10) if k % 2 else scale,
    }[kind]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


KINDS = ["number", "schedule", "chains", "both"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxed", [False, True])
def test_trajectories(kind, boxed, monkeypatch):
    net, x = network(6, (20, 9)), torch.rand(N, 2, 3)
    step, temperature = values(kind, 0.2), values(kind, 0.8)
    coefficients = lambda k: (step(k), temperature(k))  # noqa: E731
    lo, hi = (torch.full((2, 3), -0.8), torch.full((2, 3), 1.5)) if boxed else (None, None)
    ids = torch.randint(2**56, (N,))
    one = HamiltonianSteps(gradient_by(net), coefficients, 3, 0.2, RNG, ids, lo, hi)
    wanted = Points.at(x.clone())
    one(wanted, 2, 5, False)
    results = []
    for work in (mlp_chain.MAX_WORK, 1):  # all in one call, and in one each
        monkeypatch.setattr(mlp_chain, "MAX_WORK", work)
        points, divergent = Points.at(x.clone()), torch.zeros(N, dtype=torch.int32)
        chain, known = MLPChain(net, "fp32"), False
        for first, end in ((2, 4), (4, 7)):
            pairs = [coefficients(k) for k in range(first, end)]
            chain.hmc(points, divergent, first, pairs, 3, 0.2, RNG, ids, lo, hi, known)
            known = True
        results.append((*points, divergent))
    assert all(map(torch.equal, *results))
    assert (results[0][0] != x).flatten(1).all(1).sum() > N / 2
    for mine, other in zip(points, wanted, strict=True):
        close(mine, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxed", [False, True])
def test_underdamped_steps(kind, boxed, monkeypatch):
    net, x = network(6, (20, 9)), torch.rand(N, 2, 3)
    step, friction, temperature = values(kind, 0.1), values(kind, 1.5), values(kind, 0.8)
    coefficients = lambda k: (step(k), friction(k), temperature(k))  # noqa: E731
    lo, hi = (torch.full((2, 3), -0.3), torch.full((2, 3), 1.2)) if boxed else (None, None)
    start, ids = torch.randn(N, 2, 3), torch.randint(2**56, (N,))
    one = UnderdampedSteps(
        gradient_by(net), coefficients, RNG, ids, lo, hi, x, velocity=start.clone()
    )
    wanted = Points.at(x.clone())
    one(wanted, 0, 7, False)
    results = []
    for work in (mlp_chain.MAX_WORK, 1):
        monkeypatch.setattr(mlp_chain, "MAX_WORK", work)
        points, velocity, kick = Points.at(x.clone()), start.clone(), 0.0
        chain, known = MLPChain(net, "fp32"), False
        for first, end in ((0, 3), (3, 7)):
            factors = [coefficients(k) for k in range(first, end)]
            box = {"lo": lo, "hi": hi, "known": known}
            kick = chain.underdamped(points, velocity, kick, first, factors, RNG, ids, **box)
            known = True
        results.append((*points, velocity))
    assert all(map(torch.equal, *results))
    for mine, other in zip(points[:3], wanted[:3], strict=True):
        close(mine, other)
    close(velocity, one.velocity)
    assert torch.equal(torch.as_tensor(kick), torch.as_tensor(step(6) / 2))
