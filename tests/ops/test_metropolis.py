"""Jumps between samples of a population: the operator against its twin, their law, errors."""

import math

import pytest
import torch
from mlp_networks import UNIT

from fastebm import ChainRNG
from fastebm.ops import library, reference
from fastebm.ops.metropolis import population_jump
from fastebm.ops.reference.metropolis import State, drift, log_ratio

SEED, STEP, OFFSET, T = 2**63 + 7, 11, 2**33, 3
ENERGIES = torch.tensor([0.3, -1.0, 2.5, 0.0, 0.7, -0.2, 1.1, 4.0, -0.6, 0.4]).double()
LATTICE = torch.tensor([0.0, 0, 1, 3, 4, 4, 5])  # a population on whole numbers, some twice


def state(device="cpu"):
    return ChainRNG(SEED, STEP, OFFSET).state(device)


def on(device, *tensors):
    return [t if t is None else t.to(device) for t in tensors]


def assert_law(cells, law):
    """Chi-square of how often each cell came, of those that can come."""
    count = cells.bincount(minlength=len(law)).double()
    assert len(count) == len(law) and (count[law == 0] == 0).all()
    count, expected = count[law > 0], len(cells) * law[law > 0]
    assert (expected > 5).all()
    statistic, df = ((count - expected) ** 2 / expected).sum().item(), len(count) - 1
    # Wilson and Hilferty: the cube root of chi-square over df is about normal.
    z = ((statistic / df) ** (1 / 3) - 1 + 2 / (9 * df)) / math.sqrt(2 / (9 * df))
    assert abs(z) < 4


@pytest.mark.parametrize("size, share", [(0, 1.0), (2, 0.0), (7, 0.3), (1000, 1.0), (1000, 0.5)])
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 10, 33])
@pytest.mark.parametrize("batch", [1, 31, 130])
def test_jumps_are_those_of_the_reference(device, batch, dim, size, share):
    x, population = torch.randn(batch, dim), torch.randn(size, dim) if size else None
    lo = -3 - torch.rand(dim)
    hi = lo + 5 * torch.rand(dim)
    for ids in (None, torch.randint(2**56, (batch,))):
        who = torch.arange(batch) + OFFSET if ids is None else ids
        expected = reference.population_jump(
            x, population, SEED, STEP + T, who, lo.double(), hi.double(), share
        )
        a, b, c, d, e = on(device, x, population, ids, lo, hi)
        options = {"t": T, "sample_ids": c, "lo": d, "hi": e, "uniform_share": share}
        y = population_jump(a, b, state(device), **options).cpu()
        uniform = reference.jump_draws(SEED, STEP + T, who, size, share)[2]
        assert torch.equal(y[~uniform], expected[~uniform])
        error = 4 * UNIT * (lo.abs() + hi.abs())
        assert ((y - expected).abs()[uniform] <= error).all()
        assert ((y >= lo) & (y <= hi))[uniform].all()
        assert torch.equal(a.cpu(), x)  # which is left as it was
        row = batch // 2  # alone as among others
        own = population_jump(
            a[row : row + 1],
            b,
            state(device),
            **{**options, "sample_ids": who[row, None].to(device)},
        )
        assert torch.equal(own[0].cpu(), y[row])
    if batch == 130 and 0 < share < 1:
        assert 0 < uniform.sum() < batch


def test_events_views_and_numbers(device):
    x, population = torch.randn(40, 2, 3, device=device), torch.randn(9, 2, 3, device=device)
    flat = population_jump(x.flatten(1), population.flatten(1), state(device))
    assert torch.equal(population_jump(x, population, state(device)), flat.view(x.shape))
    strided = population.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    turned = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(population_jump(turned, strided, state(device)), flat.view(x.shape))
    scalars, of = x[:, 0, 0], population[:, 0, 0]
    column = population_jump(scalars[:, None], of[:, None], state(device))
    assert torch.equal(population_jump(scalars, of, state(device)), column[:, 0])
    numbers = population_jump(x, None, state(device), lo=-1, hi=2.0, uniform_share=1.0)
    lo, hi = torch.full((2, 3), -1.0, device=device), torch.full((2, 3), 2.0, device=device)
    corners = population_jump(x, None, state(device), lo=lo, hi=hi, uniform_share=1.0)
    assert torch.equal(numbers, corners)
    none = population_jump(x[:0], population, state(device), lo=-1.0, hi=1.0, uniform_share=0.5)
    assert none.shape == (0, 2, 3)


def test_same_bits_for_any_number_of_threads(set_threads):
    x, population = torch.randn(20_001, 7), torch.randn(100, 7)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        options = {"lo": -1.0, "hi": 1.0, "uniform_share": 0.3}
        results.append(population_jump(x, population, state(), **options))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def lattice_moves():
    """How probable each move -5 .. 5 is, from all pairs of the population."""
    i, j = (1 - torch.eye(len(LATTICE))).nonzero().T
    moves = (LATTICE[i] - LATTICE[j]).long()
    return (moves + 5).bincount(minlength=11).double() / len(i)


def test_metropolis_rule_on_jumps_is_in_detailed_balance():
    law, p = lattice_moves(), (-ENERGIES).exp()
    a, b = torch.meshgrid(torch.arange(10), torch.arange(10), indexing="ij")
    reach = (b - a).abs() <= 5  # what is outside of 0 .. 9 is refused
    chance = torch.where(reach, law[(b - a + 5).clamp(0, 10)], 0)
    accepted = (ENERGIES[a] - ENERGIES[b]).exp().clamp(max=1)
    flow = p[:, None] * chance * accepted
    assert (flow - flow.T).abs().max() < 1e-12 and flow.sum() > 0


