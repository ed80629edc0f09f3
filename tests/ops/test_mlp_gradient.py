"""Gradients of a small perceptron's energy in its parameters: values, contracts, autograd."""

import math

import pytest
import torch
from conftest import SIMD_LEVELS
from mlp_networks import SHAPES, UNIT, derivatives, double, network, rounding_errors
from torch import nn

from fastebm.chains.plain_mlp import plain_mlp
from fastebm.ops import library, reference
from fastebm.ops.mlp.gradient import mlp_gradient, with_gradient
from fastebm.ops.mlp.network import ACTIVATIONS

TERMS = [  # n_data in shares of the batch
    {"n_data": 0, "factor": 0.7},
    {"n_data": 0.5, "factor": 0.1, "square_factor": 0.3},
    {"n_data": 1, "factor": 1.3, "square_factor": -0.2},
]


def size(net):
    return sum(w.numel() + len(w) for w in net.weights)


def run(net, x, n_data=0, **terms):
    """Energies, gradients in x of the samples after the data, and sums."""
    grad, sums = torch.full_like(x[n_data:], math.nan), torch.zeros(size(net))
    e = mlp_gradient(net, x, n_data=n_data, sums=sums, grad=grad, **terms)
    return e, grad, sums


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_curvatures_to_their_last_digits(activation, set_simd):
    # One layer at x = 0, v = 1 with weights 1: the gradient in the biases is act''(bias).
    z = torch.cat([torch.linspace(-15, 15, 6001), torch.logspace(-8, 3, 2001)])
    z = torch.cat([z, -z])
    _, _, expected = derivatives(network(1, (1,), activation), z)
    net = network(1, (256,), activation)._replace(weights=[torch.ones(256, 1), torch.ones(1, 256)])
    for level in SIMD_LEVELS:
        set_simd(level)
        for part, exact in zip(z.split(256), expected.split(256), strict=True):
            mine = net._replace(
                weights=[torch.ones(len(part), 1), torch.ones(1, len(part))], biases=[part, None]
            )
            _, _, sums = run(mine, torch.zeros(1, 1), v=torch.ones(1, 1))
            found = sums[len(part) : 2 * len(part)].double()
            assert ((found - exact).abs() <= 8 * UNIT).all(), level


