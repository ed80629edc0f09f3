"""Training runs of several ranks: the run of one, its log, its checkpoint, its end."""

import json
import signal
from dataclasses import replace

import numpy as np
import process_group
import pytest
import torch
from typer.testing import CliRunner

from fastebm.app import batch_rule, fit
from fastebm.app.checkpoints import read_checkpoint, restore
from fastebm.app.cli import app
from fastebm.app.config import ConfigError, TrainConfig
from fastebm.app.presets import PRESETS
from fastebm.app.training import Trainer
from fastebm.distributed import world

COMMON = {"samples": 400, "steps": 30, "batch_size": 32, "buffer_size": 64, "hidden": 16, "seed": 5}
AUTO = TrainConfig(**PRESETS["auto"] | COMMON | {"data": "ring"})
RUNS = {
    "auto": AUTO,
    "rounds": replace(AUTO, k_steps=40, steps=12),  # whose step is adapted twice in each
    "icd": TrainConfig(**PRESETS["2d"] | COMMON | {"data": "ring", "n_entropy_refs": 10}),
    "cd": TrainConfig(**COMMON, data="moons", loss="cd", trust_region=0.1),
    "mle": TrainConfig(**COMMON, data="moons", loss="mle", ema=0.9),
    "bytes": TrainConfig(
        **PRESETS["digits"]
        | COMMON
        | {"data": "digits", "augmentation": "mnist", "k_steps": 5, "steps": 20}
    ),
    "conv": TrainConfig(**PRESETS["mnist"] | COMMON | {"data": "digits", "steps": 4, "k_steps": 3}),
    "rbm": TrainConfig(**PRESETS["rbm"] | COMMON | {"data": "digits"}),
    "helmholtz": TrainConfig(**PRESETS["helmholtz"] | COMMON | {"data": "digits"}),
}
CUT = 13  # step of a checkpoint in the middle


def several(folder):
    """Each of RUNS, and one checkpoint of the middle of "auto"."""
    torch.set_num_threads(1)
    batch_rule.EVERY = 1  # so that it has something to say in 30 steps
    for name, config in RUNS.items():
        if world().size == 4 and name != "auto":
            continue
        (folder / name).mkdir(exist_ok=True)
        fit.fit(Trainer(config), folder / name, log_every=5, tensorboard=False, monitor="quiet")
    trainer = Trainer(AUTO)
    while trainer.iteration < CUT:
        trainer.step()
    trainer.save(folder / "cut.pt")


