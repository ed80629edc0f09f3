"""Runs of RBMs and Helmholtz machines by the command line: what is trained, written and refused."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastebm import RBM, GaussianRBM
from fastebm.app import fit, report
from fastebm.app.checkpoints import restore
from fastebm.app.cli import app
from fastebm.app.config import ConfigError, TrainConfig
from fastebm.app.data import DataError
from fastebm.app.generation import generate
from fastebm.app.training import Trainer

QUICK = {"samples": 200, "batch_size": 20, "steps": 20, "hidden": 8, "k_steps": 2}
QUICK |= {"buffer_size": 40}
KINDS = [("rbm", "cd"), ("rbm", "pcd"), ("rbm", "mle"), ("gaussian-rbm", "pcd")]
KINDS += [("helmholtz", "wake-sleep")]


def config(energy, loss, **changes):
    return TrainConfig(**{**QUICK, "energy": energy, "loss": loss, **changes})


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize("energy, loss", KINDS)
def test_a_run_writes_its_files(tmp_path, monkeypatch, energy, loss):
    monkeypatch.setattr(report, "CHAIN_TIMES", (1, 3))
    monkeypatch.setattr(report, "MAX_PICTURES", 40)
    monkeypatch.setattr(report, "PICTURE_STEPS", 3)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    out = tmp_path / "run"
    result = call(
        *("train", "digits", "--model", energy, "--loss", loss, *options, "--no-tensorboard"),
        *("--out", out),
    )
    assert result.exit_code == 0, result.output
    assert f"{energy}, {loss}, 20 steps of 20" in result.output
    names = {p.name for p in out.iterdir()}
    assert names >= {"checkpoint.pt", "training.png", "samples.png", "energies.png", "nearest.png"}
    assert names >= {"filters.png"} and ("chains.png" in names) == (energy != "helmholtz")
    last = fit.read_metrics(out / fit.METRICS)[-1]
    assert last["step"] == 20 and ("bound" in last) == (energy == "helmholtz")
    saved = json.loads((out / "config.json").read_text())
    assert saved["energy"] == energy and saved["on_divergence"] == "lr"
    x = tmp_path / "x.npz"
    result = call("sample", out / "checkpoint.pt", "--n", 9, "--steps", 3, "--out", x)
    assert result.exit_code == 0, result.output
    drawn = np.load(x)["x"]
    assert drawn.shape == (9, 1, 8, 8)
    assert set(np.unique(drawn)) == {0.0, 1.0} or energy == "gaussian-rbm"
    result = call("likelihood", "--checkpoint", out / "checkpoint.pt", "--samples", 50)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("energy, loss", KINDS)
def test_resume_is_bitwise(tmp_path, energy, loss):
    def losses(trainer, n):
        return [
            {k: float(v) for k, v in trainer.step().items()} for _ in range(n)
        ], trainer.state_dict()["model"]

    whole = Trainer(config(energy, loss))
    expected, weights = losses(whole, 8)
    part = Trainer(config(energy, loss))
    assert losses(part, 3)[0] == expected[:3]
    part.save(tmp_path / "c.pt")
    rest, again = losses(restore(tmp_path / "c.pt"), 5)
    assert rest == expected[3:]
    assert all(torch.equal(again[name], w) for name, w in weights.items())


def test_bits_are_drawn_anew_at_each_visit():
    trainer = Trainer(config("rbm", "cd", samples=40))
    trainer.x = trainer.x[:20]
    first, seen = trainer._batch(), []
    for _ in range(400):
        trainer.iteration += 1
        trainer._order = (trainer.iteration, torch.arange(20))  # the same batch at each visit
        seen.append(trainer._batch())
    assert torch.equal(first.unique(), torch.tensor([0.0, 1.0]))
    p = trainer.x
    z = (torch.stack(seen).mean(0) - p).abs()
    assert (z <= 5 * (p * (1 - p) / 400).sqrt() + 1e-6).all()


def test_a_machine_starts_where_it_fits_the_pixels_best():
    trainer = Trainer(config("rbm", "cd", samples=None))
    bits = trainer.as_seen(trainer.dataset.train, 0).flatten(1)
    model = trainer.model
    assert isinstance(model, RBM)
    expected = (bits.sum(0) + 1) / (len(bits) + 2)
    torch.testing.assert_close(model.b.sigmoid(), expected)
    model = Trainer(config("gaussian-rbm", "cd", samples=None)).model
    x = trainer.dataset.train.flatten(1)
    assert isinstance(model, GaussianRBM)
    torch.testing.assert_close(model.b, x.mean(0))
    var = x.var(0, correction=0)
    torch.testing.assert_close(model.log_var.exp(), var.clamp(min=0.01 * var.mean().item()))


@pytest.mark.parametrize(
    "energy, loss, changes, message",
    [
        ("rbm", "icd", {}, "loss must be cd or pcd or mle with energy='rbm', got 'icd'"),
        ("mlp", "wake-sleep", {}, "loss must be cd or pcd or icd or mle with energy='mlp'"),
        ("helmholtz", "pcd", {}, "loss must be wake-sleep with energy='helmholtz'"),
        ("rbm", "cd", {"step_size": 0.1}, "step_size must be left alone with energy='rbm'"),
        ("rbm", "cd", {"precision": "bfloat16"}, "precision must be left alone"),
        ("rbm", "pcd", {"augmentation": "mnist"}, "augmentation must be left alone"),
        ("gaussian-rbm", "pcd", {"buffer_size": 5}, "buffer_size must be >= batch_size"),
    ],
)
def test_settings_that_make_no_sense(energy, loss, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(energy, loss, **changes)


def test_data_that_are_no_probabilities():
    with pytest.raises(DataError, match=r"ring: bits need values in \[0, 1\], got -"):
        Trainer(config("rbm", "cd", data="ring"))
    result = call("train", "ring", "--model", "rbm", "--loss", "cd")
    assert result.exit_code == 2 and "bits need values in [0, 1]" in result.stderr


def test_a_gaussian_rbm_takes_vectors():
    trainer = Trainer(config("gaussian-rbm", "cd", data="ring", samples=500))
    for _ in range(5):
        assert trainer.step()["n_nonfinite"] == 0
    assert trainer.sample(7, 3, 0).shape == (7, 2)
    assert trainer.sampler.seconds > 0 and "step_size" not in trainer.probe()


def test_rounds_are_of_langevin_chains():
    trainer = Trainer(config("rbm", "cd"))
    with pytest.raises(ConfigError, match="rounds are of Langevin chains; rbm has none"):
        generate(trainer, 3, 2, rounds=2)


def test_mle_by_langevin_chains_from_noise():
    trainer = Trainer(TrainConfig(**QUICK, data="ring", loss="mle"))
    assert trainer.buffer is None and trainer.step()["n_nonfinite"] == 0
