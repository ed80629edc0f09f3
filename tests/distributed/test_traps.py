"""What goes wrong with several processes: refused on all of them by one message, or right after
all. Two gloo processes, none of which may hang."""

import copy
import re
import warnings

import process_group
import pytest
import torch
from test_recipes import criterion, energy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastebm
from fastebm.distributed import average_gradients, full_state_dict, join_state_dicts, world
from fastebm.distributed.collectives import gather_integers

SHAPE = (2,)


def parts(loss="pcd", wrap=False, dtype=torch.float32, buffer=None, **options):
    net = energy("perceptron", dtype)
    step = criterion(loss, DistributedDataParallel(net) if wrap else net, net, SHAPE, **options)
    if buffer is not None:
        step.buffer = fastebm.ReplayBuffer(**{"capacity": 64, "shape": SHAPE, **buffer})
    return net, step


def data(n=8, seed=None, dtype=torch.float32):
    g = torch.Generator().manual_seed(world().rank if seed is None else seed)
    return torch.randn(n, 2, generator=g, dtype=torch.float64).to(dtype)


def said(work):
    """What a call raises; and whether the ranks are still in step."""
    try:
        work()
    except Exception as error:
        assert gather_integers([7]) == [[7], [7]]
        return type(error).__name__, str(error)


# Each is given the rank, and returns what is called, after what goes well.


def beside_ddp(rank):
    net, step = parts()
    DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    step(data()).loss.backward()
    optimizer.step()
    return lambda: step(data())


def batch_sizes(rank):
    _, step = parts()
    return lambda: step(data(8 - rank))


def smaller_last_batch(rank, loss="pcd", **options):
    _, step = parts(loss, **options)
    step(data())
    return lambda: step(data(8 - rank))


def smaller_last_batch_of_icd_alone(rank):
    _, step = parts("icd")
    step.buffer = None
    step(data())
    return lambda: step(data(8 - rank))


def capacities(rank):
    _, step = parts(buffer={"capacity": 64 + 2 * rank})
    return lambda: step(data())


def buffers_seeded_by_rank(rank):
    _, step = parts(buffer={"seed": rank})
    return lambda: step(data())


def odd_capacity(rank):
    return lambda: parts(buffer={"capacity": 65})


def models(rank):
    net = fastebm.energies.MLPEnergy(2, (8 + rank,))
    step = criterion("pcd", net, net, SHAPE)
    return lambda: step(data())


def other_weights(rank):
    torch.manual_seed(rank)
    net = fastebm.energies.MLPEnergy(2)
    step = criterion("pcd", net, net, SHAPE)
    return lambda: step(data())


def dtypes(rank):
    _, step = parts(dtype=torch.float64)
    return lambda: step(data(dtype=(torch.float32, torch.float64)[rank]))


def losses(rank):
    _, step = parts(("cd", "icd")[rank])
    return lambda: step(data())


def weights_of_terms(rank):
    _, step = parts("icd", entropy_weight=0.3 * rank)  # else one waits for references of the other
    return lambda: step(data())


def steps_of_chains(rank):
    _, step = parts()
    step.sampler.step_size = 0.01 + 0.01 * rank
    return lambda: step(data())


def nan_of_one_rank(rank):
    _, step = parts()
    step(data())
    return lambda: step(torch.full((8, 2), torch.nan) if rank else data())


def streams_alike(rank):
    _, step = parts()
    return lambda: step(data(), seed=fastebm.ChainRNG(0, sample_offset=3 * rank))


def device_streams_alike(rank):
    _, step = parts()
    rng = fastebm.DeviceRNG(fastebm.ChainRNG(0, sample_offset=0), "cpu")
    return lambda: step(data(), seed=rng)


def dreams_alike(rank):
    torch.manual_seed(0)
    machine = fastebm.HelmholtzMachine(4, 2)
    x = torch.zeros(8, 4)
    return lambda: fastebm.WakeSleep(machine)(x, seed=fastebm.ChainRNG(0, sample_offset=0))


