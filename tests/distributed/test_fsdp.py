"""FSDP2 (fully_shard) with two gloo processes: chains and losses through the sharded model."""

import warnings

import process_group
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

import fastebm
from fastebm.distributed import average_gradients, world

STEPS, ROWS = 5, 16  # rows of all ranks
SHAPES = {"perceptron": (2,), "picture": (1, 8, 8)}
WAYS = ("default", "whole", "gathered in forward", "gathered until the step")


def energy(kind):
    torch.manual_seed(3)
    if kind == "perceptron":
        layers = [nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 1)]
    else:
        layers = [nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 1)]
    return nn.Sequential(*layers)


def shard(net, way):
    """Each layer a unit of its own and one of the rest, or one in all."""
    options = {"mesh": init_device_mesh("cpu", (world().size,))}
    if way.startswith("gathered"):
        options["reshard_after_forward"] = False
    for layer in net if way != "whole" else ():
        if list(layer.parameters()):
            fully_shard(layer, **options)
    fully_shard(net, **options)
    if way == WAYS[-1]:
        net.set_reshard_after_backward(False)


def criterion(loss, net, shape, **options):
    sampler = fastebm.LangevinDynamics(net, 0.02, clamp=(-2, 2))
    buffer = fastebm.ReplayBuffer(64, shape, reinit_prob=0.2, value_range=(-2, 2))
    if loss == "cd":
        return fastebm.ContrastiveDivergence(net, sampler, 5, energy_reg_weight=0.01, **options)
    if loss == "pcd":
        return fastebm.PersistentContrastiveDivergence(net, sampler, buffer, 5, **options)
    if loss == "mle":
        return fastebm.MaximumLikelihood(net, sampler, 5)
    return fastebm.ImprovedContrastiveDivergence(net, sampler, buffer, 5)


def train(kind, loss, dtype, way, bad=None, **options):
    """Weights after each step, and the negatives of this rank."""
    net = energy(kind).to(dtype)
    if world().size > 1:
        shard(net, way)
    step = criterion(loss, net, SHAPES[kind], **options)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    weights, negatives = [], []
    for i in range(STEPS):
        g = torch.Generator().manual_seed(i)
        x = torch.randn((ROWS, *SHAPES[kind]), generator=g, dtype=torch.float64)
        if bad is not None:
            x[bad] = torch.nan
        out = step(x.to(dtype)[world().part(ROWS)])
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        for m in net.modules() if way == WAYS[-1] else ():
            if isinstance(m, FSDPModule):
                m.reshard()
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
        weights.append(nn.utils.parameters_to_vector(whole).detach().clone())
        negatives.append(out.x_neg)
        assert all(p.requires_grad for p in net.parameters()) and net.training
    return weights, negatives


CASES = [
    ((kind, loss, dtype, way), {})
    for kind in SHAPES
    for loss in ("cd", "pcd", "mle")
    for way in WAYS
    for dtype in (torch.float32, torch.float64)
    if way == "default" or dtype is torch.float64
]
CASES += [
    (("picture", "pcd", torch.float64, "default"), {"bad": bad, "on_nonfinite": "skip"})
    for bad in (5, slice(0, ROWS // 2))  # the latter leaves rank 0 none
]


def several():
    return [train(*case, **options) for case, options in CASES]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return process_group.once(tmp_path_factory, "fsdp", all_ranks)


def all_ranks(_):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not finite")
        return [several()], process_group.results(2, several, seconds=120)


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: "-".join(map(str, CASES[i][0])))
def test_weights_are_those_of_one_process(found, case):
    ((whole, chains),), parts = ([rank[case] for rank in ranks] for ranks in found)
    tolerance = 1e-9 if CASES[case][0][2] is torch.float64 else 1e-6
    for i in range(STEPS):
        assert i == 0 or (whole[i] - whole[i - 1]).abs().max() > 1e-4
        for weights, _ in parts:
            assert (weights[i] - whole[i]).abs().max() < tolerance, i
        ours = torch.cat([negatives[i] for _, negatives in parts])
        torch.testing.assert_close(ours, chains[i], rtol=0, atol=1e-5)


def refused(way):
    net = energy("picture")
    shard(net, way)
    icd = criterion("icd", net, SHAPES["picture"])
    before, said = icd.buffer.stream.clone(), []
    for work in (lambda: icd(torch.rand(4, 1, 8, 8)), lambda: average_gradients(net.parameters())):
        try:
            work()
        except (NotImplementedError, TypeError) as error:
            said.append(str(error))
    assert icd.calls == 0 and torch.equal(icd.buffer.stream, before)
    return said


def all_refused():
    return [refused(way) for way in WAYS]


def test_icd_and_average_gradients_refuse_it_before_they_do_anything():
    for icd, average in sum(process_group.results(2, all_refused, seconds=90), []):
        assert "FSDP2" in icd and "Persistent" in icd and "DistributedDataParallel" in icd
        assert "FSDP reduces its gradients itself" in average
