"""What a chain costs: nothing is read back, computed twice, or computed for the parameters."""

import pytest
import torch
from readback import NothingIsReadBack
from torch import nn

from fastebm import ImprovedContrastiveDivergence, LangevinDynamics, ReplayBuffer
from fastebm.rng import ChainRNG


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


def test_the_loss_shares_the_last_step():
    model, x, k = mlp(), torch.randn(5, 2), 7
    buffer = ReplayBuffer(20, (2,), seed=0)
    sampler = LangevinDynamics(model, 0.1)
    loss = ImprovedContrastiveDivergence(model, sampler, buffer, k)
    loss(x, seed=ChainRNG(1))
    assert model.calls == k + 2  # the steps, the data, and one for negative phase and KL term
