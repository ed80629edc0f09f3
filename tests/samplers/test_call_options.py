"""What one call of ``sample`` may be given: settings of its own, tables of settings, progress."""

import sys

import pytest
import torch
from torch import nn

from fastebm import RBM, ChainRNG, ContrastiveDivergence, GibbsSampler, LangevinDynamics
from fastebm.chains import mlp_chain
from fastebm.samplers import progress as progress_module
from fastebm.samplers.hmc import HMC
from fastebm.samplers.mala import MALA
from fastebm.samplers.parallel_tempering import ParallelTempering

B = 6


def net(dim=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(dim, 8), nn.Tanh(), nn.Linear(8, 1))


def bowl(x):
    return x.square().flatten(1).sum(1) / 2


@pytest.mark.parametrize("kind", [LangevinDynamics, MALA, HMC])
def test_settings_of_one_call(kind):
    x = torch.randn(B, 3)
    own = {"step_size": 0.3, "temperature": 2.0}
    sampler = kind(bowl, 0.1)
    wanted = kind(bowl, 0.3, temperature=2.0).sample(x, 5, seed=1)
    plain = sampler.sample(x, 5, seed=1)
    out, found = sampler.sample(x, 5, seed=1, return_diagnostics=True, **own)
    assert torch.equal(out, wanted) and not torch.equal(out, plain)
    assert torch.equal(sampler.sample(x, 5, seed=1), plain)  # of that call alone
    assert sampler.step_size == 0.1 and sampler.temperature == 1.0
    if kind is not HMC:
        assert found["effective_temperature"] == pytest.approx(2.0)
        quiet = kind(bowl, 0.1, temperature=0.5)
        by_std = LangevinDynamics(bowl, 0.1, noise_std=0.7, adjusted=kind is MALA)
        expected = by_std.sample(x, 5, seed=1)
        assert torch.equal(quiet.sample(x, 5, seed=1, noise_std=0.7), expected)


def test_settings_of_one_call_of_tempered_chains():
    x, ladder = torch.randn(B, 3), (1.0, 2.0)
    out = ParallelTempering(MALA(bowl, 0.1), ladder).sample(x, 4, seed=1, step_size=0.3)
    assert torch.equal(out, ParallelTempering(MALA(bowl, 0.3), ladder).sample(x, 4, seed=1))
    with pytest.raises(TypeError, match="no temperature but those of its ladder"):
        ParallelTempering(MALA(bowl, 0.1), ladder).sample(x, 4, temperature=2.0)


