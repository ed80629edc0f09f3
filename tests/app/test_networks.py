"""The energies that a configuration names."""

from dataclasses import replace

import pytest
import torch

from fastebm.app.config import ConfigError, TrainConfig
from fastebm.app.networks import build_energy
from fastebm.app.presets import PRESETS
from fastebm.app.training import Trainer
from fastebm.energies import ConvEnergy, MultiScaleEnergy

CONV = TrainConfig(energy="conv", hidden=4)


def test_one_scale_is_the_network_itself():
    model = build_energy(CONV, torch.rand(2, 1, 8, 8), None)
    assert type(model) is ConvEnergy and model(torch.rand(3, 1, 8, 8)).shape == (3,)


def test_scales_halve_the_resolution():
    model = build_energy(replace(CONV, scales=2), torch.rand(2, 1, 8, 8), None)
    assert type(model) is MultiScaleEnergy and model.factors == (1, 2)
    assert [net.shape for net in model.nets] == [(1, 8, 8), (1, 4, 4)]
    x = torch.rand(3, 1, 8, 8)
    small = torch.nn.functional.avg_pool2d(x, 2)
    assert torch.equal(model(x)[:, 1], model.nets[1](small))


@pytest.mark.parametrize(
    "shape, scales, message",
    [
        ((1, 10, 8), 3, "scales=3 needs sides that are multiples of 4, the samples are 10x8"),
        ((1, 8, 8), 3, "energy='conv', scales=3: shape must"),
    ],
)
def test_resolutions_that_cannot_be(shape, scales, message):
    with pytest.raises(ConfigError, match=message):
        build_energy(replace(CONV, scales=scales), torch.rand(2, *shape), None)


def test_a_training_step_with_scales_and_autocast(tmp_path):
    small = {"batch_size": 16, "buffer_size": 16, "k_steps": 2, "precision": "bfloat16"}
    trainer = Trainer(replace(CONV, scales=2, **small))
    before = trainer.model.nets[1].net[0].weight.detach().clone()
    assert all(torch.isfinite(torch.as_tensor(v)).all() for v in trainer.step().values())
    assert not torch.equal(trainer.model.nets[1].net[0].weight, before)
    assert trainer.sample(4, 2, 0).shape == (4, 1, 8, 8)


def test_cifar10_preset_has_three_scales():
    preset = PRESETS["cifar10"] | {"hidden": 4}
    assert build_energy(TrainConfig(**preset), torch.rand(2, 3, 32, 32), None).factors == (1, 2, 4)
