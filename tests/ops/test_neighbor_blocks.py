"""Nearest neighbours on a CUDA device where its tiles, slices and blocks end.

Their sizes are in csrc/neighbor/blocks_cuda.h. The CPU's result, which other ways of scoring lead
to, is the reference: the same bits.
"""

import importlib

import pytest
import torch
from conftest import DEVICES, HAS_SIMT

from fastebm.ops.neighbor import nearest_neighbor

CPU = torch.ops.fastebm.nearest_neighbor.default


@pytest.fixture(autouse=True)
def reset_schedule():
    yield
    if HAS_SIMT:
        importlib.import_module("fastebm._simt").set_schedule_seed(0)


def check_same(device, x, y, k=1, skip=None, scale=None):
    """Distance and index of the device are those of the CPU, bit for bit."""
    distance, index = CPU(x, y, skip, k, *(scale or (1.0, 0.0)))
    on = [None if v is None else v.to(device) for v in (x, y, skip)]
    mine = nearest_neighbor(*on[:2], skip=on[2], k=k, **({"y_scale": scale} if scale else {}))
    assert torch.equal(mine[1].cpu(), index)
    assert torch.equal(mine[0].cpu().nan_to_num(-1.0), distance.nan_to_num(-1.0))
    return index


pytestmark = pytest.mark.parametrize("device", DEVICES[1:], indirect=True)


# Tiles have 64 or 128 queries, 128 references and 32 elements; float32 rows of a multiple of four
# elements are copied asynchronously, others loaded.
@pytest.mark.parametrize(
    "n, m, d",
    [(1, 127, 20), (63, 128, 32), (64, 129, 36), (65, 130, 31), (129, 257, 33), (128, 5, 64)],
)
def test_edges_of_tiles(device, n, m, d):
    x, y = torch.rand(n, d), torch.rand(m, d)
    check_same(device, x, y, min(m, 3), torch.arange(n) % m)


