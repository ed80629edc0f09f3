"""CUDA kernels of chains on large networks: two groups of features to a warp, slabs of half the
size, chunks of many inputs; and of those with a base, row biases and a box of tensors."""

import pytest
import torch
from mlp_networks import converted, double, network, rounding_errors, with_base_and_rows
from test_mlp_adjusted import chain, same
from test_mlp_chain import rng
from test_mlp_chain_cuda import SMOOTH, bfloat16_bound, device, run, set_schedule  # noqa: F401

from fastebm import ops
from fastebm.ops import library, reference
from fastebm.ops.mlp.network import ACTIVATIONS

# Batch, dimension, widths; tiles are those of float32.
PLANS = {
    "tiles of 1": (3, 5, (300,)),
    "tiles of 1, slabs": (6, 34, (270, 288)),
    "tiles of 1, largest in the middle": (5, 70, (20, 512, 7)),
    "many inputs": (9, 400, (33, 20)),
    "many inputs, slabs": (4, 511, (250,)),
    "tiles of 2": (130, 20, (257, 30)),
    "tiles of 4": (258, 2, (260, 20)),
    "tiles of 8": (514, 33, (290, 9)),
    "tiles of 8, slabs": (515, 3, (300, 200)),
    "many inputs, a tile a warp": (4097, 257, (5,)),
}
SMALL = [name for name, (batch, *_) in PLANS.items() if batch < 10]
OF_TENSOR_CORES = [*SMALL, "many inputs, a tile a warp"]  # 16 samples and 32
CASES = [*(("fp32", plan) for plan in PLANS), *(("bf16", plan) for plan in OF_TENSOR_CORES)]
LARGEST = (2, 512, (512, 512, 512, 512))


def exact(net, x):
    """Energy and gradient in float64."""
    host = converted(double(net), torch.Tensor.cpu)
    e, g, *_ = reference.mlp_gradient(host, x.double().cpu())
    return e.to(x.device), g.to(x.device)


def assert_right(energy, grad, net, x, precision):
    error_of = bfloat16_bound if precision == "bf16" else rounding_errors
    (e, g), (e_error, g_error, *_) = exact(net, x), error_of(net, x)
    assert ((energy.double() - e).abs() <= e_error).all()
    assert ((grad.double() - g).abs() <= g_error).all()


def rows_of(net, rows):
    return net._replace(row_bias=net.row_bias[rows].contiguous())


