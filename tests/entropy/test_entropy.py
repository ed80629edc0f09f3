"""The entropy estimates against closed forms, exact identities and other libraries."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln

from fastebm import knn_cross_entropy, knn_entropy
from fastebm.entropy.estimators import nn_log_distance
from fastebm.ops import neighbor as neighbor_ops


def test_log_distance_is_bounded_and_differentiable():
    x = torch.randn(6, 2, dtype=torch.float64)
    skip = torch.arange(6)
    d = torch.cdist(x, x).fill_diagonal_(math.inf).amin(1)
    expected = (d**2 + 0.01).log().mean() / 2
    torch.testing.assert_close(nn_log_distance(x, x, skip, eps=0.1), expected)
    same = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    value = nn_log_distance(same, torch.zeros(1, 2, dtype=torch.float64))
    value.backward()
    assert value.item() == pytest.approx(math.log(1e-3)) and (same.grad == 0).all()
    with pytest.raises(ValueError, match="eps must be > 0"):
        nn_log_distance(x, x, eps=0.0)


def log_distance(x, y, nearest, eps):
    """The value from the references that each query has, in torch."""
    square = (x - y[nearest]).flatten(1).square().sum(1)
    return (square + eps**2).log().mean() / 2


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("shape", [(2,), (3, 4, 4), (300,)])
def test_gradient_of_the_log_distance(device, kind, shape):
    n, m, eps = 40, 30, 0.05
    scale = (0.02, -2.0) if kind == torch.uint8 else (1.0, 0.0)
    dtype = torch.float64 if kind == torch.float64 else torch.float32
    y = torch.randint(0, 256, (m, *shape), dtype=kind) if kind == torch.uint8 else None
    y = torch.randn(m, *shape).to(kind) if y is None else y
    values = y.double() * scale[0] + scale[1]
    x = torch.randn(n, *shape, dtype=dtype)
    x[:2] = values[:2].to(dtype)  # queries on top of a reference
    skip = torch.randint(-1, m, (n,)).where(torch.arange(n) > 1, -1)
    d = torch.cdist(x.double().flatten(1), values.flatten(1))
    rows = torch.arange(n)[skip >= 0]
    d[rows, skip[rows]] = math.inf
    exact = x.double().clone().requires_grad_()
    expected = log_distance(exact, values, d.argmin(1), eps)
    (slope,) = torch.autograd.grad(expected, exact)

    leaf, y, skip = x.to(device).clone().requires_grad_(), y.to(device), skip.to(device)
    found = nn_log_distance(leaf, y, skip, eps, y_scale=scale)
    (3 * found).backward()
    value, grad, _ = neighbor_ops.nn_log_distance(leaf, y, skip, eps, scale)
    with torch.no_grad():
        assert torch.equal(nn_log_distance(leaf, y, skip, eps, y_scale=scale), value)
    assert not value.requires_grad and not grad.requires_grad and value.dtype == dtype
    # What a byte stands for, up to 4, is rounded by 2^-22, and so is what is left of the distance.
    atol = 2**-21 / (eps**2 * n) if kind == torch.uint8 else 0
    error = {"rtol": 1e-5 if dtype == torch.float32 else 1e-12, "atol": atol}
    torch.testing.assert_close(value.cpu().double(), expected.detach(), **error)
    torch.testing.assert_close(grad.cpu().double(), slope, **error)
    assert torch.equal(found.detach(), value)
    torch.testing.assert_close(leaf.grad, 3 * grad)


def test_the_log_distance_is_differentiable_twice_and_in_y():
    x, y = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 7))
    skip = torch.tensor([0, -1, 2, -1, 4])
    fixed = y.detach()
    assert torch.autograd.gradcheck(lambda x: nn_log_distance(x, fixed, skip, 0.1), x)
    assert torch.autograd.gradgradcheck(lambda x: nn_log_distance(x, fixed, skip, 0.1), x)
    assert torch.autograd.gradcheck(lambda *v: nn_log_distance(*v, skip, 0.1), (x, y))
    assert torch.autograd.gradgradcheck(lambda *v: nn_log_distance(*v, skip, 0.1), (x, y))
    bytes_ = torch.randint(0, 256, (7, 3), dtype=torch.uint8)

    def of_bytes(x):
        return nn_log_distance(x, bytes_, eps=0.1, y_scale=(0.01, -1.0))

    assert torch.autograd.gradcheck(of_bytes, x) and torch.autograd.gradgradcheck(of_bytes, x)
    half = x.detach().bfloat16().requires_grad_()
    (grad,) = torch.autograd.grad(nn_log_distance(half, fixed.bfloat16(), skip, 0.1), half)
    assert grad.dtype == torch.bfloat16 and (grad != 0).any()


def test_the_gradient_is_of_the_references_that_were_there():
    x, y = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3)
    expected = neighbor_ops.nn_log_distance(x, y, None, 0.1)[1]
    value = nn_log_distance(x, y, eps=0.1)
    y.zero_()  # as the push of a replay buffer may
    for create_graph in (False, True):
        (grad,) = torch.autograd.grad(value, x, retain_graph=True, create_graph=create_graph)
        torch.testing.assert_close(grad, expected)


def test_a_query_without_a_reference_has_no_log_distance():
    x = torch.tensor([[1.0, torch.nan], [0.0, 2.0]], requires_grad=True)
    y = torch.randn(3, 2)
    value, grad, _ = neighbor_ops.nn_log_distance(x, y, None, 0.1)
    assert value.isnan() and grad[0].isnan().all() and grad[1].isfinite().all()
    found = nn_log_distance(x, y, eps=0.1)
    for create_graph in (False, True):
        (again,) = torch.autograd.grad(found, x, retain_graph=True, create_graph=create_graph)
        torch.testing.assert_close(again, grad, equal_nan=True)
    with pytest.raises(ValueError, match="eps must be > 0"):
        nn_log_distance(x, y, eps=0.0)


def by_tree(x, y, k=1, own=False):
    """The estimate from SciPy's k-d tree; own: y is x, and no point is its own neighbour."""
    x, y = x.numpy(), y.numpy()
    (m, dim), nth = y.shape, k + own
    rho = cKDTree(y).query(x, [nth])[0][:, 0]
    volume = dim / 2 * math.log(math.pi) - gammaln(dim / 2 + 1)
    return digamma(m - own + 1) - digamma(k) + volume + dim * np.log(rho).mean()


