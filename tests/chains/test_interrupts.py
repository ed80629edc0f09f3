"""No call of an operator on a CPU is longer than Ctrl-C may wait for: what is large goes by steps,
and where one step is too long, by chains; with the same bits."""

import os
import signal
import threading
import time

import pytest
import torch
from torch import nn

from fastebm import (
    MALA,
    RBM,
    ContrastiveDivergence,
    GibbsSampler,
    ImprovedContrastiveDivergence,
    LangevinDynamics,
    PersistentContrastiveDivergence,
    ReplayBuffer,
)
from fastebm.chains import mlp_chain
from fastebm.entropy.estimators import nn_log_distance
from fastebm.ops import neighbor
from fastebm.samplers import gibbs
from fastebm.samplers.hmc import HMC
from fastebm.samplers.underdamped import UnderdampedLangevin

B, D, WIDTH = 37, 3, 8
OF_A_CHAIN = WIDTH * D + WIDTH + 10 * (WIDTH + D + 1 + WIDTH)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))


@pytest.fixture
def calls(monkeypatch):
    """Chains and steps of each call of an operator of chains."""
    seen = []

    def watched(name, at):
        real = getattr(mlp_chain, name)

        def call(*args, **kwargs):
            seen.append((len(args[0]), args[at]))
            return real(*args, **kwargs)

        monkeypatch.setattr(mlp_chain, name, call)

    for name, at in (
        ("mlp_chain_", 2),
        ("mlp_adjusted_chain_", 5),
        ("mlp_hmc_chain_", 6),
        ("mlp_underdamped_chain_", 5),
    ):
        watched(name, at)
    return seen


