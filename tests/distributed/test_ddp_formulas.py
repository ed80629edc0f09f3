"""Small perceptrons under DistributedDataParallel keep their losses by formulas: the gradients are
those of one process that has the joined batch."""

import warnings

import process_group
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import fastebm
from fastebm.distributed import world

ROWS = 16  # of all ranks


def criterion(loss, model, net, **options):
    adaptive = {"adjusted": True, "step_size": "auto"} if loss == "adjusted" else {}
    sampler = fastebm.LangevinDynamics(net, **{"step_size": 0.02, "clamp": (-2, 2), **adaptive})
    buffer = fastebm.ReplayBuffer(64, 2, reinit_prob=0.2, value_range=(-2, 2))
    if loss == "cd":
        return fastebm.ContrastiveDivergence(model, sampler, 5, **options)
    if loss == "icd":
        return fastebm.ImprovedContrastiveDivergence(model, sampler, buffer, 5, **options)
    return fastebm.PersistentContrastiveDivergence(model, sampler, buffer, 5, **options)


def gradients(loss, way, options=()):
    """Of three rounds without a step of the optimiser; and how often the formulas were left."""
    torch.manual_seed(3)
    net = fastebm.energies.MLPEnergy(2, (16, 16))
    ddp = DistributedDataParallel(net, **dict(options)) if world().size > 1 else net
    more = {"on_nonfinite": "skip"} if way == "skip" else {}
    step = criterion(loss, ddp, net, **more)
    left, by_graph = [], step._phases
    step._phases = lambda *args: left.append(args) or by_graph(*args)
    found = []
    for i in range(3):
        g = torch.Generator().manual_seed(i)
        xs = torch.randn(2, ROWS, 2, generator=g)
        if way == "skip":
            xs[:, 1] = torch.nan  # a row of rank 0
        xs = [x[world().part(ROWS)] for x in xs]
        net.zero_grad()
        if way == "two calls":
            (step(xs[0]).loss + 2 * step(xs[1]).loss).backward()
        elif way == "no_sync" and world().size > 1:
            with ddp.no_sync():
                step(xs[0]).loss.backward()
            step(xs[1]).loss.backward()
        elif way == "no_sync":
            (step(xs[0]).loss + step(xs[1]).loss).backward()
        else:
            with torch.no_grad():
                step(xs[1])
            step(xs[0]).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    return found, len(left)


CASES = [
    (loss, way)
    for loss in ("cd", "pcd", "icd", "adjusted")
    for way in ("one call", "two calls", "no_sync", "skip")
]
CASES += [("icd", "one call", (("find_unused_parameters", True),))]
CASES += [("icd", "one call", (("static_graph", True),))]


def several():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not finite|.*find_unused_parameters")
        return [gradients(*case) for case in CASES]


@pytest.fixture(scope="module")
def found():
    return several(), process_group.results(2, several, seconds=90)


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: "-".join(CASES[i][:2]))
def test_gradients_are_those_of_the_joined_batch(found, case):
    whole, parts = found[0][case], [rank[case] for rank in found[1]]
    for ours, left in parts:
        assert left == whole[1] and (left > 0) == (CASES[case][1] == "skip")
        for i in range(3):
            assert whole[0][i].abs().max() > 1e-3
            torch.testing.assert_close(ours[i], whole[0][i], rtol=1e-5, atol=2e-6)
            assert torch.equal(ours[i], parts[0][0][i])
