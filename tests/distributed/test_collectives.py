"""What ranks tell each other, one by one."""

import copy
import os
import signal
import time

import process_group
import pytest
import torch
from torch import nn

import fastebm
from fastebm.distributed import (
    RankError,
    World,
    alone,
    average_gradients,
    average_metrics,
    faults,
    full_state_dict,
    join_state_dicts,
    world,
)
from fastebm.distributed import collectives as ranks

DTYPES = [torch.float32, torch.bfloat16, torch.uint8, torch.int64, torch.float64, torch.bool]


def test_without_a_group_there_is_one_rank_and_nothing_travels():
    assert world() == World(0, 1) and world().part(7) == slice(0, 7)
    x, p = torch.randn(3, 2), nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([1.0, -2.0])
    average_gradients([p])
    assert p.grad.tolist() == [1, -2] and ranks.all_rows(x) is x and ranks.sum_of_ranks(x) is x
    assert ranks.gather_integers([3, 4]) == [[3, 4]] and ranks.gather_objects("a") == ["a"]
    assert ranks.on_rank_zero(lambda: 5) == 5
    assert average_metrics({"loss_cd": torch.tensor(2.0), "n_nonfinite": 1}) == {
        "loss_cd": 2,
        "n_nonfinite": 1,
    }


@pytest.mark.parametrize("size, n", [(1, 5), (3, 7), (4, 4), (4, 2)])
def test_parts_are_all_of_it_once(size, n):
    parts = [list(range(n))[World(r, size).part(n)] for r in range(size)]
    assert sum(parts, []) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def told():
    rank, size = world()
    rows = {}
    for dtype in DTYPES:
        x = torch.arange(6).view(2, 3).add(10 * rank).to(dtype)
        rows[dtype] = ranks.all_rows(x)
    rows["none"] = ranks.all_rows(torch.empty(0, 3))
    table = torch.tensor([[-0.0, 1.0], [torch.nan, 3.0], [4.0, torch.inf], [6.0, 7.0]])
    part = table[world().part(4)]
    slots = torch.tensor([3, 0, 1, 1, 2])
    rows["slots"] = ranks.rows_of_slots(part, slots, world().part(4).start)
    rows["bytes"] = ranks.rows_of_slots(part.to(torch.bfloat16), slots, 2 * rank)
    rows["uneven"] = ranks.uneven_rows(torch.full((3, 1), float(rank)), [1, 3])
    rows["no rows"] = ranks.uneven_rows(torch.full((3, 1), float(rank)), [0, 0])
    rows["sum"] = ranks.sum_of_ranks(torch.tensor([1.0, float(rank)]))
    rows["mean"] = ranks.mean_of_ranks(torch.tensor(float(rank)))
    rows["integers"] = ranks.gather_integers([rank, -(2**63), 2**63 - 1])
    rows["zero"] = ranks.on_rank_zero(lambda: f"rank {world().rank}")
    with pytest.raises(KeyError, match="only there"):
        ranks.on_rank_zero(lambda: {}["only there"])
    with alone():
        rows["alone"] = world(), ranks.gather_integers([rank])
    return rows, table[slots]


def test_every_rank_is_told_the_same():
    found = process_group.results(2, told)
    for r, (rows, wanted) in enumerate(found):
        for dtype in DTYPES:
            whole = torch.cat([torch.arange(6).view(2, 3).add(10 * k).to(dtype) for k in (0, 1)])
            assert rows[dtype].dtype == dtype and torch.equal(rows[dtype], whole)
        assert rows["none"].shape == (0, 3) and rows["no rows"][0].shape == (0, 1)
        assert torch.equal(rows["slots"].view(torch.int32), wanted.view(torch.int32))  # -0.0, NaN
        assert torch.equal(
            rows["bytes"].view(torch.int16), wanted.to(torch.bfloat16).view(torch.int16)
        )
        y, first = rows["uneven"]
        assert y.flatten().tolist() == [0, 1, 1, 1] and first == (0, 1)[r]
        assert rows["sum"].tolist() == [2, 1] and rows["mean"] == 0.5
        assert rows["integers"] == [[k, -(2**63), 2**63 - 1] for k in (0, 1)]
        assert rows["zero"] == "rank 0" and rows["alone"] == (World(0, 1), [[r]])


def gradients():
    rank = world().rank
    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.fill_(1.0)
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])[rank : rank + 1]
    net(x).sum().backward()
    unused, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    here = nn.Parameter(torch.ones(2))
    if rank == 1:
        here.grad = torch.tensor([4.0, 6.0])
    other.grad = torch.full((2,), rank + 1e-9, dtype=torch.float64)
    average_gradients([*net.parameters(), unused, frozen, here, other])
    with pytest.raises(TypeError, match="parameters must be tensors, got str"):
        average_gradients(["weight"])
    metrics = {"energy_pos": torch.tensor([1.0, 3.0])[rank], "energy_pos_std": [0.5, 1.5][rank]}
    both = average_metrics(metrics | {"n_nonfinite": 2.0})
    counted = average_metrics({"n_nonfinite": torch.tensor(rank + 1)})
    return net.weight.grad, unused.grad, frozen.grad, here.grad, other.grad, both, counted


def test_gradients_and_metrics_are_those_of_all_ranks():
    for weight, unused, frozen, here, other, both, counted in process_group.results(2, gradients):
        assert weight.tolist() == [[2, 3.5]] and unused is None and frozen is None
        assert here.tolist() == [2, 3]
        assert (other == (1e-9 + (1 + 1e-9)) / 2).all()  # in float64
        # Of samples 1 +- 0.5 and 3 +- 1.5: E[x^2] - E[x]^2.
        spread = ((1 + 0.25 + 9 + 2.25) / 2 - 4) ** 0.5
        assert both == {"energy_pos": 2, "energy_pos_std": pytest.approx(spread), "n_nonfinite": 2}
        assert counted == {"n_nonfinite": 3}


