"""A slot for each row from its own stratum: the operator against its twin, its law, its errors."""

import itertools
import math
import random

import pytest
import torch
from test_choice import assert_law, assert_uniform

from fastebm import ChainRNG
from fastebm.ops import library, reference
from fastebm.ops.choice import choose_strata

SIZES = [(1, 1), (5, 5), (7, 3), (1000, 128), (1001, 128), (2**40, 1), (2**40 - 1, 4097)]
SIZES += [(2**22, 2**22), (2**32 + 11, 97), (2**40, 2**22), (2**40 - 1, 2**22)]


UNEVEN = [(8, 3), (10, 6), (12, 8), (9, 7), (101, 100), (1000, 128), (1001, 128)]


def draws(size, n, keys):
    """(keys, n): choices by ``keys`` streams, each second one a step of the one before."""
    states = (ChainRNG(i // 2, i % 2).state() for i in range(keys))
    return torch.stack([choose_strata(state, size, n) for state in states])


def of_blocks(length, rows, blocks, seed=0, step=0):
    """(blocks, rows): what one call chooses in each block of ``length`` slots, counted from its
    first one."""
    assert math.gcd(length, rows) == 1
    chosen = choose_strata(ChainRNG(seed, step).state(), blocks * length, blocks * rows)
    return chosen.view(blocks, rows) - length * torch.arange(blocks)[:, None]


def assert_equals_twin(device, size, n, first, total, stream):
    state = stream.state(device)
    chosen = choose_strata(state, size, n, first, total).cpu()
    twin = reference.choose_strata(stream.seed, stream.t, size, n, first, total)
    assert chosen.dtype == torch.int64 and torch.equal(chosen, twin)
    blocks = math.gcd(size, total)
    block = torch.arange(first, first + n) // (total // blocks)
    assert torch.equal(chosen // (size // blocks), block)
    # In a block the slots ascend on a ring: in numbers they fall once at most.
    assert (block[1:][chosen.diff() < 0].bincount() <= 1).all()
    assert len(chosen.unique()) == n


@pytest.mark.parametrize("size, total", SIZES)
def test_first_and_last_rows(device, size, total):
    n, stream = min(total, 300), ChainRNG(2**63 + 7, 2**32 - 1, 2**33)
    assert_equals_twin(device, size, n, 0, total, stream)
    assert_equals_twin(device, size, n, total - n, total, stream)
    if n == total:
        assert torch.equal(
            choose_strata(stream.state(device), size, n),
            choose_strata(stream.state(device), size, n, 0, total),
        )


def test_any_sizes_and_rows(device):
    r = random.Random(0)
    for _ in range(60):
        size = r.randint(1, 2 ** r.randint(1, 40))
        total = r.randint(1, min(size, 2 ** r.randint(0, 22)))
        first = r.randrange(total)
        n = r.randint(0, min(total - first, 200))
        stream = ChainRNG(r.randrange(2**64), r.randrange(2**32), r.randrange(2**56))
        assert_equals_twin(device, size, n, first, total, stream)


def test_as_many_rows_as_slots_take_each(device):
    chosen = choose_strata(ChainRNG(4).state(device), 3000, 3000)
    assert torch.equal(chosen.cpu(), torch.arange(3000))


@pytest.mark.parametrize("size", [5000, 5001, 123_457, 2**40 - 3])
def test_shares_of_a_batch_are_the_batch(device, size):
    """Whatever the processes' streams have for the chains of their own."""
    total, r = 5000, random.Random(size)
    whole = choose_strata(ChainRNG(3, 5).state(device), size, total)
    assert len(whole.unique()) == total
    for processes in (2, 3, 8):
        ends = sorted(r.randint(0, total) for _ in range(processes - 1))
        parts = [
            choose_strata(ChainRNG(3, 5, a).state(device), size, b - a, a, total)
            for a, b in zip([0, *ends], [*ends, total], strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_seed_and_step_matter_and_the_first_sample_does_not(device):
    def chosen(*stream):
        return choose_strata(ChainRNG(*stream).state(device), 2**40, 50)

    assert torch.equal(chosen(1, 2, 3), chosen(1, 2, 2**55))
    for other in ((2, 2), (1 + 2**32, 2), (1, 3), (1, 2**31 + 2)):
        assert (chosen(1, 2) != chosen(*other)).all()


@pytest.mark.parametrize("length", [2, 3, 7, 100])
def test_every_slot_of_a_stratum_is_equally_probable(length):
    rows = 40_000
    chosen = choose_strata(ChainRNG(1).state(), length * rows, rows)
    assert_uniform(chosen - length * torch.arange(rows), length)
    steps = draws(5 * length, 5, 8000)
    for row in range(5):
        assert_uniform(steps[:, row] - length * row, length)


@pytest.mark.parametrize("size, total", UNEVEN)
def test_every_slot_is_equally_probable_where_rows_do_not_divide_slots(size, total):
    keys, p = 8000, total / size
    chosen = draws(size, total, keys)
    slots = chosen.sort(1).values
    assert (slots.diff(dim=1) > 0).all()  # distinct
    # Of each slot a binomial number of keys; six of its deviations, 2e-9 for a normal.
    count = chosen.flatten().bincount(minlength=size)
    assert ((count - keys * p).abs() < 6 * math.sqrt(keys * p * (1 - p))).all()
    length, rows = size // math.gcd(size, total), total // math.gcd(size, total)
    for row in {0, rows - 1, rows, total // 2, total - 1} - {total}:
        assert_uniform(chosen[:, row] - row // rows * length, length)


@pytest.mark.parametrize("length, rows", [(8, 3), (5, 3), (3, 2), (5, 4), (7, 2)])
def test_the_joint_law_of_a_block_is_that_of_strata_turned(length, rows):
    strata = [range(j * length // rows, (j + 1) * length // rows) for j in range(rows)]
    ways = torch.tensor(list(itertools.product(range(length), *strata)))
    code = length ** torch.arange(rows)
    codes, ways = ((ways[:, 1:] + ways[:, :1]) % length @ code).unique(return_counts=True)
    probability = ways.double() / ways.sum()
    single = draws(length, rows, 8000)
    for slots in (of_blocks(length, rows, 40_000), single):
        drawn = slots @ code
        cells = torch.searchsorted(codes, drawn).clamp(max=len(codes) - 1)
        assert torch.equal(codes[cells], drawn)
        assert_law(cells, probability)


def test_blocks_and_steps_are_independent():
    length, rows, blocks = 5, 3, 2**16
    slot = torch.stack([of_blocks(length, rows, blocks, 9, step) for step in (0, 1)])
    for one, other in itertools.product(range(rows), repeat=2):
        assert_uniform(length * slot[0, :, one] + slot[1, :, other], length**2)
        for lag in (1, 2, 256):
            pair = slot[0].view(-1, 2, lag, rows)  # no block is in two pairs
            cells = length * pair[:, 0, :, one] + pair[:, 1, :, other]
            assert_uniform(cells.flatten(), length**2)


def test_large_blocks_are_turned_by_any_amount():
    one = draws(2**40 - 1, 4, 8000)  # strata of a quarter each, and more than 32 bits
    for row in range(4):
        assert_uniform(one[:, row] >> 34, 64)
        assert_uniform(one[:, row] % 64, 64)


@pytest.mark.parametrize("size, total", [(24, 16), (1000, 128), (12_344, 5000), (2**40 - 8, 4096)])
def test_a_share_of_the_rows_stays_in_that_share_of_the_slots(device, size, total):
    assert size % total and size % 8 == total % 8 == 0
    for processes, step in itertools.product((2, 4, 8), range(5)):
        n, state = total // processes, ChainRNG(3, step).state(device)
        parts = [choose_strata(state, size, n, k * n, total).cpu() for k in range(processes)]
        for k, part in enumerate(parts):
            assert (part // (size // processes) == k).all()
        assert len(torch.cat(parts).unique()) == total


def test_large_strata_are_uniform_at_both_ends_of_the_number():
    rows, length = 2**16, 2**24
    slot = choose_strata(ChainRNG(2).state(), length * rows, rows) - length * torch.arange(rows)
    assert_uniform(slot * 64 // length, 64)
    assert_uniform(slot % 64, 64)
    one = draws(2**40 - 1, 1, 8000)[:, 0]  # more than 32 bits
    assert_uniform(one >> 34, 64)
    assert_uniform(one % 64, 64)


def test_rows_are_independent_of_each_other():
    keys, rows, length = 8000, 40, 5
    slot = draws(length * rows, rows, keys) - length * torch.arange(rows)
    for a, b in ((0, 1), (0, 39), (6, 7), (4, 36)):
        assert_uniform(length * slot[:, a] + slot[:, b], length**2)
    # Of independent rows a correlation over n keys has variance 1 / n: 5 of its roots.
    apart = slot.double().T.corrcoef() - torch.eye(rows)
    assert apart.abs().max() < 5 / keys**0.5


def test_neighbours_and_steps_are_independent():
    rows, length = 2**17, 6
    slot = torch.stack([
        choose_strata(ChainRNG(9, step).state(), length * rows, rows) for step in (0, 1)
    ]) - length * torch.arange(rows)  # fmt: skip
    for lag in (1, 2, 4, 256):
        pair = slot[0].view(-1, 2, lag)  # no row is in two pairs
        assert_uniform((length * pair[:, 0] + pair[:, 1]).flatten(), length**2)
    assert_uniform(length * slot[0] + slot[1], length**2)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"rng": torch.zeros(3, dtype=torch.int64)}, "rng must be an int64 tensor of 4 values"),
        ({"rng": torch.zeros(4)}, "rng must be an int64 tensor of 4 values"),
        ({"size": -1}, r"size must be in 0\.\.2\^40, got -1"),
        ({"size": 2**40 + 1}, r"size must be in 0\.\.2\^40, got 1099511627777"),
        ({"n": -1}, r"n must be in 0\.\.2\^22, got -1"),
        ({"n": -1, "total": None}, r"n must be in 0\.\.2\^22, got -1"),
        ({"n": 2**22 + 1, "total": None}, r"n must be in 0\.\.2\^22, got 4194305"),
        ({"total": -1}, r"total must be in 0\.\.2\^22, got -1"),
        ({"total": 2**22 + 1, "size": 2**30}, r"total must be in 0\.\.2\^22, got 4194305"),
        ({"total": 10}, r"total must be in 0\.\.9, the size, got 10"),
        ({"n": 10, "total": None}, r"total must be in 0\.\.9, the size, got 10"),
        ({"first": -1}, r"first must be in 0\.\.5, the total, got -1"),
        ({"first": 6}, r"first must be in 0\.\.5, the total, got 6"),
        ({"first": 2**63 - 1}, r"first must be in 0\.\.5, the total"),
        ({"n": 5}, r"n must be in 0\.\.4, the rows from first on, got 5"),
        ({"n": 1, "first": 0, "total": 0}, r"n must be in 0\.\.0, the rows from first on, got 1"),
        ({"n": 2, "total": None}, r"n must be in 0\.\.1, the rows from first on, got 2"),
    ],
)
def test_wrong_arguments(change, match, device):
    arguments = {"rng": ChainRNG(1).state(), "size": 9, "n": 2, "first": 1, "total": 5, **change}
    arguments["rng"] = arguments["rng"].to(device)
    with pytest.raises(RuntimeError, match=f"^choose_strata: {match}"):
        choose_strata(**arguments)


@pytest.mark.parametrize(
    "state, match",
    [
        ([0, 2**32, 0, 0], r"rng must hold a step in 0\.\.2\^32 - 1, got 4294967296"),
        ([0, -1, 0, 0], r"rng must hold a step in 0\.\.2\^32 - 1, got -1"),
        ([0, 0, -1, 0], "rng must hold a sample_offset in"),
    ],
)
def test_a_stream_that_is_none(state, match):
    with pytest.raises(RuntimeError, match=f"^choose_strata: {match}"):
        choose_strata(torch.tensor(state), 9, 2)


def test_opcheck_and_compile():
    state = ChainRNG(1).state()
    for rows in ((7, 0, 7), (3, 2, 9), (0, 9, 9)):
        torch.library.opcheck(library.op.choose_strata.default, (state, 50, *rows))

    def f(rng):
        return choose_strata(rng, 50, 7, 1, 9) + 1

    assert torch.equal(torch.compile(f, fullgraph=True)(state), f(state))


def test_of_no_rows_nothing_is_chosen(device):
    state = ChainRNG(1).state(device)
    for size, rows in ((0, (0,)), (5, (0,)), (5, (0, 3, 3)), (5, (0, 0, 0))):
        chosen = choose_strata(state, size, *rows)
        assert chosen.shape == (0,) and chosen.dtype == torch.int64
