"""Training: batches, configuration, files of a run, divergence, and that it learns."""

import json
import math
import signal
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastebm.app import evaluation, fit
from fastebm.app.checkpoints import restore
from fastebm.app.config import ConfigError, TrainConfig
from fastebm.app.guard import Limits
from fastebm.app.networks import build_model
from fastebm.app.training import Trainer

SMALL = TrainConfig(
    data="ring", samples=200, steps=12, batch_size=16, k_steps=3, buffer_size=64, hidden=16, seed=5
)


def numbers(trainer, n):
    """The logged terms of the next n steps, exactly as computed."""
    return [{k: float(v) for k, v in trainer.step().items()} for _ in range(n)]


def test_average_of_the_weights():
    trainer = Trainer(replace(SMALL, ema=0.9))
    start = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.step()  # torch's average starts as a copy of the weights after the first step
    wanted = [p.detach().clone() for p in trainer.model.parameters()]
    assert not torch.equal(start[0], wanted[0])
    for _ in range(3):
        trainer.step()
        weights = trainer.model.parameters()
        wanted = [0.9 * w + 0.1 * p.detach() for w, p in zip(wanted, weights, strict=True)]
    for a, b in zip(trainer.ema.module.parameters(), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert trainer.eval_model is trainer.ema.module
    assert Trainer(SMALL).eval_model is not None and Trainer(SMALL).ema is None


def test_uint8_is_dequantised_anew_at_each_visit(tmp_path):
    q = np.random.default_rng(0).integers(0, 256, (80, 1, 5, 5), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x_train=q, x_test=q)
    config = replace(SMALL, data=str(tmp_path / "x.npz"), samples=None, batch_size=80, loss="cd")
    trainer = Trainer(config)
    batches = []
    for trainer.iteration in range(40):
        x = trainer._batch()
        level = (256 * x).floor()
        assert torch.equal(level, (256 * trainer.x - 0.5)[trainer._order[1]])
        batches.append((256 * x - level).flatten())
    assert np.array_equal(np.sort(level.flatten()), np.sort(q, axis=None))
    u = torch.cat(batches)  # uniform within the bin: mean 1/2, variance 1/12
    assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * len(u))
    assert abs(u.var() - 1 / 12) < 5 / math.sqrt(180 * len(u))
    assert not torch.equal(batches[0], batches[1])


def test_bfloat16_is_the_energy_alone():
    seen = set()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = build_model((2,), 16, 0)

        def forward(self, x):
            e = self.net(x)
            seen.add((x.dtype, e.dtype))
            return e

    trainer = Trainer(replace(SMALL, precision="bfloat16"), model=Net())
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.step()
    assert seen == {(torch.float32, torch.bfloat16)}
    assert trainer.metrics["energy_pos"].dtype == torch.float32
    for p, old in zip(trainer.model.parameters(), before, strict=True):
        assert p.dtype == torch.float32 and p.grad.isfinite().all()
        # the offset of the energy has no gradient
        assert torch.equal(p, old) == (p.numel() == 1)
    x = trainer.sample(8, 2, 0)
    assert x.dtype == torch.float32 and not torch.equal(x, x.bfloat16().float())
    full = Trainer(SMALL, model=build_model((2,), 16, 0))  # close to float32, and not equal
    full.step()
    found, exact = (float(t.metrics["energy_pos"]) for t in (trainer, full))
    assert found != exact and found == pytest.approx(exact, rel=0.05, abs=0.05)


def test_same_seed_same_run_other_seed_other_run():
    torch.manual_seed(1)
    a = numbers(Trainer(SMALL), 3)
    torch.manual_seed(2)
    assert numbers(Trainer(SMALL), 3) == a
    assert numbers(Trainer(replace(SMALL, seed=6)), 3) != a


def test_an_epoch_visits_every_sample_once():
    trainer = Trainer(replace(SMALL, samples=160, batch_size=16))
    seen = []
    for trainer.iteration in range(20):
        seen.append(trainer._batch())
    first, second = torch.cat(seen[:10]), torch.cat(seen[10:])
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert torch.equal(epoch.sort(0).values, trainer.x.sort(0).values)


def test_built_in_model_sees_the_box_as_minus_one_to_one():
    plain, boxed = build_model((3,), 8, 0), build_model((3,), 8, 0, box=(0.0, 4.0))
    x = torch.rand(5, 3)
    assert torch.allclose(plain(2 * x - 1), boxed(4 * x), atol=1e-6)


def test_schedule_and_gradient_bound():
    trainer = Trainer(replace(SMALL, lr=0.1, lr_schedule="cosine", steps=10))
    rates = []
    for trainer.iteration in (0, 5, 10):
        rates.append(trainer.lr)
    assert rates == pytest.approx([0.1, 0.05, 0.0])
    trainer = Trainer(replace(SMALL, max_grad_norm=1e-3))
    trainer.step()
    norm = nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()])
    assert norm <= 1.01e-3 < trainer.metrics["param_grad_norm"]