def make_buffer(**options):
    return fastebm.ReplayBuffer(12, (2,), **{"seed": 4, "dtype": torch.uint8, **options})


def use(buffer, times=3, n=2):
    drawn = []
    for _ in range(times):
        x, idx = buffer.sample(n)
        buffer.push((x * 0.5).clamp(0, 0.999), idx)
        drawn.append((x, idx))
    return drawn


def states():
    with alone():  # before there is a group, as in a LightningModule
        early = make_buffer()
    before, buffer = early.data.clone(), make_buffer()
    first, second = use(early), use(buffer)
    own = copy.deepcopy(buffer.state_dict())
    whole = copy.deepcopy(full_state_dict(nn.ModuleDict({"b": buffer})))
    later = use(buffer)
    loaded, error = make_buffer(seed=9), None
    loaded.load_state_dict({k.removeprefix("b."): v for k, v in whole.items()})
    again, of_zero = use(loaded), ranks.gather_objects(own)[0]
    try:
        loaded.load_state_dict(of_zero)
    except ValueError as refused:
        error = str(refused)
    with alone(), pytest.raises(ValueError, match="is part [01] of 2 ranks' and cannot"):
        buffer.sample(1)
    return before, first, second, own, whole, later, again, error, buffer.all(of_ranks=True)


def test_buffers_are_parts_of_one_in_every_state():
    found = process_group.results(2, states)
    whole, (one_early, one) = make_buffer(), (make_buffer(), make_buffer())
    reference = [use(b, n=4) for b in (one_early, one)]
    for r, (before, first, second, own, state, later, again, error, _) in enumerate(found):
        assert torch.equal(before, whole.data)
        for ours, theirs in zip((first, second), reference, strict=True):
            for (x, idx), (y, slots) in zip(ours, theirs, strict=True):
                rows = slice(2 * r, 2 * r + 2)
                assert torch.equal(x, y[rows]) and torch.equal(idx, slots[rows])
        assert len(own["data"]) == 6 and len(state["b.data"]) == 12
        assert own["_extra_state"]["shard"] == (r, 2) and "shard" not in state["b._extra_state"]
        for (x, idx), (y, slots) in zip(later, again, strict=True):
            assert torch.equal(x, y) and torch.equal(idx, slots)
        if r:
            assert "the state is of rank 0 of 2 and holds its part" in error
            assert "full_state_dict" in error
    joined = join_state_dicts([f[3] for f in found])
    for name, value in joined.items():
        same = found[0][4][f"b.{name}"]
        assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same
    one = make_buffer(seed=1)
    one.load_state_dict(joined)  # in one process: the run goes on
    for (x, idx), a, b in zip(use(one, n=4), found[0][5], found[1][5], strict=True):
        assert torch.equal(x, torch.cat([a[0], b[0]])) and torch.equal(idx, torch.cat([a[1], b[1]]))
    assert torch.equal(one.all(), found[0][8]) and torch.equal(one.all(), found[1][8])
    with pytest.raises(ValueError, match="must be those of all ranks in their order"):
        join_state_dicts([f[3] for f in found][::-1])
    with pytest.raises(ValueError, match=r"the state is of rank 1 of 2 .* this is rank 0 of 1"):
        make_buffer().load_state_dict(found[1][3])


def bad_buffers():
    rank, errors = world().rank, []
    for make in (
        lambda: fastebm.ReplayBuffer(11, 2),
        lambda: make_buffer().sample(7),
        lambda: make_buffer().push(torch.zeros(2, 2), torch.tensor([0, 11])),
        lambda: make_buffer(mode="fifo").sample(7),
    ):
        try:
            make()
        except ValueError as error:
            errors.append(str(error))
    own = make_buffer(shared=False)
    return errors, own.data, use(own, n=12)[0][1], own.part, rank


def test_what_does_not_fit_a_buffer_of_several_ranks():
    (errors, data, slots, part, _), (others, other, _, _, _) = process_group.results(2, bad_buffers)
    assert errors[0].startswith("capacity must be a multiple of the 2 ranks") and "11" in errors[0]
    assert errors[1].startswith("n must be in 1..6") and errors[1].endswith("on each of 2 ranks")
    assert errors[2] == "idx must be in 0..5, the slots, got 11"
    assert others[2] == "idx must be in 6..11, the slots, got 0"
    assert len(errors) == 4
    assert part == World(0, 1) and len(data) == 12 and not torch.equal(data, other)
    assert sorted(slots.tolist()) == list(range(12))


def killed(how):
    rank, faults.WAIT = world().rank, 2.0
    ranks.gather_integers([rank])
    if rank == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1:
        error = MemoryError("no room for the model")
        faults.tell(error)
        os._exit(1)
    began = time.monotonic()
    try:
        for _ in range(10):
            ranks.gather_integers([rank])
    except RankError as error:
        return str(error), time.monotonic() - began


@pytest.mark.parametrize(
    "how, said",
    [("killed", "rank 1 is gone"), ("raised", "rank 1 failed with MemoryError: no room")],
)
def test_a_rank_that_is_gone_is_named(how, said):
    found = process_group.run(3, killed, how)
    for r in (0, 2):
        message, seconds = found[r]
        assert said in message and f"rank {r} could not gather rows" in message
        assert seconds < 30
    assert found[1] == "died"