def go_on(checkpoint):
    """To the end from the middle; the state at the end, and the samples of the model."""
    torch.set_num_threads(1)
    batch_rule.EVERY = 1
    trainer = restore(checkpoint)
    while trainer.iteration < trainer.config.steps:
        trainer.step()
    trainer.save(checkpoint.with_name(f"end-{world().size}.pt"))
    return trainer.sample(7, 20, 1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the runs by how many ranks made them."""

    def make(folder):
        for n in (1, 2, 4):
            (folder / str(n)).mkdir()
            process_group.results(n, several, folder / str(n))
        return {n: folder / str(n) for n in (1, 2, 4)}

    return process_group.once(tmp_path_factory, "cli-runs", make)


def weights(state):
    return torch.cat([v.double().flatten() for v in state["model"].values()])


def compare(ours, theirs, tolerance):
    """Two checkpoints: what is drawn to the bit, what is computed within a tolerance."""
    assert torch.equal(ours["generator"], theirs["generator"])
    assert (ours["iteration"], ours["batches"]) == (theirs["iteration"], theirs["batches"])
    if ours["buffer"] is not None:
        for name in ("visits", "stream"):
            assert torch.equal(ours["buffer"][name], theirs["buffer"][name])
        assert ours["buffer"]["_extra_state"] == theirs["buffer"]["_extra_state"]
        chains = torch.stack([x["buffer"]["data"].double() for x in (ours, theirs)])
        apart = (chains[0] - chains[1]).abs() > 0.02 * (chains.max() - chains.min())
        assert apart.double().mean() < 0.1
    assert (weights(ours) - weights(theirs)).abs().max() < tolerance
    assert (ours["adaptation"] is None) == (theirs["adaptation"] is None)
    for name, part in (ours["adaptation"] or {}).items():
        assert theirs["adaptation"][name] == pytest.approx(part, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("name", "n"), [*((name, 2) for name in RUNS), ("auto", 4)])
def test_several_ranks_make_the_run_of_one(runs, name, n):
    # Sums of float32 have another order. After 30 steps, which move weights by 0.1, differences of
    # 1e-7 have grown to 1e-6, unless something is decided otherwise by them: whether a proposal is
    # accepted, which neighbour is the fourth (jumps), which byte is stored.
    ours, theirs = (read_checkpoint(runs[k] / name / fit.CHECKPOINT) for k in (1, n))
    compare(ours, theirs, 2e-4)
    assert (weights(ours) - weights(Trainer(RUNS[name]).state_dict())).abs().max() > 1e-3
    rows = [fit.read_metrics(runs[k] / name / fit.METRICS) for k in (1, n)]
    assert len(rows[0]) == len(rows[1])
    for own, other in zip(*rows, strict=True):
        rates = other.pop("it_per_s_min"), other.pop("it_per_s_max")
        assert 0 < rates[0] <= rates[1]
        loose = 100 if name in ("auto", "rounds", "bytes") else 1
        assert other == pytest.approx(own, rel=2e-5 * loose, abs=2e-6 * loose)
    if name == "auto":
        assert len({row["batch_size"] for row in rows[0]}) > 1


@pytest.mark.parametrize(("made", "on"), [(2, 1), (1, 2), (2, 2)])
def test_any_number_of_ranks_goes_on_from_a_checkpoint(runs, made, on):
    samples = process_group.results(on, go_on, runs[made] / "cut.pt")
    whole, end = (read_checkpoint(p) for p in (runs[made] / "auto" / fit.CHECKPOINT,
                                               runs[made] / f"end-{on}.pt"))  # fmt: skip
    compare(whole, end, 2e-4)
    if made == on:
        assert torch.equal(weights(whole), weights(end))
    expected = restore(runs[made] / f"end-{on}.pt").sample(7, 20, 1)
    for x in samples:
        assert torch.allclose(x, expected, atol=1e-4)


MEASURED = ("auto", "helmholtz")  # the latter's energies draw bits


def commands(runs, folder):
    """Commands about checkpoints, in a group that is there already."""
    torch.set_num_threads(1)
    for name in MEASURED:
        checkpoint, out = runs / name / fit.CHECKPOINT, folder / name
        ood = ["--checkpoint", checkpoint, "--out", "noise", "--bootstrap", 10, "--dir", out]
        calls = {
            "ood": ood,  # which makes the folder
            "sample": [checkpoint, "-n", 9, "--steps", 12, "--out", out / "x.npz"],
            "evaluate": [
                checkpoint,
                "--n",
                51,
                "--long-steps",
                9,
                "--out",
                out / "q.json",
                "--chains",
                8,
                "--draws",
                40,
            ],
        }
        for command, arguments in calls.items():
            result = CliRunner().invoke(app, [command, *map(str, arguments)])
            assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def measured(runs, tmp_path_factory):
    """Folders by how many ranks ran the commands."""

    def make(folder):
        for n in (1, 2):
            (folder / str(n)).mkdir()
            process_group.results(n, commands, runs[1], folder / str(n))
        return {n: folder / str(n) for n in (1, 2)}

    return process_group.once(tmp_path_factory, "cli-measured", make)


@pytest.mark.parametrize("name", MEASURED)
def test_samples_energies_and_measures_are_those_of_one_process(measured, name):
    ours, theirs = (np.load(measured[n] / name / "x.npz")["x"] for n in (1, 2))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for file in ("ood.json", "q.json"):
        ours, theirs = (flat(json.loads((measured[n] / name / file).read_text())) for n in (1, 2))
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-6, nan_ok=True)


def flat(value, name=""):
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, x in items for k, v in flat(x, f"{name}/{key}").items()}
    return {name: value} if isinstance(value, (int, float)) else {}


def ended_by(folder, what):
    """How a run ends where something happens in its step 9."""
    torch.set_num_threads(1)
    trainer, rank = Trainer(replace(AUTO, on_divergence="lr")), world().rank
    step, write = trainer.step, fit.MetricsLog.write

    def happening():
        if trainer.iteration == 8 and what == "signal" and rank == 1:
            signal.raise_signal(signal.SIGTERM)
        if trainer.iteration == 8 and what == "divergence" and not trainer.n_rollbacks:
            with torch.no_grad():
                trainer.model.energy.net[-1].bias += 5000
        return step()

    def full(self, iteration, *rest):
        if iteration > 8:
            raise OSError("no space left")
        write(self, iteration, *rest)

    trainer.step = happening
    if what == "disk":
        fit.MetricsLog.write = full
    try:
        return fit.fit(trainer, folder, log_every=3, tensorboard=False, monitor="quiet")
    except OSError as error:
        return (str(error),)


@pytest.mark.parametrize("what", ["signal", "divergence", "disk"])
def test_all_ranks_end_alike(tmp_path, what):
    found = process_group.results(2, ended_by, tmp_path, what)
    assert found[0] == found[1]
    state = read_checkpoint(tmp_path / fit.CHECKPOINT)
    if what == "signal":
        assert found[0].status == "interrupted" and found[0].signum == signal.SIGTERM
        assert state["iteration"] == 9
    elif what == "disk":
        assert found[0] == ("no space left",) and state["iteration"] == 9
    else:
        assert found[0].status == "done" and state["guard"][2] == 1


def refused(config):
    with pytest.raises(ConfigError) as error:
        Trainer(config)
    return (str(error.value),)


@pytest.mark.parametrize("name", ["batch_size", "buffer_size"])
def test_what_cannot_be_split_is_refused(name):
    config = replace(AUTO, batch_size=32, buffer_size=64)
    config = replace(config, **{name: getattr(config, name) + 1})
    for (message,) in process_group.results(2, refused, config):
        expected = f"{name} must be a multiple of the 2 processes, got {getattr(config, name)}"
        assert message == expected
