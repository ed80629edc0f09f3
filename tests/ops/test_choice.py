"""Distinct slots: the operator against its twin, the laws it draws from, and its errors."""

import itertools
import math

import pytest
import torch

from fastebm import ChainRNG
from fastebm.ops import library, reference
from fastebm.ops.choice import choose_slots

SIZES = [1, 2, 3, 5, 12, 100, 127, 128, 129, 1000, 10_000]


def draws(size, n, keys):
    """(keys, n): choices by ``keys`` streams, each second one a step of the one before."""
    states = (ChainRNG(i // 2, i % 2).state() for i in range(keys))
    return torch.stack([choose_slots(state, size, n)[0] for state in states])


def assert_uniform(cells, n_cells):
    """Chi-square of how often each of ``n_cells`` equally probable ones came."""
    assert_law(cells, torch.full((n_cells,), 1 / n_cells, dtype=torch.double))


def assert_law(cells, probability):
    """The same for cells of any probabilities above 0."""
    n_cells = len(probability)
    expected, df = len(cells) * probability, n_cells - 1
    assert (expected > 5).all()
    count = cells.bincount(minlength=n_cells).double()
    statistic = ((count - expected) ** 2 / expected).sum().item()
    # Wilson and Hilferty: the cube root of chi-square over df is about normal.
    z = ((statistic / df) ** (1 / 3) - 1 + 2 / (9 * df)) / math.sqrt(2 / (9 * df))
    assert len(count) == n_cells and abs(z) < 4


@pytest.mark.parametrize("size", SIZES)
def test_every_number_once_and_where_it_is(device, size):
    seed, step, t, row = 2**63 + 7, 11, 4, 2**33
    slots = torch.cat([torch.arange(-2, 6), torch.randint(0, size, (50,)), torch.tensor([size])])
    state = ChainRNG(seed, step - t, row).state(device)
    for n in (0, 1, size // 3, size):
        chosen, own = (v.cpu() for v in choose_slots(state, size, n, slots.to(device), t=t))
        expected = reference.choose_slots(seed, step, size, n, slots)
        assert torch.equal(chosen, expected[0]) and torch.equal(own, expected[1])
        assert torch.equal(choose_slots(state, size, n, t=t)[0].cpu(), chosen)
    assert torch.equal(chosen.sort().values, torch.arange(size))
    assert torch.equal(own >= 0, (slots >= 0) & (slots < size))


def test_a_size_that_no_table_has(device):
    state, size, n = ChainRNG(3).state(device), 2**40, 5000
    chosen, _ = choose_slots(state, size, n)
    assert chosen.min() >= 0 and chosen.max() < size and len(chosen.unique()) == n
    assert abs(chosen.double().mean() / size - 0.5) < 4 / math.sqrt(12 * n)
    own = choose_slots(state, size, n, chosen.flip(0))[1].cpu()
    assert torch.equal(own, torch.arange(n).flip(0))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_permutations_are_equally_probable(size):
    number = {p: i for i, p in enumerate(itertools.permutations(range(size)))}
    came = torch.tensor([number[tuple(p)] for p in draws(size, size, 8000).tolist()])
    assert_uniform(came, len(number))


@pytest.mark.parametrize("size", [7, 127, 128, 1000])
def test_every_number_is_equally_probable_at_every_place(size):
    chosen = draws(size, min(size, 40), 8000)
    for place in (0, 1, size // 8, chosen.shape[1] - 1):
        assert_uniform(chosen[:, min(place, 39)], size)


def test_all_pairs_are_equally_probable():
    size = 36  # 6 rows and columns
    chosen = draws(size, 8, 12_000)
    for other in (1, 6, 7):  # beside the first place, below it, neither
        first, second = chosen[:, 0], chosen[:, other]
        assert_uniform(first * (size - 1) + second - (second > first).long(), size * (size - 1))


def test_pairs_in_one_line_are_as_rare_as_others():
    side, keys = 100, 12_000
    chosen = draws(side**2, side + 2, keys)
    p = (side - 1) / (side**2 - 1)
    for other in (1, side, side + 1):
        pair = chosen[:, [0, other]]
        for line in (pair // side, pair % side):
            share = (line[:, 0] == line[:, 1]).double().mean()
            assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / keys)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"rng": torch.zeros(3, dtype=torch.int64)}, "rng must be an int64 tensor of 4 values"),
        ({"size": -1}, r"size must be in 0\.\.2\^40, got -1"),
        ({"size": 2**40 + 1}, r"size must be in 0\.\.2\^40"),
        ({"n": 6}, r"n must be in 0\.\.5, the size, got 6"),
        ({"n": -1}, r"n must be in 0\.\.5"),
        ({"t": -1}, r"t must be in 0\.\.2\^32 - 1, got -1"),
        ({"slots": torch.zeros(3)}, r"slots must be a contiguous int64 tensor \(b,\)"),
        ({"slots": torch.zeros(3, 1).long()}, "slots must be a contiguous"),
    ],
)
def test_wrong_arguments(change, match, device):
    arguments = {"rng": ChainRNG(1).state(), "size": 5, "n": 2, "slots": None, **change}
    arguments = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()
    }
    with pytest.raises(RuntimeError, match=match):
        choose_slots(**arguments)


def test_opcheck_and_compile():
    state, slots = ChainRNG(1).state(), torch.arange(4)
    for last in (slots, None):
        torch.library.opcheck(library.op.choose_slots.default, (state, 50, 7, last, 3))

    def f(rng, slots):
        return choose_slots(rng, 50, 7, slots)[1] + 1

    assert torch.equal(torch.compile(f, fullgraph=True)(state, slots), f(state, slots))


def test_of_none_nothing_is_chosen(device):
    """A table of no rows would divide by zero."""
    slots = torch.tensor([0, 1, -1], device=device)
    chosen, own = choose_slots(ChainRNG(1).state(device), 0, 0, slots)
    assert chosen.shape == (0,) and own.tolist() == [-1] * 3