@pytest.mark.parametrize("dim", [1, 3, 7])
@pytest.mark.parametrize("k", [1, 4])
def test_estimates_against_a_tree_and_infomeasure(dim, k):
    infomeasure = pytest.importorskip("infomeasure")  # not on every machine with a GPU
    x, y = torch.randn(200, dim).double(), 1 + 2 * torch.randn(300, dim).double()
    own = knn_entropy(x, k).item()
    assert own == pytest.approx(by_tree(x, x, k, own=True), rel=1e-12)
    other = infomeasure.entropy(
        x.numpy(), approach="kl", k=k, minkowski_p=2, noise_level=0, base="e"
    )
    assert own == pytest.approx(other, rel=1e-12)
    # Its cross-entropy divides by m instead of n, and is no oracle.
    assert knn_cross_entropy(x, y, k).item() == pytest.approx(by_tree(x, y, k), rel=1e-12)


def test_volume_of_the_ball_in_the_dimension_of_images():
    x = torch.randn(5, 3, 32, 32, dtype=torch.float64)  # gamma(1537) is infinite
    expected = by_tree(x.flatten(1), x.flatten(1), own=True)
    assert knn_entropy(x).item() == pytest.approx(expected, rel=1e-12)
    assert knn_entropy(x.float()).item() == pytest.approx(expected, rel=1e-6)


