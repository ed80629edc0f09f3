"""Integers of any type are integers everywhere, and sizes are named where they are none."""

import numpy as np
import pytest
import torch

import fastebm
from fastebm import ais
from fastebm.arguments import integer, sizes
from fastebm.energies import ConvEnergy, MLPEnergy, MultiScaleEnergy, ResNetEnergy

TYPES = (int, np.int64, np.uint8, torch.tensor)


@pytest.mark.parametrize("kind", TYPES)
def test_integers_of_any_type(kind):
    n = kind(3)
    assert integer("n", n, 3, 3) == 3 and type(integer("n", n, 0)) is int
    assert sizes("shape", (n, 2)) == (3, 2) and sizes("shape", ()) == ()
    assert sizes("shape", np.array([3, 2])) == (3, 2)


def test_what_is_no_integer():
    for value in (True, np.True_, 2.0, "2", None, [2], np.float64(2)):
        with pytest.raises(ValueError, match="n must be an integer >= 1, got "):
            integer("n", value, 1)
    with pytest.raises(ValueError, match=r"n must be an integer in 1\.\.4, got 5"):
        integer("n", 5, 1, 4)
    assert sizes("shape", np.int64(2)) == (2,)
    for value in (2.5, (2, 0), (2, True), "ab"):
        with pytest.raises(ValueError, match="shape must be an integer >= 1"):
            sizes("shape", value)


def calls(n):
    """Public calls whose counts and sizes n makes: each its result."""
    torch.manual_seed(0)
    x, bits, images = torch.rand(8, 3), torch.rand(8, 3).round(), torch.rand(4, 1, 8, 8)
    rbm, helmholtz = fastebm.RBM(n(3), n(2)), fastebm.HelmholtzMachine(n(3), (n(2), n(2)))
    buffer = fastebm.ReplayBuffer(n(9), n(3), seed=n(0))
    base = ais.UniformBase.box(0, 1, n(3))
    yield from (rbm(bits), helmholtz(bits), buffer.all(), *buffer.sample(n(4)))
    yield buffer.references(torch.arange(4), n(3)).y
    yield MLPEnergy(n(3), (n(4),))(x)
    yield MLPEnergy(3, n(4))(x)
    yield ConvEnergy((n(1), n(8), n(8)), n(2))(images)
    net = ResNetEnergy((n(1), n(8), n(8)), n(4), n(1), n_classes=n(3))
    yield net(images, y=n(2))
    yield MultiScaleEnergy([lambda v: v.sum((1, 2, 3))] * 2, (n(1), n(2)))(images)
    yield fastebm.GibbsSampler(rbm).sample(bits, n(3), burn_in=n(1), thin=n(2), seed=n(1))
    yield fastebm.GibbsSampler(rbm).sample(n_samples=n(3), n_steps=n(2), seed=n(1))
    yield helmholtz.dream(n(4), n(1))[0]
    yield helmholtz.log_likelihood(bits, n(5), n(1))
    yield fastebm.knn_entropy(x, n(2))
    yield fastebm.knn_cross_entropy(x, x + 1, n(2))
    yield fastebm.nearest_neighbor(x, x + 1, k=n(2))[0]
    yield fastebm.Augmentation(kernel_size=n(3))(images, n(1))
    energy = lambda v: v.sum(1)  # noqa: E731
    options = {"n_chains": n(4), "n_steps": n(2), "seed": n(1)}
    yield ais.ais(energy, base, n(5), step_size=0.1, **options).log_weights
    yield fastebm.log_partition(energy, n(3))


def test_every_count_and_size_may_be_of_numpy():
    for got, expected in zip(list(calls(np.int64)), list(calls(int)), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda n: fastebm.ReplayBuffer(n, (2,)),
        lambda n: fastebm.ReplayBuffer(2, (n,)),
        lambda n: fastebm.ReplayBuffer(2, (2,)).sample(n),
        lambda n: fastebm.RBM(n, 3),
        lambda n: fastebm.HelmholtzMachine(3, (n,)),
        lambda n: MLPEnergy(n),
        lambda n: ConvEnergy((1, 8, n)),
        lambda n: MultiScaleEnergy([MLPEnergy(2)], (n,)),
        lambda n: fastebm.GibbsSampler(fastebm.RBM(2, 2)).sample(torch.zeros(2, 2), n),
        lambda n: fastebm.knn_entropy(torch.rand(5, 2), n),
        lambda n: fastebm.knn_cross_entropy(torch.rand(5, 2), torch.rand(5, 2), n),
        lambda n: fastebm.Augmentation(kernel_size=n),
        lambda n: fastebm.log_partition(lambda x: x.sum(1), n),
        lambda n: ais.ais(fastebm.RBM(2, 2), ais.BernoulliBase(torch.zeros(2)), 3, n_chains=n),
        lambda n: ais.ais(fastebm.RBM(2, 2), ais.BernoulliBase(torch.zeros(2)), 3, n_steps=n),
        lambda n: fastebm.ChainRNG(n),
    ],
)
def test_bools_and_fractions_are_no_counts(call):
    for value in (True, 1.5):
        with pytest.raises(ValueError, match=f"must be an integer .*, got {value}"):
            call(value)
