"""Chains as CUDA graphs: policy, keys and programs on a CPU with a capture that only repeats the
body; what a real capture does is tested on a GPU, in test_capture.py."""

import math
import re
import time
import warnings
from pathlib import Path

import pytest
import torch
from counted_captures import Captures, mlp
from torch import nn

from fastebm import Augmentation, GraphWarning, LangevinDynamics, clear_graphs
from fastebm.chains import chain
from fastebm.chains.graph import UNROLL, ChainGraphs, segments
from fastebm.rng import ChainRNG, DeviceRNG


@pytest.fixture
def captures(monkeypatch):
    fake = Captures()
    graphs = ChainGraphs(fake, ("cpu",), max_graphs=3)
    monkeypatch.setattr(chain, "GRAPHS", graphs)
    fake.graphs = graphs
    return fake


def eager(sampler_of, *args, **kwargs):
    return sampler_of(graph=False).sample(*args, **kwargs)


def test_segments():
    assert segments(0) == [] and segments(5) == [5] and segments(UNROLL) == [UNROLL]
    assert segments(2 * UNROLL + 3) == [UNROLL, UNROLL, 3]


STEPS = torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64)


@pytest.mark.parametrize("n_steps", [1, UNROLL, 2 * UNROLL + 3])
@pytest.mark.parametrize(
    "options",
    [
        {"step_size": 0.1},
        {"step_size": 0.1, "noise_first": True, "clamp": (-1, 1), "grad_clip": 0.3},
        {"step_size": 0.1, "noise_std": 0.0, "grad_norm_clip": 0.2},
        {"step_size": lambda k: 0.3 / (k + 1)},
        {"step_size": lambda k: 0.3 / (k + 1), "noise_std": torch.tensor(0.1).double()},
        {"step_size": STEPS, "noise_std": lambda k: 0.1 * (k % 2)},
    ],
)
def test_replays_are_the_eager_chain_bit_for_bit(captures, options, n_steps):
    model = mlp()
    sampler = LangevinDynamics(model, **options)
    plain = LangevinDynamics(model, **options, graph=False)
    x, ids = torch.randn(3, 2, dtype=torch.float64), torch.tensor([7, 1, 4])
    rng, other = ChainRNG(5, 3), ChainRNG(5, 3)
    for call in range(5):
        x = x + 0.1
        arguments = {"sample_ids": ids + call}
        out = sampler.sample(x, n_steps, seed=rng, **arguments)
        assert torch.equal(out, plain.sample(x, n_steps, seed=other, **arguments))
        with torch.no_grad():
            model[0].weight += 0.1  # in place, as an optimiser does
    assert rng.t == other.t
    assert captures.captured == len(set(segments(n_steps)))
    assert captures.replayed == 4 * len(segments(n_steps))  # one of them compared with the second


def test_other_numbers_of_steps_share_the_long_graph(captures):
    model, x = mlp(), torch.randn(3, 2, dtype=torch.float64)
    sampler, plain = LangevinDynamics(model, 0.1), LangevinDynamics(model, 0.1, graph=False)
    for n in (UNROLL, UNROLL, 3 * UNROLL, UNROLL + 2, 2):
        assert torch.equal(sampler.sample(x, n, seed=1), plain.sample(x, n, seed=1))
    assert captures.captured == 2


def test_the_first_call_is_eager_the_second_captures(captures):
    sampler, x = LangevinDynamics(mlp(), 0.1), torch.randn(3, 2, dtype=torch.float64)
    counts = []
    for _ in range(4):
        sampler.sample(x, 5, seed=1)
        counts.append((captures.captured, captures.replayed))
    assert counts == [(0, 0), (1, 1), (1, 2), (1, 3)]
    LangevinDynamics(sampler.model, 0.1, graph=True).sample(x, 5, seed=1)
    assert captures.captured == 1  # another sampler, the same chain
    model = mlp()
    LangevinDynamics(model, 0.1, graph=True).sample(x, 5, seed=1)
    assert captures.captured == 2  # required: at once
    LangevinDynamics(mlp(), 0.1, graph=False).sample(x, 5, seed=1)
    assert captures.captured == 2


def test_a_stream_on_the_device_goes_on(captures):
    sampler, x = LangevinDynamics(mlp(), 0.1), torch.randn(3, 2, dtype=torch.float64)
    rng, host = DeviceRNG(ChainRNG(2, 9), "cpu"), ChainRNG(2, 9)
    for _ in range(4):
        ours, plain = sampler.sample(x, 5, seed=rng), sampler.sample(x, 5, seed=host)
        assert torch.equal(ours, plain)
        x = ours
    assert rng.host().state_dict() == host.state_dict()


