"""The step size that finds itself."""

import copy
import math

import pytest
import torch
from torch import nn

from fastebm import AdaptiveStep, LangevinDynamics, PersistentContrastiveDivergence, ReplayBuffer


def bowl(x):
    return x.square().sum(1) / 2


def test_each_update_has_its_exact_value():
    step = AdaptiveStep(0.2, target_acceptance=0.6, gain=0.1)
    step.update(torch.tensor(0.9), 16)
    assert float(step) == pytest.approx(0.2 * math.exp(0.1 * 16 * 0.3), rel=1e-7)
    step.frozen = True
    before = float(step)
    step.update(torch.tensor(0.0), 16)
    assert float(step) == before


def test_no_step_is_above_the_largest():
    step = AdaptiveStep(100.0, largest=0.5)
    assert float(step) == pytest.approx(0.5)
    step.update(torch.tensor(1.0), 20)
    assert float(step) == pytest.approx(0.5)
    step.update(torch.tensor(0.5), 20)
    assert float(step) == pytest.approx(0.5 * math.exp(-0.2))


@pytest.mark.parametrize("backend", ["fused", "eager"])
def test_no_step_leaves_what_float32_holds(backend):
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    for acceptance, end in ((1.0, 1e30), (0.0, 1e-30)):
        step = AdaptiveStep(0.1, gain=1.0)
        step.update(torch.tensor(acceptance), 1000)
        assert float(step) == pytest.approx(end)
        sampler = LangevinDynamics(net, step, adjusted=True, backend=backend)
        assert sampler.sample(torch.randn(8, 2), 3, seed=0).isfinite().all()
        buffer = ReplayBuffer(64, 2, seed=1)
        loss = PersistentContrastiveDivergence(net, sampler, buffer, k_steps=3)
        assert loss(torch.randn(8, 2), seed=0).loss.isfinite()
        assert 1e-30 * (1 - 1e-9) <= float(step) <= 1e30 * (1 + 1e-9)


@pytest.mark.parametrize("initial, adjusted", [(1e-6, True), (1e6, True), (1e-3, False)])
def test_a_gaussian_gets_the_acceptance_asked_for(initial, adjusted):
    step = AdaptiveStep(initial, target_acceptance=0.8, gain=0.15)
    sampler = LangevinDynamics(bowl, step, adjusted=adjusted)
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    for i in range(60):
        x = sampler.sample(x, 20, seed=i)
    # The step by quadrature: acceptance of exact samples at fixed steps.
    fixed = LangevinDynamics(bowl, float(step), adjusted=True)
    exact = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(1))
    _, found = fixed.sample(exact, 1, seed=2, return_diagnostics=True)
    # Unadjusted chains are wider than the law, and so adapt to a somewhat smaller step.
    assert abs(found["acceptance"] - 0.8) < (0.03 if adjusted else 0.08)


def test_a_follower_goes_along_and_changes_nothing():
    step = AdaptiveStep(0.1)
    follower = step.follower()
    LangevinDynamics(bowl, follower, adjusted=True).sample(torch.randn(50, 2), 20, seed=0)
    assert float(step) == pytest.approx(0.1)
    step.update(torch.tensor(1.0), 10)
    assert float(follower) == float(step) != pytest.approx(0.1)


def test_the_step_is_saved_with_the_loss_and_goes_on_exactly():
    def make():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))
        sampler = LangevinDynamics(net, "auto", adjusted=True, clamp=(-5.0, 5.0))
        buffer = ReplayBuffer(64, 2, value_range=(-5.0, 5.0), seed=1)
        return PersistentContrastiveDivergence(net, sampler, buffer, k_steps=10, jumps=2)

    data, ours = torch.randn(64, 2), make()
    for i in range(3):
        ours(data, seed=i)
    theirs = make()
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert float(theirs.sampler.step_size) == float(ours.sampler.step_size)
    assert torch.equal(ours(data, seed=9).x_neg, theirs(data, seed=9).x_neg)
    assert float(ours.sampler.step_size) == float(theirs.sampler.step_size)


def test_casts_of_a_module_leave_the_step_alone():
    step = AdaptiveStep(0.123)
    step.half()
    assert step.log_step.dtype == torch.float64 and float(step) == pytest.approx(0.123, rel=1e-12)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"initial": 0.0}, "initial must be finite and > 0"),
        ({"target_acceptance": 1.5}, "target_acceptance must be in"),
        ({"gain": -1.0}, "gain must be finite and > 0"),
        ({"largest": math.nan}, "largest must be finite and > 0"),
    ],
)
def test_wrong_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        AdaptiveStep(**settings)
