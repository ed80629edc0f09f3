"""Local means of a population: against all distances, widths, draws, what is not finite."""

import math

import pytest
import torch

from fastebm import ChainRNG
from fastebm.chains.local_means import local_means


def state(seed=1, t=0, offset=0):
    return ChainRNG(seed, t, offset).state()


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size, centres, k", [(40, 40, 2), (100, 100, 6), (300, 128, 16)])
@pytest.mark.parametrize("event", [(), (1,), (2, 3)])
def test_means_and_scales_are_those_of_the_neighbours(size, centres, k, event):
    b = normal(size, *event) * 2 + 1
    modes = local_means(b, state())
    flat = b.unsqueeze(-1).flatten(1).double()
    near = flat[torch.cdist(flat, flat).topk(k, largest=False).indices]
    means, scales = near.mean(1), near.var(1).mean(1).sqrt()
    assert modes.centres.shape == (centres, flat.shape[1]) and modes.scales.shape == (centres,)
    distance, of = torch.cdist(modes.centres.double(), means).min(1)
    assert distance.max() < 1e-5
    torch.testing.assert_close(modes.scales.double(), scales[of], rtol=1e-4, atol=1e-5)
    assert torch.unique(modes.centres, dim=0).shape[0] > 0.5 * centres


@pytest.mark.parametrize("size", [2, 3, 31])
def test_samples_of_a_small_population_are_their_own_centres(size):
    b = normal(size, 3)
    modes = local_means(b, state())
    assert sorted(modes.centres.tolist()) == sorted(b.tolist())
    assert torch.equal(modes.scales, torch.ones(size))


def test_scales_of_samples_that_are_alike_are_not_zero():
    scales = local_means(torch.ones(64, 2), state()).scales
    assert torch.equal(scales, torch.full_like(scales, 1e-6))


def test_the_draw_is_by_seed_and_step_alone():
    b, first = normal(2000, 2), local_means(normal(2000, 2), state())
    for other, t, alike in (
        (state(offset=7), 0, True),
        (state(seed=2), 0, False),
        (state(t=5), 0, False),
    ):
        found = local_means(b, other, t)
        assert torch.equal(found.centres, first.centres) == alike
    later = local_means(b, state(t=5))
    assert torch.equal(local_means(b, state(), 5).centres, later.centres)


def test_what_is_not_finite_spoils_its_own_centres_only():
    b = normal(300, 2).double().requires_grad_()
    with torch.no_grad():
        b[7], b[9, 0] = math.nan, math.inf
    modes = local_means(b, state())
    assert not modes.centres.requires_grad and modes.centres.dtype == torch.float32
    finite = modes.centres.isfinite().all(1)
    assert finite.sum() >= 126 and torch.equal(modes.scales.isfinite(), finite)