def uniform(g, *shape):
    return torch.rand(*shape, generator=g, dtype=torch.float64)


def normal(g, n, dim, std=0.5):
    return std * torch.randn(n, dim, generator=g, dtype=torch.float64)


def annulus(g, n, dim):
    """Uniform between the circles of radius 1 and 2."""
    radius, turn = (1 + 3 * uniform(g, n)).sqrt(), 2 * math.pi * uniform(g, n)
    return torch.stack([radius * turn.cos(), radius * turn.sin()], dim=1)


# Law, dimension, entropy, variance of log p, bound of the bias. At an edge at most half of a ball
# is outside, so the bias is below log 2 times the share of points nearer to the edge than to their
# neighbour; the normal law in 5-D has the bias of its tails.
LAWS = {
    "normal 1": (normal, 1, 0.5 * math.log(2 * math.pi * math.e / 4), 0.5, 0.0),
    "normal 2": (normal, 2, math.log(2 * math.pi * math.e / 4), 1.0, 0.0),
    "normal 5": (normal, 5, 2.5 * math.log(2 * math.pi * math.e / 4), 2.5, 0.05),
    "box": (lambda *shape: 3 * uniform(*shape), 2, 2 * math.log(3), 0.0, 0.022),
    "exponential": (lambda *shape: -(1 - uniform(*shape)).log(), 2, 2.0, 2.0, 0.022),
    "annulus": (annulus, 2, math.log(3 * math.pi), 0.0, 0.034),
}


@pytest.mark.parametrize("name", LAWS)
def test_entropy_of_known_laws(name):
    law, dim, exact, var_log_p, bias = LAWS[name]
    n, g = 4000, torch.Generator().manual_seed(dim)
    # Each term varies as log p and as log Exp(1), by pi^2 / 6; the latter counts twice, as
    # mutual neighbours share their distance.
    sigma = math.sqrt((var_log_p + math.pi**2 / 3) / n)
    x = law(g, n, dim)
    assert abs(knn_entropy(x).item() - exact) < 4 * sigma + bias
    assert abs(knn_cross_entropy(x, law(g, n, dim)).item() - exact) < 4 * sigma + bias


def test_cross_entropy_of_two_normals():
    # p = N(0, I / 4), q = N((0.5, 0), I). The terms vary as log q(x), by 0.15625, and by pi^2 / 6;
    # what they share through y goes with E p/q = 2.65.
    n, g = 4000, torch.Generator().manual_seed(1)
    x, y = normal(g, n, 2), normal(g, n, 2, std=1.0) + torch.tensor([0.5, 0.0])
    exact = math.log(2 * math.pi) + 0.25 + 0.125
    sigma = math.sqrt((0.15625 + math.pi**2 / 6 + 2.65 * math.pi**2 / 3) / n)
    assert abs(knn_cross_entropy(x, y).item() - exact) < 4 * sigma
    assert knn_cross_entropy(x, y) > knn_entropy(x) + 0.5  # KL(p || q) is 0.76


@pytest.mark.parametrize("k", [1, 3])
def test_what_changes_the_entropy_and_what_does_not(k):
    x = torch.randn(100, 4, dtype=torch.float64)
    h = knn_entropy(x, k).item()
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    near = {"rel": 0, "abs": 1e-12}
    assert knn_entropy(2.5 * x, k).item() == pytest.approx(h + 4 * math.log(2.5), **near)
    assert knn_entropy(x @ rotation, k).item() == pytest.approx(h, **near)
    assert knn_entropy(x + 3, k).item() == pytest.approx(h, **near)
    assert knn_entropy(x[torch.randperm(100)], k).item() == pytest.approx(h, **near)
    assert knn_entropy(x.unflatten(1, (2, 2)), k).item() == pytest.approx(h, **near)