def test_model_arguments_are_copied_or_baked(captures):
    class Conditional(nn.Module):
        def forward(self, x, y, power=2):
            return (y[:, None] * x.abs() ** power).sum(1)

    model, x = Conditional(), torch.randn(3, 2, dtype=torch.float64)
    sampler, plain = LangevinDynamics(model, 0.1), LangevinDynamics(model, 0.1, graph=False)
    for call in range(6):
        kwargs = {"y": torch.rand(3).double() + 0.5, "power": 2 + call % 2}
        out = sampler.sample(x, 4, seed=1, model_kwargs=kwargs)
        assert torch.equal(out, plain.sample(x, 4, seed=1, model_kwargs=kwargs))
    assert captures.captured == 2


def test_a_failed_capture_warns_once_and_stays_eager(captures):
    sampler, x = LangevinDynamics(mlp(), 0.1), torch.randn(3, 2, dtype=torch.float64)
    expected = sampler.sample(x, 5, seed=1)
    captures.error = RuntimeError("operation not permitted\nmore")
    with pytest.warns(GraphWarning, match=r"eagerly.*RuntimeError: operation not permitted$"):
        assert torch.equal(sampler.sample(x, 5, seed=1), expected)
    captures.error = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            assert torch.equal(sampler.sample(x, 5, seed=1), expected)
        assert captures.captured == 0
        captures.graphs.clear()  # and a new start
        for _ in range(2):
            sampler.sample(x, 5, seed=1)
        assert captures.captured == 1
    captures.error = RuntimeError("out of luck")
    with pytest.raises(RuntimeError, match="graph=True: no CUDA graph of this chain, .*luck"):
        LangevinDynamics(mlp(), 0.1, graph=True).sample(x, 5, seed=1)


def test_a_model_that_waits_is_found_without_a_capture(captures):
    sampler, x = LangevinDynamics(mlp(), 0.1), torch.randn(3, 2, dtype=torch.float64)
    expected = sampler.sample(x, 5, seed=1)
    captures.error_of_warm_up = RuntimeError("called a synchronizing CUDA operation")
    captures.error = AssertionError("captured all the same")
    with pytest.warns(GraphWarning, match="eagerly.*called a synchronizing CUDA operation"):
        assert torch.equal(sampler.sample(x, 5, seed=1), expected)


def test_results_stay_and_no_generator_is_used(captures):
    # Outputs of torch's own graphs are overwritten by the next call; two launches more a replay
    # fill the state of a generator that a graph draws from.
    sampler, x = LangevinDynamics(mlp(), 0.1), torch.randn(3, 2, dtype=torch.float64)
    before = torch.get_rng_state()
    results = [sampler.sample(x, 5, seed=seed) for seed in range(5)]
    assert captures.replayed == 4 and torch.equal(torch.get_rng_state(), before)
    plain = LangevinDynamics(sampler.model, 0.1, graph=False)
    for seed, result in enumerate(results):
        assert torch.equal(result, plain.sample(x, 5, seed=seed))


def test_power_iteration_stands_still(captures):
    linear = nn.utils.spectral_norm(nn.Linear(2, 1).double())
    sampler, x = LangevinDynamics(linear, 0.1), torch.randn(3, 2, dtype=torch.float64)
    u = linear.weight_u.clone()
    for _ in range(3):
        sampler.sample(x, 5, seed=1)
    assert captures.replayed == 2 and torch.equal(linear.weight_u, u) and linear.training


def test_the_package_has_no_other_way_to_a_graph():
    # torch's have no second derivative, or give outputs that the next call overwrites.
    for path in Path(chain.__file__).parents[1].rglob("*.py"):
        text = path.read_text()
        assert not re.search("make_graphed_callables|reduce-overhead|max-autotune", text), path
        assert path.name == "capture.py" or "CUDAGraph(" not in text, path


class Unsteady(nn.Module):
    """Scaled by what nobody can watch; a captured model would go on using its first answer."""

    def __init__(self, energy, by):
        super().__init__()
        self.energy, self.by = energy, by

    def forward(self, x):
        return (1 + self.by * (time.perf_counter_ns() % 7)) * self.energy(x).sum(1)


# With a step of 100 on a cosine a difference grows up to a hundredfold in each step.
@pytest.mark.parametrize(
    "energy, step_size, by", [(torch.square, 0.1, 1.0), (torch.cos, 100.0, 0.1)]
)
def test_a_graph_that_does_not_agree_is_not_used(captures, energy, step_size, by):
    sampler, x = LangevinDynamics(Unsteady(energy, by), step_size), torch.randn(3, 2)
    sampler.sample(x, 5, seed=1)
    with pytest.warns(GraphWarning, match=r"differ from the eager ones by \d+\.\d% of how far"):
        sampler.sample(x, 5, seed=1)
    replayed = captures.replayed
    sampler.sample(x, 5, seed=1)
    assert captures.replayed == replayed


