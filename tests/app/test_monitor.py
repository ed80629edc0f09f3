"""What a run prints: which numbers, how often, and the age of stored chains."""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from fastebm.app import fit
from fastebm.app.config import TrainConfig
from fastebm.app.monitor import Monitor, line
from fastebm.app.training import Trainer
from fastebm.replay.buffer import ReplayBuffer

SMALL = TrainConfig(
    data="ring", samples=200, steps=60, batch_size=16, k_steps=2, buffer_size=64, hidden=8
)


def printed(tmp_path, mode, config=SMALL, **options):
    out = io.StringIO()
    tmp_path.mkdir(exist_ok=True)
    console = Console(file=out, width=300)
    fit.fit(Trainer(config), tmp_path, tensorboard=False, console=console, monitor=mode, **options)
    return [row for row in out.getvalue().splitlines() if row.strip()]


def test_lines_of_a_run(tmp_path):
    rows = printed(tmp_path, "lines", log_every=5)
    told = [row for row in rows if "E+" in row]
    assert [int(row.split()[0]) for row in told] == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60]
    for word in ("E- ", "gap", "KL", "H ", "dE/dθ", "dE/dx", "clamp", "T 1", "age", "it/s"):
        assert all(word in row for row in told), word
    assert len(rows) == len(told) + 1  # and the bar


def test_at_most_some_twenty_lines(tmp_path):
    told = [r for r in printed(tmp_path, "lines", log_every=1) if "E+" in r]
    assert 20 <= len(told) <= 22 and told[-1].split()[0] == "60"


def test_json_and_quiet(tmp_path):
    rows = printed(tmp_path / "json", "json", replace(SMALL, loss="cd"), log_every=20)
    records = [json.loads(row) for row in rows]
    assert [r["step"] for r in records] == [20, 40, 60]
    assert all(r["it_per_s"] > 0 and 0 < r["sampler_share"] < 1 for r in records)
    assert "buffer_age" not in records[0]
    assert printed(tmp_path / "quiet", "quiet") == []
    with pytest.raises(ValueError, match="mode must be one of"):
        Monitor(Trainer(SMALL), None, "loud")


def test_a_line_has_its_numbers():
    values = dict.fromkeys(("energy_pos", "energy_neg", "energy_pos_std", "energy_neg_std"), 1.234)
    values |= {"energy_gap": -2.0, "param_grad_norm": 3.0, "grad_norm": 4.0, "clamp_share": 0.256}
    values |= {"effective_temperature": 0.5}
    assert line(7, values, 12.34, None).split("  ")[-6:] == [
        "E+ 1.23±1.23", "E- 1.23±1.23", "gap -2", "|dE/dθ| 3 |dE/dx| 4", "clamp 26% T 0.5",
        "12.3 it/s",
    ]  # fmt: skip


def test_a_growing_gap_is_warned_of_with_its_cause(tmp_path):
    """Plain CD at a step that no energy can follow (the demo's), before the guard acts."""
    lost = TrainConfig(
        data="ring", samples=2000, loss="pcd", steps=160, lr=0.01, step_size=0.05, hidden=64
    )
    rows = printed(tmp_path / "lines", "lines", lost, log_every=4)
    warned = [row for row in rows if row.startswith("WARN")]
    assert warned
    for word in ("gap -", "and growing: step 0.05 adds noise of variance 0.1", "lower the step",
                 "the KL term", "penalty"):  # fmt: skip
        assert word in warned[0], word
    assert rows[rows.index(warned[0]) - 1].count("E+") == 1
    rows = [json.loads(r) for r in printed(tmp_path / "json", "json", lost, log_every=8)
            if r.startswith("{")]  # fmt: skip
    assert any("growing" in r.get("warning", "") for r in rows)
    assert not any(r.startswith("WARN") for r in printed(tmp_path / "well", "lines"))


def test_the_cause_of_a_gap_where_the_step_is_not_it():
    trainer = Trainer(replace(SMALL, loss="icd", energy_reg_weight=0.1))
    watch = Monitor(trainer, Console(file=io.StringIO(), width=300), "lines")
    values = {"effective_temperature": 1.0}
    found = [watch._warning(values | {"energy_gap": gap}) for gap in (1, -3, -7, -8, -30, -50)]
    assert [f is not None for f in found] == [False, False, True, False, False, True]
    assert found[2] == (
        "gap -7 and growing: the chains fall behind the energy; more k_steps, a lower lr"
    )


def test_visits_of_stored_chains():
    buffer = ReplayBuffer(3, (2,), reinit_prob=0.0, seed=0)
    for _ in range(2):
        x, idx = buffer.sample(3)
        buffer.push(x, idx)
    assert buffer.visits.tolist() == [2, 2, 2]
    _, idx = buffer.sample(1)
    wanted = [2, 2, 2]
    wanted[idx] = 3
    assert buffer.visits.tolist() == wanted
    buffer.reinit_prob = 1.0
    buffer.sample(3)
    assert buffer.visits.tolist() == [1, 1, 1]
    # restarted with probability p, a chain is on its n-th visit with probability p (1 - p)^(n-1)
    buffer = ReplayBuffer(500, (2,), reinit_prob=0.3, seed=0)
    for _ in range(60):
        buffer.sample(500)
    share = (buffer.visits == 1).float().mean().item()
    assert abs(share - 0.3) < 4 * (0.21 / 500) ** 0.5
    assert torch.equal(buffer.state_dict()["visits"], buffer.visits)