@pytest.mark.parametrize("k", [1, 2])
def test_a_skipped_reference_is_not_there(k):
    x, y = torch.randn(6, 2).double(), torch.randn(8, 2).double()
    skip = torch.tensor([-1, 0, 7, 3, -1, 5])
    alone = [
        knn_cross_entropy(x[i : i + 1], torch.cat([y[:j], y[j + 1 :]]) if j >= 0 else y, k)
        for i, j in enumerate(skip.tolist())
    ]
    value = knn_cross_entropy(x, y, k, skip)
    torch.testing.assert_close(value, torch.stack(alone).mean(), rtol=1e-12, atol=0)


def test_entropy_gradients():
    x, y = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 7))
    skip = torch.tensor([0, -1, 2, -1, 4])
    for k in (1, 2):
        assert torch.autograd.gradcheck(lambda x, k=k: knn_entropy(x, k), x)
        assert torch.autograd.gradgradcheck(lambda x, k=k: knn_entropy(x, k), x)
        assert torch.autograd.gradcheck(lambda *v, k=k: knn_cross_entropy(*v, k, skip), (x, y))


def test_samples_that_coincide():
    x = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 3.0]], requires_grad=True)
    h = knn_entropy(x)
    assert h == -math.inf
    (grad,) = torch.autograd.grad(h, x)
    # Of the distances only the third's has a gradient: D / n (c - a) / |c - a|^2, a the first.
    pull = torch.tensor([-1.0, 2.0]) / 5 * 2 / 3
    torch.testing.assert_close(grad, torch.stack([-pull, torch.zeros(2), pull]))
    assert knn_entropy(x, k=2).isfinite()  # two at one point have another second neighbour
    assert knn_cross_entropy(torch.ones(1, 2), torch.ones(2, 2)) == -math.inf


def test_a_nan_sample_is_not_hidden():
    x = torch.randn(5, 2)
    x[3, 0] = math.nan
    assert knn_cross_entropy(x, torch.randn(4, 2)).isnan()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_entropy_dtypes(dtype):
    x = torch.randn(50, 2).to(dtype)
    h = knn_entropy(x)
    assert h.dim() == 0
    assert h.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Twice the relative error of a distance, times D; a bfloat16 distance has 8 bits.
    rel = 2**-8 if dtype == torch.bfloat16 else torch.finfo(dtype).eps
    assert h.item() == pytest.approx(knn_entropy(x.double()).item(), rel=0, abs=4 * rel)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: knn_entropy(torch.randn(3, 2), k=3), "1..n-1.* n = 3 .*got 3"),
        (lambda: knn_entropy(torch.randn(3, 2), k=0), "got 0"),
        (lambda: knn_entropy(torch.randn(3, 2), k=1.0), "got 1.0"),
        (lambda: knn_entropy(torch.randn(1, 2)), "n = 1 "),
        (lambda: knn_entropy(torch.tensor(1.0)), "n = 0 "),
        (lambda: knn_entropy(torch.randn(4, 0)), "dimension >= 1"),
        (lambda: knn_entropy(torch.randn(4, 2), backend="kd"), "backend.*'kd'"),
        (lambda: knn_cross_entropy(torch.randn(0, 2), torch.randn(2, 2)), "n >= 1"),
    ],
)
def test_entropy_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: knn_entropy(torch.arange(4)),
        lambda: knn_cross_entropy(torch.zeros(2, 2).long(), torch.ones(3, 2).long()),
        lambda: knn_cross_entropy(torch.randn(3, 2), torch.randn(2, 2), 3),
        lambda: knn_cross_entropy(torch.randn(3, 2), torch.randn(2, 2), 0),
        lambda: knn_cross_entropy(torch.randn(3, 2), torch.randn(2, 3)),
        lambda: knn_cross_entropy(torch.randn(3, 2), torch.randn(0, 2)),
    ],
)
def test_errors_of_the_search_come_through(call):
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        call()
