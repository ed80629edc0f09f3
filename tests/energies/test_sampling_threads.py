"""One model and several threads: chains are right together, and nothing is wrong in silence."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from fastebm import ContrastiveDivergence, LangevinDynamics
from fastebm.chains.snapshot import Snapshot
from fastebm.energies.sampling_mode import sampling_mode
from fastebm.samplers.settings import chains

REFUSED = "copy.deepcopy"


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1))])

    def energy(self, x):
        return self.parts[0](x)

    def forward(self, x):
        return self.parts[0](x)


@pytest.fixture
def other():
    """Another thread, which does one thing after another."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda f, *args: pool.submit(f, *args).result(20)


def flags(model):
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


def test_the_last_thread_to_leave_restores_the_model(other):
    a, b = Branches(), Branches()
    b.parts.append(a.parts[0])  # shared
    before = flags(b)
    mine, others = sampling_mode(a), sampling_mode(b.energy)
    mine.__enter__()
    other(others.__enter__)
    mine.__exit__(None, None, None)
    assert a.training and not any(m.training for m in b.modules())
    other(others.__exit__, None, None, None)
    assert flags(b) == before and all(sum(flags(a), []))
    assert not any(m._forward_pre_hooks for m in b.modules())


@pytest.mark.parametrize("use", ["call", "method", "part", "loss"])
def test_a_model_in_chains_of_another_thread_cannot_be_used(other, use):
    net, x = Branches(), torch.randn(8, 2)
    criterion = ContrastiveDivergence(net, LangevinDynamics(net, 0.01), k_steps=1)
    uses = {"call": net, "method": net.energy, "part": net.parts[0], "loss": criterion}
    mode = sampling_mode(net)
    other(mode.__enter__)
    with pytest.raises(RuntimeError, match=REFUSED):
        uses[use](x)
    twin = copy.deepcopy(net).train()
    assert twin.energy(x).shape == (8, 1)
    other(mode.__exit__, None, None, None)
    uses[use](x)


def test_the_sampling_threads_own_calls_are_not_refused(other):
    net, x = Branches(), torch.randn(8, 2)
    with sampling_mode(net):
        sampled = other(LangevinDynamics(net, 0.01).sample, x, 2)
        assert torch.equal(net(x), net(x))
    assert sampled.shape == x.shape and all(sum(flags(net), []))


@pytest.mark.parametrize("loss", [False, True])
def test_chains_do_not_start_in_the_middle_of_another_threads_call(loss):
    inside, go = threading.Event(), threading.Event()

    class Waits(Branches):
        def forward(self, x):
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                assert go.wait(20)
            return super().forward(x)

    net, x = Waits(), torch.randn(8, 2)
    sampler = LangevinDynamics(net, 0.01)
    use = ContrastiveDivergence(net, sampler, k_steps=1) if loss else net
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(use, x)
        assert inside.wait(20)
        with pytest.raises(RuntimeError, match=REFUSED):
            sampler.sample(x, 2)
        go.set()
        out = running.result(20)
    (out.loss if loss else out.sum()).backward()
    assert net.parts[0][1].weight.grad is not None and all(sum(flags(net), []))
    assert sampler.sample(x, 2).shape == x.shape


def test_graphs_of_other_threads_keep_their_gradients(other):
    # backward() leaves out what a parameter is owed that does not require a gradient at that time.
    net, x = Branches().eval(), torch.randn(8, 2)
    sampler, mode, weight = LangevinDynamics(net, 0.1), sampling_mode(net), net.parts[0][1].weight
    e = net(x)
    other(mode.__enter__)
    e.sum().backward()
    torch.testing.assert_close(weight.grad[0], x.sum(0))
    weight.grad = None
    sampler.last_step(x)[0].sum().backward()  # x - 0.1 weight + noise
    torch.testing.assert_close(weight.grad[0], torch.full((2,), -0.1 * len(x)))
    other(mode.__exit__, None, None, None)


def test_chains_are_the_same_beside_another_thread(other):
    net, x = spectral_norm(nn.Linear(2, 1)), torch.randn(8, 2)
    sampler = LangevinDynamics(net, 0.1)
    alone = sampler.sample(x, 3, seed=1)
    assert torch.equal(other(partial(sampler.sample, x, 3, seed=1)), alone)
    assert torch.equal(sampler.sample(x, 3, seed=1), alone) and not alone.requires_grad


def test_parametrised_weights_of_other_threads_follow_their_parameters(alone, other):
    # Each is constant in the chains of its own model, in the thread that runs them.
    sampled, trained = spectral_norm(nn.Linear(2, 1)), spectral_norm(nn.Linear(2, 1)).eval()

    def weight_over_original():
        with torch.no_grad():
            return trained.weight / trained.parametrizations.weight.original

    with sampling_mode(sampled):
        w = sampled.weight
        assert sampled.weight is w and not w.requires_grad
        first = other(weight_over_original)
        trained.parametrizations.weight.original.data.mul_(2.0)
        torch.testing.assert_close(other(weight_over_original), first / 2)
        assert other(lambda: trained.weight).requires_grad
        assert other(lambda: sampled.weight) is not w
        assert trained.weight.requires_grad  # in this thread too: it is not what is sampled
    assert sampled.weight.requires_grad and "forward" not in vars(sampled.parametrizations.weight)


def test_graphs_and_the_fused_kernel_do_not_see_who_is_watched(other):
    net = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)).requires_grad_(False)
    net.register_forward_hook(lambda *_: None)
    keys = []
    for _ in range(2):
        with sampling_mode(net):
            keys.append(Snapshot(torch.device("cpu"), model=net).key)
            hooks = len(net._forward_pre_hooks)
        other(int)  # now there is another thread
    assert keys[0] == keys[1] and hooks == 1
    plain = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
    with sampling_mode(plain):
        x = chains(torch.randn(4, 2))
        assert other(LangevinDynamics(plain, 0.1, backend="fused").sample, x, 2).shape == (4, 2)


def test_autocasts_cache_is_a_threads_own(other):
    torch.set_autocast_cache_enabled(False)
    try:
        assert other(torch.is_autocast_cache_enabled)
    finally:
        torch.set_autocast_cache_enabled(True)