@pytest.mark.parametrize("n, m, d", [(127, 33, 2), (129, 129, 5), (33, 257, 11), (65, 31, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_edges_of_chunks(device, n, m, d, dtype):
    x, y = torch.rand(n, d, dtype=dtype), torch.rand(m, d, dtype=dtype)
    check_same(device, x, y, 2, torch.arange(n) % m)


def test_chunks_of_128(device):
    """Enough pairs that a score stands for many references, with equals in other chunks."""
    x, y = torch.randn(130, 1), torch.randn(140_000, 1)
    y[1::3] = y[::3][: len(y[1::3])]
    check_same(device, x, y, 4, torch.arange(130))


# At least 192 elements a slice where there are few tiles; the last slice is shorter.
@pytest.mark.parametrize("d", [512, 1001, 1300, 4104])
def test_slices(device, d):
    x, y = torch.randn(5, d), torch.randn(140, d)
    y[3] = y[130] = x[2] + 1e-4
    check_same(device, x, y, 2)


@pytest.mark.parametrize("d, dtype", [(15_004, torch.float32), (7_204, torch.float64)], ids=str)
def test_samples_larger_than_shared_memory(device, d, dtype):
    """Exact squares go on from one part of a sample to the next."""
    x, y = torch.rand(3, d, dtype=dtype), torch.rand(20, d, dtype=dtype)
    check_same(device, x, y, 3)


def test_unaligned_rows(device):
    """Rows that could be copied by their length, but not by where they begin."""
    values = torch.randn(1 + 7 * 40 + 90 * 40, device="cpu")
    x, y = values[1 : 1 + 7 * 40].view(7, 40), values[1 + 7 * 40 :].view(90, 40)
    moved = values.to(device)
    mine = nearest_neighbor(moved[1 : 1 + 7 * 40].view(7, 40), moved[1 + 7 * 40 :].view(90, 40))
    assert torch.equal(mine[1].cpu(), CPU(x, y, None, 1, 1.0, 0.0)[1])


@pytest.mark.parametrize("k", [1, 16])
def test_blocks_of_references(device, k):
    """More than 16384 scores a query; equals, neighbours and skipped ones in both blocks."""
    y = torch.randn(16384 + 200, 18)
    y[16390:16400] = y[10]
    x = torch.stack([y[16390] + 0.01, y[16500], y[5]])
    index = check_same(device, x, y, k, torch.tensor([16391, 16500, 5]))
    assert index.view(3, k)[0, 0] == 10


@pytest.mark.parametrize("m", [7700, 8064, 8190])
def test_shared_memory_about_48_kb(device, m):
    """Bounds of columns and their numbers, and what is beside them."""
    x, y = torch.randn(2, 17), torch.randn(m, 17)
    check_same(device, x, y, 2)


def test_blocks_of_chunks(device):
    y = torch.rand(16384 * 32 + 999, 1, dtype=torch.float64)
    y[-5:] = y[:5]
    x = torch.stack([y[2] + 1e-9, y[-100], y[-1]])
    index = check_same(device, x, y, 2, torch.tensor([2, -1, 4]))
    assert index[0, 0] == len(y) - 3 and index[2, 0] == len(y) - 1


def test_blocks_of_queries(device):
    """More queries than a block takes: 2048 where scores are products, 2^16 / k else, which takes
    the emulated device half a minute."""
    x, y = torch.randn(2051, 17), torch.randn(9, 17)
    check_same(device, x, y, 2, torch.arange(2051) % 9)
    if device == "cuda":
        x, y = torch.randn(2**12 + 3, 1), torch.randn(16, 1)
        check_same(device, x, y, 16)


@pytest.mark.parametrize("seed", range(1, 7))
def test_any_order_of_threads(device, seed):
    if device == "cuda":
        pytest.skip("the emulated device has seeds")
    importlib.import_module("fastebm._simt").set_schedule_seed(seed)
    x = torch.randint(-1, 2, (20, 40)).float()
    check_same(device, x, torch.randint(-1, 2, (300, 40)).float(), 5, torch.arange(20))
    check_same(device, x[:, :33], torch.randint(-1, 2, (150, 33)).float(), 3)
    check_same(device, x[:, :3], torch.randint(-9, 10, (700, 3)).float(), 5, torch.arange(20))


def test_many_candidates(device):
    """Scores that tell nothing apart: every reference gets its exact square."""
    base = 1000 * torch.randn(1, 24)
    y = base + 1e-3 * torch.randn(2500, 24)
    check_same(device, base + torch.zeros(3, 24), y, 7)


SCALE = (2 / 255, -1.0)


def images(n, m, d):
    """Queries on the grid and bytes, some of the queries near some of these."""
    y = torch.randint(0, 256, (m, d), dtype=torch.uint8)
    x = 2 * torch.rand(n, d) - 1
    near = y[torch.arange(0, n, 2) % m] * SCALE[0] + SCALE[1]
    x[::2] = (near + 0.01 * x[::2]).clamp(-1, 1)
    return x, y


# Tiles have 64 or 128 queries, 128 references and steps of 128 bytes in parts of 32, three of them
# at a time; rows of a multiple of 16 bytes are copied asynchronously, others loaded.
@pytest.mark.parametrize(
    "n, m, d",
    [(1, 127, 32), (63, 128, 128), (64, 129, 144), (65, 130, 272), (129, 257, 32), (128, 5, 64)]
    + [(1, 127, 17), (66, 129, 33), (5, 30, 130), (64, 65, 159)],
)
def test_edges_of_tiles_of_bytes(device, n, m, d):
    x, y = images(n, m, d)
    check_same(device, x, y, min(m, 3), torch.arange(n) % m, SCALE)


# At least 256 elements a slice where there are few tiles; of two steps, three or more.
@pytest.mark.parametrize("d", [384, 512, 1001, 4112])
def test_slices_of_bytes(device, d):
    x, y = images(4, 140, d)
    y[3] = y[130] = y[0]
    check_same(device, x, y, 2, None, SCALE)


def test_very_large_samples_of_bytes(device):
    """More queries than a block takes of them, 33; most cost nothing."""
    x, y = images(35, 20, 200_000)
    x[1:33, 7] = torch.nan
    check_same(device, x, y, 1, None, SCALE)


def test_unaligned_bytes(device):
    """Rows that could be copied by their length, but not by where they begin."""
    x, y = images(7, 91, 48)
    moved = y.view(-1).to(device)[1 : 1 + 90 * 48].view(90, 48)
    mine = nearest_neighbor(x.to(device), moved, y_scale=SCALE)
    assert torch.equal(mine[1].cpu(), CPU(x, moved.cpu(), None, 1, *SCALE)[1])


@pytest.mark.parametrize("k", [1, 16])
def test_blocks_of_bytes(device, k):
    """More than 16384 scores a query; equals, neighbours and skipped ones in both blocks."""
    _, y = images(1, 16384 + 200, 32)
    y[16390:16400] = y[10]
    x = y[[16390, 16500, 5, 7]] * SCALE[0] + SCALE[1]
    x[3] += 5  # off the grid
    index = check_same(device, x, y, k, torch.tensor([16391, 16500, 5, -1]), SCALE)
    assert index.view(4, k)[0, 0] == 10


@pytest.mark.parametrize("near, step", [(40, 1.0), (16450, -2.0)])
def test_the_nearest_is_at_the_bound(device, near, step):
    """Nearest on the grid is another one: within a percent of what the triangle inequality lets
    pass, beside it and in the block before."""
    y = torch.randint(0, 50, (near + 9, 32), dtype=torch.uint8)
    x = torch.full((2, 32), 100.49 * step)
    y[near], y[20] = 110, 91
    y[20, 5] = 90
    assert (check_same(device, x, y, 1, None, (step, 0.0)) == near).all()
    assert (x[0] - step * y[20]).norm() / (x[0] - step * y[near]).norm() < 1.002


@pytest.mark.parametrize("k, m", [(1, 3000), (3, 3000), (2, 16384 + 500)])
def test_more_candidates_than_fit_at_once(device, k, m):
    """The nearest on the grid come first, and are not always the nearest."""
    generator = torch.Generator(device="cpu").manual_seed(1)
    y = torch.randint(0, 12, (m, 32), dtype=torch.uint8, generator=generator, device="cpu")
    x = 11 * torch.rand(12, 32, generator=generator, device="cpu")
    skip = torch.cdist(x, y.float()).argmin(1)
    index = check_same(device, x, y, k, skip, (1.0, 0.0)).view(12, k)
    rounded = (x + 0.5).floor()
    on_grid = torch.cdist(rounded, y.float()).scatter(1, skip[:, None], torch.inf)
    bound = on_grid.min(1).values + 2 * (x - rounded).norm(dim=1)
    assert ((on_grid <= bound[:, None]).sum(1) > 32).sum() >= 6
    assert (on_grid.argmin(1) != index[:, 0]).sum() >= 2


@pytest.mark.parametrize("d, dtype", [(64, torch.float32), (171, torch.float64)], ids=str)
def test_queries_off_the_grid(device, d, dtype):
    """Any number of them in a tile; just on the grid and just off it; far; infinite; NaN."""
    x, y = images(140, 70, d)
    x = x.to(dtype)
    x[3] += 3
    x[66] -= 1e6
    x[67, 5], x[68, d - 1], x[69, 0] = torch.inf, -torch.inf, torch.nan
    x[70] = torch.nan
    x[71:80] = 1 + torch.linspace(0.9, 1.1, 9)[:, None] * SCALE[0]
    index = check_same(device, x, y, 2, torch.arange(140) % 70, SCALE)
    assert (index[69:71] == -1).all() and (index[:69] >= 0).all()
    check_same(device, x[64:66], y, 1, None, SCALE)  # none
    check_same(device, x[66:67], y, 1, None, SCALE)  # all


@pytest.mark.parametrize(
    "scale",
    [(-2 / 255, 1.0), (1.0, 0.0), (0.3, 1e4), (1e-3, 1e5), (1e-38, 0.0), (1e-45, 0.0)]
    + [(1e30, -1e32), (1e38, 0.0), (0.0, 0.5)],
    ids=str,
)
def test_grids(device, scale):
    """Among them: coarse steps of float32 between values, values that overflow, a point."""
    _, y = images(1, 70, 48)
    x = y[:5].float() * scale[0] + scale[1]
    x[1] += 0.4 * scale[0] * (2 * torch.rand(48) - 1)
    check_same(device, x, y, 3, torch.tensor([0, -1, 2, -1, -1]), scale)


def test_bytes_without_a_nearest(device):
    """Scores that tell nothing apart: ties of a tile and of tiles, all references equal."""
    y = torch.full((300, 48), 7, dtype=torch.uint8)
    x = torch.stack([torch.full((48,), v) for v in (7.0, 7.3, 200.0)])
    index = check_same(device, x, y, 16, torch.tensor([-1, 3, 0]), (1.0, 0.0))
    assert index[0].tolist() == [*range(16)]
    y[::2] += torch.eye(48, dtype=torch.uint8)[torch.arange(150) % 48]
    check_same(device, x, y, 16, torch.tensor([-1, 1, 0]), (1.0, 0.0))


def test_grids_as_coarse_as_distances(device):
    """Bits: all references are candidates on the grid of queries between them, in two blocks."""
    y = torch.randint(0, 2, (16384 + 150, 32), dtype=torch.uint8)
    y[:16384, :] = 1  # one distance
    x = torch.stack([torch.full((32,), 0.4), y[-1].float(), torch.rand(32)])
    check_same(device, x, y, 2, torch.tensor([-1, len(y) - 1, 0]), (1.0, 0.0))


def test_which_scores(device):
    """Of bytes wherever there is a grid; no host decides about queries."""
    if device == "cuda":
        pytest.skip("the emulated device notes its launches")
    simt = importlib.import_module("fastebm._simt")
    x, y = images(3, 9, 40)
    common, grid = (
        {"tensor_score_kernel", "select_kernel"},
        {"quantize_kernel", "byte_score_kernel"},
    )
    for scale, kernels in ((SCALE, grid), ((0.0, 0.5), {"split_kernel"})):
        simt.launched()
        check_same(device, x, y, 1, None, scale)
        assert simt.launched() == common | kernels


@pytest.mark.parametrize("seed", range(1, 5))
def test_any_order_of_threads_for_bytes(device, seed):
    if device == "cuda":
        pytest.skip("the emulated device has seeds")
    importlib.import_module("fastebm._simt").set_schedule_seed(seed)
    x, y = images(20, 150, 640)
    x[5] += 3
    check_same(device, x, y, 5, torch.arange(20), SCALE)
    check_same(device, x[:, :333], y[:, :333], 3, None, SCALE)
