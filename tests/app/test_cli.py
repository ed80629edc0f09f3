"""The command line: what it writes, its one-line errors and exit codes, Ctrl-C and resume."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastebm.app import fit
from fastebm.app.cli import app

QUICK = ["--samples", "100", "--batch-size", "10", "--steps", "12", "--k-steps", "2"]
QUICK += ["--buffer-size", "50", "--hidden", "8", "--no-tensorboard"]


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on the ring."""
    out = tmp_path_factory.mktemp("cli") / "run"
    result = call("train", "ring", *QUICK, "--out", out)
    assert result.exit_code == 0, result.output
    return out


def test_train_writes_all_its_files(run):
    names = {p.name for p in run.iterdir()}
    assert names >= {"checkpoint.pt", "metrics.jsonl", "config.json", "evaluation.json"}
    assert names >= {"training.png", "energies.png", "samples.png", "energy.png"}
    measures = json.loads((run / "evaluation.json").read_text())
    assert {"mmd2", "frechet", "recall", "modes", "on_mode"} <= set(measures["samples"]["real"])
    assert set(measures["density"]) == {"kl", "tv"}


@pytest.mark.parametrize("loss", ["cd", "icd"])
def test_the_seed_experiment_of_the_gaussian(tmp_path, loss):
    out = tmp_path / loss
    options = ["--dim", 10, "--samples", 1000, "--batch-size", 10, "--epochs", 1, "--lr", 0.01]
    result = call("train", "gaussian", *options, "--k-steps", 2, "--loss", loss, "--out", out)
    assert result.exit_code == 0, result.output
    records = fit.read_metrics(out / fit.METRICS)
    assert records[-1]["step"] == 100 and ("kl_energy" in records[-1]) == (loss == "icd")


def test_digits_and_a_picture_grid(tmp_path):
    options = [*QUICK[:2], "--batch-size", "10", "--steps", "2", "--k-steps", "1", "--hidden", "8"]
    assert call("train", "digits", *options, "--out", tmp_path / "d").exit_code == 0
    checkpoint = tmp_path / "d" / "checkpoint.pt"
    result = call("sample", checkpoint, "--n", 20, "--steps", 3, "--png", tmp_path / "g.png",
                  "--out", tmp_path / "x.npz")  # fmt: skip
    assert result.exit_code == 0, result.output
    x = np.load(tmp_path / "x.npz")["x"]
    assert x.shape == (20, 1, 8, 8) and x.min() >= 0 and x.max() <= 1
    assert (tmp_path / "g.png").read_bytes()[1:4] == b"PNG"


def test_sample_is_seeded(run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ("--n", 5, "--steps", 4, "--seed", seed, "--out", tmp_path / f"{name}.npz")
        assert call("sample", run / "checkpoint.pt", *options).exit_code == 0
    a, b, c = (np.load(tmp_path / f"{name}.npz")["x"] for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_sample_in_rounds(run, tmp_path):
    for name, options in (("plain", ["--steps", 12]), ("rounds", ["--rounds", 2, "--steps", 2])):
        result = call("sample", run / "checkpoint.pt", "--n", 5, *options, "--steps-per-round", 5,
                      "--out", tmp_path / f"{name}.npz")  # fmt: skip
        assert result.exit_code == 0, result.output
    # without an augmentation, rounds are one chain of 2 x 5 + 2 steps
    a, b = (np.load(tmp_path / f"{name}.npz")["x"] for name in ("plain", "rounds"))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)  # units there and back are rounded


def test_preset_and_options_over_it(tmp_path):
    options = ["--hidden", 8, "--steps", 2, "--k-steps", 2, "--no-tensorboard"]
    out = tmp_path / "run"
    result = call("train", "--data", "digits", "--preset", "digits", *options, "--out", out)
    assert result.exit_code == 0, result.output
    config = json.loads((out / "config.json").read_text())
    assert (config["hidden"], config["k_steps"]) == (8, 2)  # given
    assert (config["ema"], config["energy_reg_weight"]) == (0.99, 0.1)  # of the preset
    assert config["n_entropy_refs"] is None  # neither


def test_the_cifar10_recipe_and_its_rounds(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x_train=x)
    options = ["--hidden", 8, "--batch-size", 4, "--k-steps", 2, "--steps", 2, "--buffer-size", 16]
    options += ["--scales", 1, "--no-tensorboard", "--out", tmp_path / "run"]
    result = call("train", "--data", tmp_path / "x.npz", "--preset", "cifar10", *options)
    assert result.exit_code == 0, result.output
    checkpoint, found = tmp_path / "run" / "checkpoint.pt", {}
    for name in ("", "none", "nothing"):
        rounds = ["--rounds", 2, "--steps-per-round", 2, "--steps", 1, "--n", 3]
        augment = ["--augment", name] if name else []
        result = call("sample", checkpoint, *rounds, *augment, "--out", tmp_path / "s.npz")
        if name == "nothing":
            assert result.exit_code == 2 and "augmentation='nothing'" in result.stderr
        else:
            assert result.exit_code == 0, result.output
            found[name] = np.load(tmp_path / "s.npz")["x"]
    assert found[""].shape == (3, 3, 8, 8) and not np.allclose(found[""], found["none"])


def test_ood_and_evaluate(run, tmp_path):
    checkpoint = run / "checkpoint.pt"
    options = ["--out", "noise", "--out", "moons", "--bootstrap", 10, "--dir", tmp_path]
    result = call("ood", "--checkpoint", checkpoint, "--in", "ring", *options)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "ood.json").read_text())
    assert found["n_inside"] == 2000 and set(found["sets"]) == {"noise", "moons"}
    result = call(
        "evaluate", checkpoint, "--n", 50, "--long-steps", 3, "--out", tmp_path / "q.json"
    )
    assert result.exit_code == 0, result.output
    assert "precision" in result.output
    assert json.loads((tmp_path / "q.json").read_text())["n"] == 50


