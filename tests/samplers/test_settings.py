"""A sampler's settings: each may be set at any time, and the next call goes by it; copies and
pickles of a sampler follow the model that they hold."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fastebm import RBM, ChainRNG, GibbsSampler, ImprovedContrastiveDivergence, LangevinDynamics
from fastebm.energies import MLPEnergy

WAYS = {
    "eager": {"backend": "eager"},
    "fused": {"backend": "fused"},
    "compiled": {"compile": True},
}


@pytest.fixture
def quick_compile(monkeypatch):
    """All of torch.compile but its slow last stage, code generation."""
    monkeypatch.setattr(torch._inductor, "compile", torch._dynamo.lookup_backend("aot_eager"))


CHANGES = {
    "step_size": 0.02,
    "noise_scale": 0.5,
    "noise_std": 0.3,
    "temperature": lambda k: 2.0 / (k + 1),
    "clamp": (-0.3, 0.4),
    "grad_clip": 0.05,
    "grad_norm_clip": 0.05,
    "noise_first": True,
    "backend": "eager",
    "graph": False,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_setting_that_is_set_is_gone_by(name, backend):
    model, x = MLPEnergy(3, (8, 8)), torch.randn(9, 3)
    set_later = LangevinDynamics(model, 0.1, backend=backend)
    before = set_later.sample(x, 4, seed=0)
    setattr(set_later, name, CHANGES[name])
    made_so = LangevinDynamics(
        model, **({"step_size": 0.1, "backend": backend} | {name: CHANGES[name]})
    )
    result = set_later.sample(x, 4, seed=0)
    assert torch.equal(result, made_so.sample(x, 4, seed=0))
    last = set_later.last_step(x, seed=0)[0]
    assert torch.equal(last, made_so.last_step(x, seed=0)[0])
    if name not in ("backend", "graph"):
        assert not torch.allclose(result, before)


@pytest.mark.parametrize(
    "name, value, match",
    [
        ("step_size", -1.0, "step_size must be finite and > 0, got -1.0"),
        ("noise_scale", "much", "noise_scale must be a number, got str"),
        ("clamp", 1.0, "clamp must be a pair .lo, hi. of numbers or tensors, got 1.0"),
        ("clamp", (1, 0), "clamp must have lo <= hi, got .1, 0."),
        ("grad_clip", 0, "grad_clip must be finite and > 0, got 0"),
        ("noise_first", "no", "noise_first must be one of False, True, got 'no'"),
        ("backend", "nonsense", "backend must be one of auto, eager, fused, got 'nonsense'"),
        ("graph", 1, "graph must be one of auto, True, False, got 1"),
        ("model", 3, "model must be callable, got int"),
    ],
)
def test_a_setting_is_checked_when_it_is_set_and_refused_values_change_nothing(name, value, match):
    sampler = LangevinDynamics(MLPEnergy(2), 0.1, clamp=(-1, 1))
    before = dict(vars(sampler))
    with pytest.raises((ValueError, TypeError), match=match):
        setattr(sampler, name, value)
    assert vars(sampler) == before
    with pytest.raises(AttributeError):
        sampler.options = None


def test_settings_of_gibbs_chains_are_checked_when_they_are_set():
    sampler = GibbsSampler(RBM(4, 3))
    for name, value, match in [
        ("temperature", 0.0, "temperature must be finite and > 0, got 0.0"),
        ("model", nn.Linear(4, 1), "model must have conditional laws to draw from"),
    ]:
        with pytest.raises((ValueError, TypeError), match=match):
            setattr(sampler, name, value)
    sampler.model, sampler.temperature = RBM(4, 3), 2.0
    expected = GibbsSampler(sampler.model, 2.0).sample(n_samples=5, n_steps=3, seed=0)
    assert torch.equal(sampler.sample(n_samples=5, n_steps=3, seed=0), expected)


def test_settings_that_go_against_each_other_are_refused_before_anything_runs():
    calls = []
    sampler = LangevinDynamics(lambda x: calls.append(1) or x.square().sum(1), 0.1)
    sampler.precision = "bf16"
    with pytest.raises(ValueError, match="precision='bf16' needs backend='fused', got 'auto'"):
        sampler.sample(torch.zeros(2, 2), 1)
    sampler.precision, sampler.backend, sampler.compile = "fp32", "fused", True
    with pytest.raises(ValueError, match="backend='fused' has nothing to compile"):
        sampler.sample(torch.zeros(2, 2), 1)
    assert not calls


def save_and_load(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "torch.save": save_and_load,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_a_copy_follows_its_own_model(duplicate, way, quick_compile):
    model, x = MLPEnergy(2, (8,)), torch.randn(5, 2)
    sampler = LangevinDynamics(model, 0.1, clamp=(-2, 2), **WAYS[way])
    before = sampler.sample(x, 3, seed=0)
    other = duplicate(sampler)
    assert torch.equal(other.sample(x, 3, seed=0), before)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(3)
    expected = LangevinDynamics(other.model, 0.1, clamp=(-2, 2), **WAYS[way]).sample(x, 3, seed=0)
    assert torch.equal(other.sample(x, 3, seed=0), expected)
    assert torch.equal(sampler.sample(x, 3, seed=0), before) and not torch.equal(expected, before)


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_a_copied_loss_has_one_model_of_its_own(duplicate):
    model, x = nn.Sequential(nn.Linear(2, 300), nn.SiLU(), nn.Linear(300, 1)), torch.randn(8, 2)
    loss = ImprovedContrastiveDivergence(model, LangevinDynamics(model, 0.1), k_steps=3)
    expected = loss(x, seed=0).loss
    other = duplicate(loss)
    assert other.model is other.sampler.model and other.model is not model
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(other(x, seed=0).loss, expected)
    other(x, seed=0).loss.backward()
    assert model[0].weight.grad is None and other.model[0].weight.grad is not None


@pytest.mark.parametrize("way", WAYS)
def test_another_model_is_followed_from_the_next_call_on(way, quick_compile):
    one, two, x = MLPEnergy(2, (8,)), MLPEnergy(2, (8,)), torch.randn(5, 2)
    sampler = LangevinDynamics(one, 0.1, **WAYS[way])
    sampler.sample(x, 3, seed=0)
    sampler.model = two
    expected = LangevinDynamics(two, 0.1, **WAYS[way])
    assert torch.equal(sampler.sample(x, 3, seed=0), expected.sample(x, 3, seed=0))
    assert torch.equal(sampler.last_step(x, seed=0)[1], expected.last_step(x, seed=0)[1])


def test_an_average_of_weights_is_followed_as_it_moves():
    model, x = MLPEnergy(2, (8,)), torch.randn(5, 2)
    average = AveragedModel(model)
    sampler = LangevinDynamics(average, 0.1)
    sampler.sample(x, 3, seed=0)
    with torch.no_grad():
        model.net[0].weight.mul_(2)
    average.update_parameters(model)
    expected = LangevinDynamics(copy.deepcopy(average.module), 0.1, backend="eager")
    assert torch.equal(sampler.sample(x, 3, seed=0), expected.sample(x, 3, seed=0))


def test_integers_of_numpy_are_integers():
    sampler = LangevinDynamics(MLPEnergy(2, (8,)), np.float32(0.1))
    a = sampler.sample(
        n_samples=np.int64(3), dim=np.int64(2), n_steps=np.int32(2), seed=np.uint8(1)
    )
    assert torch.equal(a, sampler.sample(n_samples=3, dim=2, n_steps=2, seed=1))


@pytest.mark.parametrize("x", [torch.zeros(2, 2), None])
def test_a_stream_near_its_end_is_refused_before_anything_runs(x):
    calls = []
    sampler = LangevinDynamics(lambda x: calls.append(1) or x.square().sum(1), 0.1)
    rng = ChainRNG(0, t=2**32 - 4)
    start = {} if x is not None else {"n_samples": 2, "dim": 2}
    with pytest.raises(ValueError, match="t must be in 0..4294967295: after 4294967292 steps"):
        sampler.sample(x, 5, seed=rng, **start)
    assert not calls and rng.t == 2**32 - 4
    with pytest.raises(ValueError, match="less than 2.32 together, got 1000000000000"):
        sampler.sample(x, 10**12, **start)
    sampler.sample(x, 3, seed=rng, **start)
    assert rng.t == 2**32 - 1


@pytest.mark.parametrize("ids", [[0, -1], [0, 2**56], [0], [0.0, 1.0]])
def test_sample_ids_out_of_range_are_refused_before_anything_runs(ids):
    calls = []
    sampler = LangevinDynamics(lambda x: calls.append(1) or x.square().sum(1), 0.1)
    with pytest.raises(ValueError, match="sample_ids must be"):
        sampler.sample(torch.zeros(2, 2), 3, sample_ids=torch.tensor(ids))
    with pytest.raises(ValueError, match="sample_ids must be"):
        sampler.last_step(torch.zeros(2, 2), sample_ids=torch.tensor(ids))
    assert not calls
