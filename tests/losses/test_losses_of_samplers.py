"""Losses whose chains are those of any sampler."""

import pytest
import torch

from fastebm import (
    HMC,
    MALA,
    ChainRNG,
    ContrastiveDivergence,
    GibbsWithGradients,
    ImprovedContrastiveDivergence,
    ParallelTempering,
    PersistentContrastiveDivergence,
    ReplayBuffer,
    UnderdampedLangevin,
)
from fastebm.energies import MLPEnergy

SAMPLERS = {
    "mala": lambda e: MALA(e, 0.05),
    "hmc": lambda e: HMC(e, 0.2, n_leapfrog=3),
    "hmc_auto": lambda e: HMC(e, n_leapfrog=2),
    "underdamped": lambda e: UnderdampedLangevin(e, 0.2),
    "tempering": lambda e: ParallelTempering(HMC(e, 0.2, n_leapfrog=2), (1.0, 3.0)),
    "bits": GibbsWithGradients,
}


def data(name, n=64):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return (x > 0).float() if name == "bits" else x


@pytest.mark.parametrize("name", SAMPLERS)
def test_cd_is_the_energy_gap_at_the_ends_of_the_chains(name):
    torch.manual_seed(0)
    model = MLPEnergy(2, (16,))
    sampler, x = SAMPLERS[name](model), data(name)
    loss = ContrastiveDivergence(model, sampler, k_steps=4)
    out = loss(x, seed=ChainRNG(3))
    other = SAMPLERS[name](model)
    x_neg = other.sample(x, 4, seed=ChainRNG(3))
    torch.testing.assert_close(out.x_neg, x_neg, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(out.loss, list(model.parameters()), retain_graph=True)
    gap = model(x).mean() - model(out.x_neg.detach()).mean()
    torch.testing.assert_close(out.loss, gap, rtol=1e-4, atol=1e-5)
    for a, b in zip(grads, torch.autograd.grad(gap, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert out.metrics["n_nonfinite"] == 0
    assert ("acceptance" in out.metrics) == (name != "underdamped")


@pytest.mark.parametrize("name", SAMPLERS)
def test_pcd_keeps_the_chains(name):
    torch.manual_seed(0)
    model = MLPEnergy(2, (16,))
    buffer = ReplayBuffer(256, (2,), reinit_prob=0.0, seed=0)
    buffer.data.copy_(data(name, 256))
    loss = PersistentContrastiveDivergence(model, SAMPLERS[name](model), buffer, k_steps=3)
    rng = ChainRNG(1)
    for _ in range(3):
        out = loss(data(name), seed=rng)
        out.loss.backward()
    stored = buffer.all()
    assert all((stored == row).all(1).any() for row in out.x_neg)


def test_a_buffer_that_is_not_of_bits_is_refused():
    model = MLPEnergy(2, (16,))
    buffer = ReplayBuffer(256, (2,), seed=0)  # uniform
    loss = PersistentContrastiveDivergence(model, GibbsWithGradients(model), buffer, k_steps=3)
    with pytest.raises(ValueError, match=r"x must be of 0 and 1, got .* \(a ReplayBuffer of bits"):
        loss(data("bits"), seed=ChainRNG(1))


@pytest.mark.parametrize("name", SAMPLERS)
def test_icd_says_why_it_does_not_take_them(name):
    if name == "mala":  # whose proposals have a derivative
        return
    model = MLPEnergy(2, (16,))
    with pytest.raises(TypeError, match="derivative"):
        ImprovedContrastiveDivergence(model, SAMPLERS[name](model))
