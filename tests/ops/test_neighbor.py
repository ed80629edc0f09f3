"""The nearest-neighbour operator against an exhaustive float64 search, on every path."""

import math

import pytest
import torch
from conftest import HAS_GPU, SIMD_LEVELS
from exhaustive_search import check

from fastebm.ops import library, neighbor
from fastebm.ops.neighbor import nearest_neighbor

INF, NAN = math.inf, math.nan
# (n, m, d): one query, one reference, less than any tile and more, small and large dimensions.
SHAPES = [
    (1, 1, 1),
    (5, 3, 2),
    (33, 70, 2),
    (70, 1100, 3),
    (9, 40, 7),
    (20, 300, 16),
    (17, 129, 17),
    (37, 205, 33),
    (130, 97, 64),
    (3, 530, 100),
    (40, 100, 260),
    (5, 30, 1030),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 16])  # the least and the most; other tests have some between
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_exhaustive_search(device, shape, k, dtype, set_simd):
    n, m, d = shape
    if k > m:
        pytest.skip("fewer references")
    x, y = torch.randn(n, d, dtype=dtype), torch.randn(m, d, dtype=dtype)
    skip = torch.randint(-1, m, (n,)) if k < m else None
    for level in SIMD_LEVELS if device == "cpu" else SIMD_LEVELS[:1]:
        set_simd(level)
        for s in (skip,) if library.op is not torch.ops.fastebm else (None, skip):
            check(x, y, k, s, device)


@pytest.mark.parametrize("y_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [3, 35, 70])
def test_references_of_other_types(device, d, x_dtype, y_dtype):
    x = torch.rand(30, 2, d).to(x_dtype)
    if y_dtype == torch.uint8:
        y = torch.randint(0, 256, (200, 2, d), dtype=torch.uint8)
        check(x, y, 1, None, device, y_scale=(1 / 256, 0.5 / 256))
        check(x, y, 4, None, device, y_scale=(2 / 256, -1.0))
    else:
        check(x, torch.rand(200, 2, d).to(y_dtype), 2, None, device)


@pytest.mark.parametrize("event", [(), (1,), (1, 4, 4)])
def test_events(device, event):
    check(torch.randn(13, *event), torch.randn(17, *event), device=device)


@pytest.mark.parametrize("d", [1, 2, 16, 17, 128])
@pytest.mark.parametrize("noise", [1e-1, 1e-4, 1e-7])
def test_near_duplicates_far_from_the_origin(device, d, noise, set_simd):
    y = 10 + torch.randn(300, d)
    x = y[torch.randperm(300)[:40]] + noise * torch.randn(40, d)
    for level in SIMD_LEVELS:
        set_simd(level)
        check(x, y, 2, None, device)


@pytest.mark.parametrize("d", [2, 16, 48])
def test_exact_ties_go_to_the_lowest_index(device, d, set_simd):
    """References on a coarse grid: many equals, also in other tiles."""
    x, y = (torch.randint(-1, 2, (s, d)).float() for s in (20, 700))
    y[::3, 2:] = x[0, 2:]
    for level in SIMD_LEVELS:
        set_simd(level)
        for k in (1, 5):
            check(x, y, k, torch.arange(20), device)


@pytest.mark.parametrize("d", [1, 9, 33, 300])
def test_all_references_equal_and_flat_images(device, d):
    flat = torch.full((600, d), 0.7)
    _, index = check(torch.full((3, d), 0.2), flat, 2, torch.tensor([-1, 0, 1]), device)
    assert index.tolist() == [[0, 1], [1, 2], [0, 2]]
    check(torch.rand(7, 1).expand(7, d).contiguous(), torch.rand(600, 1).expand(600, d), 1, None)


@pytest.mark.parametrize("d", [2, 20, 90])
def test_queries_are_references(device, d):
    """y = x with every query's own copy skipped: the second of a search that finds itself first."""
    x = torch.randn(150, d)
    own = torch.arange(150)
    distance, index = check(x, x, 1, own, device)
    both, order = check(x, x, 2, None, device)
    assert (both[:, 0] == 0).all() and torch.equal(order[:, 0], own)
    assert torch.equal(both[:, 1:], distance) and torch.equal(order[:, 1:], index)


def test_permutation_translation_and_scaling(device):
    x, y = torch.randn(40, 24), torch.randn(500, 24)
    distance, index = check(x, y, 1, None, device)
    order = torch.randperm(500)
    again, moved = check(x, y[order], 1, None, device)
    assert torch.equal(again, distance) and torch.equal(order[moved], index)
    scaled, same = check(x * 4, y * 4, 1, None, device)  # exact in binary
    assert torch.equal(scaled, distance * 4) and torch.equal(same, index)


@pytest.mark.parametrize("d", [2, 16, 40, 300])
def test_nan_and_infinity(device, d, set_simd):
    x, y = torch.randn(20, d), torch.randn(310, d)
    x[3, d - 1], x[4, 0] = NAN, INF
    y[5, 0], y[7, d - 1], y[300, 1] = NAN, INF, -INF
    for level in SIMD_LEVELS:
        set_simd(level)
        for k in (1, 4):
            distance, index = check(x, y, k, None, device)
            assert distance[3].isnan().all() and (index[3] == -1).all()
            assert (distance[4] == INF).all() and index[4].tolist()[:1] == [0]
            assert not torch.isin(index, torch.tensor([5])).any()
    only = torch.full((3, d), NAN)
    only[1, 0] = 1.0
    assert check(x, only, 1, None, device)[0].isnan().all()


@pytest.mark.parametrize("d", [2, 40])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e15, 1e30])
def test_scales_at_which_squares_leave_float32(device, d, scale, set_simd):
    x, y = scale * torch.randn(20, d), scale * torch.randn(200, d)
    for level in SIMD_LEVELS:
        set_simd(level)
        check(x, y, 2, None, device)
    check(x.double() * scale**5, y.double() * scale**5, 2, None, device)