def regions_of_other_sizes(rank):
    net, _ = parts()
    region = fastebm.TrustRegion(torch.optim.SGD(net.parameters(), 0.1))
    return lambda: region.step(net, data(8 - rank))


def state_of_another_rank(rank):
    _, step = parts()
    step(data())
    states = [None, None]
    torch.distributed.all_gather_object(states, step.buffer.state_dict())
    return lambda: step.buffer.load_state_dict(states[1 - rank])


TRAPS = {
    beside_ddp: "RuntimeError: call 2 .* rank 1 differ .* were not reduced.*DistributedData",
    batch_sizes: "ValueError: all ranks must have the same batch size, got rank 0: 8; rank 1: 7",
    smaller_last_batch: "ValueError: all ranks must have the same batch size, got 8, 7: drop_last",
    smaller_last_batch_of_icd_alone: "ValueError: .* same batch size, got 8, 7: drop_last",
    capacities: "ValueError: all ranks must have the same capacity, got rank 0: 64; rank 1: 66",
    buffers_seeded_by_rank: "ValueError: .* must have one seed .* shared=False",
    odd_capacity: "ValueError: capacity must be a multiple of the 2 ranks",
    models: "ValueError: all ranks must have the same parameters, got rank 0",
    other_weights: "RuntimeError: call 1 .* same torch.manual_seed on all ranks, or wrap it",
    dtypes: "ValueError: .* same dtype of x, got rank 0: torch.float32; rank 1: torch.float64",
    losses: "ValueError: all ranks must have the same loss, got rank 0: Contrastive",
    weights_of_terms: "ValueError: .* same entropy_weight, got rank 0: 0.0; rank 1: 0.3",
    steps_of_chains: "ValueError: .* same step_size, got rank 0: 0.01; rank 1: 0.02",
    nan_of_one_rank: "NonFiniteError: call 2 .* 8 of 16 energies .* of rank 1",
    streams_alike: "ValueError: seed must number the 8 chains .* rank 0: 0; rank 1: 3: leave",
    device_streams_alike: "ValueError: seed must number .* rank 0: 0; rank 1: 0: leave",
    dreams_alike: "ValueError: seed must number .* rank 0: 0; rank 1: 0: leave",
    regions_of_other_sizes: "ValueError: all ranks must have the same batch size, got 8, 7",
    state_of_another_rank: "ValueError: the state is of rank . of 2 .*full_state_dict",
}


def trapped(name):
    return said(globals()[name](world().rank))


@pytest.fixture(scope="module")
def raised():
    names = [trap.__name__ for trap in TRAPS]
    return process_group.results(2, all_trapped, names, seconds=90)


def all_trapped(names):
    return {name: trapped(name) for name in names}


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_all_ranks_say_what_is_wrong(raised, trap):
    found = [": ".join(rank[trap.__name__]) for rank in raised]
    if trap is not state_of_another_rank:
        assert found[0] == found[1]
    for message in found:
        assert re.match(TRAPS[trap], message), message


# What goes well.


def noise(seed_of_rank):
    """Chains, the buffer and negatives where torch is seeded so."""
    torch.manual_seed(seed_of_rank[world().rank])
    net = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
    ddp = DistributedDataParallel(net)  # which copies rank 0's weights
    step = criterion("pcd", ddp, net, SHAPE)
    x = step.sampler.sample(torch.zeros(8, 2), 5)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        step(data()).loss.backward()
        optimizer.step()
    whole = full_state_dict(step.buffer)
    return x, step.buffer.data, step.seen[-1], whole["data"], whole["stream"]


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_ranks_have_other_noise_and_slots_whatever_their_torch_seeds(well, seeds):
    one, two = well[noise, seeds]
    for ours, theirs in zip(one[:3], two[:3], strict=True):
        assert (ours - theirs).abs().mean() > 0.05
    assert torch.equal(one[3], two[3]) and torch.equal(one[4], two[4])
    assert len(one[3].unique(dim=0)) == 64  # no slot twice


