"""What only the CUDA kernels of the chain have: slabs of weights, tiles by batch, bfloat16."""

import math

import pytest
import torch
from conftest import DEVICES
from mlp_networks import double, network, rounding_errors
from test_mlp_chain import exact, rng

from fastebm import ops
from fastebm.ops import library, reference
from fastebm.ops.mlp.chain import mlp_chain_
from fastebm.ops.mlp.network import ACTIVATIONS, Network

SMOOTH = ["silu", "tanh", "softplus", "gelu", "gelu_tanh", "elu"]  # elu with alpha 1
# Weights in shared memory and in slabs; samples by 2, 4 and 8 a warp, by 16 and 32 a CUDA block;
# gradients of fewer and more features than a hidden layer.
SHAPES = [
    (3, 200, (256, 256, 256, 250)),
    (17, 3, (255, 129, 200)),
    (5, 256, (33,)),
    (35, 40, (70, 130)),
    (1030, 2, (8, 5)),
    (4101, 5, (33,)),
]
UNIT = 2.0**-8  # of bfloat16


@pytest.fixture(params=DEVICES[1:])
def device(request, monkeypatch):
    """As in conftest, without the CPU."""
    if request.param == "simt":
        monkeypatch.setattr(library, "op", torch.ops.fastebm_simt)
        return "cpu"
    return request.param


@pytest.fixture
def set_schedule():
    """Chooses the order of blocks and threads of the emulated device, for one test."""
    simt = pytest.importorskip("fastebm._simt", reason="built without FASTEBM_SIMT=ON")
    yield simt.set_schedule_seed
    simt.set_schedule_seed(0)


def run(x, net, n_steps=1, t=0, first=0, **options):
    """The chain on a copy of ``x``, and energy and gradient that its last step used."""
    energy, grad = torch.empty(len(x), device=x.device), torch.empty_like(x)
    ids = torch.arange(first, first + len(x), device=x.device)
    out = mlp_chain_(
        *(x.clone(), net, n_steps, 0.1, 0.2, rng(x.device)),
        **dict(t=t, sample_ids=ids, energy=energy, grad=grad) | options,
    )
    return out, energy, grad


def bfloat16_bound(net, x):
    """What rounding to bfloat16 may do to energy and gradient, to first order in ``UNIT``.

    Rounded are weights, samples, values, and gradients where they meet weights; the slopes of all
    but the last layer; not the last weights. Values and slopes are within UNIT / 4 max(1, |z|)
    besides, sums of products within 2^-13 of the sum of sizes. Slopes of activations are at most
    1.2, and change by at most 1.6 times their argument's error. A base is of float32.
    """
    weights, biases, *how, precision, mean, row_bias = double(net)
    biases = biases if row_bias is None else [row_bias, *biases[1:]]
    h, slopes = x.double(), []
    dh = UNIT * h.abs()
    for layer, (w, b) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        size = h.abs() @ w.abs().T
        z = torch.nn.functional.linear(h, w, b).requires_grad_()
        dz = dh @ w.abs().T + (UNIT + 2.0**-13) * (size + b.abs())
        identity = ([z.new_ones(1, 1)] * 2, [None] * 2, *how)
        h = reference.mlp_energy(identity, z.view(-1, 1)).view(z.shape)
        (slope,) = torch.autograd.grad(h.sum(), z)
        h, z = h.detach(), z.detach()
        coarse = UNIT / 4 * z.abs().clamp(min=1)
        last = layer == len(weights) - 2
        slopes.append((slope.abs(), 1.6 * dz + coarse + (0 if last else UNIT * slope.abs())))
        dh = 1.2 * dz + coarse + (0 if last else UNIT * h.abs())
    de = dh @ weights[-1].abs().T
    g, dg = weights[-1].abs().expand(len(x), -1), h.new_zeros(())
    for w, (slope, dslope) in zip(weights[-2::-1], slopes[::-1], strict=True):
        dg = dg * slope + g * dslope + UNIT * g * slope
        g = g * slope
        dg = dg @ w.abs() + (UNIT + 2.0**-13) * (g @ w.abs())
        g = g @ w.abs()
    de, dg = 1.1 * de[:, 0] + 1e-5, 1.1 * dg  # a tenth for what is of second order
    if precision is not None:
        u = x.double() if mean is None else x.double() - mean
        de = de + (x.shape[1] + 8) * 2.0**-24 * (precision * u * u).sum(1)
        dg = dg + 4 * 2.0**-24 * (precision * u.abs() + g)
    return de, dg


@pytest.mark.parametrize("batch, dim, widths", SHAPES)
def test_gradient_of_every_plan(device, batch, dim, widths):
    net, x = network(dim, widths, device=device), torch.randn(batch, dim, device=device)
    _, energy, grad = run(x, net)
    e, g = exact(net, x)
    e_error, g_error, _ = rounding_errors(net, x)
    assert ((energy.double() - e).abs() <= e_error).all()
    assert ((grad.double() - g).abs() <= g_error).all()


