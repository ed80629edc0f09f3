"""Configurations: what is refused, what is chosen from the data, presets."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastebm.app.config import MACHINES, ConfigError, TrainConfig
from fastebm.app.data import load
from fastebm.app.presets import PRESETS
from fastebm.app.training import Trainer

SMALL = TrainConfig(
    data="ring", samples=200, steps=12, batch_size=16, k_steps=3, buffer_size=64, hidden=16, seed=5
)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configurations(name):
    config = TrainConfig(**PRESETS[name])
    loss = "pcd" if name == "auto" else "icd"
    assert config.energy in MACHINES or (config.loss == loss and config.energy_reg_weight > 0)


@pytest.mark.parametrize(
    "name, value",
    [
        ("loss", "kl"),
        ("lr_schedule", "step"),
        ("steps", 0),
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("k_steps", 0),
        ("step_size", -1.0),
        ("step_size", math.inf),
        ("noise_std", -0.1),
        ("reinit_prob", 1.5),
        ("kl_weight", math.nan),
        ("energy_reg_weight", -1.0),
        ("buffer_size", 3),
        ("buffer_size", -3),
        ("n_entropy_refs", 1),
        ("hidden", 0),
        ("scales", 0),
        ("scales", 2),
        ("energy", "transformer"),
        ("precision", "float16"),
        ("ema", 1.0),
        ("adam_beta2", -0.1),
        ("on_divergence", "pray"),
        ("max_rollbacks", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("steps", 2**31),
        ("hidden", 2**20 + 1),
        ("scales", 17),
        ("buffer_size", 64.0),
        ("k_steps", "3"),
        ("k_steps", True),
        ("lr", "fast"),
        ("lr", None),
        ("kl_weight", 10**400),
        ("noise_std", 1e19),
        ("noise_first", 1),
        ("data", 3),
        ("loss", torch.zeros(2, 2)),
    ],
)
def test_bad_configurations_name_the_value(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be .*, got") as error:
        replace(SMALL, **{name: value})
    assert "\n" not in str(error.value)


def test_batch_larger_than_the_buffer_or_the_data():
    with pytest.raises(ConfigError, match="buffer_size must be >= batch_size=50, got 49"):
        replace(SMALL, batch_size=50, buffer_size=49)
    with pytest.raises(ConfigError, match="batch_size=50, but there are 40"):
        Trainer(replace(SMALL, samples=40, batch_size=50))


def test_defaults_from_the_data():
    ring = load("ring", 1000)
    c = SMALL.resolve(ring)
    assert 0.0225 / 15 < c.step_size < 0.0225 / 3  # a fifth of v = 0.15^2, v estimated to 1.5
    assert c.noise_std == pytest.approx(math.sqrt(2 * c.step_size))
    assert replace(SMALL, epochs=4).resolve(load("ring", 200)).steps == 4 * (200 // 16)
    c = TrainConfig().resolve(load("digits"))
    assert (c.step_size, c.noise_std) == (0.25, 0.005)


def test_no_step_size_for_points_that_all_coincide(tmp_path):
    torch.save(torch.tensor([[0.0, 1.0]]).repeat(50, 1), tmp_path / "x.pt")
    config = replace(SMALL, data=str(tmp_path / "x.pt"), samples=None)
    with pytest.raises(ConfigError, match="give a step size"):
        Trainer(config)
    assert Trainer(replace(config, step_size=0.1)).step()


def test_numbers_of_numpy_become_pythons():
    given = {"steps": np.int64(7), "lr": np.float32(0.5), "data": np.str_("ring"), "step_size": 1}
    config = replace(SMALL, **given)
    for name, kind in {"steps": int, "lr": float, "data": str, "step_size": float}.items():
        assert type(getattr(config, name)) is kind and getattr(config, name) == given[name]
