"""The options of losses and buffers are checked when they are set, and gone by from then on."""

import pytest
import torch
from torch import nn

from fastebm import (
    RBM,
    ExactMaximumLikelihood,
    HelmholtzMachine,
    ImprovedContrastiveDivergence,
    LangevinDynamics,
    MaximumLikelihood,
    ReplayBuffer,
    WakeSleep,
)
from fastebm.energies import MLPEnergy


def improved(model, **options):
    buffer = ReplayBuffer(40, 2, seed=0)
    sampler = LangevinDynamics(model, 0.1)
    return ImprovedContrastiveDivergence(model, sampler, buffer, **options)


CHANGES = {
    "k_steps": 3,
    "kl_weight": 2.0,
    "entropy_weight": 0.0,
    "entropy_eps": 0.5,
    "n_entropy_refs": 9,
    "energy_reg_weight": 0.7,
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_that_is_set_is_gone_by(name):
    model, x = MLPEnergy(2, (8,)), torch.randn(8, 2)
    set_later, unchanged = improved(model, k_steps=5), improved(model, k_steps=5)
    setattr(set_later, name, CHANGES[name])
    made_so = improved(model, **({"k_steps": 5} | {name: CHANGES[name]}))
    result = set_later(x, seed=0).loss
    assert torch.equal(result, made_so(x, seed=0).loss)
    assert not torch.equal(result, unchanged(x, seed=0).loss)


@pytest.mark.parametrize(
    "name, value, match",
    [
        ("k_steps", 0, "k_steps must be an integer >= 1, got 0"),
        ("kl_weight", float("nan"), "kl_weight must be a finite number, got nan"),
        ("energy_reg_weight", "much", "energy_reg_weight must be a number, got str"),
        ("entropy_eps", 0.0, "entropy_eps must be finite and > 0, got 0.0"),
        ("n_entropy_refs", 1, "n_entropy_refs must be an integer >= 2, got 1"),
        ("on_nonfinite", "hide", "on_nonfinite must be one of raise, .*, got 'hide'"),
        ("sampler", 3, "sampler must be one of fastebm's samplers, got int"),
        ("sampler", nn.Linear(2, 1), "sampler must be .* got Linear"),
        ("model", 3, "model must be callable, got int"),
    ],
)
def test_an_option_is_checked_when_it_is_set(name, value, match):
    loss = improved(MLPEnergy(2, (8,)))
    before = getattr(loss, name)
    with pytest.raises((ValueError, TypeError), match=match):
        setattr(loss, name, value)
    assert getattr(loss, name) is before


def test_another_model_is_followed_and_stays_no_submodule():
    one, two, x = MLPEnergy(2, (8,)), MLPEnergy(2, (8,)), torch.randn(8, 2)
    loss, expected = improved(one), improved(two)
    loss.model = loss.sampler.model = two
    assert torch.equal(loss(x, seed=0).loss, expected(x, seed=0).loss)
    assert not list(loss.parameters())
    exact = ExactMaximumLikelihood(RBM(4, 3))
    exact.model = RBM(4, 3)
    v = torch.rand(6, 4).round()
    assert torch.equal(exact(v).loss, ExactMaximumLikelihood(exact.model)(v).loss)
    assert not list(exact.parameters())
    exact.model = RBM(40, 40)
    with pytest.raises(ValueError, match="at most"):
        exact(torch.rand(6, 40).round())
    with pytest.raises(TypeError, match="model must be a HelmholtzMachine, got Linear"):
        WakeSleep(HelmholtzMachine(4, 3)).model = nn.Linear(4, 1)


def test_where_long_chains_start_may_be_set():
    model, x = MLPEnergy(2, (8,)), torch.randn(8, 2)
    loss = MaximumLikelihood(model, LangevinDynamics(model, 0.1), k_steps=2)
    loss.init = "normal"
    other = MaximumLikelihood(model, loss.sampler, k_steps=2, init="normal")
    assert torch.equal(loss(x, seed=0).x_neg, other(x, seed=0).x_neg)
    for name, value in (("init", "data"), ("value_range", (1, 0))):
        with pytest.raises(ValueError, match=f"{name} must be"):
            setattr(loss, name, value)


@pytest.mark.parametrize("name", ["capacity", "shape", "mode", "value_range"])
def test_what_stored_samples_depend_on_is_fixed(name):
    buffer = ReplayBuffer(4, 2, seed=0)
    with pytest.raises(AttributeError, match=f"{name} of a ReplayBuffer is fixed"):
        setattr(buffer, name, getattr(buffer, name))
    with pytest.raises(ValueError, match="reinit_prob must be in .0, 1., got 2"):
        buffer.reinit_prob = 2
    buffer.reinit_prob = 1.0
    before = buffer.all()
    assert not torch.equal(buffer.sample(4)[0].sort(0).values, before.sort(0).values)
