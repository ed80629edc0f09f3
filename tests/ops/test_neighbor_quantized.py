"""Nearest neighbours among floats that are searched by 8-bit scores, against an exhaustive float64
search: to the bit, on every level of integer products, for every law that a grid fits or does not."""

import math

import pytest
import torch
from exhaustive_search import agree, check_levels, nearest, squares

from fastebm.ops.neighbor import nearest_neighbor, nn_log_distance

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
    for row in range(3, m, 10):
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


def alike(m, d):
    """One point but for a few elements, on a scale with that of a few far points."""
    y = torch.randn(d).repeat(m, 1)
    y.scatter_(1, torch.randint(0, d, (m, 1 + d // 30)), 0.3 * torch.randn(m, 1 + d // 30))
    y[::9] = 2 * torch.randn(len(y[::9]), d)
    return y


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
    "tiny": lambda m, d: 1e-20 * torch.randn(m, d),
    "huge": lambda m, d: 3.3e38 * (2 * torch.rand(m, d) - 1),
    "tails last": tails_last,
    "tails first": lambda m, d: tails_last(m, d).flip(0),
    "growing": growing,
    "shrinking": lambda m, d: growing(m, d).flip(0),
    "in order": in_order,
    "two modes": two_modes,
    "along a line": along_a_line,
    "alike": alike,
}


def queries(y, noise):
    """Near some references, one of them itself, and the skips: half of them of these."""
    own = torch.randint(0, len(y), (16,))
    x = y[own].clone()
    x[1:] += noise * torch.randn(15, y.shape[1]) * y[own[1:]].abs().mean(1, keepdim=True)
    return x, own.where(torch.arange(16) % 2 == 0, -1)


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("law", LAWS)
def test_laws_of_references(law, d, set_simd):
    """Queries of the same law, at references, and near them."""
    m = 130 if d > 200 else 300
    cycle = list(LAWS).index(law) + DIMS.index(d)
    y = LAWS[law](m, d)
    near, own = queries(y, (0.3, 0.01, 1e-5)[cycle // 3 % 3])
    x = torch.cat([LAWS[law](8, d), near])
    skip = torch.cat([torch.full((8,), -1), own])
    if cycle % 5 == 0:
        x = x.double() * (1 + 1e-9)
    check_levels(set_simd, x, y.to(DTYPES[cycle % 3]), skip=skip)
