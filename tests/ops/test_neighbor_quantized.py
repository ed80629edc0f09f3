"""Nearest neighbours among floats that are searched by 8-bit scores, against an exhaustive float64
search: to the bit, on every level of integer products, for laws that a grid fits or does not."""

import math

import pytest
import torch
from exhaustive_search import agree, check_levels, nearest, squares

from fastebm.ops.neighbor import nearest_neighbor, nn_log_distance

pytestmark = pytest.mark.usefixtures("bytes_in_any_size")
DIMS = [12, 13, 16, 17, 24, 32, 48, 63, 64, 65, 100, 128, 784, 3072]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(m, d):
    return torch.randn(m, d)


def uniform(m, d):
    return torch.rand(m, d)


def clustered(m, d):
    """Twenty points and near duplicates of them, of which rounding makes equals."""
    return torch.randn(20, d)[torch.randint(0, 20, (m,))] + 1e-7 * torch.randn(m, d)


def one_cluster(m, d):
    """Below the step of a grid that the others choose: all of it are candidates, or most."""
    y = torch.randn(m, d)
    y[m // 4 :] = y[0] + 1e-3 * torch.randn(m - m // 4, d)
    return y


def heavy_tails(m, d):
    return torch.randn(m, d) / torch.randn(m, d)


def outlier(m, d):
    y = torch.randn(m, d)
    y[m // 3, d // 2] = 1e30
    return y


def few_outliers(m, d):
    """Off a grid that a sample chooses, not so far that none chooses it."""
    y = torch.randn(m, d)
    y[torch.randint(0, m, (9,)), torch.randint(0, d, (9,))] *= 40
    return y


def one_large_dimension(m, d):
    y = torch.randn(m, d)
    y[:, d // 3] *= 1e6
    return y


def one_shifted_dimension(m, d):
    y = torch.randn(m, d)
    y[:, d - 1] += 1e6
    return y


def not_finite(m, d):
    y = torch.randn(m, d)
    for row in range(3, m, 40):
        y[row, (7 * row) % d] = (math.nan, math.inf, -math.inf)[row % 3]
    y[0], y[m - 1] = math.nan, math.inf
    return y


def tails_last(m, d):
    return torch.cat([normal(m - m // 10, d), heavy_tails(m // 10, d)])


def growing(m, d):
    return torch.randn(m, d) * torch.logspace(-6, 4, m)[:, None]


def in_order(m, d):
    return torch.arange(m)[:, None] / m + 0.01 * torch.rand(m, d)


def two_modes(m, d):
    return torch.randn(m, d) + 200 * torch.randint(0, 2, (m, 1)) - 100


def along_a_line(m, d):
    """Multiples of one vector: on each cell's edge in all elements at once, one way or the other,
    the whole of the bound is used."""
    return (torch.rand(m, 1) * 2 - 1).expand(m, d).contiguous()


def groups(m, d):
    """Points at all distances, each with two near duplicates, nearer than the step of a grid: few
    candidates, whom bytes alone do not tell apart."""
    kinds = -(-m // 3)
    y = 2 * torch.randn(kinds, 1) + 0.3 * torch.randn(kinds, d)
    return y.repeat_interleave(3, 0)[:m] + 0.02 * torch.randn(m, d)


LAWS = {
    "normal": normal,
    "uniform": uniform,
    "clustered": clustered,
    "one cluster": one_cluster,
    "offset 1e4": lambda m, d: 1e4 + torch.randn(m, d),
    "offset 1e8": lambda m, d: 1e8 + 100 * torch.randn(m, d),
    "heavy tails": heavy_tails,
    "outlier": outlier,
    "few outliers": few_outliers,
    "large dimension": one_large_dimension,
    "shifted dimension": one_shifted_dimension,
    "constant": lambda m, d: torch.full((m, d), 0.7),
    "integers": lambda m, d: torch.randint(-2, 3, (m, d)).float(),
    "bits": lambda m, d: torch.randint(0, 2, (m, d)).float(),
    "not finite": not_finite,
    "denormal": lambda m, d: 1e-40 * torch.randn(m, d),
    "tiny": lambda m, d: 1e-16 * torch.randn(m, d),
    "huge": lambda m, d: 3.3e38 * (2 * torch.rand(m, d) - 1),
    "tails last": tails_last,
    "tails first": lambda m, d: tails_last(m, d).flip(0),
    "growing": growing,
    "shrinking": lambda m, d: growing(m, d).flip(0),
    "in order": in_order,
    "two modes": two_modes,
    "along a line": along_a_line,
    "groups": groups,
    "groups elsewhere": lambda m, d: groups(m, d) + torch.linspace(-0.5, 0.5, d),
}


def queries(y, noise):
    """Near some references, one of them itself, and the skips: half of them of these."""
    own = torch.randint(0, len(y), (16,))
    x = y[own].clone()
    x[1:] += noise * torch.randn(15, y.shape[1]) * y[own[1:]].abs().mean(1, keepdim=True)
    return x, own.where(torch.arange(16) % 2 == 0, -1)


LONG = [
    "normal",
    "in order",
    "groups",
    "groups elsewhere",
    "not finite",
    "outlier",
    "heavy tails",
    "bits",
]


@pytest.mark.parametrize(
    "law, d", [(law, d) for law in LAWS for d in DIMS if d < 3072 or law in LONG]
)
def test_laws_of_references(law, d, set_simd):
    """Queries of the same law, at references, and near them."""
    m = 180 if d > 200 else 300
    cycle = list(LAWS).index(law) + DIMS.index(d)
    y = LAWS[law](m, d)
    near, own = queries(y, (0.3, 0.01, 1e-5)[cycle // 3 % 3])
    x = torch.cat([LAWS[law](8, d), near])
    skip = torch.cat([torch.full((8,), -1), own])
    if cycle % 5 == 0:
        x = x.double() * (1 + 1e-9)
    check_levels(set_simd, x, y.to(DTYPES[cycle % 3]), skip=skip)


OTHERS = {
    "a thousand times as wide": lambda n, d: 1e3 * torch.randn(n, d),
    "a thousandth as wide": lambda n, d: 1e-3 * torch.randn(n, d),
    "heavy tails": heavy_tails,
    "growing": lambda n, d: torch.randn(n, d) * torch.logspace(-3, 36, n)[:, None],
    "far in one dimension": lambda n, d: torch.randn(n, d) + 1e5 * torch.eye(n, d),
    "not finite": not_finite,
    "constant": lambda n, d: torch.linspace(-3, 3, n)[:, None].expand(n, d),
}


@pytest.mark.parametrize("d", [20, 64, 300])
@pytest.mark.parametrize("law", ["normal", "groups", "few outliers", "integers"])
@pytest.mark.parametrize("other", OTHERS)
def test_queries_of_another_law(other, law, d, set_simd):
    """Some of them, in a block with queries near references."""
    y = LAWS[law](200, d)
    own = torch.randint(0, 200, (100,))
    x = y[own] + 0.01 * torch.randn(100, d)
    few = torch.tensor([1, 2, 4, 5, 7, 8, 10, 99])  # not those of a sample
    x[few] = OTHERS[other](8, d)
    check_levels(set_simd, x, y, skip=own)
    x[:30] = OTHERS[other](30, d)
    check_levels(set_simd, x, y, (1,), skip=own)


@pytest.mark.parametrize("n", [1, 3, 7, 8, 9, 33, 257])
@pytest.mark.parametrize("m", [1, 16, 31, 33, 96, 97, 128, 520])
def test_numbers_of_queries_and_references(n, m, set_simd):
    y = groups(m, 70)
    x = y[(m - 1 - torch.arange(n)) % m] + 0.1 * torch.randn(n, 70)
    skip = (m - 1 - torch.arange(n)) % m
    check_levels(set_simd, x, y, (1, 4), skip)


@pytest.mark.parametrize("d, times", [(48, 5), (65, 3), (100, 1)])
def test_cells_on_a_line(d, times, set_simd):
    """Queries half-way between two references of a line, all in cells of a grid at random, each in
    all elements at once: for some of them the bound is used to its last part."""
    for _ in range(times):
        y = along_a_line(250, d)
        line = y[:, 0].sort().values
        t = (line[1:] + line[:-1]) / 2
        x = torch.cat([t * (1 - 1e-5), t * (1 + 1e-5)])[:, None].expand(-1, d)
        check_levels(set_simd, x, y, (1, 2))


@pytest.mark.parametrize(
    "law", ["groups", "one cluster", "heavy tails", "tails last", "not finite"]
)
def test_order_splits_and_threads(law, set_simd, set_threads):
    """No bit depends on them; equals, of which order chooses, are left out."""
    y, order = LAWS[law](500, 60), torch.randperm(500)
    x, skip = queries(y, 0.2)
    x, skip = torch.cat([x, normal(54, 60)]), torch.cat([skip, torch.randint(-1, 500, (54,))])
    expected = nearest(squares(x, y), 5, skip)
    where = torch.empty(500, dtype=torch.int64)
    where[order] = torch.arange(500)
    moved = [expected[0], where[expected[1]].where(expected[1] >= 0, -1)]
    if not expected[0].isinf().any():
        agree(x, y[order], moved, 5, where[skip].where(skip >= 0, -1))
    queries_order = torch.randperm(70)
    agree(x[queries_order], y, [v[queries_order] for v in expected], 5, skip[queries_order])
    for threads in (2, 5):
        set_threads(threads)
        check_levels(set_simd, x, y, (1, 5), skip)
        for first, last in ((0, 1), (1, 4), (4, 30), (30, 70)):
            some = slice(first, last)
            agree(x[some], y, [v[some] for v in expected], 5, skip[some])


@pytest.mark.parametrize("y_dtype", DTYPES, ids=str)
def test_the_log_distance_finds_the_same(y_dtype):
    y = groups(200, 90).to(y_dtype)
    x, skip = queries(y.float(), 0.1)
    distance, index = nearest_neighbor(x, y, skip=skip)
    value, grad, of = nn_log_distance(x, y, skip, 0.1)
    bounded = distance.double().square() + 0.01
    assert torch.equal(of, distance)
    torch.testing.assert_close(value.double(), bounded.log().mean() / 2, rtol=1e-6, atol=0)
    pull = (x.double() - y[index].double()) / bounded[:, None] / len(x)
    torch.testing.assert_close(grad.double(), pull, rtol=1e-5, atol=1e-9)


def test_non_contiguous_and_events():
    y = groups(150, 4 * 5 * 6).view(150, 4, 5, 6)
    x, skip = queries(y.flatten(1), 0.1)
    x = x.view(16, 4, 5, 6)
    for a, b in ((x.mT, y.mT), (x[..., ::2], y[..., ::2]), (x[::3], y[:, :, :, :])):
        expected = nearest(squares(a, b), 3)
        agree(a, b, expected, 3)
        agree(a, b.bfloat16(), nearest(squares(a, b.bfloat16()), 3), 3)