def test_mixed_scales(device):
    """One huge reference or query must not blur the others."""
    x, y = torch.randn(30, 50), torch.randn(300, 50)
    y[17] *= 1e12
    x[4] *= 1e9
    check(x, y, 2, None, device)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("event", [(3,), (2, 3)])
def test_gradcheck(device, k, event):
    x, y = (
        torch.randn(n, *event, dtype=torch.float64, device=device, requires_grad=True)
        for n in (4, 5)
    )

    def distance(x, y):
        return nearest_neighbor(x, y, k=k)[0]

    fast = library.op is not torch.ops.fastebm  # the emulated device takes its time
    assert torch.autograd.gradcheck(distance, (x, y), fast_mode=fast)
    assert torch.autograd.gradgradcheck(distance, (x, y), fast_mode=fast)
    assert torch.autograd.gradcheck(lambda x: distance(x, y.detach()), (x,), fast_mode=fast)


def test_gradient_of_coincident_points_is_zero(device):
    x = torch.ones(2, 3, device=device, requires_grad=True)
    y = torch.ones(1, 3, device=device, requires_grad=True)
    distance, _ = nearest_neighbor(x, y)
    gx, gy = torch.autograd.grad(distance.sum(), (x, y), create_graph=True)
    assert (distance == 0).all() and (gx == 0).all() and (gy == 0).all()
    (twice,) = torch.autograd.grad(gx.sum(), x)
    assert (twice == 0).all()


def test_gradient_with_uint8_references_and_a_nan_query(device):
    y = torch.randint(0, 256, (9, 4), dtype=torch.uint8, device=device)
    x = torch.rand(3, 4, device=device)
    x[1, 0] = NAN
    x.requires_grad_()
    distance, index = nearest_neighbor(x, y, y_scale=(1 / 256, 0.1))
    distance[[0, 2]].sum().backward()
    expected = (x - (y[index] / 256 + 0.1)) / distance[:, None]
    torch.testing.assert_close(x.grad[[0, 2]], expected.detach()[[0, 2]])