def test_draws_have_the_law_of_all_pairs(device):
    n = 200_000 if library.op is torch.ops.fastebm else 20_000
    x = torch.full((n, 1), 4.0, device=device)
    y = population_jump(x, LATTICE[:, None].to(device), state(device)).cpu()
    assert_law((y[:, 0] - 4).long() + 5, lattice_moves())
    ids, size = torch.arange(n), len(LATTICE)
    i, j, _ = reference.jump_draws(5, 0, ids, size, 0.0)  # to which the operator's bits are tied
    pairs = (1 - torch.eye(size)).flatten().double() / (size * (size - 1))
    assert_law(i * size + j, pairs)


def test_uniform_points_fill_the_box_evenly(device):
    n, share = 200_000 if library.op is torch.ops.fastebm else 20_000, 0.25
    x, far = torch.full((n, 2), 100.0, device=device), torch.zeros(2, 2, device=device)
    options = {"lo": -2.0, "hi": 3.0, "uniform_share": share}
    y = population_jump(x, far, state(device), **options).cpu()
    uniform = y[:, 0] < 50
    assert abs(uniform.double().mean() - share) < 4 * math.sqrt(share * (1 - share) / n)
    cell = ((y[uniform] + 2) / 5 * 8).long()
    assert_law(cell[:, 0] * 8 + cell[:, 1], torch.full((64,), 1 / 64).double())
    # and are as fine as float32 near 1 allows
    assert y[uniform][:, 0].unique().numel() > 0.95 * uniform.sum()


def test_ratio_of_proposals_by_hand():
    """On E = x^2 / 2 in 1-D at T = 1, where the drift is not cut, log r = step (x^2 - y^2) / 4."""
    x, y, step = torch.rand(3, 50, 1, dtype=torch.float64) * 2 - 1
    step = 0.3 + 0.2 * step[:, 0]
    e_x, e_y = (v[:, 0].square() / 2 for v in (x, y))
    start = State(x, e_x, x, torch.zeros(2, 50))
    log_r = log_ratio(start, y, e_y, y, step, (2 * step).sqrt())
    torch.testing.assert_close(log_r, step * (x.square() - y.square())[:, 0] / 4)
    cut = drift(torch.tensor([[3.0, 4.0]]).double(), 1.0, 0.5)
    torch.testing.assert_close(cut.norm(), torch.tensor(0.5 * math.sqrt(2)).double())


@pytest.mark.parametrize(
    "change, match",
    [
        ({"x": torch.zeros(5, 3).double()}, "x must be float32, got Double"),
        ({"x": torch.tensor(1.0)}, r"x must be \(B, \*event\), got a 0-d tensor"),
        ({"x": torch.zeros(5, 0), "population": None}, r"x must have shape \(B, D\) with D in 1"),
        (
            {"population": torch.zeros(4, 2)},
            r"\(P, \*event\) with event \(3,\) as of x, got \(4, 2",
        ),
        ({"population": torch.zeros(4, 3).half()}, "population must be float32, got Half"),
        ({"population": torch.zeros(1, 3)}, r"population must hold 2\.\.2\^32 - 1 samples, got 1"),
        ({"population": None}, "uniform_share must be 1 without a population, got 0"),
        ({"uniform_share": 1.5}, r"uniform_share must be in \[0, 1\], got 1.5"),
        ({"uniform_share": math.nan}, r"uniform_share must be in \[0, 1\], got nan"),
        ({"uniform_share": 0.5}, "uniform_share must be 0 without lo and hi, got 0.5"),
        ({"uniform_share": 0.5, "lo": 0.0}, "must be finite for uniform_share > 0, got 0 and inf"),
        ({"uniform_share": 0.5, "lo": -3e38, "hi": 3e38}, "hi - lo must be finite for uniform_sh"),
        ({"lo": 1.0, "hi": 0.5}, "lo must be <= hi, got 1 and 0.5 for element 0"),
        ({"lo": math.nan, "hi": 0.5}, "lo must be <= hi, got nan and 0.5"),
        ({"lo": torch.zeros(2)}, r"lo must be a number or of the event's shape \(3,\), got \(2,\)"),
        ({"lo": 0.0, "hi": torch.ones(3).double()}, "hi must be float32, got Double"),
        ({"rng": torch.zeros(3).long()}, "rng must be an int64 tensor of 4 values"),
        ({"t": -1}, r"t must be in 0..2\^32 - 1, got -1"),
        ({"sample_ids": torch.arange(4)}, r"sample_ids must be a contiguous int64 tensor \(5,\)"),
    ],
)
def test_wrong_arguments(change, match, device):
    arguments = {"x": torch.zeros(5, 3), "population": torch.zeros(4, 3), "rng": state(), **change}
    arguments = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()
    }
    with pytest.raises(RuntimeError, match=match):
        population_jump(**arguments)


def test_opcheck_and_compile():
    x, population, lo = torch.randn(5, 3), torch.randn(9, 3), torch.full((3,), -1.0)
    op, ids = library.op.population_jump.default, torch.arange(5)
    torch.library.opcheck(op, (x, population, state(), 0, ids, lo, -lo, 0.5))
    torch.library.opcheck(op, (x, None, state(), 2, None, lo, -lo, 1.0))

    def f(x, rng):
        return population_jump(x, population, rng, lo=-1.0, hi=1.0, uniform_share=0.5) + 1

    assert torch.equal(torch.compile(f, fullgraph=True)(x, state()), f(x, state()))
