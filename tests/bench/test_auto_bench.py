"""The bench of training that needs no tuning: its laws and grids, its store, and every part of it
once with results that nothing was trained for."""

import json
import math
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from types import SimpleNamespace

import auto
import auto_cells
import auto_held_out
import auto_plan
import auto_rivals
import auto_sets
import pytest
import suite
import torch
from auto_runs import Network

from fastebm.app.data import Dataset

QUICK = auto_plan.Plan("some code", quick=True)


@pytest.mark.parametrize("name", auto_sets.TUNED_ON + auto_sets.UNSEEN)
def test_a_density_has_on_its_grid_the_mass_that_samples_have_in_the_box(name):
    known = auto_sets.make(name, 0)
    grid = auto_sets.grid(known)
    draws = known.kind.law.draw(50_000, torch.Generator().manual_seed(1))
    share = (draws.abs() <= known.clamp[1]).all(1).double().mean().item()
    mass = torch.logsumexp(grid.log_prob + grid.log_area, 0).exp().item()
    noise = 4 * math.sqrt(share * (1 - share) / len(draws))
    assert mass == pytest.approx(share, abs=1e-4 + noise)
    assert len(known.train) == auto_sets.TRAIN and len(known.test) == auto_sets.TEST
    assert max(known.train.abs().max(), known.test.abs().max()) <= known.clamp[1]


@pytest.mark.parametrize("name", ["aniso", "student_t", "funnel", "square", "unequal"])
def test_halving_the_cells_changes_nothing(name):
    known = auto_sets.make(name, 0)

    def energy(x):  # with a shape of its own where the data is
        return 0.3 * (x / known.train.std(0)).sin().sum(1) + x.square().sum(1) / 50

    coarse, fine = (auto_sets.divergence(known, energy, parts=parts)["kl"] for parts in (1, 2))
    assert 0.1 < fine < 10 and coarse == pytest.approx(fine, rel=0.01)
    few, many = (auto_sets.grid(known, parts).log_area for parts in (1, 2))
    assert len(many) == 4 * len(few) and many.exp().sum() == pytest.approx(few.exp().sum())


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 0.0), (100.0, 0.0), (0.01, 45.0)])
def test_divergence_is_that_of_two_gaussians_however_scaled_and_turned(scale, degrees):
    known = auto_sets.make("aniso", 0, scale, degrees)
    grid = auto_sets.grid(known)
    assert torch.logsumexp(grid.log_prob + grid.log_area, 0) == pytest.approx(0, abs=1e-3)

    def energy(x, factor=2.0):
        u = known.plain(x) / torch.tensor([1.0, 0.03 * factor])
        return 0.5 * u.square().sum(1) + 7

    found = auto_sets.divergence(known, energy)
    assert found["kl"] == pytest.approx(math.log(2) - 0.5 + 0.125, abs=2e-3)
    assert auto_sets.divergence(known, lambda x: energy(x, 1.0))["kl"] == pytest.approx(0, abs=1e-4)
    assert auto_sets.divergence(known, lambda x: energy(x, math.nan)) == {"kl": math.inf, "tv": 1.0}
    inside = auto_sets.divergence(known, energy, lambda x: known.plain(x)[:, 1].abs() <= 0.03)
    assert 0 < inside["kl"] < 0.1  # the data's renormalised there
    tight = 0.0009 * scale**2  # where it is turned, along both coordinates
    wide = tight if degrees else scale**2
    assert known.variances.tolist() == pytest.approx([wide, tight])


def test_real_samples_are_on_their_modes_and_modes_hold_their_weights():
    known = auto_sets.make("unequal", 3)
    found = auto_sets.quality(known, known.train[:1000])
    assert abs(found["mmd2"]) < 3e-3 and found["on"] == pytest.approx(0.989, abs=0.015)
    assert 0.6 < found["weight_min"] < found["weight_max"] < 1.4
    only_one = known.train[known.train[:, 0] > 0][:1000]
    assert auto_sets.quality(known, only_one)["weight_min"] == 0
    assert auto_sets.quality(known, 9 + known.train[:100])["on"] == 0


@pytest.mark.parametrize(
    "cell",
    [
        QUICK.rival("unequal", 1, {"group": g, "method": "ICD + L2 0.1", "ratio": 0.9, "lr": 0.01})
        for g in (auto_rivals.DEMO, auto_rivals.FAIR, auto_rivals.SMALL)
    ]
    + [QUICK.auto("unequal", 1, scale=10.0, width=17, depth=1, activation="tanh", k_steps=5)],
)
def test_a_cell_is_trained_and_measured(cell):
    found = auto_cells.measure(cell | {"steps": 3, "samples": 40})
    assert found["steps"] == 3 and found["diverged"] is None and found["seconds"] > 0
    assert 0 < found["kl"] < math.inf
    kinds = {"jumps", "alone", "real"} if cell["who"] == "auto" else {"own"}
    assert all(0 <= found[kind]["on"] <= 1 for kind in kinds)


def test_rivals_get_the_units_batch_and_optimiser_of_the_rule():
    known = auto_sets.make("aniso", 0)
    rival = (known, known.variances)
    demo, fair, small = (
        auto_rivals.build(*rival, group, "CD", 0.5, 0.02, 0, 10, Network(width=8)).trainer
        for group in (auto_rivals.DEMO, auto_rivals.FAIR, auto_rivals.SMALL)
    )
    assert [t.config.batch_size for t in (demo, fair, small)] == [128, 512, 128]
    assert demo.config.step_size == pytest.approx(0.5 * 0.0009)
    assert fair.config.step_size == pytest.approx(0.5, rel=0.05)  # as wide as it is narrow
    assert fair.x.std(0).tolist() == pytest.approx([1, 1]) and demo.x is known.train
    assert fair.optimizer.param_groups[0]["betas"] == (0.9, 0.99) and demo.ema is None
    fair.sampler.step_size_checked = True
    fair.step()
    first = [p.detach().clone() for p in fair.model.parameters()]
    fair.step()  # the average's second: a tenth and a bit of the first
    for average, old, new in zip(
        fair.ema.module.parameters(), first, fair.model.parameters(), strict=True
    ):
        torch.testing.assert_close(average, old + (new - old) * (1 - 2 / 11))