# On CUDA a block takes 256 elements: of many rows, or of a part of one.
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("n, event", [(70, (2,)), (7, (2, 5)), (3, (300,)), (2, (2, 257))])
def test_both_ways_to_the_gradient_agree(device, k, n, event):
    """The kernel of a plain backward pass, and the torch form of one with a graph."""
    x = torch.randn(n, *event, device=device, requires_grad=True)
    y = torch.randn(30, *event, device=device)
    distance, _ = nearest_neighbor(x, y, k=k)
    weights = torch.randn_like(distance)
    plain, graphed = (
        torch.autograd.grad(distance, x, weights, retain_graph=True, create_graph=g)[0]
        for g in (False, True)
    )
    torch.testing.assert_close(plain, graphed)
    assert not plain.requires_grad and graphed.requires_grad


def test_references_may_change_before_the_backward_pass(device):
    """As a replay buffer's do when the new chains come in."""
    x = torch.randn(4, 3, device=device, requires_grad=True)
    y = torch.randn(9, 3, device=device)
    distance, index = nearest_neighbor(x, y)
    expected = (x.detach() - y[index]) / distance.detach()[:, None]
    y.zero_()
    distance.sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_non_contiguous_and_empty(device):
    x, y = torch.randn(6, 20, device=device).t(), torch.randn(6, 60, device=device)[:, ::2].t()
    distance, index = nearest_neighbor(x, y)
    again = nearest_neighbor(x.contiguous(), y.contiguous())
    assert torch.equal(distance, again[0]) and torch.equal(index, again[1])
    none = nearest_neighbor(torch.zeros(0, 2, device=device), torch.zeros(3, 2, device=device))
    assert none[0].shape == none[1].shape == (0,)
    flat = nearest_neighbor(torch.zeros(2, 0, device=device), torch.zeros(3, 0, device=device))
    assert flat[0].tolist() == [0, 0] and flat[1].tolist() == [0, 0]


ERRORS = [
    ((2, 2), (0, 2), {}, "k must be at most m = 0"),
    ((2, 2), (3, 2), {"k": 4}, "k must be at most m = 3"),
    ((2, 2), (3, 2), {"k": 0}, r"k must be in 1\.\.16, got 0"),
    ((2, 2), (30, 2), {"k": 17}, r"k must be in 1\.\.16, got 17"),
    ((2, 2), (3, 3), {}, "samples of one shape, got 2 and 3 in dimension 1"),
    ((2, 2), (3, 2, 1), {}, r"\(n, \*event\) and \(m, \*event\)"),
    ((), (3,), {}, r"\(n, \*event\)"),
    ((2, 2), (3, 2), {"skip": torch.zeros(3).long()}, "skip must be contiguous with one value"),
    ((2, 2), (3, 2), {"skip": torch.zeros(2)}, "skip must be int64, got Float"),
    ((1, 2), (3, 2), {"skip": torch.tensor([3])}, r"skip must be in -1\.\.2, got 3 for query 0"),
    ((1, 2), (1, 2), {"skip": torch.tensor([0])}, "less the reference to skip"),
]


@pytest.mark.parametrize("x, y, options, message", ERRORS, ids=[e[-1] for e in ERRORS])
def test_errors(x, y, options, message):
    with pytest.raises(RuntimeError, match=message):
        nearest_neighbor(torch.zeros(x), torch.zeros(y), **options)


