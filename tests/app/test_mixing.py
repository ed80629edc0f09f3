"""Chains of a trained model and their diagnostics in `fastebm evaluate`."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastebm.app import mixing
from fastebm.app.cli import app
from fastebm.app.config import TrainConfig
from fastebm.app.evaluation import total_energy
from fastebm.app.presets import PRESETS
from fastebm.app.training import Trainer
from fastebm.diagnostics import summary

SMALL = {"samples": 100, "batch_size": 10, "buffer_size": 50, "hidden": 8, "steps": 2}
KINDS = {
    "auto": {"data": "ring"},
    "2d": {"data": "moons"},
    "digits": {"data": "digits", "k_steps": 1},
    "rbm": {"data": "digits"},
    "helmholtz": {"data": "digits"},
}


def trainer_of(kind):
    return Trainer(TrainConfig(**PRESETS[kind] | SMALL | KINDS[kind]))


def run(trainer, n=6, draws=15, seed=3):
    return mixing.run_chains(trainer, n, draws, seed, trainer.population())


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "helmholtz"])
def test_chains_are_the_evaluations_from_noise(kind):
    trainer = trainer_of(kind)
    chains = run(trainer)
    wide = kind in ("digits", "rbm")
    assert chains.names == (("energy", "mean pixel") if wide else ("energy", "x[0]", "x[1]"))
    assert chains.trajectory.shape == (6, 15, len(chains.names)) and chains.burn_in == 15
    # The last states are those of one call, of as many jumps, evenly spread: 3 of 15 and of 15.
    whole = trainer.sample(6, 30, 3).flatten(1)
    values = whole.mean(1, keepdim=True) if wide else whole
    if kind != "auto":
        assert torch.allclose(chains.trajectory[:, -1, 1:], values, atol=1e-4)
    assert torch.equal(chains.trajectory, run(trainer).trajectory)
    if kind == "2d":  # the energy is that of the point before
        expected = total_energy(trainer.eval_model, chains.trajectory[:, :-1, 1:].flatten(0, 1))
        assert torch.allclose(chains.trajectory[:, 1:, 0].flatten().double(), expected, atol=1e-4)
    if kind == "auto":
        assert trainer.jumps(15) == 3
        expected = total_energy(trainer.eval_model, chains.trajectory[..., 1:].flatten(0, 1))
        assert torch.allclose(chains.trajectory[..., 0].flatten().double(), expected, atol=1e-3)


def test_states_that_do_not_fit_are_taken_in_turn(monkeypatch):
    trainer = trainer_of("digits")
    whole = run(trainer)
    monkeypatch.setattr(mixing, "BLOCK", 4 * 6 * 64)
    assert torch.allclose(run(trainer).trajectory, whole.trajectory, atol=1e-5)


def test_the_record_is_the_summarys():
    chains = mixing.Chains(torch.randn(4, 50, 2).double(), ("energy", "x[0]"), 7)
    result, found = mixing.measure(chains), summary(chains.trajectory)
    assert result["burn_in"] == 7 and (result["n_chains"], result["n_draws"]) == (4, 50)
    assert result["max_r_hat"] == found.max_r_hat and result["min_ess_tail"] == found.min_ess_tail
    for i, values in enumerate(result["numbers"].values()):
        assert values == {name: getattr(found, name)[i].item() for name in mixing.MEASURES}


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixing")
    for kind in KINDS:
        trainer_of(kind).save(folder / f"{kind}.pt")
    return folder


EVALUATE = ["--n", 20, "--long-steps", 2, "--draws", 12]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_says_how_chains_mix(checkpoints, tmp_path, kind):
    out = tmp_path / "q.json"
    checkpoint = checkpoints / f"{kind}.pt"
    printed = call("evaluate", checkpoint, *EVALUATE, "--chains", 5, "--out", out)
    result, names = json.loads(out.read_text()), {p.name for p in tmp_path.iterdir()}
    if kind == "helmholtz":  # its samples are independent
        assert names == {"q.json"} and "chains" not in result
        return
    assert names == {"q.json", "q_traces.png", "q_ranks.png"}
    assert result["chains"]["n_chains"] == 5 and result["chains"]["numbers"]["energy"]["sd"] > 0
    assert "5 chains from noise: 12 draws of each" in printed
    assert ("not mixed" in printed) == (result["chains"]["max_r_hat"] > 1.01)


def test_chains_that_are_not_finite_are_said_to_be(checkpoints, tmp_path):
    trainer = trainer_of("2d")
    with torch.no_grad():
        next(trainer.eval_model.parameters()).fill_(torch.nan)
    chains = run(trainer)
    result = mixing.measure(chains)
    assert result["n_nonfinite"] == chains.trajectory.isnan().sum() > 0
    assert result["max_r_hat"] != result["max_r_hat"]
    mixing.write_pictures(chains, tmp_path / "q.json")
    assert len(list(tmp_path.iterdir())) == 2
    printed = []

    class Console:
        def print(self, what, **_):
            printed.append(what)

    mixing.show(result, Console())
    assert printed[1:] == [f"{result['n_nonfinite']} numbers of the chains are not finite"]


def test_no_chains_one_chain_and_a_stream(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = checkpoints / "2d.pt"
    call("evaluate", checkpoint, *EVALUATE, "--chains", 0, "--out", "none.json")
    assert "chains" not in json.loads(Path("none.json").read_text())
    call("evaluate", checkpoint, *EVALUATE, "--chains", 1, "--out", "one.json")
    call("evaluate", checkpoint, *EVALUATE, "--chains", 3, "--out", "/dev/null")
    assert {p.name for p in tmp_path.iterdir()} == {"none.json", "one.json", "one_traces.png"}
    assert not list(Path("/dev").glob("null_*"))
