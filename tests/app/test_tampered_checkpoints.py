"""Checkpoints that were changed by a hand or a fault: refused in one line before anything is built
of their sizes, and nothing is loaded."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from test_cli import call
from test_training import SMALL, numbers
from torch import Tensor

from fastebm.app import checkpoints
from fastebm.app.checkpoints import LATER, restore
from fastebm.app.config import ConfigError
from fastebm.app.training import Trainer

# How Adam computes: never taken from a file, so whatever stands there changes nothing.
UNREAD = {"foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}


@pytest.fixture(scope="module", params=["icd", "auto"])
def good(request):
    """A trainer with an average and a buffer, after three steps, and its state."""
    adapting = {"k_steps": 5, "loss": "pcd", "auto_batch": True, "trust_region": 0.2}
    adapting |= {"adjusted": True, "adaptive": True, "standardized": True}
    trainer = Trainer(replace(SMALL, ema=0.9, **(adapting if request.param == "auto" else {})))
    numbers(trainer, 3)
    return trainer, copy.deepcopy(trainer.state_dict())


def leaves(node, path=()):
    """Path and value of everything in a state, containers too."""
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, (*path, key))
    if path and path[0] not in ("versions", "config") and UNREAD.isdisjoint(path):
        yield path, node


def changed(state, path, value):
    """The state with another value at a path; `...` removes it."""
    state = node = {**state}
    for key in path[:-1]:
        node[key] = copy.copy(node[key])
        node = node[key]
    node[path[-1]] = value
    if value is ...:
        del node[path[-1]]
    return state


def wrong(value):
    """What must not stand where `value` does."""
    yield from (None, "x", [], {"x": 1}, torch.zeros(2, 7))
    if isinstance(value, dict):
        yield {**value, "unknown": 1}
    elif isinstance(value, list):
        yield [*value, 1]
    elif not isinstance(value, Tensor):
        yield from (math.nan, -1, 2**63 if type(value) is int else math.inf)
    else:
        yield torch.zeros((*value.shape, 2), dtype=value.dtype)
        yield value.to(torch.float64)
        yield torch.empty_like(value, device="meta")
        if value.numel() > 1:  # as large, and one number in the file
            yield value.reshape(-1)[:1].clone().reshape([1] * value.dim()).expand_as(value)
        if value.dim() and value.dtype in (torch.float32, torch.int32):
            yield value.to_sparse()
        if value.is_floating_point():
            broken = value.clone()
            broken.view(-1)[-1] = math.nan
            yield broken


def same(a, b):
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


def test_every_entry_of_another_form_is_refused_and_nothing_is_loaded(good):
    trainer, state = good
    trainer.load_state_dict(state)  # torch's generator is everybody's
    tried = 0
    for path, value in leaves(state):
        may_have_more = path in (("buffer", "_extra_state"), ("optimizer", "param_groups", 0))
        may_lack = path[:2] == ("optimizer", "state") and len(path) == 3  # without a gradient
        may_lack |= path == ("buffer", "_extra_state", "value_range")
        may_lack |= path[-1] in ("adaptation", "batches") and state["adaptation"] is None
        for bad in (*wrong(value), *(() if may_lack else (...,))):
            if isinstance(bad, list | dict | None) and bad == value:  # an empty one
                continue
            if may_have_more and isinstance(bad, dict) and "unknown" in bad:
                continue
            tampered = changed(state, path, bad)
            with pytest.raises(ValueError) as error:  # ConfigError, or the buffer's
                trainer.load_state_dict(tampered)
                pytest.fail(f"{path} took {bad!r}")
            assert "\n" not in str(error.value)
            tried += 1
    assert tried > 400
    now = trainer.state_dict()
    assert [name for name in state if not same(now[name], state[name])] == []


@pytest.mark.parametrize(
    "path, value",
    [
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(1)),  # was a heap overflow
        (("optimizer", "state", 0, "exp_avg_sq"), torch.full((16, 2), -1.0)),
        (("optimizer", "state", 0, "step"), torch.tensor(0.0)),
        (("optimizer", "state", 99), {}),
        (("optimizer", "param_groups", 0, "betas"), (0.9, 0.999)),
        (("optimizer", "param_groups"), []),
        (("iteration",), 4),
        (("iteration",), True),
        (("guard",), [1.0, 1.0]),
        (("guard", 0), 1.5),
        (("guard", 1), 0.0),
        (("ema", "n_averaged"), torch.tensor(2)),
        (("buffer", "stream"), torch.tensor([1, 2**32, 0, 0])),
        (("buffer", "visits"), torch.full((64,), -1, dtype=torch.int32)),
        (("generator",), torch.full((5056,), 255, dtype=torch.uint8)),
        (("cuda_rng",), [torch.zeros(3, dtype=torch.uint8)]),
        (("a new entry",), 1),
    ],
)
def test_values_out_of_range(good, path, value):
    with pytest.raises(ConfigError):
        good[0].load_state_dict(changed(good[1], path, value))


def refused_setting(path, state, name, value):
    settings = {**state["config"], name: value}
    if value is ...:
        del settings[name]
    torch.save({**state, "config": settings}, path)
    with pytest.raises(ValueError) as error:
        restore(path)
        pytest.fail(f"{name} took {value!r}")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_setting_of_another_type_is_refused(good, tmp_path):
    state = good[1]
    for name, value in state["config"].items():
        for bad in (["x"], math.nan, 10**400, torch.zeros(2), {} if name in LATER else ...):
            refused_setting(tmp_path / "c.pt", state, name, bad)
        if not isinstance(value, str):
            assert name in refused_setting(tmp_path / "c.pt", state, name, "a\nb")
    assert "a_new_one" in refused_setting(tmp_path / "c.pt", state, "a_new_one", 1)


@pytest.mark.parametrize(
    "name, value",
    [
        ("hidden", 100_000),  # 40 GB
        ("hidden", 2**31 - 1),
        ("buffer_size", 10**9),
        ("samples", 10**9),
        ("dim", 10**9),
        ("epochs", 10**18),
        ("n_entropy_refs", 10**15),
        ("noise_std", 1e300),
        ("step_size", None),  # a run's settings have what follows from the data
        ("ema", 0.0),
    ],
)
def test_sizes_are_compared_before_anything_is_built(good, tmp_path, monkeypatch, name, value):
    """All but the average, which is as large as the network."""
    if name != "ema":
        monkeypatch.setattr(checkpoints, "Trainer", lambda *_: pytest.fail("built"))
    refused_setting(tmp_path / "c.pt", good[1], name, value)


def test_the_command_line_says_it_in_a_line(good, tmp_path):
    state, path = good[1], tmp_path / "c.pt"
    for change in (
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(1)),
        (("config", "hidden"), "x"),
        (("model",), None),
        (("iteration",), math.nan),
        (("buffer", "_extra_state", "mode"), "fifo"),
    ):
        torch.save(changed(state, *change), path)
        for command in (("sample", path, "--out", tmp_path / "x.npz"), ("train", "--resume", path)):
            result = call(*command)
            assert result.exit_code == 2, result.output
            assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"c.pt"}


@pytest.mark.parametrize("good", ["auto"], indirect=True)
def test_a_batch_that_the_chains_cannot_have_is_refused_before_anything_is_loaded(good):
    trainer, state = good  # 5 steps a chain
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(ConfigError, match="adaptation.batch_rule"):
        trainer.load_state_dict(changed(state, ("adaptation", "batch_rule", "multiple"), 8))
    assert same(trainer.state_dict(), before)
    rounded = changed(state, ("adaptation", "batch_rule", "average"), 1 + 2**-52)
    trainer.load_state_dict(rounded)


@pytest.mark.parametrize("good", ["icd"], indirect=True)
def test_the_first_checkpoints_still_load(good, tmp_path):
    """Their settings have none of `LATER`, they may tell no versions, and their buffer's extra
    state is these two entries."""
    trainer, state = good
    settings = {k: v for k, v in state["config"].items() if k not in LATER}
    old = {**state, "config": settings, "buffer": {**state["buffer"]}}
    del old["versions"]
    extra = state["buffer"]["_extra_state"]
    old["buffer"]["_extra_state"] = {k: extra[k] for k in ("mode", "n_pushed")}
    torch.save(old, tmp_path / "c.pt")
    trainer.load_state_dict(state)
    after = numbers(trainer, 3)
    assert numbers(restore(tmp_path / "c.pt"), 3) == after
