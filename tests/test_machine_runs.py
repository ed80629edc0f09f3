"""Boltzmann and Helmholtz machines as runs of the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastebm.cli import app
from fastebm.config import ConfigError, TrainConfig
from fastebm.data import load
from fastebm.gibbs import GibbsSampler
from fastebm.guard import DivergenceGuard, Limits
from fastebm.losses import PersistentContrastiveDivergence
from fastebm.maximum_likelihood import MaximumLikelihood
from fastebm.training import Trainer, restore
from fastebm.wake_sleep import WakeSleep

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
def test_resume_is_bitwise(tmp_path, run):
    whole = Trainer(replace(SMALL, **RUNS[run]))
    numbers(whole, 4)  # 6 batches an epoch
    whole.save(tmp_path / "c.pt")
    after = numbers(whole, 5)
    torch.manual_seed(999)
    assert numbers(restore(tmp_path / "c.pt"), 5) == after


@pytest.mark.parametrize("run", RUNS)
def test_samples_have_the_shape_and_the_values_of_the_data(run):
    trainer = Trainer(replace(SMALL, **RUNS[run]))
    x = trainer.sample(7, 3, 1)
    assert x.shape == (7, 1, 8, 8) and torch.equal(x, trainer.sample(7, 3, 1))
    assert (set(x.unique().tolist()) == {0.0, 1.0}) == trainer.takes_bits
    seen = trainer.as_seen(trainer.dataset.test)
    assert (set(seen.unique().tolist()) == {0.0, 1.0}) == trainer.takes_bits
    assert np.isfinite(list(trainer.probe().values())).all()


def test_parts_of_a_run():
    trainer = Trainer(replace(SMALL, **RUNS["rbm"]))
    assert isinstance(trainer.sampler, GibbsSampler)
    assert isinstance(trainer.loss, PersistentContrastiveDivergence)
    assert trainer.buffer.data.dtype == torch.float32  # uint8 would be dithered
    assert isinstance(Trainer(replace(SMALL, **RUNS["rbm from noise"])).loss, MaximumLikelihood)
    assert isinstance(Trainer(replace(SMALL, **RUNS["helmholtz"])).loss, WakeSleep)
    energy = Trainer(TrainConfig(data="ring", samples=100, loss="mle", batch_size=16, k_steps=3))
    assert isinstance(energy.loss, MaximumLikelihood) and energy.loss.value_range == (-4.0, 4.0)
    energy.step()


def test_bits_are_drawn_anew_at_each_visit():
    trainer = Trainer(replace(SMALL, **RUNS["rbm"]))
    first = trainer._batch()
    trainer.iteration += trainer.batches_per_epoch
    trainer._order = (1, trainer._order[1])  # the same rows again
    second = trainer._batch()
    assert set(first.unique().tolist()) == {0.0, 1.0}
    grey = (first != second).flatten(1).any(1).float().mean()
    assert grey > 0.9  # nearly every digit has grey pixels


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


def test_without_weights_a_machine_has_the_means_of_the_data():
    mean = load("digits", 200).train.flatten(1).mean(0)
    for energy, loss in (("rbm", "cd"), ("helmholtz", "wake-sleep"), ("gaussian-rbm", "cd")):
        config = TrainConfig(energy=energy, loss=loss, samples=200, hidden=3)
        machine = Trainer(config).model
        if energy == "gaussian-rbm":
            torch.testing.assert_close(machine.b.detach(), mean)
            continue
        b = machine.b if energy == "rbm" else machine.generative[0].bias
        assert (b.detach().sigmoid() - mean).abs().max() < 4.5 * 0.5 / 200**0.5 + 1 / 200


def test_configurations_that_make_no_sense():
    for settings, message in (
        ({"energy": "rbm", "loss": "icd"}, "loss must be cd or pcd or mle with energy"),
        ({"energy": "helmholtz", "loss": "pcd"}, "loss must be wake-sleep with energy"),
        ({"energy": "mlp", "loss": "wake-sleep"}, "loss must be cd or pcd or icd or mle with"),
        ({"energy": "rbm", "loss": "cd", "step_size": 0.1}, "step_size must be left alone"),
        (
            {"energy": "rbm", "loss": "cd", "augmentation": "mnist"},
            "augmentation must be left alone",
        ),
        ({"energy": "rbm", "loss": "cd", "scales": 2}, "scales must be left alone"),
    ):
        with pytest.raises(ConfigError, match=message):
            TrainConfig(**settings)
    assert Trainer(replace(SMALL, **RUNS["rbm"])).config.on_divergence == "lr"


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
