"""Samples of machines, bits that are vectors, and from training to the likelihood."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastebm.app.cli import app
from fastebm.app.config import TrainConfig
from fastebm.app.guard import DivergenceGuard, Limits
from fastebm.app.training import Trainer

SMALL = TrainConfig(
    data="digits", samples=100, steps=12, batch_size=16, k_steps=2, buffer_size=32, hidden=9, seed=5
)
RUNS = {
    "rbm": {"energy": "rbm", "loss": "pcd"},
    "rbm from data": {"energy": "rbm", "loss": "cd"},
    "rbm from noise": {"energy": "rbm", "loss": "mle"},
    "average": {"energy": "rbm", "loss": "pcd", "ema": 0.9},
    "gaussian-rbm": {"energy": "gaussian-rbm", "loss": "pcd"},
    "helmholtz": {"energy": "helmholtz", "loss": "wake-sleep"},
}


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def numbers(trainer, n):
    return [{k: float(v) for k, v in trainer.step().items()} for _ in range(n)]


@pytest.mark.parametrize("run", RUNS)
def test_samples_have_the_shape_and_the_values_of_the_data(run):
    trainer = Trainer(replace(SMALL, **RUNS[run]))
    x = trainer.sample(7, 3, 1)
    assert x.shape == (7, 1, 8, 8) and torch.equal(x, trainer.sample(7, 3, 1))
    assert (set(x.unique().tolist()) == {0.0, 1.0}) == trainer.takes_bits
    seen = trainer.as_seen(trainer.dataset.test)
    assert (set(seen.unique().tolist()) == {0.0, 1.0}) == trainer.takes_bits
    assert np.isfinite(list(trainer.probe().values())).all()


def test_a_machine_of_vectors_of_bits(tmp_path):
    # The box of vectors has a margin, and neither noise nor stored chains may come from it.
    x = np.random.default_rng(0).integers(0, 2, (100, 6)).astype(np.float32)
    np.save(tmp_path / "bits.npy", x)
    for run in ("rbm", "rbm from noise", "helmholtz"):
        config = replace(SMALL, data=str(tmp_path / "bits.npy"), samples=None, **RUNS[run])
        trainer = Trainer(config)
        numbers(trainer, 8)
        assert set(trainer.sample(20, 3, 1).unique().tolist()) == {0.0, 1.0}
        assert trainer.noise(50, 1).min() >= 0


def test_a_helmholtz_machine_starts_at_the_means_of_the_data():
    trainer = Trainer(replace(SMALL, samples=200, **RUNS["helmholtz"]))
    mean = trainer.as_seen(trainer.x, 5).flatten(1).mean(0)
    bias = trainer.model.generative[0].bias.detach()
    assert (bias.sigmoid() - mean).abs().max() < 0.01


def test_the_guard_lowers_the_learning_rate():
    trainer = Trainer(replace(SMALL, **RUNS["rbm"]))
    guard = DivergenceGuard(trainer, trainer.config.on_divergence, limits=Limits(energy=1e-3))
    trainer.step()
    values = trainer.probe()
    assert "mean |E| on data" in guard.check(values)
    assert "learning rate 0.0005" in guard.roll_back("test")
    assert trainer.lr < 0.0006


def test_a_machine_from_training_to_likelihood(tmp_path):
    out = tmp_path / "run"
    options = ["--samples", 200, "--batch-size", 20, "--steps", 40, "--hidden", 8]
    result = call("train", "digits", "--preset", "rbm", *options, "--no-tensorboard", "--out", out)
    assert result.exit_code == 0, result.output
    assert "rbm, pcd, 40 steps" in result.output and "gap" in result.output
    assert {"filters.png", "samples.png", "training.png", "evaluation.json"} <= {
        p.name for p in out.iterdir()
    }
    checkpoint = out / "checkpoint.pt"
    result = call("likelihood", "--checkpoint", checkpoint)
    assert result.exit_code == 0, result.output
    exact = json.loads((out / "likelihood.json").read_text())
    assert exact["method"] == "enumeration" and -40 < exact["log_likelihood"]["test"] < -20
    result = call("likelihood", "--checkpoint", checkpoint, "--no-exact", "--betas", 200,
                  "--reverse", 20, "--confidence", 0.9999)  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((out / "likelihood.json").read_text())
    low, high = found["interval"]["test"]
    assert low < exact["log_likelihood"]["test"] < high
    result = call("sample", checkpoint, "--n", 9, "--steps", 5, "--out", tmp_path / "x.npz")
    assert result.exit_code == 0, result.output
    assert set(np.unique(np.load(tmp_path / "x.npz")["x"])) == {0.0, 1.0}
    result = call("sample", checkpoint, "--rounds", 2, "--out", tmp_path / "x.npz")
    assert result.exit_code == 2 and "rounds are of Langevin chains" in result.output


def test_wake_sleep_and_bad_data_on_the_command_line(tmp_path):
    out = tmp_path / "run"
    options = ["--samples", 100, "--batch-size", 20, "--steps", 12, "--hidden", 8]
    options += ["--model", "helmholtz", "--loss", "wake-sleep", "--no-tensorboard"]
    result = call("train", "digits", *options, "--out", out)
    assert result.exit_code == 0, result.output
    assert "bound" in result.output and (out / "filters.png").exists()
    result = call("likelihood", "--checkpoint", out / "checkpoint.pt", "--n-importance", 5)
    assert result.exit_code == 0, result.output
    assert "bound" in json.loads((out / "likelihood.json").read_text())
    result = call("train", "ring", *options, "--out", tmp_path / "ring")
    assert result.exit_code == 2 and "bits need values in [0, 1]" in result.output
