"""Compiled chains and graphed steps of several ranks, as one rank has them."""

import sys

import process_group
import pytest
import torch
import torch.distributed as dist
from conftest import HAS_GPU
from recorded_capture import RecordedCaptures
from torch import nn

import fastebm
from fastebm import ChainRNG, DeviceRNG, GraphedTrainStep, LangevinDynamics
from fastebm.distributed import full_state_dict, world
from fastebm.losses.train_step import train_step

STEPS, ROWS = 12, 8
KINDS = ["cd", "pcd", "icd", "icd, some references"]


def batch(i):
    x = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(i))
    return x.double()[world().part(ROWS)]


class ByGraph(LangevinDynamics):
    """With a last step of its own, so that a CPU computes losses as a device does."""

    def last_step(self, *args, **kwargs):
        return super().last_step(*args, **kwargs)


def setup(kind):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1)).double()
    sampler = ByGraph(model, 0.001, clamp=(-2, 2), graph=False)
    buffer = fastebm.ReplayBuffer(32, 2, 0.1, value_range=(-2, 2), seed=3)
    options = {"k_steps": 4, "energy_reg_weight": 0.1, "on_nonfinite": "count"}
    if kind == "cd":
        loss = fastebm.ContrastiveDivergence(model, sampler, **options)
    elif kind == "pcd":
        loss = fastebm.PersistentContrastiveDivergence(model, sampler, buffer, **options)
    else:
        options["n_entropy_refs"] = None if kind == "icd" else 20
        loss = fastebm.ImprovedContrastiveDivergence(model, sampler, buffer, **options)
    return model, loss, torch.optim.Adam(model.parameters(), 0.01, fused=True)


def graphed(kind):
    """Steps of which three run eagerly, one is captured, and the rest are replayed."""
    model, loss, optimizer = setup(kind)
    if world().size == 1:
        rng = DeviceRNG(ChainRNG(4), "cpu")
        found = [train_step(loss, optimizer, batch(i), rng).x_neg for i in range(STEPS)]
    else:
        module, captures = sys.modules["fastebm.losses.train_step"], RecordedCaptures()
        module._check = lambda loss, optimizer: torch.device("cpu")
        for name in ("warm_up", "capture", "ordered"):
            setattr(module, name, getattr(captures, name))
        step, found = GraphedTrainStep(loss, optimizer, seed=4), []
        for i in range(STEPS):
            found.append(step(batch(i)).x_neg.clone())
        assert captures.captured == 1 and captures.replayed == STEPS - 3
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    return found, weights, None if loss.buffer is None else full_state_dict(loss.buffer)


def all_graphed():
    return {kind: graphed(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    def make(_):
        return {n: process_group.results(n, all_graphed) for n in (1, 2)}

    return process_group.once(tmp_path_factory, "ways", make)


@pytest.mark.parametrize("kind", KINDS)
def test_graphed_steps(steps, kind):
    ((whole, weights, state),), parts = ([rank[kind] for rank in steps[n]] for n in (1, 2))
    for i in range(STEPS):
        theirs = torch.cat([found[i] for found, _, _ in parts])
        torch.testing.assert_close(theirs, whole[i], rtol=0, atol=1e-8)
    for _, ours, of_rank in parts:
        torch.testing.assert_close(ours, weights, rtol=0, atol=1e-8)
        if state is not None:
            assert of_rank["_extra_state"] == state["_extra_state"]
            assert torch.equal(of_rank["stream"], state["stream"])
            assert torch.equal(of_rank["visits"], state["visits"])


def compiled():
    """With all of torch.compile but its slow last stage, code generation."""
    torch._inductor.compile = torch._dynamo.lookup_backend("aot_eager")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1)).double()
    sampler = LangevinDynamics(model, 0.05, clamp=(-2, 2), compile=True)
    buffer = fastebm.ReplayBuffer(16, 2, value_range=(-2, 2), seed=1)
    loss = fastebm.ImprovedContrastiveDivergence(model, sampler, buffer, k_steps=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for i in range(STEPS):
        optimizer.zero_grad()
        loss(batch(i), seed=i).loss.backward()
        fastebm.distributed.average_gradients(model.parameters())
        optimizer.step()
    chains = sampler.sample(n_samples=ROWS // world().size, dim=2, n_steps=6, seed=9)
    return nn.utils.parameters_to_vector(model.parameters()).detach(), chains


def test_compiled_chains():
    ((weights, chains),) = process_group.results(1, compiled)
    parts = process_group.results(2, compiled)
    for ours, _ in parts:
        torch.testing.assert_close(ours, weights, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.cat([c for _, c in parts]), chains, rtol=0, atol=1e-9)


def test_a_stream_on_a_device_is_placed_by_the_rank(monkeypatch):
    for name, value in {"is_initialized": True, "get_rank": 2, "get_world_size": 3}.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    rng = DeviceRNG(ChainRNG(4, 7), "cpu")
    assert rng.state("cpu", 5).tolist() == [4, 7, 10, 0]
    assert rng.state("cpu", 8).tolist() == [4, 7, 16, 0] and rng.copy().first_sample(3) == 6
    assert rng.host().state_dict() == {"seed": 4, "t": 7, "sample_offset": None}
    assert DeviceRNG(ChainRNG(4, 7, 1), "cpu").state("cpu", 5).tolist() == [4, 7, 1, 0]
    assert ChainRNG(4).state("cpu", 5).tolist() == [4, 0, 10, 0] and repr(ChainRNG(4)) == (
        "ChainRNG(seed=4, t=0)"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
@pytest.mark.parametrize("graph", ["auto", False])
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_chains_on_a_device_are_placed_by_the_rank(monkeypatch, graph, backend):
    torch.manual_seed(0)
    model = fastebm.energies.MLPEnergy(2, (16, 16)).cuda()
    sampler = LangevinDynamics(model, 0.05, graph=graph, backend=backend)
    x = torch.randn(8, 2, device="cuda")
    whole = sampler.sample(x, 6, seed=3)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        rows = slice(4 * rank, 4 * rank + 4)
        for _ in range(3):  # the first call runs step by step, the third is a replay
            ours = sampler.sample(x[rows], 6, seed=3)
            torch.testing.assert_close(ours, whole[rows], rtol=1e-4, atol=1e-5)
