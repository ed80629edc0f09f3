"""Losses in inference mode, as in a validation loop, and of tensors that were made there."""

import pytest
import torch
from loss_reference import langevin, mlp

from fastebm.energies import RBM
from fastebm.energies.helmholtz import HelmholtzMachine
from fastebm.losses.contrastive import ContrastiveDivergence
from fastebm.losses.improved import ImprovedContrastiveDivergence
from fastebm.losses.maximum_likelihood import ExactMaximumLikelihood, MaximumLikelihood
from fastebm.losses.persistent import PersistentContrastiveDivergence
from fastebm.losses.wake_sleep import WakeSleep
from fastebm.replay.buffer import ReplayBuffer
from fastebm.samplers.gibbs import GibbsSampler

NET, RBM_, MACHINE = mlp().float(), RBM(2, 3), HelmholtzMachine(2, [3])


def scaled(x, scale=1.0):
    return scale * NET(x)


def buffer():
    return ReplayBuffer(32, (2,), seed=1)


CASES = {
    "cd": lambda s: ContrastiveDivergence(NET, s, 3),
    "pcd": lambda s: PersistentContrastiveDivergence(NET, s, buffer(), 3),
    "icd": lambda s: ImprovedContrastiveDivergence(NET, s, None, 3),
    "icd buffer": lambda s: ImprovedContrastiveDivergence(NET, s, buffer(), 3),
    "ml": lambda s: MaximumLikelihood(NET, s, 3),
    "rbm": lambda s: ContrastiveDivergence(RBM_, GibbsSampler(RBM_), 3),
    "exact": lambda s: ExactMaximumLikelihood(RBM_),
    "wake-sleep": lambda s: WakeSleep(MACHINE),
}


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_the_value_is_that_outside_and_has_no_graph(make, backend):
    x = torch.rand(12, 2).round()
    loss, twin = (make(langevin(NET, backend=backend)) for _ in range(2))
    with torch.no_grad():
        expected = [twin(x, seed=i) for i in range(2)]
    with torch.inference_mode():
        made_inside = x.clone()
        found = [loss(x, seed=0), loss(made_inside, seed=1)]
    for a, b in zip(found, expected, strict=True):
        assert a.loss == b.loss and not a.loss.requires_grad and torch.equal(a.x_neg, b.x_neg)
        assert {k: float(v) for k, v in a.metrics.items()} == {
            k: float(v) for k, v in b.metrics.items()
        }
    assert made_inside.is_inference()  # and trains nonetheless
    loss(made_inside, seed=0).loss.backward()


@pytest.mark.parametrize("make", [ContrastiveDivergence, ImprovedContrastiveDivergence])
def test_arguments_of_the_model_may_be_made_there(make):
    x = torch.randn(12, 2)
    with torch.inference_mode():
        scale = torch.rand(12, 1)
    loss = make(scaled, langevin(scaled), k_steps=1)
    right = loss(x, {"scale": scale.clone()}, seed=0).loss
    assert loss(x, {"scale": scale}, seed=0).loss == right
    with torch.inference_mode():
        assert loss(x, {"scale": scale}, seed=0).loss == right


def test_a_last_step_there_has_its_graph():
    x, sampler = torch.randn(3, 2), langevin(NET)
    right, _ = sampler.last_step(x, seed=0)
    with torch.inference_mode():
        found, _ = sampler.last_step(x.clone(), seed=0)
    assert torch.equal(found, right) and found.requires_grad
