"""The approximate search by faiss against the exact one."""

import math
import sys

import pytest
import torch

from fastebm import knn_cross_entropy, knn_entropy, nearest_neighbor
from fastebm.entropy import faiss_search


@pytest.fixture
def lists(monkeypatch):
    """Searches lists from 64 references on, whatever the number of queries."""
    monkeypatch.setattr(faiss_search, "_MIN_REFERENCES", 64)
    monkeypatch.setattr(faiss_search, "_QUERIES_PER_LIST", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("event", [(), (3,), (1, 5, 5)])
@pytest.mark.parametrize("k", [1, 3])
def test_a_full_search_is_the_exact_one(event, k, dtype, monkeypatch):
    monkeypatch.setattr(faiss_search, "_BLOCK", 500)  # several blocks of candidates
    x, y = torch.randn(40, *event).to(dtype), torch.randn(60, *event).to(dtype)
    y[30:40] = y[:10]  # ties
    skip = torch.arange(40).masked_fill(torch.arange(40) % 3 == 0, -1)
    for s in (None, skip):
        expected = nearest_neighbor(x, y, skip=s, k=k)
        found = nearest_neighbor(x, y, skip=s, k=k, backend="faiss")
        assert torch.equal(found[1], expected[1])
        torch.testing.assert_close(found[0], expected[0])


def test_far_from_the_origin_and_fewer_references_than_candidates():
    y = 1000 + torch.arange(5.0, dtype=torch.float64)[:, None] / 2**20
    d, i = nearest_neighbor(y + 2**-22, y, backend="faiss")
    assert torch.equal(i, torch.arange(5)) and (d == 2**-22).all()
    skip = torch.arange(5)
    d, i = nearest_neighbor(y, y, k=4, skip=skip, backend="faiss")
    assert torch.equal(i, nearest_neighbor(y, y, k=4, skip=skip)[1])


def test_near_duplicates_that_faiss_cannot_tell_apart():
    # Squares of 100^2 round by 1e-3 in float32; those of the distances in a group are 1e-4. From
    # n D = 128000 on faiss expands the squares.
    centres = 100 * torch.eye(4, 256)
    x, y = (centres.repeat(n, 1) + 5e-4 * torch.randn(4 * n, 256) for n in (125, 8))
    expected = nearest_neighbor(x, y)[1]
    assert torch.equal(nearest_neighbor(x, y, backend="faiss")[1], expected)
    assert not torch.equal(faiss_search._search(faiss_search._faiss(), x, y, 1)[:, 0], expected)


def test_lists_find_most_neighbours_and_exact_distances():
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(50, 8, generator=g)
    x, y = (
        centres[torch.randint(50, (n,), generator=g)] + 0.1 * torch.randn(n, 8, generator=g)
        for n in (5000, 10000)
    )
    d, i = nearest_neighbor(x, y, k=2, backend="faiss")
    best, index = nearest_neighbor(x, y, k=2)
    assert (i == index).float().mean() > 0.99
    torch.testing.assert_close(d, (x[:, None] - y[i]).norm(dim=2))
    assert (d >= best * (1 - 1e-6)).all() and (d[:, 0] <= d[:, 1]).all()
    h = knn_cross_entropy(x, y, backend="faiss")
    torch.testing.assert_close(h, knn_cross_entropy(x, y), rtol=0, atol=0.02)


def test_lists_too_short_are_made_up_for(lists):
    x = torch.randn(400, 2)
    skip = torch.arange(400)
    # Of 20 lists 2 are searched, some 40 references.
    d, i = nearest_neighbor(x, x, k=40, skip=skip, backend="faiss")
    assert (i >= 0).all() and (i != skip[:, None]).all() and (d.diff(dim=1) >= 0).all()
    assert all(len(set(row)) == 40 for row in i.tolist())


def test_gradients():
    x = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: knn_entropy(x, 2, backend="faiss"), x)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_found(bad, lists):
    x, y = torch.randn(4, 2), torch.randn(200, 2)
    x[1, 0], y[::2, 1] = bad, bad
    d, i = nearest_neighbor(x, y, k=2, backend="faiss")
    assert (i[1] == -1).all() and d[1].isnan().all()
    kept = torch.tensor([0, 2, 3])
    assert (i[kept] % 2 == 1).all() and d[kept].isfinite().all()
    d, i = nearest_neighbor(x[kept], y[:3], k=2, backend="faiss")
    assert i.tolist() == [[1, -1]] * 3 and d[:, 0].isfinite().all() and d[:, 1].isnan().all()
    assert (nearest_neighbor(x, y[:1], backend="faiss")[1] == -1).all()


def test_a_nan_reference_does_not_count_in_the_entropy():
    x, y = torch.randn(6, 2).double(), torch.randn(9, 2).double()
    expected = knn_cross_entropy(x, y, backend="faiss")
    gaps = torch.full((3, 2), math.nan, dtype=torch.float64)
    assert knn_cross_entropy(x, torch.cat([gaps, y]), backend="faiss") == expected
    skip = torch.tensor([0, 1, -1, 2, -1, 0])  # missing anyway
    assert knn_cross_entropy(x, torch.cat([gaps, y]), 1, skip, backend="faiss") == expected


def test_no_queries_and_no_faiss(monkeypatch):
    d, i = nearest_neighbor(torch.zeros(0, 2), torch.zeros(3, 2), k=2, backend="faiss")
    assert d.shape == i.shape == (0, 2)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "fastebm\[faiss\]"'):
        nearest_neighbor(torch.zeros(1, 2), torch.zeros(3, 2), backend="faiss")
