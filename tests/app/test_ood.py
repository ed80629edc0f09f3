"""OOD detection: scores against closed forms and by hand, derived sets, equal preprocessing."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastebm.app import ood
from fastebm.app.config import TrainConfig
from fastebm.app.data import DataError, load
from fastebm.app.training import Trainer


def test_detection_has_the_closed_form_of_two_gaussians():
    rng = np.random.default_rng(0)
    shift, n = 1.5, 4000
    found = ood.detection(rng.standard_normal(n), shift + rng.standard_normal(n), n_boot=100)
    auroc = 0.5 * (1 + math.erf(shift / 2))  # P(N(shift, 2) > 0)
    fpr95 = 0.5 * (1 + math.erf((1.6449 - shift) / math.sqrt(2)))
    assert found["auroc"] == pytest.approx(auroc, abs=4 * 0.005)
    assert found["fpr95"] == pytest.approx(fpr95, abs=4 * 0.015)
    for name, value in (("auroc", auroc), ("fpr95", fpr95)):
        low, high = found[f"{name}_95"]
        assert low < found[name] < high and high - low < 0.1
        assert low - 0.02 < value < high + 0.02


def test_detection_by_hand():
    inside, outside = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.5, 4.0])
    found = ood.detection(inside, outside, n_boot=10)
    assert found["auroc"] == (1 + 4) / 8 and found["fpr95"] == 0.5
    assert ood.detection(inside, inside + 10, n_boot=10)["auroc"] == 1.0


def uint8_pictures(tmp_path, n=60):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "in.npz", x_train=x, x_test=x[: n - 10])
    return load(str(tmp_path / "in.npz"))


def test_derived_sets(tmp_path):
    data = uint8_pictures(tmp_path)
    x = data.test
    sets = {name: ood.derived_set(name, x, data, seed=3) for name in ood.DERIVED}
    for y in sets.values():
        assert y.shape == x.shape and y.dtype == x.dtype
        level = y * 256 - 0.5  # the same 256 values as the data
        assert torch.equal(level, level.round()) and level.min() >= 0 and level.max() <= 255
    assert (sets["constant"].flatten(1).std(1) == 0).all()
    assert sets["constant"].unique().numel() > 20
    a, b = (v.flatten(2).permute(0, 2, 1) for v in (x, sets["shuffled"]))
    for p, q in zip(a, b, strict=True):  # the same pixels, colours together
        assert sorted(map(tuple, p.tolist())) == sorted(map(tuple, q.tolist()))
    assert not torch.equal(a, b)
    # a pair's mean, up to the rounding to 256 values; never of a sample and itself
    means = (x[:, None] + x[None]).flatten(2) / 2
    off = (sets["pairs"].flatten(1)[:, None] - means).abs().amax(2)
    partner = off.argmin(1)
    assert off.amin(1).max() <= 0.51 / 256 and (partner != torch.arange(len(x))).all()


def test_both_sets_are_prepared_alike(tmp_path):
    data = uint8_pictures(tmp_path)
    cases = {
        "shape": (np.zeros((50, 3, 5, 5), np.uint8), "samples are"),
        "float": (np.random.rand(50, 3, 4, 4).astype(np.float32), "not uint8"),
    }
    for name, (x, wanted) in cases.items():
        np.savez(tmp_path / f"{name}.npz", x=x)
        with pytest.raises(DataError, match=wanted):
            ood.read_set(str(tmp_path / f"{name}.npz"), data)
    np.savez(tmp_path / "box.npz", x=2 * np.random.rand(50, 1, 8, 8))
    with pytest.raises(DataError, match="values from"):
        ood.read_set(str(tmp_path / "box.npz"), load("digits"))


def test_a_whole_set_is_scored(tmp_path):
    """Not one sample again and again, and not the training part."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.w * x.flatten(1).sum(1)

    data = uint8_pictures(tmp_path)
    config = TrainConfig(data=str(tmp_path / "in.npz"), loss="cd", batch_size=8, step_size=0.1)
    trainer = Trainer(config, model=Sum())
    other = np.random.default_rng(2).integers(0, 256, (70, 3, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", x_test=other)
    result = ood.run(trainer, None, [str(tmp_path / "other.npz"), "noise"], tmp_path / "o", 10)
    row = result["sets"][str(tmp_path / "other.npz")]
    e = (other.astype(float) + 0.5).reshape(70, -1).sum(1) / 256
    assert row["n"] == 70 and result["n_inside"] == len(data.test) == 50
    assert row["energy"] == pytest.approx([e.mean(), e.std()], rel=1e-5)
    assert json.loads((tmp_path / "o" / "ood.json").read_text()) == result
    assert (tmp_path / "o" / "ood.png").read_bytes()[1:4] == b"PNG"


def test_averaged_weights_are_scored():
    config = TrainConfig(data="digits", batch_size=8, k_steps=1, buffer_size=16, ema=0.9)
    trainer = Trainer(replace(config, steps=3))
    for _ in range(3):
        trainer.step()
    x = trainer.dataset.test
    wanted = trainer.ema.module(x).detach().double().numpy()
    assert np.array_equal(ood.energies(trainer, x), wanted)
    assert not np.allclose(trainer.model(x).detach().numpy(), wanted)