def test_fit_writes_a_run(tmp_path):
    out = tmp_path / "run"
    with fit.hold(out):
        outcome = fit.fit(Trainer(SMALL), out, log_every=5, tensorboard=True)
    assert outcome.status == "done"
    records = fit.read_metrics(out / fit.METRICS)
    assert [r["step"] for r in records] == [5, 10, 12]
    for name in ("loss_cd", "kl_energy", "entropy", "energy_pos", "energy_neg", "energy_gap"):
        assert all(isinstance(r[name], float) for r in records)
    assert "loss" not in records[0]  # terms only, never a total
    assert list((out / "tensorboard").iterdir())
    config = json.loads((out / "config.json").read_text())
    assert config["seed"] == 5 and config["effective_temperature"] == pytest.approx(1)
    assert config["versions"]["torch"] == torch.__version__
    with pytest.raises(ConfigError, match="already holds a run"), fit.hold(out):
        pass


def test_ctrl_c_saves_and_the_rest_is_the_same(tmp_path, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    fit.fit(Trainer(SMALL), tmp_path / "whole", log_every=1, tensorboard=False)
    handler = signal.getsignal(signal.SIGINT)  # ignored in a shell's background

    step = Trainer.step

    def interrupted(self):
        if self.iteration == 4:
            signal.raise_signal(signal.SIGINT)  # in the middle of step 5
        return step(self)

    monkeypatch.setattr(Trainer, "step", interrupted)
    outcome = fit.fit(Trainer(SMALL), tmp_path / "cut", log_every=1, tensorboard=False)
    monkeypatch.undo()
    assert outcome.status == "interrupted" and "--resume" in outcome.message
    trainer = restore(tmp_path / "cut" / fit.CHECKPOINT)
    assert trainer.iteration == 5
    # as if killed later: records after the checkpoint and a torn line are there
    with (tmp_path / "cut" / fit.METRICS).open("a") as file:
        file.write('{"step": 7}\n{"step": 8, "lo')
    fit.fit(trainer, tmp_path / "cut", log_every=1, tensorboard=False)
    whole, cut = (fit.read_metrics(tmp_path / n / fit.METRICS) for n in ("whole", "cut"))
    assert cut == whole
    assert signal.getsignal(signal.SIGINT) is handler


def test_divergence_is_reported_and_keeps_the_good_checkpoint(tmp_path):
    trainer = Trainer(replace(SMALL, on_divergence="stop"))
    step = trainer.step

    def explode():
        if trainer.iteration == 8:
            with torch.no_grad():
                trainer.model.net[-1].bias += 5000
        return step()

    trainer.step = explode
    outcome = fit.fit(trainer, tmp_path, log_every=3, checkpoint_every=6, tensorboard=False)
    assert outcome.status == "diverged"
    assert "step 9" in outcome.message and "above 2000" in outcome.message
    assert restore(tmp_path / fit.CHECKPOINT).iteration == 6


def test_non_finite_energy_ends_the_run(tmp_path):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = nn.Linear(2, 1), 0

        def forward(self, x):
            self.calls += 1
            return self.net(x) * (math.nan if self.calls > 20 else 1.0)

    config = replace(SMALL, max_rollbacks=2)
    outcome = fit.fit(Trainer(config, model=Broken()), tmp_path, tensorboard=False)
    assert outcome.status == "diverged" and "\n" not in outcome.message
    assert "2 roll-backs did not help" in outcome.message


def test_step_size_warning_only_when_too_large(tmp_path):
    large = replace(SMALL, samples=2000, steps=1, step_size=0.1)
    with pytest.warns(UserWarning, match="step"):
        fit.fit(Trainer(large), tmp_path, tensorboard=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit.fit(Trainer(replace(large, step_size=0.002)), tmp_path, tensorboard=False)


@pytest.mark.filterwarnings("ignore::fastebm.StepSizeWarning")
def test_icd_learns_the_ring_where_cd_explodes():
    common = replace(
        TrainConfig(), data="ring", samples=5000, steps=300, lr=0.01, step_size=0.02, seed=0
    )
    icd = Trainer(common)
    while icd.iteration < common.steps:
        icd.step()
    data = icd.dataset
    modes, on_mode = evaluation.modes_found(icd.sample(500, 200, 1), data.centres, data.std)
    assert modes >= 7 and on_mode > 0.5
    cd = Trainer(replace(common, loss="pcd", lr_schedule="constant"), on_nonfinite="warn")
    while cd.iteration < common.steps:
        cd.step()
    assert Limits().broken(cd.probe())
