"""What a model holds is seen: every kind of value, where it is, and what cannot be watched."""

import copy
import logging
import threading

import numpy as np
import pytest
import torch
from held_values import KINDS, SCALE, energy
from torch import nn

import fastebm
from fastebm.chains import snapshot
from fastebm.chains.snapshot import Snapshot
from fastebm.energies import ConvEnergy, MLPEnergy, MultiScaleEnergy, ResNetEnergy

CPU = torch.device("cpu")


def look(thing, device=CPU):
    return Snapshot(device, model=thing)


@pytest.fixture(autouse=True)
def same_globals(monkeypatch):
    monkeypatch.setattr("held_values.SCALE", SCALE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_is_seen_and_nothing_else_is(kind):
    model, change = KINDS[kind]()
    before, again = look(model), look(model)
    assert before.unseen is None and before.key == again.key and hash(before.key) == hash(again.key)
    assert again.difference(before) is None
    model(torch.ones(2, 3)).sum()  # a call is no change
    assert look(model).key == before.key
    change(model)
    after = look(model)
    assert after.key != before.key and after.difference(before).startswith("model")


def test_the_message_says_where_and_what():
    model = nn.Sequential(nn.Linear(2, 2), energy(lambda s: s.v["b"].get("x"), v={"b": {"x": 1.5}}))
    before = look(model)
    model[1].v["b"]["x"] = 2.5
    assert look(model).difference(before) == "model.1.v['b']['x']: 1.5 -> 2.5"
    before = look(model)
    model[1].v["c"] = 1
    assert look(model).difference(before) == "model.1.v key 1"
    before = look(model)
    model[0].weight = nn.Parameter(torch.ones(2, 2))
    assert look(model).difference(before) == "model.0.weight"


@pytest.mark.parametrize(
    "values",
    [(1, 1.0, True), (0.0, -0.0), ((1, 2), [1, 2]), ((1,), (1.0,), (True,)), (0, None, "", ())],
)
def test_equal_is_not_the_same(values):
    assert len({look(v).key for v in values}) == len(values)
    assert look(float("nan")).key == look(float("nan")).key


def test_tensors_count_by_place_here_and_by_value_elsewhere():
    model = energy(lambda s: s.v, v=torch.ones(3))
    here, there = look(model), look(model, torch.device("meta"))
    assert [t is model.v for t in here.tensors] == [True] and not there.tensors
    model.v.mul_(2)
    assert look(model).key == here.key  # a replay reads the memory
    assert look(model, torch.device("meta")).key != there.key  # torch bakes the number in
    for other in (model.v.double(), model.v[None], model.v.clone(), model.v.requires_grad_()):
        model.v = other
        assert look(model).key != here.key
        here = look(model)
    model.v = torch.ones(1 << 18)
    assert "bytes" in look(model, torch.device("meta")).unseen


class Cell:
    pass


def test_cycles_and_shared_parts():
    a, b = Cell(), Cell()
    a.other, b.other = b, a
    model = energy(lambda s: 1.0, a=a, b=b)
    before = look(model)
    assert before.key == look(model).key and before.unseen is None
    b.other = b
    assert look(model).key != before.key
    shared, twins = [1.0], ([1.0], [1.0])
    assert look((shared, shared)).key != look(twins).key


def test_a_copy_that_holds_other_tensors_is_another():
    model = MLPEnergy(2)
    assert look(copy.deepcopy(model)).key != look(model).key


@pytest.mark.parametrize(
    "held",
    [
        iter([1, 2]),
        (i for i in range(3)),
        torch.Generator(),
        np.random.default_rng(),
        open,  # a function of the interpreter's: fine
        torch.sparse_coo_tensor(torch.zeros(1, 1).long(), torch.ones(1), (2,)),
        torch.ones(2, device="meta"),
        np.ones(1 << 18),
        torch.jit.script(nn.Linear(2, 2)),
        [0] * (snapshot.MAX_VALUES + 1),
    ],
    ids=lambda held: type(held).__name__,
)
def test_what_cannot_be_watched_is_named(held):
    found = look(energy(lambda s: 1.0, held=[held])).unseen
    assert (found is None) if held is open else found.startswith("model.held[0]")


def test_too_deep():
    deep = []
    for _ in range(10_000):
        deep = [deep]
    assert "nested too deeply" in look(deep).unseen


def test_what_changes_no_result_is_left_alone():
    model = MLPEnergy(2)
    before = look(model)
    model.log, model.lock = logging.getLogger("x"), threading.Lock()
    state = look(model)
    assert state.unseen is None and len(state.key) == len(before.key)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    assert look(model).key == state.key


def test_compiled_modules_count_as_what_they_are_made_of():
    model = energy(lambda s: s.v, v=1.0)
    compiled = torch.compile(model, backend="eager")
    before = look(compiled)
    compiled(torch.ones(2, 3))
    assert look(compiled).key == before.key and before.unseen is None
    model.v = 2.0
    assert look(compiled).difference(before) == "model.v: 1.0 -> 2.0"


@pytest.mark.parametrize(
    "model",
    [
        *(lambda: MLPEnergy(2), lambda: ConvEnergy((1, 28, 28)), lambda: ResNetEnergy((3, 32, 32))),
        lambda: MultiScaleEnergy([MLPEnergy(4), MLPEnergy(2)], (1, 2)),
        lambda: fastebm.RBM(4, 3),
        lambda: MLPEnergy(2) + 0.5 * MLPEnergy(2),
        lambda: fastebm.EnergyFromLogProb(
            torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        ),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 1))),
        lambda: nn.utils.spectral_norm(nn.Linear(2, 1)),
        lambda: nn.TransformerEncoderLayer(4, 2),
    ],
)
def test_usual_models_can_be_watched(model):
    model = model()
    before = look(model)
    assert before.unseen is None and look(model).key == before.key and len(before.tensors) > 1


def test_a_snapshot_keeps_no_model_alive():
    import gc
    import weakref

    model = MLPEnergy(2)
    model.hook = model.forward  # a cycle
    key, dead = look(model).key, weakref.ref(model)
    del model
    gc.collect()
    assert dead() is None and key
