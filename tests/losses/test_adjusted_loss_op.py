"""The operator of contrastive divergence by adjusted chains: against the same step by step, the
laws of its adaptation, and its errors."""

import copy
import math

import pytest
import torch

from fastebm import (
    AdaptiveStep,
    ChainRNG,
    ContrastiveDivergence,
    LangevinDynamics,
    PersistentContrastiveDivergence,
    ReplayBuffer,
    Standardized,
)
from fastebm.energies import MLPEnergy
from fastebm.losses import contrastive, mlp_loss
from fastebm.ops import library

BOX = (-4.0, 4.0)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def operator(monkeypatch):
    """Counts the losses that it computed."""
    calls, real = [], mlp_loss.mlp_adjusted_contrastive_divergence

    def spy(*args, **options):
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(mlp_loss, "mlp_adjusted_contrastive_divergence", spy)
    return calls


def pcd(dim=2, units=False, step_size=0.2, clamp=BOX, shape=None, capacity=300, **options):
    torch.manual_seed(0)
    model = MLPEnergy(math.prod(shape or (dim,)), (17, 9), "tanh")
    if units:
        model = Standardized(model, 2 * normal(50, *(shape or (dim,))) + 1)
    names = ("noise_std", "noise_scale", "temperature", "backend")
    of_sampler = {name: options.pop(name) for name in names if name in options}
    sampler = LangevinDynamics(model, step_size, adjusted=True, clamp=clamp, **of_sampler)
    buffer = ReplayBuffer(capacity, shape or dim, 0.1, value_range=(-2.5, 2.5), seed=3)
    settings = {"k_steps": 10, "jumps": 2, "energy_reg_weight": 0.01} | options
    return PersistentContrastiveDivergence(model, sampler, buffer, **settings)


CASES = {
    "plain": {},
    "no jumps, no squares": {"jumps": 0, "energy_reg_weight": 0.0},
    "jumps alone": {"jumps": 10},
    "no box": {"clamp": None},
    "one face": {"clamp": (None, 1.0)},
    "standard units": {"units": True},
    "standard units, no box": {"units": True, "clamp": None},
    "images": {"shape": (2, 3)},
    "many elements": {"dim": 30, "units": True},
    "a small population": {"capacity": 60},
    "several times": {"n_chains": 15, "k_steps": 16},
    "several times, as many as steps": {"n_chains": 6, "k_steps": 10},
    "adapted": {"step_size": AdaptiveStep(0.3, largest=0.5)},
    "adapted, several rounds": {"step_size": AdaptiveStep(3.0), "k_steps": 50, "jumps": 7},
    "adapted, units, several times": {
        **{"step_size": AdaptiveStep(0.01), "units": True, "k_steps": 47, "jumps": 9},
        **{"n_chains": 15},
    },
    "adapted, noise of its own": {"step_size": AdaptiveStep(0.1), "noise_std": 0.5},
    "scaled noise": {"step_size": AdaptiveStep(0.1), "noise_scale": 0.7, "temperature": 0.5},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_it_is_what_the_parts_do(options, operator, monkeypatch):
    data = normal(60, *(options.get("shape") or (options.get("dim", 2),)))
    of_parts = pcd(**copy.deepcopy(options))
    in_one = pcd(**copy.deepcopy(options))
    outs, rngs = [], (ChainRNG(5, 3), ChainRNG(5, 3))
    for criterion, rng in zip((in_one, of_parts), rngs, strict=True):
        criterion.model.zero_grad()
        criterion(data, seed=rng).loss.backward()  # twice, so that states are carried over
        outs.append(criterion(data, seed=rng))
        outs[-1].loss.backward()
        monkeypatch.setattr(contrastive, "points_by_formulas", lambda *_: None)
    assert len(operator) == 2 and rngs[0].t == rngs[1].t
    a, b = outs
    if options.get("units"):
        tolerance = {"rtol": 1e-3, "atol": 1e-3}
        alike = torch.isclose(a.x_neg, b.x_neg, **tolerance).flatten(1).all(1).double().mean()
        assert alike >= 0.95  # chains in which no decision was a tie of roundings
        of_means = {"rtol": 0.1, "atol": 0.1}
    else:
        assert torch.equal(a.x_neg, b.x_neg)
        of_means = {"rtol": 1e-4, "atol": 1e-5}
    assert a.metrics.keys() == b.metrics.keys() - {"clamp_share"}
    for name, value in a.metrics.items():
        value, wanted = (torch.as_tensor(v).double() for v in (value, b.metrics[name]))
        torch.testing.assert_close(value, wanted, **of_means, msg=lambda m, name=name: name + m)
    torch.testing.assert_close(a.loss, b.loss, **of_means)
    for p, q in zip(in_one.model.parameters(), of_parts.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, **of_means)
    for (name, one), other in zip(
        in_one.state_dict().items(), of_parts.state_dict().values(), strict=True
    ):
        if isinstance(one, torch.Tensor) and one.dtype == torch.float64:  # the step
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12, msg=name)