def test_a_chain_that_makes_rounding_grow_is_compared_by_steps(captures):
    # As convolutions round in TF32, and where threads add up in any order.
    sampler, x = LangevinDynamics(Unsteady(torch.cos, 1e-5), 100.0), torch.randn(3, 2)
    plain = LangevinDynamics(sampler.model, 100.0, graph=False)
    first, second = (plain.sample(x, 12, seed=1) for _ in range(2))
    assert (first - second).abs().max() > 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            sampler.sample(x, 12, seed=1)
    assert captures.captured == 2  # the chain, and one step of it
    assert captures.replayed == 1 + 12 + 1


def test_steps_are_compared_by_the_rows_of_their_schedules(captures):
    steps = torch.tensor([100.0, 50.0, 80.0, 20.0, 60.0, 90.0, 10.0], dtype=torch.float64)
    sampler = LangevinDynamics(Unsteady(torch.cos, 1e-5), steps[:, None], noise_std=0.1)
    x = torch.tensor([[math.nan, 0.3], [math.inf, 1.0], [0.5, 0.7]])  # these stay what they are
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            sampler.sample(x, 7, seed=1)
    assert captures.captured == 2 and captures.replayed == 1 + 7 + 1


def test_chains_that_are_not_finite_agree_too(captures):
    sampler = LangevinDynamics(mlp(), 0.1)
    x = torch.tensor([[math.nan, 0.0], [math.inf, 1.0], [0.5, 0.5]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second, third = (sampler.sample(x, 5, seed=1) for _ in range(3))
    assert captures.captured == 1
    torch.testing.assert_close(third, first, rtol=0, atol=0, equal_nan=True)


def test_the_least_recently_used_graph_goes(captures):
    sampler = LangevinDynamics(mlp(), 0.1)
    starts = [torch.randn(n, 2, dtype=torch.float64) for n in (1, 2, 3, 4)]
    for x in starts[:3]:
        for _ in range(2):
            sampler.sample(x, 5)
    sampler.sample(starts[0], 5)
    for _ in range(2):
        sampler.sample(starts[3], 5)
    assert captures.captured == 4
    replayed = captures.replayed
    sampler.sample(starts[0], 5)
    assert captures.replayed == replayed + 1  # still there
    sampler.sample(starts[1], 5)
    assert captures.replayed == replayed + 1  # gone, and eager again


def test_what_has_no_graph(captures):
    x = torch.rand(3, 1, 4, 4)
    bowl = nn.Flatten()
    sampler = LangevinDynamics(lambda x: bowl(x).square().sum(1), 0.1, graph=True)
    with pytest.raises(RuntimeError, match="not an nn.Module"):
        sampler.sample(x, 2)

    class Bowl(nn.Module):
        def forward(self, x, extra=None):
            return x.flatten(1).square().sum(1)

    sampler = LangevinDynamics(Bowl(), 0.1, graph=True)
    for options, match in [
        ({"return_trajectory": True}, "single steps"),
        ({"return_diagnostics": True}, "single steps"),
        ({"augmentation": Augmentation(hflip_p=0.5)}, "single steps"),
        ({"model_kwargs": {"extra": iter([1])}}, "model_kwargs.'extra'. is a list_iterator"),
    ]:
        with pytest.raises(RuntimeError, match=match):
            sampler.sample(x, 2, **options)
        sampler.graph = "auto"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GraphWarning)
            for _ in range(3):
                sampler.sample(x, 2, **options)
        sampler.graph = True
    assert torch.equal(sampler.sample(x, 0), x)
    assert captures.captured == 0
    with pytest.raises(ValueError, match="graph must be one of auto, True, False, got 'yes'"):
        LangevinDynamics(Bowl(), 0.1, graph="yes")


def test_parametrised_weights_are_computed_inside_the_graph(captures, monkeypatch):
    # A replay must compute them from the parameters, not read what sampling_mode cached outside.
    class Double(nn.Module):
        calls = 0
        _outside_graphs = ("calls",)

        def forward(self, w):
            self.calls += 1
            return 2 * w

    linear, double = nn.Linear(2, 1).double(), Double()
    nn.utils.parametrize.register_parametrization(linear, "weight", double)
    inside = []

    def capture(body, device):
        before = double.calls
        body()
        inside.append(double.calls - before)
        return body

    monkeypatch.setattr(captures, "capture", capture)
    sampler, x = LangevinDynamics(linear, 0.1), torch.randn(3, 2, dtype=torch.float64)
    plain = LangevinDynamics(linear, 0.1, graph=False)
    for _ in range(4):
        assert torch.equal(sampler.sample(x, 4, seed=1), plain.sample(x, 4, seed=1))
        with torch.no_grad():
            linear.parametrizations.weight.original.mul_(1.5)
    assert inside == [1]  # once for all steps


def test_a_cpu_has_no_graphs():
    model, x = mlp(), torch.randn(3, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="graph=True: no CUDA graph of this chain, it is on cpu"):
        LangevinDynamics(model, 0.1, graph=True).sample(x, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            LangevinDynamics(model, 0.1).sample(x, 2)
    clear_graphs()
