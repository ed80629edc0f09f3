"""Nearest neighbours among uint8 references, against an exhaustive float64 search: to the bit, on
every level of integer products, where tiles, slabs, integers, bounds and the grid end."""

import math

import pytest
import torch
from conftest import DEVICES
from exhaustive_search import agree, check_levels, nearest, squares, values

from fastebm.ops.neighbor import nearest_neighbor, nn_log_distance

pytestmark = pytest.mark.usefixtures("bytes_in_any_size")
GRIDS = [(1.0, 0.0), (2 / 255, -1.0), (1 / 256, 0.5 / 256), (-1 / 128, 1.0)]


def images(m, d):
    return torch.randint(0, 256, (m, d), dtype=torch.uint8)


def groups(m, d, size=4):
    """Images of one to three grey levels, in a few elements, from one that `size` have in common,
    the first, last and middle elements among them. A query near one of a group is about as near to
    all of it, far from the rest: few candidates, whom bytes alone do not tell apart."""
    y = images(-(-m // size), d).int().repeat_interleave(size, 0)[:m]
    if d:
        at = torch.randint(0, d, (m, 1 + d // 20))
        at[:, 0] = torch.tensor([0, d - 1, d // 2])[torch.randint(0, 3, (m,))]
        y.scatter_add_(1, at, torch.randint(-3, 4, at.shape, dtype=torch.int32))
    return y.clamp(0, 255)[torch.randperm(m)].byte()


def alike(m, d):
    """One group: bytes rule out nothing."""
    return groups(m, d, m)


def near(y, n, noise, scale, offset):
    """n queries at references, the last one first, with noise of so many grey levels."""
    own = (len(y) - 1 - torch.arange(n)) % len(y)
    q = y[own].float() + noise * (torch.rand(n, *y.shape[1:]) - 0.5)
    return q * scale + offset, own


# Ends of panels of 32 queries and blocks of 1024, of tiles of 96 references, of vectors of 4 to 64
# elements, and of slabs of 2048.
EDGES = [
    (1, 1, 1),
    (5, 40, 0),
    (4, 2, 13),
    (63, 65, 47),
    (63, 65, 48),
    (64, 64, 49),
    (65, 63, 63),
    (1, 4097, 64),
    (2, 2049, 65),
    (3, 1400, 66),
    (4, 1025, 95),
    (8, 520, 96),
    (31, 133, 97),
    (32, 128, 127),
    (33, 129, 128),
    (43, 95, 129),
    (44, 96, 191),
    (45, 97, 192),
    (97, 193, 193),
    (255, 33, 255),
    (256, 32, 256),
    (257, 31, 257),
    (1024, 98, 50),
    (1027, 99, 60),
    (42, 98, 2047),
    (33, 128, 2048),
    (64, 65, 2049),
    (16, 257, 4095),
    (44, 97, 4096),
    (41, 100, 4097),
    (17, 250, 6145),
]


@pytest.mark.parametrize("shape", EDGES, ids=str)
def test_edges_of_tiles_vectors_and_slabs(shape, set_simd):
    n, m, d = shape
    grid = GRIDS[(n + m + d) % len(GRIDS)]
    y = groups(m, d)
    x, own = near(y, n, 1.2, *grid)
    own[::3] = -1
    check_levels(set_simd, x, y, skip=own, y_scale=grid)


@pytest.mark.parametrize("k", range(1, 17))
def test_every_number_of_neighbors(k, set_simd):
    y = groups(700, 70, 24)
    x, own = near(y, 40, 3.0, *GRIDS[1])
    check_levels(set_simd, x, y, [k], own, y_scale=GRIDS[1])


@pytest.mark.parametrize("d", [33_027, 66_053, 198_000])
def test_integers_that_pass_31_and_32_bits(d, set_simd):
    """65,025 d for black against white, 32,640 d for products of bytes with a sign; a block holds a
    panel of queries or few."""
    grey = torch.tensor([0, 255, 3, 252, 128, 127, 100, 30, 50, 70, 90, 150, 170, 190, 220])
    y = torch.cat([grey[:, None].expand(15, d).byte(), images(1, d)])
    x = torch.stack([torch.full((d,), g) for g in (255.0, 0.0, 253.7, 1.2, 127.5)])
    of_x, of_y = torch.randint(0, 5, (60,)), torch.arange(16).repeat(5)[torch.randperm(80)[:69]]
    square = squares(x, y)[of_x][:, of_y]
    ks = (1,) if d > 100_000 else (1, 4)
    check_levels(set_simd, x[of_x], y[of_y], ks, torch.randint(-1, 69, (60,)), square=square)


@pytest.mark.parametrize("kinds", [4, 100])
@pytest.mark.parametrize("m, d", [(700, 48), (300, 64), (129, 4100)])
def test_equal_images_the_lowest_index_first(m, d, kinds, set_simd):
    """Copies of a few images in any order, over tiles and slabs."""
    y = images(kinds, d)[torch.randint(0, kinds, (m,))]
    x = torch.cat([near(y, 40, 0.8, 1, 0)[0], y[:20].float()])
    check_levels(set_simd, x, y, skip=torch.randint(-1, m, (60,)))


@pytest.mark.parametrize("d", [48, 67, 300, 3072])
def test_half_way_between_grey_levels(d, set_simd):
    """Of two references as far on either side of such a query one is a step further on its grid:
    real ties, of which the triangle inequality leaves nothing, and distances just off them."""
    t = torch.arange(1, 41)
    low, high = 100 - t[:, None].expand(-1, d), 101 + t[:, None].expand(-1, d)
    y = torch.cat([torch.stack(v, 1).flatten(0, 1) for v in ((high, low), (low, high))])
    y = torch.cat([y.byte(), images(200, d)])
    x = torch.full((18, d), 100.5)
    x[1] += torch.tensor([0.5, -0.5]).repeat(d)[:d]
    x[2:4, ::2] += torch.tensor([[1e-4], [-1e-4]])
    x[4] += 1
    x[5] -= 2
    for step in (1, 7, 79):  # nearer and nearer references are left out
        check_levels(set_simd, x, y[step:], (1, 2, 16))


@pytest.mark.parametrize("d", [48, 100, 500, 4096, 4100])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_bounds_are_used_to_their_last_part(d, grid, set_simd):
    """Queries almost half a step off in all elements. References on one side seem nearer on the
    grid by almost twice that, and are further off: nothing less than the whole bound keeps those of
    the other side. Norms of slabs and of the queries of another panel differ as much as squares of
    distances do."""
    for off in (0.499, 0.45, 0.3):
        for part in (0.98, 0.9, 0.7, 0.4) if d < 1000 else (0.9,):
            base = torch.randint(90, 150, (d,)).float()
            if d == 2 * 2048:
                base[2048:] = base[:2048]
                base[2048 : 2048 + 310] += 1  # of 36 d / 2 or so together
            m = 250 if d < 1000 else 120
            y = images(m, d).float()
            y[:2] = base + 6
            y[:2, : int(2 * off * part * d)] += 1  # nearer by off - part off
            y[2:4] = base - 6
            x = base.repeat(36, 1)
            x[:32] += torch.randint(-1, 2, (32, d))
            x[[0, 32, 33]] = base + off
            x[[1, 34]] = base - off
            x[35, ::2] += off
            order = torch.randperm(m)
            x = x * grid[0] + grid[1]
            check_levels(set_simd, x, y[order].byte(), (1, 2, 3), y_scale=grid)


@pytest.mark.parametrize("d", [48, 100, 500])
@pytest.mark.parametrize("h, near, far", [(82, 103, 61), (85, 64, 106)])
def test_references_that_float32_moves_off_their_grid(h, near, far, d, set_simd):
    """By almost half a step, all the same way: towards a query on the grid for the levels `near`
    and the next beyond, away from it for `far`, which is as many steps off."""
    grid = 1e-3, 1e4
    scale, offset = torch.tensor(grid).double()
    moved = (values(torch.tensor([near, far]).byte(), grid) - offset) / scale - torch.tensor(
        [near, far]
    )
    assert (moved.abs() > 0.42).all() and (moved > 0).all() == (near < h)
    for part in (0.5, 0.7, 0.85):
        y = images(250, d)
        y[:2], y[2:4] = near, far
        y[:2, : int(part * d)] += 1 if near > h else -1
        y = y[torch.randperm(250)]
        x = (offset + h * scale).expand(20, d) + scale * 1e-3 * torch.rand(20, d)
        best = nearest(squares(x, values(y, grid)))[1]
        assert (y[best] != far).any()
        check_levels(set_simd, x, y, (1, 2), y_scale=grid)


@pytest.mark.parametrize("d", [50, 64, 1000])
def test_near_duplicates(d, set_simd):
    """References one grey level from each other in one element, queries nearer to them."""
    y = torch.randint(1, 255, (40, d)).repeat(10, 1)
    y[torch.arange(400), torch.randint(0, d, (400,))] += 2 * torch.randint(0, 2, (400,)) - 1
    y = y.byte()
    for noise in (0.0, 1e-3, 1.0, 1.9):
        x, own = near(y, 33, noise, 2 / 255, -1)
        check_levels(set_simd, x, y, (1, 5), own, y_scale=(2 / 255, -1))


@pytest.mark.parametrize("d", [49, 96, 257])
def test_the_own_copy_is_skipped_and_sets_no_bound(d, set_simd):
    """It is the only near one, and what is left is far."""
    y = images(130, d)
    x, own = near(y, 40, 0.0, 1, 0)
    assert (nearest(squares(x, y))[0] == 0).all()
    check_levels(set_simd, x, y, (1, 2, 16), own)
    y[1:] = y[1:] // 4 + 192
    y[0] = 0
    x = torch.zeros(40, d)
    x[1::2] = 254.0
    check_levels(set_simd, x, y, (1, 2, 16), torch.zeros(40, dtype=torch.int64))


def test_queries_on_the_grid_of_distances_beyond_float32(set_simd):
    """Squares of integers past 2^24, and one apart."""
    d = 2000
    y = images(1, d).repeat(200, 1)
    y[torch.arange(200), torch.randint(0, d, (200,))] ^= 1
    x = 255 - y[:24].float()
    check_levels(set_simd, x, y)


@pytest.mark.parametrize("d", [13, 300])
@pytest.mark.parametrize("grey", [0, 77, 255])
def test_constant_references(d, grey, set_simd):
    y = torch.full((130, d), grey, dtype=torch.uint8)
    x = torch.cat([torch.rand(5, d) * 255, torch.full((3, d), float(grey)), -torch.rand(3, d)])
    check_levels(set_simd, x, y, (1, 16), torch.arange(11))


@pytest.mark.parametrize("far", [300.0, -45.0, 1e4, 1e7, 3e9, -1e12, 1e19, -1e25, 3e38])
@pytest.mark.parametrize("d", [51, 130])
def test_queries_off_the_grid(d, far, set_simd):
    """In one element, in half, in all; other queries of the block are near."""
    y = torch.cat([groups(300, d), torch.tensor([[0], [255]]).expand(2, d).byte()])
    x, own = near(y, 130, 1.0, 1, 0)  # of some on the grid a search takes a sample
    x[3, d - 1] = x[7, 0] = far
    x[11, : d // 2] = -far
    x[17] = far
    x[129] += far
    check_levels(set_simd, x, y, (1, 5), own)


def test_queries_off_the_grid_in_later_blocks(set_simd):
    """Blocks of 256 queries, and of 1024."""
    y = groups(100, 52)
    x, own = near(y, 1060, 1.0, 1, 0)
    x[[258, 600, 1030, 1059]] += torch.tensor([[1e4], [-1e7], [3e3], [1e5]])
    check_levels(set_simd, x, y, (1, 5), own)


@pytest.mark.parametrize("d", [53, 64, 301])
def test_nan_and_infinite_queries(d, set_simd):
    y = groups(200, d)
    x, own = near(y, 130, 1.0, 1, 0)
    x[2, 0], x[6, d - 1], x[7, 3], x[129, 1] = math.nan, math.inf, -math.inf, math.nan
    x[21], x[22], x[23] = math.nan, math.inf, -math.inf
    x[25, :2] = torch.tensor([math.inf, -math.inf])
    check_levels(set_simd, x, y, (1, 5), own)


SCALES = [
    (-1.0, 7.0),
    (0.0, 0.3),
    (-0.0, 0.0),
    (1e-3, 1e4),  # float32 merges a few grey levels,
    (1 / 256, 1e5),  # more,
    (1.0, -1e9),  # all
    (1.0, 2.0**24),
    (1e-20, 0.0),
    (1e-30, 1e-30),  # squares leave float32
    (1e-42, 0.0),  # denormal
    (2.0**-149, 2.0**-140),
    (1e15, -1e17),
    (1e30, 0.0),
    (1e36, 0.0),
    (1e36, 3e38),  # the brighter ones are infinite
    (-2e36, 1e38),
    (3e38, 0.0),
    (3.4e38, -3.4e38),
]


@pytest.mark.parametrize("d", [54, 100])
@pytest.mark.parametrize("grid", SCALES, ids=str)
def test_scales_and_offsets(d, grid, set_simd):
    y = torch.cat(
        [alike(80, d), images(40, d) // torch.tensor([1, 100]).byte().repeat(20)[:, None]]
    )
    own = (len(y) - 1 - torch.arange(20)) % len(y)
    x = values(y[own], grid)
    x = torch.cat([x, x + torch.randn_like(x) * grid[0], x.roll(1), torch.randn(3, d)])
    check_levels(set_simd, x, y, (1, 5), own.repeat(4)[: len(x)], y_scale=grid)
    check_levels(set_simd, x.double() * (1 + 1e-9), y, (1,), y_scale=grid)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("d", [55, 128])
def test_queries_of_other_types(d, dtype, set_simd):
    y = groups(200, d)
    y[100:] = y[:100].clone()
    for noise in (0, 1e-9, 1.0):
        x, own = near(y.double(), 35, noise, 2 / 255, -1)
        check_levels(set_simd, x.to(dtype), y, (1, 5), own, y_scale=(2 / 255, -1))


def test_non_contiguous(set_simd):
    y = groups(240, 3 * 24).view(240, 3, 4, 6)
    x, own = near(y, 40, 2.0, 1, 0)
    wide = torch.stack([y, 255 - y], -1)[..., 0]
    last = y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels last
    for references in (wide, last, y[:, :, ::2, ::3], y[::2]):
        queries = x[:, :, ::2, ::3] if references.shape[2] == 2 else x
        own = own.clamp(max=len(references) - 1)
        check_levels(set_simd, queries, references, (1, 5), own)
        check_levels(set_simd, queries.mT.contiguous().mT, references, (5,))


@pytest.mark.parametrize("n, m, d", [(70, 333, 50), (260, 500, 60), (45, 97, 2100)])
def test_threads_splits_and_the_log_distance(n, m, d, set_simd, set_threads):
    """Slices of references, batches of queries: always the same bits."""
    y = groups(m, d)
    y[m // 2 : m - 40] = y[: m - 40 - m // 2].clone()
    x, own = near(y, n, 1.5, 2 / 255, -1)
    grid = {"y_scale": (2 / 255, -1.0)}
    for threads in (2, 5):
        set_threads(threads)
        square = check_levels(set_simd, x, y, (1, 3), own, **grid)
    expected = nearest(square, 1, own)
    for size in (1, 3, 33):
        for part in range(0, n, max(size, n // 4)):
            some = slice(part, part + size)
            agree(x[some], y, [v[some] for v in expected], 1, own[some], **grid)
    value, grad, distance = nn_log_distance(x, y, own, 0.1, **grid)
    assert torch.equal(distance, expected[0][:, 0].float())
    bounded = expected[0].square() + 0.01
    pull = (x.double() - values(y, **grid)[expected[1][:, 0]].double()) / bounded / n
    torch.testing.assert_close(value.double(), bounded.log().mean() / 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), pull, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("last", [True, False])
def test_queries_that_one_slice_gives_up(last, set_simd, set_threads):
    """Half the references are alike to them, and one is nearer, which that half's thread comes to
    first or after it has looked at too many: more than another search of so few would cost."""
    set_threads(2)
    y = images(3000, 96)
    y[1500:] = 1
    y[-1, 5] = 0
    x, _ = near(y[:1500], 70, 1.0, 1, 0)
    x[30:36] = 0.4
    square = check_levels(set_simd, x, y if last else y.flip(0), (1, 3))
    assert (square[30:36].argmin(1) == (2999 if last else 0)).all()


def test_order_of_references_and_queries():
    y, order = images(300, 60), torch.randperm(300)
    x, moved = near(y, 50, 60.0, 1, 0)[0], torch.randperm(50)
    distance, index = agree(x, y, nearest(squares(x, y), 5), 5)
    again, of = nearest_neighbor(x[moved], y[order], k=5)
    assert torch.equal(again, distance[moved]) and torch.equal(order[of], index[moved])


@pytest.mark.parametrize("device", DEVICES[1:], indirect=True)
@pytest.mark.parametrize("d, grid", [(48, 0), (65, 1), (130, 2)])
def test_on_a_cuda_device(device, d, grid, set_simd):
    """Some of all: near images, ties, whole bounds, queries off the grid, NaN, infinity."""
    y = torch.cat([groups(100, d), images(1, d).repeat(5, 1)]).float()
    x, own = near(y, 40, 1.2, 1, 0)
    y[20:30] = x[12].round() + 6
    y[20:30, : d // 2] += 1
    y[30:40] = x[12].round() - 6
    x[12], x[13] = x[12].round() + 0.49, (y[20] + y[30]) / 2
    x[3, 0], x[4] = 1e4, -1e6
    x[5, d - 1], x[6, 1] = math.nan, math.inf
    x = x * GRIDS[grid][0] + GRIDS[grid][1]
    for k in (1, 5):
        check_levels(set_simd, x, y.byte(), (k,), own, device, y_scale=GRIDS[grid])