def few_chains(monkeypatch, n):
    """Let a call have room for one step of n chains."""
    monkeypatch.setattr(mlp_chain, "MAX_WORK", n * OF_A_CHAIN // torch.get_num_threads() + 1)


TABLE = torch.rand(6, B) / 10 + 0.02
WAYS = {
    "plain": lambda m: LangevinDynamics(m, 0.1, noise_std=0.2, backend="fused"),
    "tables": lambda m: LangevinDynamics(m, TABLE, noise_std=0.2, backend="fused"),
    "mala": lambda m: MALA(m, 0.1, clamp=(-3.0, 3.0)),
    "adjusted tables": lambda m: MALA(m, TABLE, temperature=0.5),
    "hmc": lambda m: HMC(m, 0.1, n_leapfrog=2),
    "underdamped": lambda m: UnderdampedLangevin(m, 0.1),
}


@pytest.mark.parametrize("way", WAYS)
def test_large_batches_go_by_chains_with_the_same_bits(way, calls, monkeypatch):
    x, more = torch.randn(B, D), {"seed": 1, "return_diagnostics": True}
    ids = torch.randperm(B)
    whole, found = WAYS[way](net()).sample(x, 6, **more)
    by_ids = WAYS[way](net()).sample(x, 6, seed=1, sample_ids=ids)
    assert max(n for n, _ in calls) == B and any(steps > 1 for _, steps in calls)
    calls.clear()
    n = 10
    few_chains(monkeypatch, n)
    parts, of_parts = WAYS[way](net()).sample(x, 6, **more)
    assert torch.equal(parts, whole)
    for name, value in found.items():
        torch.testing.assert_close(of_parts[name], value, rtol=1e-6, atol=0)
    leapfrogs = 2 if way == "hmc" else 1
    assert calls and all(rows * leapfrogs <= n and steps == 1 for rows, steps in calls)
    assert torch.equal(WAYS[way](net()).sample(x, 6, seed=1, sample_ids=ids), by_ids)


def test_gradients_alone_go_by_chains(monkeypatch):
    found, x = mlp_chain.mlp_chain(net(), torch.randn(B, D), {}), torch.randn(B, D)
    grad, e = found.gradient(x)
    sizes, real = [], mlp_chain.mlp_gradient

    def watched(network, rows, **kwargs):
        sizes.append(len(rows))
        return real(network, rows, **kwargs)

    monkeypatch.setattr(mlp_chain, "mlp_gradient", watched)
    few_chains(monkeypatch, 10)
    parts, energies = found.gradient(x)
    assert sizes == [10, 10, 10, 7]
    torch.testing.assert_close(parts, grad, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(energies, e, rtol=1e-6, atol=1e-6)


def test_log_distances_go_by_queries(monkeypatch):
    x, y, skip = torch.randn(B, D), torch.randn(50, D), torch.arange(B)
    results = []
    for most in (neighbor.MAX_WORK, 10 * 50 * 16 // torch.get_num_threads() + 1):
        monkeypatch.setattr(neighbor, "MAX_WORK", most)
        results.append(neighbor.nn_log_distance(x, y, skip, 0.1))
        leaf = x.clone().requires_grad_()
        value = nn_log_distance(leaf, y, skip, 0.1)
        results[-1] += (value.detach(), *torch.autograd.grad(value, leaf))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-8)
    assert torch.equal(results[0][2], results[1][2])  # distances


@pytest.mark.parametrize("kind", ["cd", "icd", "pcd adjusted"])
def test_losses_of_large_batches_have_no_call_for_all(kind, monkeypatch):
    """A graph instead, with the same values up to rounding."""
    x, outs = torch.randn(B, D), []
    for limit in (None, B):  # of which four times as much is asked for
        if limit:
            few_chains(monkeypatch, limit)
        model = net()
        sampler = LangevinDynamics(model, 0.1, adjusted=kind == "pcd adjusted")
        buffer = ReplayBuffer(60, D, seed=1)
        loss = {
            "cd": lambda m, s, b: ContrastiveDivergence(m, s, k_steps=1),
            "icd": lambda m, s, b: ImprovedContrastiveDivergence(m, s, b, k_steps=1),
            "pcd adjusted": lambda m, s, b: PersistentContrastiveDivergence(m, s, b, k_steps=1),
        }[kind](model, sampler, buffer)
        outs.append(loss(x, seed=1))
    by_formulas, by_graph = (type(out.loss.grad_fn) for out in outs)
    assert by_formulas != by_graph
    torch.testing.assert_close(outs[0].loss, outs[1].loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outs[0].x_neg, outs[1].x_neg, rtol=1e-4, atol=1e-5)


def test_the_search_of_the_entropy_term_counts_as_well(monkeypatch):
    model, x = net(), torch.randn(B, D)
    monkeypatch.setattr(neighbor, "MAX_WORK", B * 40 * 16 // torch.get_num_threads())
    ways = []
    for capacity in (40, 80):
        loss = ImprovedContrastiveDivergence(
            model, LangevinDynamics(model, 0.1), ReplayBuffer(capacity, D, seed=1), k_steps=2
        )
        ways.append(type(loss(x, seed=1).loss.grad_fn))
    assert ways[0] != ways[1]


@pytest.mark.parametrize("way", ["plain", "mala", "hmc", "underdamped"])
def test_ctrl_c_ends_a_run_of_years(way):
    sampler = WAYS[way](net())

    def kill():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=kill)
    # A shell's background ignores the signal, and so would all that it starts.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            sampler.sample(torch.randn(50_000, D), 10**7)
        thread.join()
    finally:
        signal.signal(signal.SIGINT, handler)


def test_gibbs_chains_go_by_chains(monkeypatch):
    torch.manual_seed(0)
    machine, ids = RBM(6, 4), torch.randperm(B)
    x, sizes, real = torch.bernoulli(torch.full((B, 6), 0.5)), [], machine.gibbs_step
    options = ({}, {"sample_ids": ids})
    whole = [GibbsSampler(machine).sample(x, 3, seed=1, **more) for more in options]
    monkeypatch.setattr(gibbs, "MAX_WORK", 10 * 6 * 4)

    def watched(v, *args, **options):
        sizes.append(len(v))
        return real(v, *args, **options)

    monkeypatch.setattr(machine, "gibbs_step", watched)
    for wanted, more in zip(whole, options, strict=True):
        assert torch.equal(GibbsSampler(machine).sample(x, 3, seed=1, **more), wanted)
    assert sizes == [10, 10, 10, 7] * 6
