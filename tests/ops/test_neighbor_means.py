"""Means of neighbours: the operator against all distances in float64, its limits, its errors."""

import math

import pytest
import torch

from fastebm.ops import library, neighbor
from fastebm.ops.neighbor import neighbor_means


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chosen_of(m, n):
    return torch.randperm(m, generator=torch.Generator().manual_seed(1))[:n]


@pytest.mark.parametrize("m, n, k", [(20, 20, 1), (40, 7, 2), (120, 50, 16), (16, 1, 16)])
@pytest.mark.parametrize("dim", [1, 2, 5, 130])
def test_means_and_scales_are_those_of_all_distances(device, m, n, k, dim):
    y, chosen = 100 + normal(m, dim), chosen_of(m, n)
    means, scales = (v.cpu() for v in neighbor_means(y.to(device), chosen.to(device), k))
    wide = y.double()
    near = wide[torch.cdist(wide[chosen], wide).topk(k, largest=False).indices]
    # Sums in float64, rounded once.
    torch.testing.assert_close(means.double(), near.mean(1), rtol=2**-24, atol=1e-12)
    wanted = near.var(1).mean(1).sqrt() if k > 1 else torch.ones(n, dtype=torch.float64)
    torch.testing.assert_close(scales.double(), wanted, rtol=2**-23, atol=1e-12)


def test_samples_that_are_alike_and_those_that_are_not_finite(device):
    y = torch.ones(40, 3)
    y[5, 1], y[6, 0] = math.nan, math.inf
    means, scales = neighbor_means(y.to(device), torch.tensor([0, 5, 6], device=device), 4)
    assert torch.equal(means.cpu(), torch.ones(3, 3))  # the first row for what has no neighbours
    assert torch.equal(scales.cpu(), torch.full((3,), 1e-6))


def test_none_chosen(device):
    none = torch.zeros(0, dtype=torch.int64, device=device)
    means, scales = neighbor_means(normal(20, 3).to(device), none, 2)
    assert means.shape == (0, 3) and scales.shape == (0,)


def test_calls_of_bounded_work_and_views(monkeypatch):
    y, chosen = normal(200, 6)[:, ::2], chosen_of(200, 50)
    whole = neighbor_means(y, chosen, 5)
    monkeypatch.setattr(neighbor, "MAX_WORK", 7 * 200 * 16)
    assert all(map(torch.equal, neighbor_means(y.contiguous(), chosen, 5), whole))


@pytest.mark.parametrize(
    "change, match",
    [
        ({"y": normal(9, 3).double()}, "y must be float32, got Double"),
        ({"y": normal(9)}, r"y must have shape \(m, D\), and hold something"),
        ({"y": normal(0, 3)}, r"y must have shape \(m, D\), and hold something"),
        ({"chosen": torch.zeros(2)}, r"chosen must be a contiguous int64 tensor \(n,\)"),
        ({"k": 0}, r"k must be in 1\.\.9, got 0"),
        ({"k": 10}, r"k must be in 1\.\.9, got 10"),
        ({"y": normal(90, 3), "k": 17}, r"k must be in 1\.\.16, got 17"),
    ],
)
def test_wrong_arguments(device, change, match):
    arguments = {"y": normal(9, 3), "chosen": torch.tensor([0, 8]), "k": 2} | change
    there = [v.to(device) if isinstance(v, torch.Tensor) else v for v in arguments.values()]
    with pytest.raises(RuntimeError, match=match):
        neighbor_means(*there)


@pytest.mark.parametrize("row", [-1, 9])
def test_rows_that_are_not_there(row):
    with pytest.raises(RuntimeError, match=rf"chosen must be in 0\.\.8, got {row}"):
        neighbor_means(normal(9, 3), torch.tensor([0, row]), 2)


def test_opcheck_and_compile():
    y, chosen = normal(40, 3), torch.arange(5)
    torch.library.opcheck(library.op.neighbor_means.default, (y, chosen, 3))

    def f(y, chosen):
        means, scales = neighbor_means(y, chosen, 3)
        return means + scales[:, None]

    assert torch.equal(torch.compile(f, fullgraph=True)(y, chosen), f(y, chosen))
