"""Likelihoods and draws under torch's modes, of frozen parameters, and of streams that end."""

import pytest
import torch
from torch_modes import default_dtype, each_mode

from fastebm import (
    RBM,
    ChainRNG,
    GaussianRBM,
    GibbsSampler,
    HelmholtzMachine,
    knn_cross_entropy,
    knn_entropy,
    log_partition,
    pseudo_likelihood,
)
from fastebm.energies import MLPEnergy
from fastebm.likelihood.ais import ais, reverse_ais
from fastebm.likelihood.bases import BernoulliBase, GaussianBase, UniformBase
from fastebm.losses.maximum_likelihood import ExactMaximumLikelihood
from fastebm.samplers.scale import data_scale


@each_mode
def test_modes_of_torch_change_nothing(mode):
    x, bits = torch.randn(40, 3), torch.rand(40, 3).round()
    rbm, gaussian, machine = RBM(3, 2), GaussianRBM(3, 2), HelmholtzMachine(3, (2,))
    net = MLPEnergy(3, (8,))

    def run():
        base = GaussianBase.fit(x)
        box = UniformBase(torch.zeros_like(x[0]), torch.ones_like(x[0]))
        options = {"n_chains": 8, "seed": 1}
        estimates = [
            ais(rbm, BernoulliBase.fit(bits), 6, **options),
            ais(gaussian, base, 6, **options),
            ais(net, base, 6, **options),
            ais(net, box, 6, step_size=0.1, **options),
            reverse_ais(net, base, x.clone(), 6, seed=1),
        ]
        yield from (tensor for e in estimates for tensor in (e.log_weights, e.acceptance))
        yield from (log_partition(rbm).detach(), log_partition(net, 3).detach())
        yield from (pseudo_likelihood(rbm, bits), pseudo_likelihood(net, bits))
        yield from (machine.log_likelihood(bits, 3, 1), machine(bits))
        yield from (*machine.recognise(bits, 1), *machine.dream(5, 1))
        for model, v in ((rbm, bits), (gaussian, x)):
            yield from model.gibbs_step(v, 1)
            sampler = GibbsSampler(model)
            last, log = sampler.sample(v, 4, seed=1, return_diagnostics=True)
            yield from (last, log["energy"], log["change"], sampler.last_step(v, seed=1)[0])
            yield sampler.sample(n_samples=4, n_steps=2, seed=1)
        yield from (knn_entropy(x, 2), knn_cross_entropy(x, x + 1))
        yield torch.as_tensor(data_scale(x), dtype=torch.float64, device="cpu")

    expected = list(run())
    with mode():
        got = list(run())
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == b.dtype and torch.equal(a, b), (i, a, b)


def test_new_tensors_are_of_the_documented_dtype():
    with default_dtype(torch.float64):
        assert UniformBase.box(0, 1, 3).lo.dtype == torch.float32
    counts = torch.randint(2, (9, 3))
    expected = BernoulliBase.fit(counts.float()).logits  # bits of any dtype
    assert torch.equal(BernoulliBase.fit(counts).logits, expected)
    assert torch.equal(GaussianBase.fit(counts).std, GaussianBase.fit(counts.float()).std)


@pytest.mark.parametrize("frozen", ["W", "b", "c"])
def test_frozen_parameters_are_constants(frozen):
    rbm, x = RBM(5, 3), torch.rand(6, 5).round()
    ExactMaximumLikelihood(rbm)(x).loss.backward()
    expected = {name: p.grad.clone() for name, p in rbm.named_parameters()}
    rbm.zero_grad()
    getattr(rbm, frozen).requires_grad_(False)
    ExactMaximumLikelihood(rbm)(x).loss.backward()
    for name, p in rbm.named_parameters():
        assert p.grad is None if name == frozen else torch.equal(p.grad, expected[name]), name
    base, options = BernoulliBase.fit(x), {"n_chains": 4, "seed": 0}
    log_weights = ais(rbm, base, 5, **options).log_weights
    rbm.requires_grad_(False)
    assert not log_partition(rbm).requires_grad
    assert torch.equal(ais(rbm, base, 5, **options).log_weights, log_weights)
    rbm.unused = torch.nn.Parameter(torch.zeros(()))  # what the energy does not depend on
    assert not log_partition(rbm).requires_grad


def test_a_stream_near_its_end_is_refused_before_work():
    calls = []

    def energy(x):
        calls.append(len(x))
        return x.square().sum(1)

    rbm, bits = RBM(3, 2), torch.rand(4, 3).round()
    base = GaussianBase(torch.zeros(3), torch.ones(3))
    end = 2**32 - 1
    for needed, call in (
        (1 + 2 * 4, lambda r: ais(rbm, BernoulliBase.fit(bits), 5, n_steps=2, seed=r)),
        (1 + 4, lambda r: ais(energy, base, 5, step_size=0.1, seed=r)),
        (1 + 66 * 5 + 1 + 4, lambda r: ais(energy, base, 5, seed=r)),
        (3, lambda r: GibbsSampler(rbm).sample(bits, 2, burn_in=1, seed=r)),
        (4, lambda r: GibbsSampler(rbm).sample(n_samples=2, n_steps=3, seed=r)),
        (6, lambda r: HelmholtzMachine(3, (2,)).log_likelihood(bits, 3, r)),
    ):
        short = ChainRNG(0, end - needed + 1)
        with pytest.raises(ValueError, match=f"has none for {needed} more"):
            call(short)
        assert not calls and short.t == end - needed + 1
        enough = ChainRNG(0, end - needed)
        call(enough)
        assert enough.t == end, needed
        calls.clear()