def test_log_likelihood_of_a_gaussian_is_found():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=g) * torch.tensor([1.0, 0.5, 2.0])
    data = Dataset("x", x[:400], x[400:], (-9.0, 9.0))
    std = data.train.std(0)

    class Energy(torch.nn.Module):
        def forward(self, x):
            return 0.5 * (x / std).square().sum(1) + 11

    run = SimpleNamespace(trainer=SimpleNamespace(eval_model=Energy(), dataset=data))
    found = auto_held_out.score(data, run, n_betas=100)
    expected = torch.distributions.Normal(0.0, std).log_prob(data.test).sum(1).mean().item()
    assert found["test_nats"] == pytest.approx(expected, abs=0.05)
    assert found["ess"] > auto_held_out.CHAINS / 2
    everywhere = auto_held_out.Everywhere(lambda x: x.sum(1), 2.0)
    energies = everywhere(torch.tensor([[1.0, 1.0], [2.1, 0.0]])).tolist()
    assert energies == pytest.approx([2.0, 2.5], rel=1e-4)


def test_best_rival_is_the_least_kl_that_did_not_diverge(tmp_path):
    store, plan = auto_cells.Store(tmp_path / "cells.jsonl"), auto_plan.Plan("x")
    cells = plan.candidates("ring", auto_rivals.DEMO)
    assert len(cells) == 20 and len(plan.candidates("ring", auto_rivals.FAIR)) == 20
    for i, cell in enumerate(cells):
        store.add(cell, {"kl": None if i == 0 else 1.0 + i, "diverged": "so" if i < 3 else None})
    best = plan.best(store, "ring", auto_rivals.DEMO)
    assert {k: cells[3][k] for k in best} == best


def test_configurations_are_a_hundred_and_the_same_each_time():
    pairs = auto_plan.Plan("x").configurations()
    assert pairs == auto_plan.Plan("x").configurations() and len(pairs) == 100
    ours = [cell for cell, _ in pairs]
    assert {c["depth"] for c in ours} == {1, 2, 3, 4} and len({c["activation"] for c in ours}) == 5
    for name, low, high in (("width", 16, 256), ("k_steps", 5, 50), ("scale", 0.01, 100)):
        values = [c[name] for c in ours]
        assert low <= min(values) < 1.5 * low and high >= max(values) > high / 1.5
    for cell, rivals in pairs:
        of_rule = {k: v for k, v in cell.items() if k not in ("who", "source")}
        assert all(of_rule.items() <= rival.items() for rival in rivals) and len(rivals) == 4


class Inline(Executor):
    """Runs what it is given at once, and counts."""

    def __init__(self):
        self.cells = []

    def submit(self, function, cell):
        self.cells.append(cell)
        future = Future()
        future.set_result(function(cell))
        return future


def result_of(cell):
    """What `measure` would give, of nothing."""
    if cell["who"] == "classic":
        return {"Gaussian": {"train_nats": -1.0, "test_nats": -2.0}}
    if cell["who"] == "times":
        return {"seconds": [3.0, 1.0, 2.0]}
    found = {"seconds": 1.0, "diverged": None, "steps": cell["steps"], "kl": 0.5, "tv": 0.1}
    if "betas" in cell:
        found |= {"train_nats": -1.0, "test_nats": -1.5, "ess": 50.0, "log_z_interval": [1, 2]}
    samples = {"mmd2": 0.001, "on": 0.9, "weight_min": 0.5, "weight_max": 1.5}
    return found | dict.fromkeys(("jumps", "alone", "real", "own"), samples)


def test_every_part_is_run_once_and_an_interrupted_bench_goes_on(tmp_path, monkeypatch, capsys):
    pools = []

    @contextmanager
    def inline(n):
        pools.append(Inline())
        yield pools[-1]

    monkeypatch.setattr(auto_cells, "workers", inline)
    monkeypatch.setattr(auto_cells, "measure", result_of)
    monkeypatch.setattr(auto, "KEPT", tmp_path / "runs" / "cells.jsonl")
    monkeypatch.setattr(auto, "Plan", lambda source, quick: QUICK)
    options = suite.Options(torch.device("cpu"))
    rows = [row for of_part in auto.run(options) for row in of_part]
    json.dumps(rows, allow_nan=False)
    text = capsys.readouterr().out
    assert all(name in text for name in ("real samples", "0.5000 (0.5000)", "equal time", "met"))
    keys = [auto_cells.key(cell) for cell in pools[0].cells]
    assert len(keys) == len({*keys}) > 10
    whose = [cell["who"] for cell in pools[0].cells]
    assert whose.count("auto") == len(QUICK.of_rule()) and {*whose[: whose.count("auto")]} == {
        "auto"
    }
    fit = [r for r in rows if r["variant"].endswith("equal time")]
    assert sorted({*(step for r in fit for step in r["steps"])}) == [30, 60]
    path = auto.KEPT
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:30])  # a run cut short
    assert [row for of_part in auto.run(options) for row in of_part] == rows
    lost = {auto_cells.key(json.loads(line)["cell"]) for line in lines[-2:]}
    assert {auto_cells.key(cell) for cell in pools[1].cells} == lost