def test_without_a_population_and_from_the_data(operator):
    data, model = normal(50, 3), MLPEnergy(3, (8,))
    sampler = LangevinDynamics(model, 0.2, adjusted=True)
    out = ContrastiveDivergence(model, sampler, k_steps=5)(data, seed=1)
    assert len(operator) == 1 and torch.equal(out.x_neg, sampler.sample(data, 5, seed=1))


OTHER_WAYS = {
    "a schedule": {"noise_scale": lambda k: 1.0},
    "a step for each chain": {"step_size": torch.full((60,), 0.1)},
    "step by step": {"backend": "eager"},
}


@pytest.mark.parametrize("options", OTHER_WAYS.values(), ids=OTHER_WAYS)
def test_what_it_leaves_to_others(options, operator):
    assert pcd(**options)(normal(60, 2), seed=1).loss.isfinite() and not operator


def test_units_of_other_types_and_views(operator):
    data, wanted = normal(60, 2, 3), pcd(shape=(2, 3), units=True)
    mean, std = wanted.model.mean, wanted.model.std
    out = wanted(data, seed=1)
    for change in (lambda t: t.double(), lambda t: t.T.contiguous().T):
        criterion = pcd(shape=(2, 3), units=True)
        criterion.model.mean, criterion.model.std = change(mean), change(std)
        assert torch.equal(criterion(data, seed=1).x_neg, out.x_neg)
    assert len(operator) == 3


def test_units_of_a_subclass_are_its_own_affair(operator):
    class Doubled(Standardized):
        def standardize(self, x):
            return 2 * super().standardize(x)

        def restore(self, z):
            return super().restore(z / 2)

    criterion = pcd(clamp=None)
    model = Doubled(criterion.model, normal(50, 2))
    criterion.model = criterion.sampler.model = model
    criterion(normal(60, 2), seed=1)
    assert not operator


def test_a_frozen_step_stays(operator):
    step = AdaptiveStep(0.3)
    step.frozen = True
    out = pcd(step_size=step)(normal(60, 2), seed=1)
    assert len(operator) == 1 and float(step) == pytest.approx(0.3, rel=1e-15)
    assert out.metrics["step_size"] == float(step)


def test_no_noise_is_refused_as_ever(operator):
    for options in ({"noise_std": 0.0}, {"temperature": 0.0}, {"noise_scale": 0.0}):
        with pytest.raises(ValueError, match="adjusted=True needs noise"):
            pcd(**options)(normal(60, 2), seed=1)
    assert not operator


def test_long_chains_and_large_populations_are_cut_into_calls(operator, monkeypatch):
    out = pcd()(normal(60, 2), seed=1)
    for name, value in (("steps_of_a_call", 9), ("queries_of_a_call", 15)):
        with monkeypatch.context() as patch:
            patch.setattr(mlp_loss, name, lambda *_, value=value: value)
            cut = pcd()(normal(60, 2), seed=1)
        assert len(operator) == 1 and torch.equal(out.x_neg, cut.x_neg)


