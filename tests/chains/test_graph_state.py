"""A graph bakes in what Python holds: a model that changed gives the new result, whichever way its
chains run. With a capture that does bake numbers in (recorded_capture.py)."""

import gc
import warnings
import weakref

import pytest
import torch
from held_values import KINDS, SCALE, energy
from recorded_capture import RecordedCaptures
from torch import nn

from fastebm import GraphWarning, LangevinDynamics, TemperedEnergy
from fastebm.chains import chain
from fastebm.chains.graph import ChainGraphs

WAYS = {
    "graph": {"graph": True},
    "compiled": {"graph": False, "compile": True},
    "compiled, graph": {"graph": True, "compile": True},
}
NOT_COMPILED = {"array": "torch.compile raises an error of its own"}
if torch.__version__ < "2.12":
    NOT_COMPILED["default argument"] = "taken for constant by torch.compile"


@pytest.fixture
def captures(monkeypatch):
    runtime = RecordedCaptures()
    runtime.graphs = ChainGraphs(runtime, ("cpu",))
    monkeypatch.setattr(chain, "GRAPHS", runtime.graphs)
    monkeypatch.setattr("held_values.SCALE", SCALE)
    # All of torch.compile but its slow last stage, code generation.
    monkeypatch.setattr(torch._inductor, "compile", torch._dynamo.lookup_backend("aot_eager"))
    return runtime


def ends(model, x, n=3, **options):
    """Of chains of one sampler, in turn."""
    sampler = LangevinDynamics(model, 0.05, **options)
    return [sampler.sample(x, 4, seed=1) for _ in range(n)]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_value_gives_the_new_result(captures, kind, way):
    if kind in NOT_COMPILED and way.get("compile"):
        pytest.skip(NOT_COMPILED[kind])
    (model, put), x = KINDS[kind](), torch.randn(5, 3)
    sampler, plain = (LangevinDynamics(model, 0.05, **o) for o in (way, {"graph": False}))
    before = plain.sample(x, 4, seed=1)
    for _ in range(3):
        torch.testing.assert_close(sampler.sample(x, 4, seed=1), before)
    assert (captures.replayed > 0) == way["graph"]
    put(model)
    after = plain.sample(x, 4, seed=1)
    assert not torch.allclose(after, before)
    for _ in range(3):
        torch.testing.assert_close(sampler.sample(x, 4, seed=1), after)


@pytest.mark.parametrize("kind", ["number", "list of tensors", "nested object"])
def test_auto_goes_on_with_graphs_after_a_change(captures, kind):
    (model, put), x = KINDS[kind](), torch.randn(5, 3)
    ends(model, x)
    assert (captures.captured, captures.replayed) == (1, 2)
    put(model)
    new = ends(model, x)
    assert (captures.captured, captures.replayed) == (2, 4)
    assert all(torch.equal(end, ends(model, x, 1, graph=False)[0]) for end in new)


def test_the_documented_temperature(captures):
    model, x = TemperedEnergy(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), 1.0), None
    x = torch.randn(5, 3)
    results = {}
    for t in (1.0, 10.0, 1.0, 10.0, 1.0, 10.0):
        model.temperature = t
        end = ends(model, x, 1)[0]
        assert torch.equal(end, ends(model, x, 1, graph=False)[0])
        results.setdefault(t, end)
    assert captures.captured == 2 and captures.replayed == 4  # one of each when it was captured
    assert not torch.allclose(results[1.0], results[10.0])


def test_softplus_in_the_fused_chain():
    net, x = nn.Sequential(nn.Linear(3, 8), nn.Softplus(), nn.Linear(8, 1)), torch.randn(5, 3)
    before = ends(net, x, 1, backend="fused")[0]
    net[1].beta = 5.0
    after = ends(net, x, 1, backend="fused")[0]
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, ends(net, x, 1, backend="eager", graph=False)[0])


def test_tensors_changed_in_place_need_no_new_graph(captures):
    model, x = energy(lambda s: s.v[0] * s.v[1], v=[torch.tensor(1.0), torch.tensor(1.0)]), None
    x = torch.randn(5, 3)
    ends(model, x)
    model.v[1].mul_(3)
    assert torch.equal(ends(model, x, 1)[0], ends(model, x, 1, graph=False)[0])
    assert captures.captured == 1


def test_tensors_that_a_graph_reads_are_kept(captures):
    model, x = energy(lambda s: s.v, v=torch.tensor(1.0)), torch.randn(5, 3)
    place = model.v.data_ptr()
    ends(model, x)
    model.v = torch.tensor(3.0)
    (graph,) = captures.graphs.graphs
    assert place in [t.data_ptr() for t in graph.read] and model.v.data_ptr() != place
    ends(model, x)
    model.v = graph.read[[t.data_ptr() for t in graph.read].index(place)]  # the old one again
    assert torch.equal(ends(model, x, 1)[0], ends(model, x, 1, graph=False)[0])
    assert captures.captured == 2