@pytest.mark.parametrize("batch, dim, widths", SHAPES)
@pytest.mark.parametrize("activation", SMOOTH)
def test_bfloat16_gradient(device, activation, batch, dim, widths):
    if activation != "silu" and batch not in (35, 17):
        pytest.skip("one activation goes through every plan")
    net = network(dim, widths, activation, device=device)
    net = net._replace(beta=1.0 if activation == "elu" else net.beta)
    x = torch.randn(batch, dim, device=device)
    _, energy, grad = run(x, net, precision="bf16")
    e, g = exact(net, x)
    e_error, g_error = bfloat16_bound(net, x)
    assert ((energy.double() - e).abs() <= e_error).all()
    assert ((grad.double() - g).abs() <= g_error).all()
    # The bound adds up sizes; roundings of random sign are far below it.
    assert (grad.double() - g).square().mean() <= (0.02 * g.square().mean().sqrt()) ** 2


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("batch, dim, widths", [*SHAPES, (3, 300, (512, 270)), (2, 5, (300,) * 4)])
def test_bfloat16_is_exact_where_numbers_are_short(device, batch, dim, widths, activation):
    """Sums of few small integers, ReLU and |z|: nothing is rounded, so not a bit may differ."""
    sizes, weights, biases = (dim, *widths, 1), [], []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        chosen = torch.rand(b, a).argsort(1) < (2 if b > 1 else a)  # two inputs a feature
        weights.append((chosen * (2 * torch.randint(0, 2, (b, a)) - 1)).float().to(device))
        biases.append(torch.randint(-3, 4, (b,)).float().to(device))
    net = Network(weights, biases, activation, beta=-1.0)
    if dim > 3:
        net = net._replace(
            row_bias=torch.randint(-3, 4, (batch, widths[0]), device=device).float(),
            base_precision=torch.randint(0, 3, (dim,), device=device).float(),
            base_mean=torch.randint(-3, 4, (dim,), device=device).float(),
        )
    x = torch.randint(-4, 5, (batch, dim), device=device).float()
    _, energy, grad = run(x, net, precision="bf16")
    e, g = exact(net, x)
    assert g.count_nonzero() > 0
    assert torch.equal(energy.double(), e) and torch.equal(grad.double(), g)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch, dim, widths", SHAPES)
def test_a_chain_is_its_steps_and_its_samples(device, precision, batch, dim, widths):
    net, x = network(dim, widths, device=device), torch.randn(batch, dim, device=device)
    how = dict(precision=precision, grad_clip=0.5, clamp=(-1.5, 1.5), noise_first=batch == 35)
    whole = run(x, net, 2, **how)
    parts, *last = run(run(x, net, 1, **how)[0], net, 1, t=1, **how)
    assert all(map(torch.equal, whole, (parts, *last)))
    for first, end in ((0, 2), (batch - 1, batch)):
        few = run(x[first:end], net, 2, first=first, **how)
        assert all(torch.equal(a, b[first:end]) for a, b in zip(few, whole, strict=True))


@pytest.mark.parametrize(
    "options",
    [{}, {"grad_norm_clip": 0.5}, {"noise_first": True}, {"displacement_clip": 0.1}],
    ids=str,
)
@pytest.mark.parametrize("dim", [1, 6, 65])
def test_bfloat16_step_is_langevin_step_at_its_gradient(device, options, dim):
    net, x = network(dim, (20, 40), device=device), torch.randn(37, dim, device=device)
    out, _, grad = run(x, net, precision="bf16", **options)
    sigma = 0.2
    if options.pop("noise_first", False):
        ops.langevin_step_(x, None, 0.0, 0.2, rng(device))
        sigma = 0.0
    ops.langevin_step_(x, grad, 0.1, sigma, rng(device), **options)
    if options:  # a norm is summed in another order
        torch.testing.assert_close(out, x, rtol=0, atol=2.0**-22)
    else:
        assert torch.equal(out, x)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("widths", [(40, 9), (256, 256, 200)])
@pytest.mark.parametrize("seed", [1, 2])
def test_same_for_every_schedule(device, precision, widths, seed, set_schedule):
    if library.op is torch.ops.fastebm:
        pytest.skip("a GPU has its own")
    net, x = network(7, widths), torch.randn(40, 7)
    how = dict(precision=precision, grad_norm_clip=0.5)
    expected = run(x, net, 3, **how)
    set_schedule(seed)
    assert all(map(torch.equal, run(x, net, 3, **how), expected))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_keeps_what_is_not_finite(device, activation):
    net, x = network(4, (20, 10), activation, device=device), torch.randn(40, 4, device=device)
    x[3, 1], x[7, 0], x[8, 2] = math.nan, math.inf, -math.inf
    out, *_ = run(x, net, precision="bf16")
    finite = out.isfinite().all(1)
    assert not finite[[3, 7, 8]].any() and finite.sum() == 37


def test_a_cpu_refuses_bfloat16():
    x = torch.randn(4, 3)
    with pytest.raises(RuntimeError, match='precision "bf16" is for CUDA devices'):
        mlp_chain_(x, network(3, (4,)), 1, 0.1, 0.1, rng(), precision="bf16")


def test_samples_too_large_for_a_device_are_refused(device):
    with pytest.raises(RuntimeError, match="at most 512 elements on a device, got 513"):
        run(torch.randn(2, 513, device=device), network(513, (4,), device=device))