def arguments(**changed):
    torch.manual_seed(0)
    names = {
        "x": torch.randn(12, 3),
        "start": torch.randn(6, 3),
        "weights": [torch.randn(4, 3), torch.randn(1, 4)],
        "biases": [torch.randn(4), None],
        "activation": 0,
        "beta": 1.0,
        "threshold": 20.0,
        **dict.fromkeys(("base_precision", "base_mean", "row_bias", "data_row_bias")),
        "n_steps": 5,
        "step_size": 0.1,
        "noise_std": None,
        "noise_scale": 1.0,
        "temperature": 1.0,
        "log_step": -1.0,
        "target_acceptance": 0.7,
        "gain": 0.05,
        "least": -9.0,
        "largest": 0.0,
        "round": 2,
        "rng": ChainRNG(1).state(),
        "lo": -3.0,
        "hi": 3.0,
        "n_jumps": 2,
        "population": torch.randn(40, 3),
        "n_centres": 16,
        "n_neighbors": 2,
        "uniform_share": 0.1,
        "mean": torch.zeros(3),
        "std": torch.ones(3),
        "energy_reg_weight": 0.1,
    }
    assert changed.keys() <= names.keys()
    return tuple((names | changed).values())


def test_opcheck():
    op = library.op.mlp_adjusted_contrastive_divergence.default
    torch.library.opcheck(op, arguments())
    plain = {"log_step": None, "n_jumps": 0, "population": None, "mean": None, "std": None}
    torch.library.opcheck(op, arguments(**plain, lo=None, hi=None, noise_std=0.3))
    rows = {"row_bias": torch.randn(6, 4), "data_row_bias": torch.randn(12, 4)}
    torch.library.opcheck(op, arguments(**rows, base_precision=torch.ones(3)))


def test_errors():
    def fails(match, **changed):
        with pytest.raises(RuntimeError, match=match):
            library.op.mlp_adjusted_contrastive_divergence.default(*arguments(**changed))

    fails("x must be float32, got Double", x=torch.randn(12, 3).double())
    fails("start must be float32, got Double", start=torch.randn(6, 3).double())
    fails(r"x and start must be \(m n, \*event\) and \(n, \*event\)", start=torch.randn(6, 2))
    fails(r"x and start must be", x=torch.randn(0, 3))
    fails("x must hold 1..5 times as many samples as start, 5, got 12", start=torch.randn(5, 3))
    fails("x must hold 1..1 times", n_steps=1, n_jumps=0)
    fails("x must hold", n_steps=-1)
    fails("round must be >= 1, got 0", round=0)
    fails("n_jumps must be in 0..5, got 6", n_jumps=6)
    fails("step_size must be >= 0, got -0.1", log_step=None, step_size=-0.1)
    fails("noise must be finite and > 0, also in float32, got 0", noise_std=0.0)
    fails("noise must be finite and > 0, also in float32, got nan", temperature=-1.0)
    fails("mean and std must be given together", std=None)
    fails("std must have the shape of a sample", std=torch.ones(2))
    fails(r"population must be \(P, \*event\), P >= 2, for jumps", population=None)
    fails("population must be float32, got Double", population=torch.randn(40, 3).double())
    rows = torch.randn(12, 4)
    fails("row_bias and data_row_bias must be given together", data_row_bias=rows)
    fails(r"row_bias must have shape \(6, 4\)", data_row_bias=rows, row_bias=rows)
    fails("base_mean needs base_precision", base_mean=torch.zeros(3))
    fails("n_centres must be in 2..40, got 41", n_centres=41)
    fails("k must be in 1..16, got 17", n_neighbors=17)
    fails("uniform_share must be 0 without lo and hi", lo=None, hi=None)
    fails("rng must be an int64 tensor of 4 values", rng=torch.zeros(3))
    fails(r"weights\[0\] must have shape", weights=[torch.randn(4, 2), torch.randn(1, 4)])
