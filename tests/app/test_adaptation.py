"""Runs that find step size, learning rate and batch by themselves."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_cli import call
from test_training import numbers

from fastebm import LangevinDynamics, Standardized
from fastebm.app import fit, report
from fastebm.app.checkpoints import restore
from fastebm.app.config import ConfigError, TrainConfig
from fastebm.app.data import Dataset
from fastebm.app.plotting import curves, planes
from fastebm.app.presets import PRESETS
from fastebm.app.training import Trainer

SMALL = TrainConfig(
    **PRESETS["auto"]
    | {"data": "ring", "samples": 400, "steps": 60, "batch_size": 32, "k_steps": 10, "seed": 5}
    | {"buffer_size": 64, "hidden": 16}
)


def test_the_preset_is_what_the_page_says():
    c = TrainConfig(**PRESETS["auto"]).resolve(Trainer(replace(SMALL, steps=1)).dataset)
    assert (c.adjusted, c.adaptive, c.standardized, c.auto_batch) == (True,) * 4
    assert (c.k_steps, c.jumps, c.step_size, c.noise_std) == (20, 4, 0.1, None)
    assert (c.trust_region, c.max_lr, c.adam_beta1, c.adam_beta2) == (0.2, 0.03, 0.9, 0.99)
    assert (c.energy_reg_weight, c.reinit_prob, c.ema, c.on_divergence) == (0.001, 0.01, 0.99, "lr")


def test_chains_that_are_not_adjusted_start_at_a_step_that_suits_the_data():
    trainer = Trainer(replace(SMALL, loss="icd", adjusted=False, standardized=False, jumps=0,
                              auto_batch=False, trust_region=0.0))  # fmt: skip
    fixed = TrainConfig(data="ring", samples=400, seed=5).resolve(trainer.dataset)
    assert float(trainer.sampler.step_size) == pytest.approx(fixed.step_size)
    numbers(trainer, 5)
    assert float(trainer.sampler.step_size) != pytest.approx(fixed.step_size)


def test_a_run_goes_on_exactly(tmp_path):
    whole = Trainer(SMALL)
    whole.adaptation.batch_rule.multiple = 2
    numbers(whole, 25)
    whole.save(tmp_path / "c.pt")
    after = numbers(whole, 25)
    again = restore(tmp_path / "c.pt")
    assert numbers(again, 25) == after
    assert float(again.sampler.step_size) == float(whole.sampler.step_size) != 0.1
    assert again.adaptation.state_dict() == whole.adaptation.state_dict()
    assert again.batches == whole.batches > 50
    assert torch.equal(again.sample(9, 20, 0), whole.sample(9, 20, 0))


def test_a_step_takes_as_many_batches_as_the_rule_says_each_once():
    trainer = Trainer(SMALL)
    trainer.adaptation.batch_rule.multiple = 4
    seen = torch.cat([trainer._batch() for _ in range(3)])
    assert len(seen) == 3 * 4 * 32
    assert len(seen.unique(dim=0)) == len(seen)  # of 400 samples in one epoch


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_data_of_any_scale_train_alike(scale):
    def run(factor):
        own = Trainer(SMALL).dataset
        box = tuple(factor * c for c in own.clamp)
        data = Dataset("ring", factor * own.train, factor * own.test, box)
        trainer = Trainer(SMALL, data)
        return [{k: float(v) for k, v in trainer.step().items()} for _ in range(3)]

    for ours, theirs in zip(run(scale), run(1.0), strict=True):
        for name in ("energy_pos", "energy_neg", "kl_step", "acceptance", "step_size"):
            assert ours[name] == pytest.approx(theirs[name], rel=0.05, abs=0.02), name


@pytest.mark.parametrize("step, lr", [(1e-6, 1e-4), (100.0, 1.0)])
def test_absurd_starts_come_back(step, lr):
    trainer = Trainer(replace(SMALL, step_size=step, lr=lr))
    for _ in range(60):
        values = trainer.step()
    found = {name: float(values[name]) for name in ("energy_gap", "kl_step", "acceptance")}
    assert all(map(math.isfinite, found.values())) and abs(found["energy_gap"]) < 20
    assert trainer.lr <= 0.03 and float(trainer.sampler.step_size) <= 0.5
    assert step < 1 or found["acceptance"] > 0.3


def test_updates_are_measured_without_a_trust_region_too():
    trainer = Trainer(
        TrainConfig(data="ring", samples=200, batch_size=16, k_steps=2, buffer_size=32)
    )
    assert "kl_step" not in numbers(trainer, 9)[-1]
    found = numbers(trainer, 2)
    assert found[0]["kl_step"] == found[1]["kl_step"] > 0


def test_samples_jump_as_in_training_and_start_near_the_data():
    trainer = Trainer(SMALL)
    numbers(trainer, 3)
    assert isinstance(trainer.model, Standardized) and trainer.eval_sampler.step_size.frozen
    before = float(trainer.sampler.step_size)
    x = trainer.noise(500, 1)
    low, high = trainer.dataset.train.amin(0), trainer.dataset.train.amax(0)
    reach = (x - (low + high) / 2).abs() / (high - low)
    assert reach.max() <= 0.6 and reach.max() > 0.55
    ours = trainer.sample(50, 20, 1)
    jumping = trainer.eval_sampler.sample(
        trainer.noise(50, 1), 20, seed=1, jumps=4, population=trainer.buffer.all()
    )
    assert torch.equal(ours, jumping) and float(trainer.sampler.step_size) == before


def test_vectors_take_the_preset_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write", lambda *_: None)  # figures, tested elsewhere
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", (rng.normal(size=(60, 3)) * [1, 30, 900]).astype("f"))
    options = ["--steps", 2, "--hidden", 8, "--no-tensorboard"]
    result = call("train", tmp_path / "x.npy", *options, "--out", tmp_path / "a", "--quiet")
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "a" / "config.json").read_text())
    assert settings["adjusted"] and settings["batch_size"] == 48  # all that there is
    assert {"kl_step", "jump_acceptance"} <= fit.read_metrics(tmp_path / "a" / fit.METRICS)[
        -1
    ].keys()
    few = ["--batch-size", 16, "--k-steps", 2]
    for extra in (["--loss", "icd"], ["--preset", "2d"], ["--energy", "mlp"]):
        out = tmp_path / extra[1]
        result = call("train", "ring", *options, *few, *extra, "--out", out, "--quiet")
        assert result.exit_code == 0, result.output
        assert not json.loads((out / "config.json").read_text())["adjusted"]


@pytest.mark.parametrize(
    "options, said",
    [
        (["--step-size", "fast"], "step_size must be a number or auto, got 'fast'"),
        (["--batch-size", "many"], "batch_size must be a whole number or auto, got 'many'"),
        (
            ["--loss", "icd", "--batch-size", "auto"],
            "auto_batch must be False with any loss but pcd",
        ),
        (["--jumps", "21"], "of the k_steps, got 21"),
        (["--noise-std", "0.1"], "noise_std must be left alone with adjusted chains, got 0.1"),
        (["--max-lr", "0"], "max_lr must be a positive number, got 0.0"),
        (["--trust-region", "-1"], "trust_region must be at least 0"),
    ],
)
def test_wrong_options(options, said):
    result = call("train", "ring", *options)
    assert result.exit_code == 2 and said in result.stderr.replace("\n", " ")


def test_figures_show_what_adjusted_chains_have():
    names = ["energy_pos", "energy_pos_std", "energy_neg", "energy_neg_std", "energy_gap"]
    log = {name: [0.5, 0.6] for name in (*names, "param_grad_norm", "grad_norm")}
    adjusted = {name: [0.1, 0.2] for name in ("acceptance", "jump_acceptance", "kl_step")}
    titles = [axis.get_title() for axis in curves.training_curves([1, 2], log | adjusted).axes]
    assert "share of the chains' proposals accepted" in titles
    assert "divergence of an update, nats" in titles and "share at the clamp" not in titles
    titles = [axis.get_title() for axis in curves.training_curves([1, 2], log).axes]
    assert "terms of ICD, without weights" in titles and "share at the clamp" in titles


def test_samples_of_uneven_scales_are_seen():
    x = np.random.default_rng(0).uniform(-1, 1, (200, 2)) * [1, 100]
    wide = planes.scatter_panels({"data": x, "ours": x}, (-300.0, 300.0)).axes
    assert all(axis.get_xlim()[1] < 1.3 and axis.get_ylim()[1] < 130 for axis in wide)
    even = planes.scatter_panels({"data": x[:, [1, 1]], "ours": x}, (-120.0, 120.0)).axes
    assert all(axis.get_xlim() == axis.get_ylim() == (-120, 120) for axis in even)


def test_what_is_not_for_pictures():
    for settings, said in (
        ({"standardized": True, "adjusted": True}, "standardized is for vectors"),
        ({"jumps": 1, "adjusted": True, "loss": "pcd"}, "jumps is for vectors"),
    ):
        with pytest.raises(ConfigError, match=said):
            Trainer(TrainConfig(data="digits", **settings))


def test_the_guard_lowers_the_rate_that_the_trust_region_owns():
    trainer = Trainer(SMALL)
    numbers(trainer, 2)
    before, step = trainer.lr, float(trainer.sampler.step_size)
    trainer.set_factors(0.5, 0.5)
    assert trainer.lr == pytest.approx(before / 2)
    assert float(trainer.sampler.step_size) == step
    assert isinstance(trainer.sampler, LangevinDynamics) and trainer.sampler.noise_std is None


def test_columns_of_other_scales_need_nothing_to_tune(tmp_path):
    g = np.random.default_rng(0)
    x = g.normal(0, 1, (600, 3)) * [1, 100, 0.01]
    np.savez(tmp_path / "v.npz", x=x.astype("float32"))
    c = replace(SMALL, data=str(tmp_path / "v.npz"), samples=None, batch_size=64)
    trainer = Trainer(c)
    gaps = [abs(n["energy_gap"]) for n in numbers(trainer, 30)]
    assert trainer.config.standardized and max(gaps) < 10
