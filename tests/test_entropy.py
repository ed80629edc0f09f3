"""Nearest neighbours against a naive search, their gradients, and the entropy estimate."""

import math

import pytest
import torch

from fastebm import entropy
from fastebm.entropy import nearest_neighbor, nn_log_distance


def naive(x, y, skip=None, k=1):
    d = (x[:, None] - y[None])[..., None].flatten(2).norm(dim=2)
    if skip is not None:
        for i, j in enumerate(skip.tolist()):
            if j >= 0:
                d[i, j] = math.inf
    index = torch.stack([torch.tensor(sorted(range(len(y)), key=row.__getitem__)[:k]) for row in d])
    return d.gather(1, index), index


@pytest.mark.parametrize("event", [(), (1,), (2,), (1, 4, 4)])
@pytest.mark.parametrize("k", [1, 3])
def test_against_naive_search(event, k, monkeypatch):
    monkeypatch.setattr(entropy, "_BLOCK", 50)  # several blocks
    x, y = torch.randn(13, *event).double(), torch.randn(17, *event).double()
    skip = torch.arange(13).masked_fill(torch.arange(13) % 3 == 0, -1)
    for s in (None, skip):
        d, i = nearest_neighbor(x, y, skip=s, k=k)
        if k == 1:
            assert d.shape == i.shape == (13,)
            d, i = d[:, None], i[:, None]
        expected, index = naive(x, y, s, k)
        assert torch.equal(i, index)
        torch.testing.assert_close(d, expected, rtol=1e-12, atol=0)


def test_ties_go_to_the_lowest_index():
    y = torch.tensor([[2.0], [1.0], [-1.0], [1.0], [-1.0]])
    x = torch.zeros(3, 1)
    skip = torch.tensor([-1, 1, 2])
    assert nearest_neighbor(x, y, skip=skip)[1].tolist() == [1, 2, 1]
    assert nearest_neighbor(x, y, skip=skip, k=3)[1].tolist() == [[1, 2, 3], [2, 3, 4], [1, 3, 4]]


def test_near_neighbours_far_from_the_origin_are_exact():
    y = 1000 + torch.arange(5.0)[:, None] / 1024
    d, i = nearest_neighbor(y + 2**-12, y)
    assert torch.equal(i, torch.arange(5)) and (d == 2**-12).all()


@pytest.mark.parametrize("k", [1, 2])
def test_gradients(k):
    x, y = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 5))

    def distance(x, y):
        return nearest_neighbor(x, y, k=k)[0]

    assert torch.autograd.gradcheck(distance, (x, y))
    assert torch.autograd.gradgradcheck(distance, (x, y))


def test_gradient_of_coincident_points_is_zero():
    x = torch.ones(2, 3, requires_grad=True)
    d, _ = nearest_neighbor(x, torch.ones(1, 3))
    d.sum().backward()
    assert (d == 0).all() and (x.grad == 0).all()


def test_nan_query_is_nan_and_harms_no_other():
    x = torch.tensor([[math.nan], [1.0]])
    d, i = nearest_neighbor(x, torch.tensor([[0.0], [3.0]]))
    assert d[0].isnan() and d[1] == 1 and i[1] == 0


def test_empty_query_and_half_precision():
    assert nearest_neighbor(torch.zeros(0, 2), torch.zeros(3, 2))[0].shape == (0,)
    assert nearest_neighbor(torch.zeros(0, 2), torch.zeros(3, 2), k=2)[1].shape == (0, 2)
    d, _ = nearest_neighbor(torch.zeros(2, 2).bfloat16(), torch.ones(3, 2).bfloat16())
    assert d.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "x, y, options, error, match",
    [
        (torch.zeros(2, 2), torch.zeros(0, 2), {}, ValueError, "m = 0"),
        (torch.zeros(2, 2), torch.zeros(3, 2), {"k": 4}, ValueError, "k must be"),
        (torch.zeros(2, 2), torch.zeros(3, 2), {"k": 0}, ValueError, "k must be"),
        (torch.zeros(2, 2), torch.zeros(3, 3), {}, ValueError, "event"),
        (torch.zeros(2, 2), torch.zeros(3, 2).double(), {}, TypeError, "one floating"),
        (torch.zeros(2, 2).long(), torch.zeros(3, 2).long(), {}, TypeError, "one floating"),
        (torch.zeros(2, 2), torch.zeros(3, 2).to("meta"), {}, ValueError, "one device"),
        (torch.zeros(2, 2), torch.zeros(3, 2), {"skip": torch.zeros(3).long()}, ValueError, "skip"),
        (torch.zeros(2, 2), torch.zeros(3, 2), {"skip": torch.zeros(2)}, ValueError, "int64"),
        (torch.zeros(1, 2), torch.zeros(3, 2), {"skip": torch.tensor([3])}, ValueError, "-1..2"),
        (
            torch.zeros(1, 2),
            torch.zeros(1, 2),
            {"skip": torch.tensor([0])},
            ValueError,
            "leave out",
        ),
    ],
)
def test_errors(x, y, options, error, match):
    with pytest.raises(error, match=match):
        nearest_neighbor(x, y, **options)


def test_one_reference_may_stay_when_nothing_is_skipped():
    assert nearest_neighbor(torch.zeros(1, 2), torch.ones(1, 2), skip=torch.tensor([-1]))[1] == 0


def test_log_distance_is_bounded_and_differentiable():
    x = torch.randn(6, 2, dtype=torch.float64)
    skip = torch.arange(6)
    d = naive(x, x, skip)[0]
    expected = (d**2 + 0.01).log().mean() / 2
    torch.testing.assert_close(nn_log_distance(x, x, skip, eps=0.1), expected)
    same = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    value = nn_log_distance(same, torch.zeros(1, 2, dtype=torch.float64))
    value.backward()
    assert value.item() == pytest.approx(math.log(1e-3)) and (same.grad == 0).all()
    with pytest.raises(ValueError, match="eps must be > 0"):
        nn_log_distance(x, x, eps=0.0)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_entropy_of_a_gaussian(dim):
    # Kozachenko-Leonenko: H = D mean log d + log V_D + log(n - 1) + gamma. The spread of log d
    # at a random point gives the deviation (pi^2 / 6 plus that of log p, D / 2) / n, about.
    n, std = 4000, 0.5
    g = torch.Generator().manual_seed(dim)
    x = std * torch.randn(n, dim, generator=g, dtype=torch.float64)
    volume = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    estimate = dim * nn_log_distance(x, x, torch.arange(n), eps=1e-9).item()
    estimate += volume + math.log(n - 1) + 0.5772156649015329
    exact = dim * (0.5 * math.log(2 * math.pi * math.e) + math.log(std))
    bias = {1: 0.0, 2: 0.0, 5: 0.05}[dim]  # of the tails, falls like n^(-2 / D)
    assert abs(estimate - exact) < 4 * math.sqrt((math.pi**2 / 6 + dim / 2) / n) + bias