def test_equal_numbers_of_other_types(captures):
    class Power(nn.Module):
        def forward(self, x, power):
            return (x.abs() ** power if isinstance(power, int) else x).sum(1)

    model, x = Power(), torch.randn(5, 3)
    for power in (1, 1.0, True, 1):
        kwargs = {"power": power}
        sampler, plain = (LangevinDynamics(model, 0.05, graph=g) for g in (True, False))
        ours = sampler.sample(x, 4, seed=1, model_kwargs=kwargs)
        assert torch.equal(ours, plain.sample(x, 4, seed=1, model_kwargs=kwargs))
    assert captures.captured == 3


def test_what_cannot_be_watched_opts_out_with_one_reason(captures):
    model, x = energy(lambda s: 1.0, source=iter([1])), torch.randn(5, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ends(model, x, 4)
    (warning,) = [w for w in caught if w.category is GraphWarning]
    assert "model.source is a list_iterator, which cannot be watched" in str(warning.message)
    with pytest.raises(RuntimeError, match="graph=True: .*model.source"):
        ends(model, x, 1, graph=True)
    assert captures.captured == 0


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.calls * x.square().sum(1)


def test_a_model_that_counts_its_calls_is_no_graph(captures):
    model, x = Counts(), torch.randn(5, 3)
    with pytest.warns(GraphWarning, match="changes as it runs, model.calls: 4 -> 8") as caught:
        ours = ends(model, x, 4)
    assert caught[0].filename == __file__  # in the name of who called
    model.calls = 0
    assert len(caught) == 1 and all(map(torch.equal, ours, ends(model, x, 4, graph=False)))
    with pytest.raises(RuntimeError, match="changes as it runs"):
        ends(model, x, 1, graph=True)


def test_what_the_first_call_sets_up_is_no_obstacle(captures):
    class Lazy(nn.Module):
        weight = None

        def forward(self, x):
            if self.weight is None:
                self.weight = torch.full_like(x[0], 2.0)
            return (self.weight * x.square()).sum(1)

    x, model = torch.randn(5, 3), Lazy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ends(model, x)
    assert captures.captured == 1


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.weight_norm])
def test_weights_that_a_hook_replaces_are_no_obstacle(captures, norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model, x = nn.Sequential(norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1)), None
    x = torch.randn(5, 3)
    for _ in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            end = ends(model, x, 1)[0]
        assert torch.equal(end, ends(model, x, 1, graph=False)[0])
        model(x).sum().backward()  # replaces them as well
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5)
    assert captures.captured == 1 and captures.replayed == 3


def test_a_state_that_is_read_before_it_is_replaced(captures):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.h = torch.ones(3)

        def forward(self, x):
            e = (self.h * x.square()).sum(1)
            self.h = self.h * 1.5
            return e

    x, model = torch.randn(5, 3), Recurrent()
    with pytest.warns(GraphWarning, match="steps of its replay differ"):
        ours = ends(model, x, 4)
    model.h = torch.ones(3)
    other = ends(model, x, 1, graph=False)[0]
    assert torch.equal(ours[0], other) and not torch.equal(ours[1], other)


def test_a_model_that_is_another_one_each_time_is_told_once(captures):
    model, x = energy(lambda s: s.v, v=0.0), torch.randn(5, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in range(40):
            model.v = 1.0 + call
            ends(model, x, 1)
    (warning,) = [w for w in caught if w.category is GraphWarning]
    assert "another one in each call, model.v: 7.0 -> 8.0" in str(warning.message)


def test_a_sampler_made_anew_for_each_call_has_graphs(captures):
    model, x = energy(lambda s: 1.0), torch.randn(5, 3)
    for _ in range(4):
        ends(model, x, 1)
    assert (captures.captured, captures.replayed) == (1, 3)


@pytest.mark.parametrize("calls", [1, 3])
def test_models_and_their_graphs_die_together(captures, calls):
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(), None
    model[0].weight.register_hook(lambda grad, model=model: grad)  # a tensor that knows its model
    x = torch.randn(5, 3, dtype=torch.float64)
    ends(model, x, calls)
    assert len(captures.graphs.graphs) == (calls > 1)
    dead = weakref.ref(model)
    del model
    gc.collect()
    assert dead() is None and not captures.graphs.graphs and not captures.graphs._models


def test_modes_of_torch_are_no_graph(captures):
    from torch.overrides import TorchFunctionMode

    class Doubles(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            return 2 * out if func is torch.Tensor.square else out

    model, x = energy(lambda s: 1.0), torch.randn(5, 3)
    before = ends(model, x)[-1]
    with Doubles():
        assert not torch.allclose(ends(model, x)[-1], before)
    assert captures.captured == 1
    replayed = captures.replayed
    with torch.device("cpu"):  # a default device is a mode too, whose meaning is known
        ends(model, x)
    assert (captures.captured, captures.replayed) == (1, replayed + 3)


def test_another_model_of_the_sampler(captures):
    one, two = (energy(lambda s: s.v, v=v) for v in (1.0, 3.0))
    x = torch.randn(5, 3)
    for compile in (False, True):
        sampler = LangevinDynamics(one, 0.05, compile=compile)
        for _ in range(3):
            sampler.sample(x, 4, seed=1)
        sampler.model = two
        expected = ends(two, x, 1, graph=False)[0]
        for _ in range(3):
            torch.testing.assert_close(sampler.sample(x, 4, seed=1), expected)
