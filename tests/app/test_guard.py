"""The divergence guard: what it calls lost, and that going back saves a run."""

import copy
import math
import re
from dataclasses import replace

import pytest
import torch

from fastebm.app import evaluation, fit
from fastebm.app.config import TrainConfig
from fastebm.app.guard import DivergedError, DivergenceGuard, Limits
from fastebm.app.training import Trainer

SMALL = TrainConfig(
    data="ring", samples=200, steps=40, batch_size=16, k_steps=3, buffer_size=64, hidden=16, ema=0.9
)
# CD at a step size above half the variance of a mode: it always diverges (the demo's setting).
LARGE_STEP = TrainConfig(
    data="ring", samples=5000, steps=400, lr=0.01, step_size=0.02, loss="pcd",
    lr_schedule="constant",
)  # fmt: skip
GOOD = {
    "energy_abs": 3.0,
    "energy_gap": -1.0,
    "param_grad_norm": 2.0,
    "clamp_share": 0.01,
    "data_clamp_share": 0.0,
    "effective_temperature": 1.0,
}


@pytest.mark.parametrize(
    "change, wanted",
    [
        ({"energy_abs": 2001.0}, r"mean \|E\| on data is 2e\+03, above 2000"),
        ({"energy_gap": 201.0}, "gap .* is 201, above 200"),
        ({"energy_gap": -201.0}, "gap"),
        ({"param_grad_norm": 1001.0}, "gradient"),
        ({"clamp_share": 0.91}, "clamp"),
        ({"clamp_share": 0.98, "data_clamp_share": 0.79}, "clamp"),
        ({"energy_abs": math.nan}, "not finite"),
        ({"param_grad_norm": math.inf}, "not finite"),
    ],
)
def test_limits(change, wanted):
    assert Limits().broken(GOOD) is None
    assert re.search(wanted, Limits().broken(GOOD | change))


def test_limits_know_pictures_at_the_box_and_temperature():
    assert Limits().broken(GOOD | {"clamp_share": 0.91, "data_clamp_share": 0.8}) is None
    hot = {"energy_gap": 1500.0, "effective_temperature": 10.0}
    assert Limits().broken(GOOD | hot) is None
    assert Limits().broken(GOOD | {"energy_gap": 60.0}, share=0.25) is not None


def everything(trainer):
    state = trainer.state_dict()
    return {k: state[k] for k in ("model", "ema", "optimizer", "buffer", "generator", "iteration")}


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_roll_back_restores_everything_and_lowers_the_step():
    trainer = Trainer(SMALL)
    guard = DivergenceGuard(trainer, "step", checks_per_snapshot=1)
    for _ in range(6):
        trainer.step()
    assert guard.check(GOOD) is None
    kept = copy.deepcopy(everything(trainer))
    for _ in range(2):  # the snapshot must not be what training goes on to change
        for _ in range(5):
            trainer.step()
        assert not same(everything(trainer), kept)
        line = guard.roll_back("test")
        if trainer.n_rollbacks == 1:
            assert same(everything(trainer), kept)
    assert trainer.iteration == 0 and "roll-back 2" in line  # failed again: one snapshot further
    c = trainer.config
    for sampler in (trainer.sampler, trainer.eval_sampler):
        assert sampler.step_size == pytest.approx(c.step_size / 4)
        assert sampler.effective_temperature == pytest.approx(c.noise_std**2 / (2 * c.step_size))
    assert trainer.lr == c.lr


def test_no_snapshot_of_a_run_that_is_nearly_lost():
    trainer = Trainer(SMALL)
    guard = DivergenceGuard(trainer, "lr", checks_per_snapshot=1)
    trainer.step()
    assert guard.check(GOOD | {"energy_gap": -150.0}) is None
    guard.roll_back("test")
    assert trainer.iteration == 0 and trainer.lr == pytest.approx(trainer.config.lr / 2)
    assert trainer.sampler.step_size == trainer.config.step_size


def test_it_gives_up():
    guard = DivergenceGuard(Trainer(SMALL), max_rollbacks=1)
    guard.roll_back("a")
    with pytest.raises(DivergedError, match="step 0: b; 1 roll-backs did not help"):
        guard.roll_back("b")
    with pytest.raises(DivergedError, match="diverged at step 0: c"):
        DivergenceGuard(Trainer(SMALL), "stop").roll_back("c")


def test_bad_arguments():
    with pytest.raises(ValueError, match="action"):
        DivergenceGuard(Trainer(SMALL), "pray")
    with pytest.raises(ValueError, match="factor"):
        DivergenceGuard(Trainer(SMALL), factor=1.0)


@pytest.mark.filterwarnings("ignore::fastebm.StepSizeWarning")
def test_a_run_that_diverges_without_it_completes_with_it(tmp_path):
    for name in ("without", "with"):
        (tmp_path / name).mkdir()
    lost = fit.fit(
        Trainer(replace(LARGE_STEP, on_divergence="stop")), tmp_path / "without", tensorboard=False
    )
    assert lost.status == "diverged"

    trainer = Trainer(LARGE_STEP)
    saved = fit.fit(trainer, tmp_path / "with", tensorboard=False)
    assert saved.status == "done" and trainer.iteration == 400 and trainer.n_rollbacks >= 1
    assert trainer.sampler.step_size <= 0.01  # below v / 2 = 0.011
    data = trainer.dataset
    modes, on_mode = evaluation.modes_found(trainer.sample(500, 200, 1), data.centres, data.std)
    assert modes >= 7 and on_mode > 0.8
    records = fit.read_metrics(tmp_path / "with" / fit.METRICS)
    steps = [r["step"] for r in records]
    assert steps == sorted(set(steps)) and records[-1]["n_rollbacks"] == trainer.n_rollbacks
    assert any("back to step" in r.get("note", "") for r in records)


def test_non_finite_chains_are_rolled_back(tmp_path):
    trainer = Trainer(SMALL)
    step, broken = trainer.step, []

    def explode():
        if trainer.iteration == 20 and not broken:
            broken.append(True)
            with torch.no_grad():
                trainer.model.net[-1].weight.fill_(math.nan)
        return step()

    trainer.step = explode
    outcome = fit.fit(trainer, tmp_path, log_every=2, tensorboard=False)
    assert outcome.status == "done" and trainer.n_rollbacks == 1
    assert all(p.isfinite().all() for p in trainer.model.parameters())