@pytest.mark.parametrize(
    "own, error, said",
    [
        ({"step_size": -1.0}, ValueError, "step_size must be finite and > 0, got -1.0"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, got str"),
        ({"noise_std": torch.ones(B, 1, 1)}, ValueError, r"\(B,\), or \(K, B\) of K steps"),
        ({"step_size": torch.ones(B + 1)}, ValueError, "step_size must hold 1 or B = 6 values"),
        ({"step_size": torch.ones(4, B)}, ValueError, "a row for each of 5 steps, burn_in"),
        ({"temperature": torch.ones(5, 2)}, ValueError, "temperature must hold 1 or B = 6 values"),
        ({"temperature": 1.0, "noise_std": 0.1}, ValueError, "temperature has no effect"),
        ({"step_size": lambda k: torch.ones(2, B)}, TypeError, r"\(0\) must be a number"),
        ({"step_size": lambda k: -torch.ones(B)}, ValueError, r"\(0\) must be finite and > 0"),
        ({"progress": 3}, TypeError, "progress must be a function of"),
    ],
)
@pytest.mark.parametrize("adjusted", [False, True])
def test_wrong_ones_run_nothing(own, error, said, adjusted):
    calls = []

    def model(x):
        calls.append(len(x))
        return bowl(x)

    sampler = LangevinDynamics(model, 0.1, adjusted=adjusted)
    with pytest.raises(error, match=said):
        sampler.sample(torch.randn(B, 3), 3, burn_in=2, **own)
    assert not calls


def test_a_sampler_without_the_setting_says_so():
    with pytest.raises(TypeError, match="HMC has no noise_std"):
        HMC(bowl, 0.1).sample(torch.randn(B, 3), 3, noise_std=0.1)


STEPS = 5


def tables(wide):
    n = B if wide else 1
    step, sigma = (0.05 + 0.2 * torch.rand(STEPS + 1, n) for _ in range(2))
    return step, sigma


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("adjusted", [False, True])
def test_a_row_of_a_table_is_that_of_its_step(wide, backend, adjusted):
    """As a schedule of its rows, and as one call for each step."""
    model, x = net(), torch.randn(B, 3)
    step, sigma = tables(wide)
    make = {"backend": backend, "adjusted": adjusted}
    by_table = LangevinDynamics(model, step, noise_std=sigma, **make)
    out, path = (by_table.sample(x, STEPS, seed=1, return_trajectory=t) for t in (False, True))
    assert torch.equal(path[:, -1], out)
    by_schedule = LangevinDynamics(model, lambda k: step[k], noise_std=lambda k: sigma[k], **make)
    assert torch.equal(by_schedule.sample(x, STEPS, seed=1), out)
    burnt = by_table.sample(x, STEPS - 2, burn_in=2, seed=1)
    assert torch.equal(burnt, out)  # counted with burn_in
    for k in range(STEPS):
        numbers = [v[k] if wide else v[k].item() for v in (step, sigma)]
        one = LangevinDynamics(model, numbers[0], noise_std=numbers[1], **make)
        at = one.sample(x if k == 0 else path[:, k - 1], 1, seed=ChainRNG(1, k))
        torch.testing.assert_close(at, path[:, k], rtol=1e-5, atol=1e-6)


def test_tables_of_temperature_and_noise_scale():
    x = torch.randn(B, 3)
    temperature, scale = torch.rand(4, B) + 0.5, torch.rand(4, 1) + 0.5
    sampler = LangevinDynamics(bowl, 0.1, noise_scale=scale, temperature=temperature)
    sigma = scale * (2 * temperature * 0.1).sqrt()
    wanted = LangevinDynamics(bowl, 0.1, noise_std=sigma).sample(x, 4, seed=1)
    torch.testing.assert_close(sampler.sample(x, 4, seed=1), wanted)


def test_a_schedule_of_numbers_and_tensors_in_turn():
    model, x = net(), torch.randn(B, 3)
    step = torch.rand(4, B) / 5 + 0.05
    step[1::2] = 0.1
    outs = [
        LangevinDynamics(model, s, noise_std=0.1, backend=backend).sample(x, 4, seed=1)
        for s in (step, lambda k: 0.1 if k % 2 else step[k])
        for backend in ("eager", "fused")
    ]
    for other in outs[1:]:
        torch.testing.assert_close(other, outs[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(outs[0], outs[2]) and torch.equal(outs[1], outs[3])


def test_last_steps_and_losses_go_by_the_row_of_their_step():
    model, x = net(), torch.randn(B, 3)
    step, sigma = tables(True)
    sampler = LangevinDynamics(model, step, noise_std=sigma, backend="eager")
    after, _ = sampler.last_step(x, 3, seed=1)
    one = LangevinDynamics(model, step[3], noise_std=sigma[3], backend="eager")
    assert torch.equal(after, one.last_step(x, seed=1)[0])
    losses = [
        ContrastiveDivergence(
            model, LangevinDynamics(model, step, noise_std=sigma, backend=way), STEPS
        )(x, seed=1)
        for way in ("auto", "eager")
    ]
    torch.testing.assert_close(losses[0].x_neg, losses[1].x_neg, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="a row for each step, got 6 and step 6"):
        sampler.last_step(x, 6, seed=1)


def recorded(monkeypatch, every=0.0):
    seen = []
    monkeypatch.setattr(progress_module, "EVERY", every)
    return seen, lambda step, total: seen.append((step, total))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LangevinDynamics(net(), 0.1, backend="eager"),
        lambda: LangevinDynamics(net(), 0.1, backend="fused"),
        lambda: MALA(net(), 0.1),
        lambda: HMC(net(), 0.1, n_leapfrog=2),
        lambda: ParallelTempering(MALA(net(), 0.1), (1.0, 2.0)),
    ],
    ids=["eager", "fused", "mala", "hmc", "tempering"],
)
def test_progress_changes_nothing_and_ends_at_the_end(make, monkeypatch):
    x, (seen, tell) = torch.randn(B, 3), recorded(monkeypatch)
    out = make().sample(x, 50, burn_in=13, seed=1, progress=tell)
    assert torch.equal(out, make().sample(x, 50, burn_in=13, seed=1))
    steps = [step for step, _ in seen]
    assert steps == sorted(set(steps)) and steps[-1] == 63 and {t for _, t in seen} == {63}


def test_progress_of_fused_chains_is_told_after_each_call(monkeypatch):
    monkeypatch.setattr(mlp_chain, "steps_of_a_call", lambda network, x: 25)
    seen, tell = recorded(monkeypatch)
    LangevinDynamics(net(), 0.1, backend="fused").sample(torch.randn(B, 3), 60, progress=tell)
    assert [step for step, _ in seen] == [25, 50, 60]


def test_progress_is_told_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    seen = []

    def model(x):
        now[0] += 0.03
        return bowl(x)

    tell = lambda step, total: seen.append(step)  # noqa: E731
    LangevinDynamics(model, 0.1).sample(torch.randn(B, 3), 12, progress=tell)
    assert seen == [1, 5, 9, 12]  # each 0.12 s after the last


def test_gibbs_chains_tell_too(monkeypatch):
    seen, tell = recorded(monkeypatch)
    GibbsSampler(RBM(4, 3)).sample(n_samples=B, n_steps=5, burn_in=2, progress=tell)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6, 7]


def test_a_bar_needs_rich(monkeypatch):
    sampler, x = LangevinDynamics(bowl, 0.1), torch.randn(B, 3)
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match="progress=True needs rich"):
        sampler.sample(x, 3, progress=True)


def test_a_bar_of_riches(capsys):
    pytest.importorskip("rich")
    sampler, x = LangevinDynamics(bowl, 0.1), torch.randn(B, 3)
    assert torch.equal(sampler.sample(x, 3, seed=1, progress=True), sampler.sample(x, 3, seed=1))
