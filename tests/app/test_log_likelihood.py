"""Log-likelihood of data under trained models: which way log Z is found, and that ways agree."""

import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from fastebm.app.cli import app
from fastebm.app.config import TrainConfig
from fastebm.app.data import DataError, load
from fastebm.app.log_likelihood import Settings, measure, notes, run
from fastebm.app.training import Trainer
from fastebm.energies import RBM, GaussianRBM
from fastebm.energies.helmholtz import HelmholtzMachine
from fastebm.likelihood.exact import log_partition

BOX = (0.0, 1.0)


def fill(model, scale=0.7):
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, scale)
    return model


def bits(n, width):
    return torch.randint(0, 2, (n, width)).float()


def test_machines_are_enumerated_and_annealing_agrees():
    rbm = fill(RBM(8, 5))
    sets = {"train": bits(50, 8), "test": bits(40, 8)}
    exact = measure(rbm, sets, BOX, Settings())
    assert exact["method"] == "enumeration" and exact["interval"] == {"train": None, "test": None}
    log_p = -rbm(sets["test"]).double() - log_partition(rbm)
    assert exact["log_likelihood"]["test"] == pytest.approx(log_p.mean().item(), rel=1e-6)
    assert exact["pseudo_likelihood"].keys() == {"test"}
    settings = Settings(betas=300, exact=False, confidence=0.9999)
    found = measure(rbm, sets, BOX, settings, model_samples=sets["test"])
    for name, value in exact["log_likelihood"].items():
        low, high = found["interval"][name]
        assert low < value < high and high - low < 0.3
        assert low < found["log_likelihood"][name] < high
    assert found["n_chains"] == 100 and found["reverse"]["n_chains"] == 40


@pytest.mark.parametrize("base", ["fitted", "uniform"])
def test_energies_are_annealed_from_a_base(base):
    # N(0.5, 0.1^2) in 2-D, whose normaliser is known; the box holds all of it.
    def model(x):
        return (x - 0.5).square().sum(1) / (2 * 0.01)

    x = 0.5 + 0.1 * torch.randn(500, 2)
    settings = Settings(betas=200, base=base, confidence=0.9999)
    found = measure(model, {"train": x, "test": x[:50]}, BOX, settings)
    truth = -model(x).mean().item() - math.log(2 * math.pi * 0.01)
    low, high = found["interval"]["train"]
    assert low - 1e-4 < truth < high + 1e-4
    assert 0.3 < found["acceptance"] < 0.8 and "pseudo_likelihood" not in found


def test_a_gaussian_machine_is_enumerated_over_its_hidden_units():
    machine = fill(GaussianRBM(3, 4))
    sets = {"train": torch.randn(20, 3), "test": torch.randn(9, 3)}
    found = measure(machine, sets, BOX, Settings())
    log_p = -machine(sets["test"]).double() - log_partition(machine)
    assert found["log_likelihood"]["test"] == pytest.approx(log_p.mean().item(), rel=1e-5)
    assert "pseudo_likelihood" not in found


def test_a_helmholtz_machine_is_bounded():
    net = fill(HelmholtzMachine(6, [3]))
    found = measure(net, {"train": bits(30, 6), "test": bits(20, 6)}, BOX, Settings())
    assert found["bound"]["test"] < found["log_likelihood"]["test"] < 0
    assert "log_z" not in found


def test_small_effective_samples_are_said():
    few = {
        "method": "annealing",
        "log_z": 1.0,
        "log_z_interval": (0.0, 2.0),
        "ess": 3.0,
        "n_chains": 100,
    }
    assert any("too low" in line for line in notes({**few, "acceptance": 1.0}))
    assert not any("too low" in line for line in notes({**few, "ess": 80.0, "acceptance": 1.0}))


def test_run_writes_and_prints(tmp_path):
    trainer = Trainer(TrainConfig(data="ring", samples=400, steps=10, loss="cd", hidden=4))
    console, path = Console(width=100, record=True, quiet=False), tmp_path / "l.json"
    result = run(trainer, None, 50, 20, Settings(betas=30), path, console)
    written = json.loads(path.read_text())
    assert written["n"] == {"train": 50, "test": 50} and written["reverse"]["n_chains"] == 20
    assert written["log_likelihood"] == result["log_likelihood"]
    text = console.export_text()
    assert "annealed importance sampling" in text and "effective sample size" in text


def test_bits_have_the_means_of_the_pixels(tmp_path):
    q = np.tile(np.array([0, 51, 255, 128], np.uint8), (50_000, 1))
    np.savez(tmp_path / "q.npz", x_train=q[:, :, None], x_test=q[:50, :, None])
    data = load(str(tmp_path / "q.npz"))
    bits = data.bits(data.train, 0)
    mean = bits.flatten(1).mean(0)
    assert mean[0] == 0 and mean[2] == 1  # black stays black
    assert abs(mean[1] - 0.2) < 4.5 * 0.4 / math.sqrt(50_000)
    assert abs(mean[3] - 128 / 255) < 4.5 * 0.5 / math.sqrt(50_000)
    assert torch.equal(bits, data.bits(data.train, 0))
    assert not torch.equal(bits, data.bits(data.train, 1))
    ring = load("ring", 100)
    with pytest.raises(DataError, match="bits need values in"):
        ring.bits(ring.train, 0)


def test_the_command_and_its_errors(tmp_path):
    path = tmp_path / "c.pt"
    Trainer(TrainConfig(data="ring", samples=400, steps=10, loss="cd", hidden=4)).save(path)

    def call(*options):
        return CliRunner().invoke(app, ["likelihood", "--checkpoint", str(path), *options])

    result = call("--betas", "20", "--samples", "40")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "likelihood.json").read_text())["n_chains"] == 100
    for options, text in (
        (["--betas", "fine"], "betas must be"),
        (["--base", "data"], "base must be one of fitted, uniform"),
        (["--n-chains", "1"], "n-chains must be between 2 and"),
        (["--confidence", "2"], "confidence must be between 0 and 1"),
    ):
        result = call(*options)
        assert result.exit_code == 2 and text in result.output, result.output


def test_data_that_the_machine_does_not_take():
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        measure(RBM(3, 2), {"train": torch.full((4, 3), 2.0)}, BOX, Settings())
    with pytest.raises(ValueError, match=r"must be \(B, 3\)"):
        measure(RBM(3, 2), {"train": torch.zeros(4, 5)}, BOX, Settings())