def test_errors_of_types_and_devices():
    x = torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match="x must be float32 or float64, got Long"):
        nearest_neighbor(x.long(), x)
    with pytest.raises(RuntimeError, match="y must not be wider than x, Float, got Double"):
        nearest_neighbor(x, x.double())
    with pytest.raises(RuntimeError, match="y must be float32.*or uint8, got Long"):
        nearest_neighbor(x, x.long())
    with pytest.raises((RuntimeError, NotImplementedError), match="different devices"):
        nearest_neighbor(x, x.to("meta"))
    assert nearest_neighbor(x[:1], x[:1], skip=torch.tensor([-1]))[1] == 0


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("y_dtype", [torch.float32, torch.uint8])
def test_opcheck(device, k, y_dtype):
    x = torch.randn(4, 3, device=device)
    y = (torch.rand(5, 3, device=device) * 200).to(y_dtype)
    skip = torch.arange(4, device=device)
    for s in (None, skip):
        torch.library.opcheck(library.op.nearest_neighbor.default, (x, y, s, k, 0.01, 0.0))
    distance, index = library.op.nearest_neighbor(x, y, None, k, 0.01, 0.0)
    winners = y[index.flatten()]
    torch.library.opcheck(
        library.op.nearest_neighbor_backward.default,
        (torch.ones_like(distance), x, winners, distance, 0.01, 0.0),
    )
    torch.library.opcheck(library.op.nn_log_distance.default, (x, y, skip, 0.1, 0.01, 0.0))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_compile_fullgraph(device):
    if device == "cuda" and not HAS_GPU:
        pytest.skip("no CUDA device")

    def f(x, y):
        return nearest_neighbor(torch.tanh(x), y)[0].log().mean()

    x = torch.randn(8, 6, device=device, requires_grad=True)
    y = torch.randn(30, 6, device=device)
    compiled = torch.compile(f, fullgraph=True)
    torch.testing.assert_close(compiled(x, y), f(x, y))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x, y), x), torch.autograd.grad(f(x, y), x)
    )


X, DISTANCE = torch.randn(4, 3), torch.rand(4)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"distance": torch.rand(1), "grad": torch.rand(1)}, "distance must be .n,. or"),
        ({"distance": torch.rand(4).double()}, "distance must have the dtype of x, Float, got"),
        ({"distance": torch.zeros(4).byte()}, "distance must have the dtype of x"),
        ({"grad": torch.rand(4).bfloat16()}, "grad must have the dtype of x"),
        ({"grad": torch.rand(4, 1)}, "grad must have the shape of distance"),
        ({"x": X.half()}, "x must be float32 or float64, got Half"),
        ({"x": torch.tensor(1.0)}, "got a 0-d tensor"),
        ({"winners": X.double()}, "winners must not be wider than x"),
        ({"winners": X[:3]}, "winners must be"),
        ({"winners": torch.randn(3, 4)}, "winners must be"),
        ({"winners": torch.randn(3, 4).T}, "must be contiguous"),
        ({"y_scale": math.nan}, "y_scale must be finite"),
        ({"y_offset": 1e300}, "y_scale's offset must be finite"),
    ],
)
def test_backward_refuses_what_the_search_would_not_keep(change, match, device):
    if device == "cuda":
        pytest.skip("the same checks")
    args = {"grad": torch.rand(4), "x": X, "winners": X + 1, "distance": DISTANCE}
    args |= {"y_scale": 1.0, "y_offset": 0.0}
    assert library.op.nearest_neighbor_backward.default(*args.values()).shape == X.shape
    with pytest.raises(RuntimeError, match=match):
        library.op.nearest_neighbor_backward.default(*(args | change).values())


@pytest.mark.parametrize("k, skips", [(1, False), (3, True)])
def test_long_searches_are_calls_of_bounded_work_with_the_same_result(monkeypatch, k, skips):
    x, y = torch.randn(50, 4), torch.randn(70, 4)
    skip = torch.arange(50) if skips else None
    whole = nearest_neighbor(x, y, skip=skip, k=k)
    calls, call = [], library.call
    monkeypatch.setattr(library, "call", lambda f, *a: calls.append(len(a[0])) or call(f, *a))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(neighbor, "MAX_WORK", 20 * 70 * 16)
    parts = nearest_neighbor(x, y, skip=skip, k=k)
    assert calls == [20, 20, 10]
    assert all(map(torch.equal, parts, whole))