@pytest.mark.parametrize("with_v", [False, True])
@pytest.mark.parametrize("batch, dim, widths", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values(activation, batch, dim, widths, with_v, set_simd):
    net, x = network(dim, widths, activation, bias=batch != 5), 2 * torch.randn(batch, dim)
    v = torch.randn(batch, dim) if with_v else None
    for terms in TERMS:
        terms = terms | {"n_data": round(terms["n_data"] * batch), "v": v}
        n = terms["n_data"]
        in_double = terms | {"v": v.double() if with_v else None}
        e, g, s, _ = reference.mlp_gradient(double(net), x.double(), **in_double)
        e_error, g_error, s_error = rounding_errors(net, x, **terms)
        torch_error = (reference.mlp_gradient(net, x, **terms)[2] - s).square().mean().sqrt()
        for level in SIMD_LEVELS:
            set_simd(level)
            energy, grad, sums = run(net, x, **terms)
            assert ((energy - e).abs() <= e_error).all(), level
            assert ((grad - g[n:]).abs() <= g_error[n:]).all(), level
            assert ((sums - s).abs() <= s_error).all(), level
            # and on the whole as good as torch's own
            error = (sums - s).square().mean().sqrt()
            assert error <= 3 * torch_error + 4 * UNIT * s.abs().max(), level


def test_what_is_not_asked_for_changes_nothing_and_sums_are_added_to(set_simd):
    net, x, v = network(6, (20, 9)), torch.randn(70, 6), torch.randn(70, 6)
    terms = {"factor": 0.3, "square_factor": 0.1, "v": v}
    for level in SIMD_LEVELS:
        set_simd(level)
        e, g, s = run(net, x, **terms)
        assert torch.equal(mlp_gradient(net, x), e)
        alone = torch.empty_like(x)
        assert torch.equal(mlp_gradient(net, x, grad=alone), e) and torch.equal(alone, g)
        there = torch.randn_like(s)
        added = there.clone()
        mlp_gradient(net, x, sums=added, **terms)
        # one task's sums are added as they are, two tasks' one after the other
        assert ((added - (there + s)).abs() <= 3 * UNIT * (there.abs() + s.abs() + 1)).all()


def test_data_may_end_anywhere(set_simd):
    net, x = network(3, (7,)), torch.randn(70, 3)
    for level in SIMD_LEVELS:
        set_simd(level)
        e, g, _ = run(net, x)
        _, _, ones = run(net, x, n_data=70, factor=1.0)
        for n in range(71):
            energy, grad, sums = run(net, x, n_data=n, factor=1.0)
            assert torch.equal(energy, e) and torch.equal(grad, g[n:]), level
            assert sums[-1] == 2 * n - 70 and ones[-1] == 70, level


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_again_and_samples_on_their_own(threads, set_simd):
    net, x, v = network(5, (20, 9)), torch.randn(150, 5), torch.randn(150, 5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for level in SIMD_LEVELS:
            set_simd(level)
            e, g, s = run(net, x, n_data=0, factor=0.2, v=v)
            for a, b in zip(run(net, x, n_data=0, factor=0.2, v=v), (e, g, s), strict=True):
                assert torch.equal(a, b), level
            for rows in (slice(0, 1), slice(40, 111), slice(149, 150)):
                energy, grad, _ = run(net, x[rows], v=v[rows])
                assert torch.equal(energy, e[rows]) and torch.equal(grad, g[rows]), level
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_stays_with_its_sample(activation, set_simd):
    net, x = network(5, (20, 9), activation), torch.randn(70, 5)
    broken, bad = x.clone(), torch.zeros(70, dtype=torch.bool)
    broken[3, 1], broken[40, 0] = math.nan, math.nan
    bad[[3, 40]] = True
    for square_factor in (0.0, 0.1):  # without it the last bias sees no energies
        terms = {"factor": 0.1, "square_factor": square_factor}
        _, g_torch, s_torch, _ = reference.mlp_gradient(net, broken, **terms)
        assert s_torch[-1].isnan() == (square_factor > 0)
        for level in SIMD_LEVELS:
            set_simd(level)
            e, g, _ = run(net, x, **terms)
            energy, grad, sums = run(net, broken, **terms)
            assert torch.equal(energy.isnan(), bad) and torch.equal(energy[~bad], e[~bad]), level
            assert torch.equal(grad.isnan(), g_torch.isnan()), level
            assert torch.equal(grad[~bad], g[~bad]), level
            assert torch.equal(sums.isnan(), s_torch.isnan()), level


def test_no_samples():
    net, x = network(3, (4,)), torch.randn(0, 3)
    sums = torch.ones(size(net))
    assert mlp_gradient(net, x, sums=sums, grad=x.clone()).shape == (0,) and (sums == 1).all()


def test_errors():
    net, x = network(3, (4,)), torch.randn(5, 3)

    def fails(match, x=x, net=net, **options):
        with pytest.raises(RuntimeError, match=match):
            mlp_gradient(net, x, **options)

    fails("x must be float32, got Double", x=x.double())
    fails(r"x must be contiguous, of shape \(B, D\)", x=x[None])
    fails(r"x must be contiguous, of shape \(B, D\)", x=torch.randn(3, 5).T)
    fails(r"v must be contiguous, of shape \(B, D\)", v=x[:4])
    fails("v must be float32, got Double", v=x.double())
    fails(r"n_data must be in 0..B, got -1", n_data=-1)
    fails(r"n_data must be in 0..B, got 6", n_data=6)
    fails(r"grad must be contiguous, of shape \(B - n_data, D\)", n_data=2, grad=x.clone())
    fails("grad must be float32", grad=x.double())
    fails(r"sums must be contiguous, of shape \(21,\)", sums=torch.zeros(20))
    fails("sums must be float32", sums=torch.zeros(21).double())
    fails(r"weights\[0\] must have shape \(outputs, 3\)", net=network(2, (4,)))
    fails(r"weights\[0\] must have 1..512 outputs, got 513", net=network(3, (513,)))
    fails("those of 2..5 layers, got 6", net=network(3, (2,) * 5))
    fails("weights must be float32", net=double(net))
    fails("beta of softplus must be > 0", net=net._replace(activation="softplus", beta=0.0))


def test_opcheck():
    net, x = network(3, (4, 5)), torch.randn(6, 3)
    args = (x, *net.arguments, 2, 0.3, 0.1)
    for rest in ((None,) * 4, (x.clone(), torch.zeros(size(net)), torch.empty(4, 3), None)):
        torch.library.opcheck(library.op.mlp_gradient.default, (*args, *rest))


def test_with_gradient_hands_each_parameter_its_own():
    tied = nn.Linear(5, 5)
    layers = [nn.Linear(3, 5, bias=False), tied, tied, nn.Linear(5, 1)]
    module = nn.Sequential(*[m for layer in layers for m in (layer, nn.Tanh())][:-1])
    layers[3].bias.requires_grad_(False)
    net = plain_mlp(module, torch.zeros(2, 3), {})
    sums = torch.arange(1.0, 1 + size(net))
    (2 * with_gradient(torch.tensor(7.0), net, sums)).backward()
    parts = sums.split([n for layer in layers for n in (layer.weight.numel(), layer.out_features)])
    assert torch.equal(layers[0].weight.grad, 2 * parts[0].view(5, 3))
    assert torch.equal(tied.weight.grad, 2 * (parts[2] + parts[4]).view(5, 5))
    assert torch.equal(tied.bias.grad, 2 * (parts[3] + parts[5]))
    assert torch.equal(layers[3].weight.grad, 2 * parts[6].view(1, 5))
    assert layers[3].bias.grad is None
    value = with_gradient(torch.tensor(7.0), net, sums)
    assert value == 7
    (g,) = torch.autograd.grad(value.square(), layers[0].weight, retain_graph=True)
    assert torch.equal(g, 14 * parts[0].view(5, 3))
    with pytest.raises(RuntimeError, match='create_graph=True: give its sampler backend="eager"'):
        torch.autograd.grad(value, layers[0].weight, create_graph=True)
    module.requires_grad_(False)
    assert not with_gradient(torch.tensor(7.0), net, sums).requires_grad
