"""Checkpoints: exact resume, whole files, and errors of bad ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training import SMALL, numbers
from torch import nn

from fastebm.app.checkpoints import read_checkpoint, restore
from fastebm.app.config import ConfigError
from fastebm.app.training import Trainer

LOSSES = {
    "cd": {"loss": "cd"},
    "pcd": {"loss": "pcd"},
    "icd": {"loss": "icd", "energy_reg_weight": 0.1},
    "icd from data": {"loss": "icd", "buffer_size": 0},
    "icd digits": {"loss": "icd", "data": "digits"},  # pictures: a uint8 buffer
    "average": {"loss": "icd", "ema": 0.99},
    "bfloat16": {"loss": "icd", "precision": "bfloat16"},
    "noise first": {"loss": "icd", "noise_first": True},
}


@pytest.mark.parametrize("case", LOSSES)
def test_resume_is_bitwise(tmp_path, case):
    config = replace(SMALL, **LOSSES[case])
    whole = Trainer(config)
    numbers(whole, 5)  # 12 batches an epoch of 200 (1438 for digits): below and across one
    whole.save(tmp_path / "c.pt")
    after = numbers(whole, 12)

    torch.manual_seed(999)  # a new process has another global generator
    resumed = restore(tmp_path / "c.pt")
    assert resumed.iteration == 5
    assert numbers(resumed, 12) == after
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    # the test can fail: without the optimiser's state the next steps differ
    other = restore(tmp_path / "c.pt")
    other.optimizer.state.clear()
    assert numbers(other, 12) != after


def test_resume_of_everything_at_once(tmp_path):
    """uint8 pictures, average, bfloat16, and a step size and lr that the guard has lowered."""
    x = np.random.default_rng(0).integers(0, 256, (100, 1, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x_train=x)
    whole = Trainer(
        replace(SMALL, data=str(tmp_path / "x.npz"), samples=None, ema=0.9, precision="bfloat16")
    )
    numbers(whole, 3)
    whole.set_factors(0.25, 0.5)
    whole.n_rollbacks = 2
    numbers(whole, 3)
    whole.save(tmp_path / "c.pt")
    after = numbers(whole, 20)
    resumed = restore(tmp_path / "c.pt")
    assert resumed.n_rollbacks == 2 and resumed.lr_factor == 0.5
    assert resumed.sampler.step_size == whole.config.step_size / 4
    assert numbers(resumed, 20) == after
    assert all(map(torch.equal, whole.ema.parameters(), resumed.ema.parameters()))
    assert torch.equal(whole.sample(4, 3, 0), resumed.sample(4, 3, 0))


def test_resume_with_dropout_in_your_own_model(tmp_path):
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, 1))

    trainer = Trainer(SMALL, model=net())
    numbers(trainer, 3)
    trainer.save(tmp_path / "c.pt")
    after = numbers(trainer, 4)
    assert numbers(restore(tmp_path / "c.pt", model=net()), 4) == after


def test_checkpoint_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    trainer = Trainer(SMALL)
    trainer.save(path)
    good = path.read_bytes()

    def broken(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    trainer.step()
    with pytest.raises(OSError, match="disk full"):
        trainer.save(path)
    assert path.read_bytes() == good


def test_resume_refuses_other_samples(tmp_path):
    x = torch.randn(50, 2)
    torch.save(x, tmp_path / "x.pt")
    Trainer(replace(SMALL, data=str(tmp_path / "x.pt"), samples=None)).save(tmp_path / "c.pt")
    torch.save(x + 1e-3, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="not those of the checkpoint"):
        restore(tmp_path / "c.pt")


def test_bad_checkpoints(tmp_path):
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save({"model": {}}, tmp_path / "part.pt")
    torch.save([1], tmp_path / "list.pt")
    Trainer(SMALL).save(tmp_path / "good.pt")
    for name, wanted in [
        ("absent.pt", "no such file"),
        ("text.pt", "cannot be read .*not a file of torch.save"),
        ("list.pt", "not a fastebm checkpoint"),
        ("part.pt", "not a fastebm checkpoint"),
    ]:
        with pytest.raises(ConfigError, match=wanted) as error:
            read_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="model does not fit the run"):
        restore(tmp_path / "good.pt", model=nn.Linear(2, 1))
