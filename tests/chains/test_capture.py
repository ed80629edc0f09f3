"""CUDA graphs on a GPU: replays equal eager chains, and every known way to get hurt has a guard."""

import gc
import threading
import warnings

import pytest
import torch
from conftest import HAS_GPU
from torch import nn

import fastebm
from fastebm import GraphWarning, LangevinDynamics
from fastebm.app.networks import AutocastEnergy
from fastebm.chains import capture as module
from fastebm.chains import graph
from fastebm.chains.capture import capture, warm_up
from fastebm.rng import ChainRNG, DeviceRNG

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")]


@pytest.fixture(autouse=True)
def no_graphs():
    yield
    fastebm.clear_graphs()
    torch.cuda.synchronize()


class Net(nn.Sequential):
    """No plain nn.Sequential, so that its chains are not run by the fused kernel."""


def mlp(device="cuda"):
    net = Net(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    return net.to(device)


def start(n=128, device="cuda"):
    return torch.randn(n, 2, device=device)


def assert_graph_equals_eager(model, x, n_steps=40, calls=4, **options):
    """Runs both ways; the replays must be there, and have the bits of the eager chain, also after
    the next ones."""
    ours = LangevinDynamics(model, 0.05, clamp=(-4, 4), **options)
    plain = LangevinDynamics(model, 0.05, clamp=(-4, 4), **(options | {"graph": False}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GraphWarning)
        ends = [ours.sample(x, n_steps, seed=ChainRNG(call, 7)) for call in range(calls)]
    for call, end in enumerate(ends):
        expected = plain.sample(x, n_steps, seed=ChainRNG(call, 7))
        assert torch.equal(end, expected), (end - expected).abs().max()
    assert len(graph.GRAPHS.graphs) >= 1


@pytest.mark.parametrize("n_steps", [1, 19, 32, 70])
@pytest.mark.parametrize("noise_first", [False, True])
def test_replays_are_the_eager_chain(n_steps, noise_first):
    assert_graph_equals_eager(mlp(), start(), n_steps, noise_first=noise_first, grad_clip=0.5)


def test_schedules_are_device_scalars():
    schedule = lambda k: 0.1 / (k + 1)  # noqa: E731
    assert_graph_equals_eager(mlp(), start(), noise_std=schedule)


def test_compiled_gradient_in_a_graph():
    model, x = mlp(), start()
    compiled = LangevinDynamics(model, 0.05, compile=True, graph=True)
    plain = LangevinDynamics(model, 0.05, graph=False)
    for seed in range(3):
        torch.testing.assert_close(
            compiled.sample(x, 40, seed=seed), plain.sample(x, 40, seed=seed)
        )


def test_a_stream_on_the_device_goes_on():
    model, x = mlp(), start()
    ours = LangevinDynamics(model, 0.05, graph=True)
    plain = LangevinDynamics(model, 0.05, graph=False)
    rng, host = DeviceRNG(ChainRNG(2), "cuda"), ChainRNG(2)
    for _ in range(3):
        assert torch.equal(ours.sample(x, 19, seed=rng), plain.sample(x, 19, seed=host))
    assert rng.host().t == host.t == 57


def test_model_used_on_the_default_stream_before():
    # Autograd nodes remember their stream.
    model, x = mlp(), start()
    model(x).sum().backward()
    kept = model(x).sum()  # a graph that is alive during the capture
    assert_graph_equals_eager(model, x)
    kept.backward()


def test_other_threads_may_use_cuda_during_a_capture():
    stop, errors = threading.Event(), []

    def pin():
        try:
            while not stop.is_set():
                torch.empty(1 << 16).pin_memory().to("cuda", non_blocking=True)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        for _ in range(3):
            assert_graph_equals_eager(mlp(), start(), calls=3)
    finally:
        stop.set()
        thread.join()
    assert not errors


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one():
    assert_graph_equals_eager(mlp("cuda:1"), start(device="cuda:1"))
    assert torch.cuda.current_device() == 0


class Waits(nn.Module):
    def forward(self, x):
        return x.square().sum(1) * float(x.sum().item() * 0 + 1)


class UsesCpuTensor(nn.Module):
    def forward(self, x):
        return (x * torch.ones(2).to(x.device)).square().sum(1)


class CountsRows(nn.Module):
    def forward(self, x):
        return x.square().sum(1) + 0 * x[x > 0].sum()


class Draws(nn.Module):
    def forward(self, x):
        return (x + torch.rand_like(x)).square().sum(1)


class Branches(nn.Module):
    """On the host: after two chains of 5 steps another energy, which a graph would keep to."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return (1.0 if self.calls <= 10 else 3.0) * x.square().sum(1)


@pytest.mark.parametrize("kind", [Waits, UsesCpuTensor, CountsRows, Draws, Branches])
def test_models_that_cannot_be_captured_stay_eager_with_one_warning(kind):
    sampler, x = LangevinDynamics(kind(), 0.05), start()
    sampler.sample(x, 5, seed=0)
    with pytest.warns(GraphWarning, match="runs eagerly") as caught:
        sampler.sample(x, 5, seed=0)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.sample(x, 5, seed=0)
    assert_graph_equals_eager(mlp(), x)  # and others can still be captured


def test_a_capture_that_fails_half_way_leaves_torch_usable():
    x = torch.zeros(4, device="cuda")
    stream = torch.cuda.current_stream()

    def breaks():
        x.add_(torch.rand(4, device="cuda"))
        x.sum().item()

    with pytest.raises(RuntimeError):
        capture(breaks, x.device)
    assert torch.cuda.current_stream() == stream and not torch.cuda.is_current_stream_capturing()
    torch.randn(4, device="cuda")  # the default generator is not left in the capture
    replay = capture(lambda: x.add_(torch.rand(4, device="cuda")), x.device)
    replay()
    one = x.clone()
    replay()
    assert not torch.equal(x - one, one)  # and goes on under replay
    with pytest.raises(RuntimeError):
        warm_up(lambda: x.sum().item(), x.device)
    assert torch.cuda.get_sync_debug_mode() == 0


def test_parameters_that_moved():
    model, x = mlp(), start()
    sampler = LangevinDynamics(model, 0.05)
    plain = LangevinDynamics(model, 0.05, graph=False)
    for _ in range(3):
        sampler.sample(x, 20, seed=0)
    state = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert torch.equal(sampler.sample(x, 20, seed=0), plain.sample(x, 20, seed=0))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    for _ in range(3):
        assert torch.equal(sampler.sample(x, 20, seed=0), plain.sample(x, 20, seed=0))


def test_layers_with_a_training_mode_are_in_eval():
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    model = model.cuda().train()
    before = model[1].running_mean.clone()
    assert_graph_equals_eager(model, start())
    assert torch.equal(model[1].running_mean, before) and model.training


def test_nothing_is_drawn_from_torch():
    # So no state of a generator need be filled before each replay.
    sampler, x, before = LangevinDynamics(mlp(), 0.05), start(), torch.cuda.get_rng_state()
    for _ in range(3):
        sampler.sample(x, 20, seed=0)
    assert len(graph.GRAPHS.graphs) == 1 and torch.equal(torch.cuda.get_rng_state(), before)


def test_settings_choose_the_graph():
    model, x, matmul = mlp(), start(), torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for matmul.fp32_precision in ("ieee", "tf32"):  # the second one's products are others
            assert_graph_equals_eager(model, x)
    finally:
        matmul.fp32_precision = before
    assert len(graph.GRAPHS.graphs) == 2


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_parametrised_weights_follow_the_parameters(norm):
    linear = getattr(nn.utils.parametrizations, norm)(nn.Linear(2, 64))
    model, x = nn.Sequential(linear, nn.SiLU(), nn.Linear(64, 1)).cuda(), start()
    sampler = LangevinDynamics(model, 0.05)
    plain = LangevinDynamics(model, 0.05, graph=False)
    for _ in range(4):
        assert torch.equal(sampler.sample(x, 20, seed=0), plain.sample(x, 20, seed=0))
        with torch.no_grad():
            list(linear.parametrizations.weight.parameters())[-1].mul_(1.5).add_(0.1)


def test_autocast_inside_and_around():
    assert_graph_equals_eager(AutocastEnergy(mlp()), start())
    with torch.autocast("cuda", torch.bfloat16):
        assert_graph_equals_eager(mlp(), start())
    assert torch.is_autocast_cache_enabled()


def test_convolutions_with_benchmark(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(), nn.LazyLinear(1)).cuda()
    x = torch.rand(8, 3, 16, 16, device="cuda")
    model(x)
    sampler = LangevinDynamics(model, 0.01, graph=True)
    plain = LangevinDynamics(model, 0.01, graph=False)
    for seed in range(3):
        torch.testing.assert_close(sampler.sample(x, 20, seed=seed), plain.sample(x, 20, seed=seed))


def test_a_chain_that_makes_rounding_grow():
    # As the cifar10 preset's; its ends cannot be compared where sums are made in any order.
    torch.manual_seed(0)
    nets = [fastebm.energies.ResNetEnergy((3, 32 // f, 32 // f)) for f in (1, 2, 4)]
    model = fastebm.energies.MultiScaleEnergy(nets).cuda()
    x = torch.rand(32, 3, 32, 32, device="cuda")
    sampler = LangevinDynamics(model, 100.0, noise_std=0.001, noise_first=True, clamp=(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GraphWarning)
        ends = [sampler.sample(x, 40, seed=1) for _ in range(3)]
    assert len(graph.GRAPHS.graphs) == 1 and all(end.isfinite().all() for end in ends)


def test_workspaces_that_others_clear():
    """As torch.compile's graphs do, whose captures also give unused memory back."""
    sampler = LangevinDynamics(mlp(), 0.05, clamp=(-4, 4))
    x = start(4096)
    expected = [sampler.sample(x, 5, seed=0).clone() for _ in range(3)][0]
    assert len(graph.GRAPHS.graphs) == 1
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    others = [torch.full((1 << n,), torch.nan, device="cuda") for n in (20, 22, 24)]
    assert torch.equal(sampler.sample(x, 5, seed=0), expected)
    assert all(other.isnan().all() for other in others)


def test_memory_is_shared_and_given_back():
    x = torch.rand(64, 3, 32, 32, device="cuda")
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.SiLU(), nn.Flatten(), nn.LazyLinear(1)).cuda()
    model(x)
    sampler = LangevinDynamics(model, 0.01)

    def reserved_with_graphs_of(*lengths):
        for n in lengths:
            for _ in range(2):  # a graph by the second
                sampler.sample(x, n, seed=0)
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    reserved_with_graphs_of(16, 32)  # libraries' workspaces on the graphs' stream stay
    fastebm.clear_graphs()
    before = reserved_with_graphs_of()
    one, both = reserved_with_graphs_of(16), reserved_with_graphs_of(32)
    assert [len(g.replays) for g in graph.GRAPHS.graphs] == [2]
    assert list(module._pools) == [x.device]
    assert both - one < one - before
    fastebm.clear_graphs()
    assert reserved_with_graphs_of() <= before