def of_their_own():
    _, step = parts(buffer={"shared": False, "seed": 3, "capacity": 16})
    for _ in range(3):
        step(data())
    seeded = [fastebm.ReplayBuffer(8, 2, seed=s, shared=False) for s in (3, world().rank)]
    return step.seen[-1], len(step.buffer.data), [b.data for b in seeded]


def test_buffers_of_their_own(well):
    one, two = well[of_their_own,]
    assert one[1] == two[1] == 16
    for ours, theirs in zip((one[0], *one[2]), (two[0], *two[2]), strict=True):
        assert (ours - theirs).abs().mean() > 0.05


def accumulated(wrap):
    """Weights after steps whose gradients are those of two calls."""
    net, step = parts("icd", wrap, torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for i in range(3):
        optimizer.zero_grad()
        xs = [data(16, 2 * i + k, torch.float64)[world().part(16)] for k in (0, 1)]
        if wrap:
            with step.model.no_sync():
                step(xs[0]).loss.backward()
            step(xs[1]).loss.backward()
        else:
            (step(xs[0]).loss + step(xs[1]).loss).backward()
            average_gradients(net.parameters())
        optimizer.step()
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def test_gradients_of_several_calls(well):
    whole = accumulated(False)
    for wrap in (True, False):
        for weights in well[accumulated, wrap]:
            assert (weights - whole).abs().max() < 1e-9


def skipped(wrap=True):
    net, step = parts("icd", wrap, torch.float64, on_nonfinite="skip")
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    counts = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not finite")
        for i in range(3):
            x = data(16, i, torch.float64)
            x[9:12] = torch.nan
            out = step(x[world().part(16)])
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            counts.append(float(out.metrics["n_nonfinite"]))
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone(), counts


def test_rows_that_one_rank_leaves_out(well):
    weights, counts = skipped(wrap=False)
    assert counts == [3.0] * 3
    for ours, same in well[skipped,]:
        assert same == counts and (ours - weights).abs().max() < 1e-9


WELL = [
    (noise, (0, 0)),
    (noise, (0, 1)),
    (of_their_own,),
    (accumulated, True),
    (accumulated, False),
]
WELL += [(skipped,)]


def all_well():
    return [work(*args) for work, *args in WELL]


@pytest.fixture(scope="module")
def well():
    """Of each case what it gives on each rank."""
    found = process_group.results(2, all_well, seconds=90)
    return dict(zip(WELL, zip(*found, strict=True), strict=True))


MODES = ("slot", "fifo", "reservoir")


def run(mode, states=None):
    """Four steps; or the last two of them, from states. What the buffer was after two and is."""
    _, step = parts(buffer={"mode": mode, "seed": 1, "dtype": torch.uint8, "value_range": (-2, 2)})
    if states is not None:
        step.buffer.load_state_dict(states[mode])
    slots, take = [], step.buffer.sample
    step.buffer.sample = lambda n: slots.append(take(n)) or slots[-1]
    for i in range(0 if states is None else 2, 4):
        if i == 2 and states is None:
            half = copy.deepcopy(step.buffer.state_dict())
        step(data(16, i)[world().part(16)], seed=fastebm.ChainRNG(5, t=10 * i))
    return half if states is None else None, slots[-2:], full_state_dict(step.buffer)


def runs(states=None):
    return {mode: run(mode, states) for mode in MODES}


def test_a_run_goes_on_with_another_number_of_ranks():
    two = process_group.results(2, runs, seconds=90)
    joined = {mode: join_state_dicts([rank[mode][0] for rank in two]) for mode in MODES}
    for n in (1, 2, 4):
        found = process_group.results(n, runs, joined, seconds=90)
        for mode in MODES:
            for i in (0, 1):
                for k in (0, 1):  # samples, slots
                    ours, theirs = (
                        torch.cat([rank[mode][1][i][k] for rank in ranks]) for ranks in (two, found)
                    )
                    assert torch.equal(ours, theirs), (n, mode, i)
            for name, value in two[0][mode][2].items():
                same = found[-1][mode][2][name]
                ok = torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same
                assert ok, (n, mode, name)
