"""Langevin chains by a score, where there is no energy."""

import pytest
import torch
from torch import nn

from fastebm import Augmentation, ContrastiveDivergence, LangevinDynamics
from fastebm.samplers.mala import MALA
from fastebm.samplers.parallel_tempering import ParallelTempering

B, D = 6, 3


def bowl(x, scale=1.0):
    return scale * x.square().flatten(1).sum(1) / 2


def score(x, scale=1.0):
    return -scale * x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.modes = nn.Linear(D, D), []

    def forward(self, x):
        self.modes.append((self.training, self.layer.weight.requires_grad))
        return torch.tanh(self.layer(x))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clamp": (-0.5, 0.5), "grad_clip": 0.4},
        {"noise_first": True},
        {"displacement_clip": 0.2, "temperature": 0.5},
        {"grad_norm_clip": 0.7, "clamp": (torch.zeros(D), None)},
    ],
)
def test_the_chains_of_minus_the_gradient_are_those_of_the_energy(settings):
    x = torch.randn(B, D)
    by_score = LangevinDynamics(None, 0.1, score=score, **settings)
    by_energy = LangevinDynamics(bowl, 0.1, **settings)
    kwargs = {"seed": 1, "model_kwargs": {"scale": 2.0}}
    path = by_score.sample(x, 5, return_trajectory=True, **kwargs)
    assert torch.equal(path, by_energy.sample(x, 5, return_trajectory=True, **kwargs))
    out, found = by_score.sample(x, 5, return_diagnostics=True, **kwargs)
    _, of_energy = by_energy.sample(x, 5, return_diagnostics=True, **kwargs)
    assert torch.equal(out, path[:, -1]) and "energy" not in found
    assert found.keys() == of_energy.keys() - {"energy"}
    assert torch.equal(found["grad_norm"], of_energy["grad_norm"])


def test_a_module_is_in_eval_mode_and_its_parameters_constants(alone):
    net, x = Net().train(), torch.randn(B, D)
    sampler = LangevinDynamics(None, 0.1, score=net)
    sampler.sample(x, 3, seed=1)
    assert net.modes == [(False, False)] * 3
    assert net.training and net.layer.weight.requires_grad
    assert sampler.score is net and not sampler.has_energy
    start = sampler.sample(n_samples=4, dim=D, n_steps=1, seed=1)  # of the module's dtype
    assert start.dtype == torch.float32
    moved = sampler.sample(x, 4, augmentation=Augmentation(hflip_p=0.0), seed=1)
    assert torch.equal(moved, sampler.sample(x, 4, seed=1))


def test_it_may_be_set_and_replaced():
    x, sampler = torch.randn(B, D), LangevinDynamics(None, 0.1, score=score)
    sampler.score = lambda x: -3 * x
    wanted = LangevinDynamics(lambda x: 3 * bowl(x), 0.1).sample(x, 3, seed=1)
    torch.testing.assert_close(sampler.sample(x, 3, seed=1), wanted)
    sampler.model = bowl
    assert sampler.score is None
    wanted = LangevinDynamics(bowl, 0.1).sample(x, 3, seed=1)
    assert torch.equal(sampler.sample(x, 3, seed=1), wanted)


def test_what_needs_an_energy_says_so():
    x = torch.randn(B, D)
    for settings, said in (
        ({"adjusted": True}, "adjusted=True needs a model"),
        ({"compile": True}, "compile=True needs a model"),
        ({"preconditioner": torch.ones(D)}, "a preconditioner needs a model"),
    ):
        with pytest.raises(ValueError, match=said):
            LangevinDynamics(None, 0.1, score=score, **settings)
    with pytest.raises(ValueError, match="an adaptive step_size needs a model"):
        LangevinDynamics(None, "auto", score=score)
    sampler = LangevinDynamics(None, 0.1, score=score)
    with pytest.raises(ValueError, match="jumps need a sampler with adjusted=True"):
        sampler.sample(x, 4, jumps=2)
    with pytest.raises(ValueError, match="adjusted=True needs a model"):
        sampler.warm_up(x, 5)
    with pytest.raises(TypeError, match="a score says nothing of energies"):
        sampler.last_step(x)
    with pytest.raises(TypeError, match="a score says nothing of energies"):
        ParallelTempering(sampler, (1.0, 2.0))
    for model in (bowl, sampler.model):
        with pytest.raises(TypeError, match="a score says nothing of energies"):
            ContrastiveDivergence(model, sampler)
    with pytest.raises(ValueError, match="adjusted=True needs a model"):
        MALA(sampler.model, 0.1)
    with pytest.raises(ValueError, match="backend='fused' takes small perceptrons only"):
        LangevinDynamics(None, 0.1, score=score, backend="fused").sample(x, 2)


@pytest.mark.parametrize(
    "make, error, said",
    [
        (lambda: LangevinDynamics(None, 0.1), ValueError, "give one of model and score"),
        (lambda: LangevinDynamics(bowl, 0.1, score=score), ValueError, "give one of model and"),
        (lambda: LangevinDynamics(None, 0.1, score=3), TypeError, "score must be callable, got"),
    ],
)
def test_wrong_settings(make, error, said):
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize(
    "bad, error, said",
    [
        (lambda x: x.sum(1), ValueError, r"score must return .* \(6, 3\) as x, got \(6,\)"),
        (lambda x: x.long(), TypeError, "score must return a floating-point tensor, got a tensor"),
        (lambda x: None, TypeError, "score must return a floating-point tensor"),
    ],
)
def test_what_a_score_returns_is_checked(bad, error, said):
    with pytest.raises(error, match=said):
        LangevinDynamics(None, 0.1, score=bad).sample(torch.randn(B, D), 2)