def same_bits_alone(net, x, whole, n_steps, **how):
    """A few samples alone go through the smallest tiles."""
    for first, end in ((0, 1), (len(x) // 2, len(x) // 2 + 2), (len(x) - 1, len(x))):
        few = slice(first, end)
        part = run(x[few], rows_of(net, few), n_steps, first=first, **how)
        assert all(torch.equal(a, b[few]) for a, b in zip(part, whole, strict=True))


@pytest.mark.parametrize("precision, plan", CASES)
def test_right_and_the_same_bits_in_any_plan(device, precision, plan):  # noqa: F811
    batch, dim, widths = PLANS[plan]
    plain, x = network(dim, widths, device=device), torch.randn(batch, dim, device=device)
    net = with_base_and_rows(plain, batch)
    how = dict(precision=precision, grad_norm_clip=0.5)
    whole = run(x, net, **how)
    assert_right(*whole[1:], net, x, precision)
    same_bits_alone(net, x, whole, 1, **how)
    if plan in SMALL:
        assert_right(*run(x, plain, **how)[1:], plain, x, precision)
        how["noise_first"] = True
        same_bits_alone(net, x, run(x, net, 2, **how), 2, **how)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_largest_network(device, precision):  # noqa: F811
    batch, dim, widths = LARGEST
    net = with_base_and_rows(network(dim, widths, device=device), batch)
    x = torch.randn(batch, dim, device=device)
    assert_right(*run(x, net, precision=precision)[1:], net, x, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_large_networks(device, activation, precision):  # noqa: F811
    if precision == "bf16" and activation not in SMOOTH:
        pytest.skip("tested where bfloat16 is exact")
    net = with_base_and_rows(network(6, (260, 9), activation, device=device), 5)
    net = net._replace(beta=1.0 if activation == "elu" else net.beta)
    x = torch.randn(5, 6, device=device)
    assert_right(*run(x, net, precision=precision)[1:], net, x, precision)


@pytest.mark.parametrize("options", [{}, {"grad_norm_clip": 0.5}, {"noise_first": True}], ids=str)
@pytest.mark.parametrize("dim, width", [(6, 40), (5, 300), (301, 9)])
def test_bfloat16_step_in_a_box_of_tensors(device, options, dim, width):  # noqa: F811
    net = with_base_and_rows(network(dim, (width, 7), device=device), 37)
    x = torch.randn(37, dim, device=device)
    lo = -torch.rand(dim, device=device)
    hi = torch.where(torch.arange(dim, device=device) % 3 == 0, torch.inf, lo + 0.5)
    out, _, grad = run(x, net, precision="bf16", clamp=(lo, hi), **options)
    sigma = 0.2
    if options.pop("noise_first", False):
        ops.langevin_step_(x, None, 0.0, 0.2, rng(device))
        sigma = 0.0
    ops.langevin_step_(x, grad, 0.1, sigma, rng(device), **options)
    expected = x.clamp(lo, hi)
    if options:  # a norm is summed in another order
        torch.testing.assert_close(out, expected, rtol=0, atol=2.0**-22)
    else:
        assert torch.equal(out, expected)
    assert (out == lo).any() and (out != expected.clamp(max=lo)).any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("plan", ["tiles of 1, slabs", "tiles of 1, largest in the middle"])
def test_same_for_every_schedule(device, precision, plan, set_schedule):  # noqa: F811
    if library.op is torch.ops.fastebm:
        pytest.skip("a GPU has its own")
    batch, dim, widths = PLANS[plan]
    net, x = with_base_and_rows(network(dim, widths), batch), torch.randn(batch, dim)
    how = dict(precision=precision, grad_norm_clip=0.5)
    expected = run(x, net, 2, **how)
    for seed in (1, 2):
        set_schedule(seed)
        assert all(map(torch.equal, run(x, net, 2, **how), expected))


@pytest.mark.parametrize("plan", [*SMALL, "tiles of 2", "tiles of 4"])
def test_adjusted_chains(device, plan, set_schedule):  # noqa: F811
    """Proposals and jumps, in a box that refuses some."""
    batch, dim, widths = PLANS[plan]
    net = with_base_and_rows(network(dim, widths, device=device), batch)
    x = torch.randn(batch, dim, device=device).clamp(-1.6, 1.6)
    how = {"lo": -2.1, "hi": torch.linspace(2.0, 2.2, dim, device=device), "every": 2}
    how |= {"centres": 0.5 * torch.randn(9, dim, device=device), "uniform_share": 0.4}
    how |= {"scales": 0.8 + 0.4 * torch.rand(9, device=device)}
    steps = 3 if plan in SMALL else 2

    def chains(rows):
        ids = torch.arange(batch, device=device)[rows]
        own = rows_of(net, rows)
        return chain(own, x[rows].contiguous(), steps, 0.01, 0.1, sample_ids=ids, **how)

    whole = chains(slice(None))
    assert_right(whole.energy, whole.grad, net, whole.x, "fp32")
    assert (whole.x != x).any() and whole.acceptance.any()
    for few in (slice(0, 1), slice(batch - 2, batch)):
        part = chains(few)
        assert torch.equal(part.acceptance, whole.acceptance[:, few])
        assert same(part[:3], [v[few] for v in whole[:3]])
    if library.op is not torch.ops.fastebm and plan in SMALL:
        set_schedule(1)
        assert same(chains(slice(None)), whole)
