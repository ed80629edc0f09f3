"""Nearest neighbours of large samples on a CUDA device, where scores of their bfloat16 come first:
above 64 queries, from 512 elements on. The CPU's result is the reference: the same bits. That they
do come first, and tell enough, is tested in tests/simt/neighbor_scores.cpp."""

import importlib

import pytest
import torch
from conftest import DEVICES
from test_neighbor_blocks import check_same, reset_schedule  # noqa: F401

pytestmark = pytest.mark.parametrize("device", DEVICES[1:], indirect=True)
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


# Tiles have 128 queries, 128 references and 32 elements; at least 192 elements a slice.
@pytest.mark.parametrize(
    "n, m, d, dtype",
    [(65, 127, 512, FLOATS[0]), (130, 257, 604, FLOATS[0])]
    + [(128, 129, 516, FLOATS[1]), (129, 130, 604, FLOATS[2])],
    ids=str,
)
def test_edges_of_tiles(device, n, m, d, dtype):
    check_same(device, torch.rand(n, d), torch.rand(m, d).to(dtype), 3, torch.arange(n) % m)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_queries_of_float64(device, dtype):
    x = torch.randn(66, 512, dtype=torch.float64)
    check_same(device, x, torch.randn(40, 512).to(dtype), 2)


@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_within_rounding(device, k):
    """Clusters whose references differ by less than bfloat16 tells: more candidates than fit into
    shared memory at once, and so many that others choose them."""
    centres = torch.randn(4, 512)
    of = torch.arange(4).repeat_interleave(torch.tensor([5, 30, 60, 145]))
    y = centres[of] + 2**-12 * torch.randn(len(of), 512)
    x = centres[torch.arange(66) % 4] + 2**-12 * torch.randn(66, 512)
    index = check_same(device, x, y, k).view(66, k)
    assert (of[index[:, 0]] == torch.arange(66) % 4).all()


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-3, 1e12, 1e18, 3e37], ids=str)
def test_scales(device, scale):
    """Squares that underflow, and that overflow."""
    x, y = torch.randn(66, 512), torch.randn(70, 512)
    y[5] = x[3] * (1 + 2**-13)
    check_same(device, scale * x, scale * y, 2)


def test_far_from_the_origin(device):
    base = 50 * torch.randn(1, 512)
    check_same(device, base + 1e-3 * torch.randn(70, 512), base + 1e-3 * torch.randn(150, 512), 2)


@pytest.mark.parametrize("k", [1, 4])
def test_what_is_not_finite(device, k):
    x, y = torch.randn(70, 512), torch.randn(200, 512)
    x[3, 5], x[4, 0], x[66] = torch.inf, torch.nan, torch.nan
    y[7, 9], y[130, 0], y[131, 511], y[150] = torch.nan, torch.inf, -torch.inf, torch.nan
    y[151], y[152], y[153] = 3.4e38, -3.4e38, 1e30
    x[5] = y[151]
    index = check_same(device, x, y, k).view(70, k)
    assert (index[[4, 66]] == -1).all() and index[5, 0] == 151


def test_a_nearest_whose_score_is_no_number(device):
    """It is found once, also where references are looked at in two passes."""
    x, y = torch.randn(65, 512), torch.randn(100, 512)
    x[0] = y[5] = 2.5e17 * torch.randn(512)  # its square is above 2^124, others are below
    assert check_same(device, x, y, 2)[0, 0] == 5


def test_no_nearest(device):
    """All references are equal but for one tile's, and one query is among them."""
    y = torch.ones(300, 512)
    y[140:150] += torch.eye(512)[:10]
    x = torch.randn(65, 512)
    x[64] = 1
    check_same(device, x, y, 2, torch.tensor([-1] * 64 + [0]))


def test_blocks_of_references(device):
    """More than 16384 scores a query: equals, neighbours and skipped ones in both blocks."""
    y = torch.randn(16384 + 70, 512)
    y[16390:16400] = y[10]
    y[16410:] = y[11]  # too many candidates in the second block
    x = y[torch.arange(65) * 200] + 0.01
    x[:3] = y[[16390, 16430, 5]]
    skip = torch.full((65,), -1)
    skip[:3] = torch.tensor([16391, 16430, 5])
    index = check_same(device, x, y, 2, skip)
    assert index[0].tolist() == [10, 16390] and index[1, 0] == 11


@pytest.mark.parametrize("seed", range(1, 4))
def test_any_order_of_threads(device, seed):
    if device == "cuda":
        pytest.skip("the emulated device has seeds")
    importlib.import_module("fastebm._simt").set_schedule_seed(seed)
    x = torch.randint(-1, 2, (66, 512)).float()
    x[5] = 0.3
    check_same(device, x, torch.randint(-1, 2, (150, 512)).float(), 5, torch.arange(66))
