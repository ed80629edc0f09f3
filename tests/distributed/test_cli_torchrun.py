"""The command line under torchrun: what it prints, how it ends, and faults."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastebm.app import fit
from fastebm.app.checkpoints import read_checkpoint, restore

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
QUICK = ["--samples", "400", "--batch-size", "32", "--buffer-size", "64", "--hidden", "16"]
QUICK += ["--no-tensorboard"]
LONG = [*QUICK, "--steps", "100000", "--checkpoint-every", "20"]
# A rank that fails in step 30, in a way that nobody has thought of.
BROKEN = """
import os
from fastebm.app import cli, training
step = training.Trainer.step
def broken(self):
    if self.iteration == 30 and os.environ["RANK"] == "1":
        raise IndexError("out of luck")
    return step(self)
training.Trainer.step = broken
cli.main()
"""


def start(n, *command):
    """fastebm in n processes of torchrun."""
    command = [*TORCHRUN, str(n), *map(str, command)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Not in the checkout, whose fastebm may not be built there.
    own = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "cwd": Path(__file__).parent}
    return subprocess.Popen(command, **pipes, **own)


def call(n, *command, seconds=120):
    """Exit code, and what was printed."""
    process = start(n, *command)
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def rows(out):
    return fit.read_metrics(out / fit.METRICS)


@pytest.fixture
def training(tmp_path):
    """Two processes in the middle of a run in tmp_path/run."""
    process, out = (
        start(2, "-m", "fastebm", "train", "ring", *LONG, "--out", tmp_path / "run"),
        tmp_path,
    )
    try:
        until = time.monotonic() + 60
        while not (out / "run" / fit.CHECKPOINT).exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate()


def workers(process):
    """Process ids by rank."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    found = {}
    for pid in map(int, listed.stdout.split()):
        with open(f"/proc/{pid}/environ") as file:
            variables = dict(v.split("=", 1) for v in file.read().split("\0") if "=" in v)
        if "RANK" in variables:
            found[int(variables["RANK"])] = pid
    return found


def goes_on(checkpoint):
    """Whether one process goes on from a checkpoint of two."""
    before = read_checkpoint(checkpoint)["iteration"]
    trainer = restore(checkpoint, before + 2)
    trainer.step()
    return before > 0 and trainer.iteration == before + 1 and len(trainer.buffer.data) == 64


def test_a_run_and_its_samples(tmp_path):
    out = tmp_path / "run"
    command = ["-m", "fastebm", "train", "ring", *QUICK, "--steps", "30", "--out", out]
    code, stdout, stderr = call(2, *command)
    assert code == 0, stderr
    assert stdout.count("2 processes") == stdout.count("30 steps; checkpoint:") == 1
    assert "measure" in stdout and stdout.count("MMD") == 1
    names = {p.name for p in out.iterdir()}
    assert names >= {"checkpoint.pt", "metrics.jsonl", "config.json", "evaluation.json"}
    assert names >= {"training.png", "energies.png", "samples.png"} and ".lock" not in names
    assert {"it_per_s_min", "it_per_s_max"} < rows(out)[-1].keys()
    code, stdout, stderr = call(
        2, "-m", "fastebm", "sample", out / fit.CHECKPOINT, "-n", 5, "--out", tmp_path / "x.npz"
    )
    assert code == 0 and stdout.count("5 samples") == 1, stderr
    expected = restore(out / fit.CHECKPOINT).sample(5, 200, 0)
    np.testing.assert_allclose(np.load(tmp_path / "x.npz")["x"], expected, atol=1e-3)


def test_an_error_of_all_is_said_once(tmp_path):
    code, _, stderr = call(
        2, "-m", "fastebm", "train", "ring", "--batch-size", 33, "--out", tmp_path / "run"
    )
    ours = [line for line in stderr.splitlines() if "error: " in line]
    assert ours == ["error: batch_size must be a multiple of the 2 processes, got 33"]
    # torchrun's and ours; it may end the other rank before that ends by itself
    assert code == 1 and "exitcode  : 2" in stderr


def test_ctrl_c(tmp_path, training):
    training.send_signal(signal.SIGINT)
    stdout, stderr = training.communicate(timeout=60)
    assert stdout.count("stopped at step") == 1 and stdout.count("--resume") == 1, stderr
    assert "fastebm/app" not in stderr  # no traceback of ours
    assert goes_on(tmp_path / "run" / fit.CHECKPOINT)


@pytest.mark.skipif(sys.platform != "linux", reason="processes by /proc")
def test_a_rank_that_is_killed(tmp_path, training):
    os.kill(workers(training)[1], signal.SIGKILL)
    _, stderr = training.communicate(timeout=60)
    assert training.returncode == 1
    ours = [line for line in stderr.splitlines() if "error: " in line and "rank 1 is gone" in line]
    assert len(ours) == 1, stderr
    assert "fastebm/app" not in stderr
    assert goes_on(tmp_path / "run" / fit.CHECKPOINT)


def test_a_rank_that_fails(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    command = [tmp_path / "broken.py", "train", "ring", *LONG, "--out", tmp_path / "run"]
    code, _, stderr = call(2, *command)
    assert code == 1
    lines = stderr.splitlines()
    assert "rank 1: IndexError: out of luck" in lines, stderr
    assert sum("rank 1 failed with IndexError: out of luck" in line for line in lines) == 1
    assert goes_on(tmp_path / "run" / fit.CHECKPOINT)