def test_resume_goes_on_to_more_steps(run, tmp_path):
    out = tmp_path / "more"
    result = call("train", "--resume", run / "checkpoint.pt", "--steps", 20, "--out", out)
    assert result.exit_code == 0, result.output
    assert [r["step"] for r in fit.read_metrics(out / fit.METRICS)] == [20]


def test_a_finished_run_has_nothing_to_resume(run):
    result = call("train", "--resume", run / "checkpoint.pt")
    assert result.exit_code == 2 and "give more --steps" in result.stderr


def test_info():
    result = call("info")
    assert result.exit_code == 0 and torch.__version__ in result.output


def bad_calls(tmp):
    np.save(tmp / "shape.npy", np.zeros((4, 4, 4, 4, 4)))
    np.save(tmp / "nan.npy", np.full((50, 2), np.nan))
    (tmp / "text.npz").write_text("not an archive")
    (tmp / "file").write_text("")
    return {
        "unknown data": ["train", "nope"],
        "no data": ["train"],
        "absent file": ["train", tmp / "absent.npz"],
        "unreadable": ["train", tmp / "text.npz"],
        "wrong shape": ["train", tmp / "shape.npy"],
        "not finite": ["train", tmp / "nan.npy"],
        "unknown loss": ["train", "ring", "--loss", "nll"],
        "bad number": ["train", "ring", "--lr", "-1"],
        "not a number": ["train", "ring", "--lr", "fast"],
        "bad step": ["train", "ring", "--step-size", "nan"],
        "two lengths": ["train", "ring", "--steps", "5", "--epochs", "5"],
        "large batch": ["train", "ring", "--samples", "50", "--batch-size", "128"],
        "bad device": ["train", "ring", "--device", "abacus"],
        "log_every": ["train", "ring", "--log-every", "0"],
        "out is a file": ["train", "ring", "--out", tmp / "file"],
        "no checkpoint": ["train", "--resume", tmp / "absent.pt"],
        "bad checkpoint": ["sample", tmp / "text.npz", "--png", "x.png"],
        "nothing to write": ["sample", tmp / "absent.pt"],
        "unknown preset": ["train", "ring", "--preset", "imagenet"],
        "data twice": ["train", "ring", "--data", "moons"],
        "energy of vectors": ["train", "ring", "--energy", "conv"],
        "ood without a file": ["ood", "--checkpoint", tmp / "absent.pt", "--out", "noise"],
        "evaluate few": ["evaluate", tmp / "absent.pt", "--n", "3"],
        "negative rounds": ["sample", tmp / "absent.pt", "--rounds", "-1", "--png", "x.png"],
        "demo out": ["demo", "--out", tmp / "file" / "deeper"],
    }


CASES = ["unknown data", "no data", "absent file", "unreadable", "wrong shape", "not finite"]
CASES += ["unknown loss", "bad number", "not a number", "bad step", "two lengths", "large batch"]
CASES += ["bad device", "log_every", "out is a file", "no checkpoint", "bad checkpoint"]
CASES += ["nothing to write", "unknown preset", "data twice", "energy of vectors"]
CASES += ["ood without a file", "evaluate few", "negative rounds", "demo out"]


@pytest.mark.parametrize("case", CASES)
def test_user_errors_exit_with_2(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    result = call(*bad_calls(tmp_path)[case])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.output
    if case != "not a number":  # typer's own box
        assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_out_not_writable(tmp_path):
    tmp_path.chmod(0o500)
    result = call("train", "ring", *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 2 and "cannot write" in result.stderr


def test_a_run_is_not_overwritten(run):
    result = call("train", "ring", *QUICK, "--out", run)
    assert result.exit_code == 2 and "already holds a run" in result.stderr


def test_resume_does_not_ignore_options(run):
    result = call("train", "--resume", run / "checkpoint.pt", "--lr", "0.1")
    assert result.exit_code == 2 and "lr comes from the checkpoint" in result.stderr


def test_sample_where_it_cannot_write(run, tmp_path):
    for option in (["--out", tmp_path / "no" / "x.npz"], ["--png", tmp_path / "no" / "x.png"],
                   ["--out", tmp_path / "x.csv"], ["--png", tmp_path / "x.nope"]):  # fmt: skip
        result = call("sample", run / "checkpoint.pt", "--n", 4, "--steps", 1, *option)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output


def test_a_lost_run_exits_with_1(tmp_path):
    options = ["--samples", 100, "--batch-size", 10, "--steps", 1500, "--lr", 0.05, "--k-steps", 10]
    options += ["--step-size", 0.05, "--loss", "pcd", "--lr-schedule", "constant"]
    options += [
        "--buffer-size",
        50,
        "--max-grad-norm",
        0,
        "--no-tensorboard",
        "--on-divergence",
        "stop",
    ]
    result = call("train", "ring", *options, "--out", tmp_path / "lost")
    assert result.exit_code == 1, result.output
    assert "diverged at step" in result.stderr and "warning" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_of_a_process(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fastebm", "train", "ring", "--steps", "1000000"]
    command += ["--samples", "200", "--no-tensorboard", "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, cwd=tmp_path)  # not where the sources are
    try:
        deadline = time.monotonic() + 60
        while not ((out / fit.METRICS).exists() and fit.read_metrics(out / fit.METRICS)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert "fastebm train --resume" in stdout and "Traceback" not in stderr
    assert (out / fit.CHECKPOINT).exists()
