"""Ctrl-C, SIGTERM and SIGHUP: what is saved, how commands end, and workers without a parent."""

import json
import signal
import threading

import numpy as np
import pytest
from test_cli import QUICK, call

from fastebm.app import cli_eval, demo, fit, report, signals
from fastebm.app.checkpoints import restore
from fastebm.app.training import Trainer

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handlers_come_back():
    before = [signal.getsignal(s) for s in ALL]
    yield
    assert [signal.getsignal(s) for s in ALL] == before


@pytest.fixture
def arriving(monkeypatch):
    """Makes signals arrive in the step of training after so many."""

    def arrange(iteration, *arrive):
        step = Trainer.step

        def interrupted(self):
            if self.iteration == iteration:
                for signum in arrive:
                    signal.raise_signal(signum)
            return step(self)

        monkeypatch.setattr(Trainer, "step", interrupted)

    return arrange


@pytest.mark.parametrize("arrive", [*([s] for s in ALL), [signal.SIGHUP, signal.SIGHUP]])
def test_training_saves_a_checkpoint_and_ends(tmp_path, arriving, arrive):
    arriving(4, *arrive)
    result = call("train", "ring", *QUICK, "--out", tmp_path)
    assert result.exit_code == 128 + arrive[0], result.output
    assert "stopped at step 5 of 12" in result.output and "--resume" in result.output
    assert restore(tmp_path / fit.CHECKPOINT).iteration == 5
    assert not (tmp_path / report.EVALUATION).exists()


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_training_at_once(tmp_path, arriving, second):
    arriving(4, signal.SIGTERM, second)
    result = call("train", "ring", *QUICK, "--checkpoint-every", 3, "--out", tmp_path)
    assert result.exit_code == 128 + second, result.output
    assert restore(tmp_path / fit.CHECKPOINT).iteration == 3


def test_a_run_that_ended_before_its_figures_makes_them(tmp_path, arriving, monkeypatch):
    arriving(11, signal.SIGTERM)  # in the last step
    assert call("train", "ring", *QUICK, "--out", tmp_path).exit_code == 143
    resume = ["train", "--no-tensorboard", "--resume", tmp_path / fit.CHECKPOINT]
    files = (tmp_path / fit.METRICS).read_bytes(), (tmp_path / fit.CHECKPOINT).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(report.quality, "evaluate", lambda *_: signal.raise_signal(signal.SIGINT))
        result = call(*resume)
        assert result.exit_code == 130 and "figures and evaluation are not made" in result.stderr
    result = call(*resume)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / report.EVALUATION).read_text())["step"] == 12
    names = {p.stem for p in tmp_path.glob("*.png")}
    assert names == {"training", "energies", "samples", "energy"}
    assert files == ((tmp_path / fit.METRICS).read_bytes(),
                     (tmp_path / fit.CHECKPOINT).read_bytes())  # fmt: skip
    assert "give more --steps" in call(*resume).stderr
    later = restore(tmp_path / fit.CHECKPOINT, steps=13)
    later.step()
    assert not report.is_written(later, tmp_path)  # what is there is of step 12


def test_a_terminal_that_is_gone_loses_no_step(tmp_path, monkeypatch):
    monkeypatch.setattr(fit.Monitor, "show", lambda *_: (_ for _ in ()).throw(OSError(5, "gone")))
    result = call("train", "ring", *QUICK, "--log-every", 7, "--out", tmp_path)
    assert result.exit_code == 2 and "gone" in result.stderr
    assert restore(tmp_path / fit.CHECKPOINT).iteration == 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("signals") / "run" / fit.CHECKPOINT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda *_: None)
        assert call("train", "ring", *QUICK, "--quiet", "--out", path.parent).exit_code == 0
    return path


@pytest.mark.parametrize("signum", ALL)
@pytest.mark.parametrize("command", ["sample", "ood", "evaluate", "likelihood", "demo"])
def test_other_commands_end_without_a_file(tmp_path, monkeypatch, checkpoint, command, signum):
    def arrive(*_, **__):
        signal.raise_signal(signum)

    inside = {"sample": (cli_eval, "generate"), "ood": (cli_eval.ood_detection, "detection"),
              "evaluate": (cli_eval.quality, "evaluate"), "demo": (demo, "_run_all"),
              "likelihood": (cli_eval.density, "measure")}  # fmt: skip
    monkeypatch.setattr(*inside[command], arrive)
    arguments = {
        "sample": [checkpoint, "--steps", 1, "--out", tmp_path / "x.npz"],
        "ood": ["--checkpoint", checkpoint, "--out", "noise", "--dir", tmp_path],
        "evaluate": [checkpoint, "--n", 10, "--long-steps", 1, "--out", tmp_path / "x.json"],
        "likelihood": ["--checkpoint", checkpoint, "--out", tmp_path / "x.json"],
        "demo": ["--quick", "--out", tmp_path],
    }
    result = call(command, *arguments[command])
    assert result.exit_code == 128 + signum and result.stderr == "interrupted\n"
    assert [p.name for p in tmp_path.iterdir()] == []


def test_a_signal_in_the_middle_of_a_file(tmp_path, monkeypatch, checkpoint):
    def half(file, **arrays):
        file.write(b"half")
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(np, "savez_compressed", half)
    result = call("sample", checkpoint, "--n", 2, "--steps", 1, "--out", tmp_path / "x.npz")
    assert result.exit_code == 143 and list(tmp_path.iterdir()) == []


def test_nohup_is_left_alone():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.raising(), signals.stopping() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.signum == 0
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_worker_ends_with_its_parent(monkeypatch):
    parent_ends, ended = threading.Event(), threading.Event()

    class Parent:
        join = staticmethod(parent_ends.wait)

    monkeypatch.setattr(signals.multiprocessing, "parent_process", Parent)
    monkeypatch.setattr(signals.os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(demo.torch, "set_num_threads", lambda n: None)
    with signals.raising():  # puts back the handler that the worker sets
        demo._start_worker(None)
    assert not ended.wait(0.05)
    parent_ends.set()
    assert ended.wait(10)
