"""Samplers on a device make the chains that they make on a CPU, up to rounding."""

import copy

import pytest
import torch
from conftest import DEVICES

from fastebm import (
    HMC,
    MALA,
    ContrastiveDivergence,
    GibbsWithGradients,
    LangevinDynamics,
    ParallelTempering,
    UnderdampedLangevin,
)
from fastebm.energies import MLPEnergy
from fastebm.ops import library

SCALE = torch.tensor([0.5, 2.0, 1.0])

SAMPLERS = {
    "langevin": lambda e: LangevinDynamics(e, 0.05, preconditioner=SCALE),
    "mala": lambda e: MALA(e, 0.2, clamp=(-3 * SCALE, 3 * SCALE)),
    "hmc": lambda e: HMC(e, 0.3, n_leapfrog=3, preconditioner=SCALE),
    "underdamped": lambda e: UnderdampedLangevin(e, 0.3, mass=2.0, clamp=(-2.0, 2.0)),
    "tempering": lambda e: ParallelTempering(HMC(e, 0.3, n_leapfrog=2), (1.0, 2.0, 4.0)),
    "bits": GibbsWithGradients,
}


def chains(name, model, x):
    x = (x > 0).to(x.dtype) if name == "bits" else x.clamp(-1, 1)
    return SAMPLERS[name](model).sample(x, 8, seed=1, return_diagnostics=True)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("device", DEVICES[1:], indirect=True)
def test_chains_are_those_of_a_cpu(name, device, monkeypatch):
    torch.manual_seed(0)
    model, x = MLPEnergy(3, (16, 16)), torch.randn(40, 3)
    with monkeypatch.context() as patch:
        patch.setattr(library, "op", torch.ops.fastebm)
        here, _ = chains(name, model, x)
    # by autograd where operators are emulated, as on a device
    moved = copy.deepcopy(model).to(device)
    there, found = chains(name, lambda x: moved(x), x.to(device))
    torch.testing.assert_close(there.cpu(), here, rtol=2e-3, atol=2e-4)
    for value in found.values():
        if isinstance(value, torch.Tensor):
            assert value.device.type == there.device.type


@pytest.mark.parametrize("device", DEVICES[2:], indirect=True)
def test_warm_ups_and_losses_run_there(device):
    torch.manual_seed(0)
    model = MLPEnergy(3, (16,)).to(device)
    x = torch.randn(40, 3).to(device)
    hmc = HMC(model, n_leapfrog=2)
    x = hmc.warm_up(x, 70, seed=0)
    assert hmc.preconditioner.device.type == x.device.type
    x = UnderdampedLangevin(model, 0.1).warm_up(x, 20, seed=1)
    x = ParallelTempering(hmc, (1.0, 2.0)).warm_up(x, 20, seed=2)
    hmc.step_size = "auto"
    for sampler in (hmc, MALA(model), ParallelTempering(hmc, (1.0, 2.0))):
        out = ContrastiveDivergence(model, sampler, k_steps=3)(x, seed=3)
        out.loss.backward()
        assert out.x_neg.device.type == x.device.type
