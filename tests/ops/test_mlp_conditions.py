"""Perceptrons with a Gaussian base and first-layer biases of each sample: chains, and the gradient
in the parameters."""

import math

import pytest
import torch
from conftest import SIMD_LEVELS
from mlp_networks import (
    UNIT,
    all_rounding_errors,
    converted,
    double,
    network,
    rounding_errors,
    with_base_and_rows,
)

from fastebm.ops import library, reference
from fastebm.ops.mlp.adjusted import mlp_adjusted_chain_
from fastebm.ops.mlp.chain import mlp_chain_
from fastebm.ops.mlp.gradient import mlp_gradient
from fastebm.ops.mlp.network import ACTIVATIONS
from fastebm.rng import ChainRNG

# Batch, dimension and widths, as tests/mlp_networks.py has them, and wide ones.
SHAPES = [
    (1, 1, (1,)),
    (5, 3, (7,)),
    (33, 65, (20, 30, 9)),
    (70, 37, (257, 1)),
    (40, 2, (37, 512)),
    (17, 300, (512, 64)),
]
CASES = [(*shape, ACTIVATIONS[i % len(ACTIVATIONS)]) for i, shape in enumerate(SHAPES * 4)]


def levels(device):
    return SIMD_LEVELS if device == "cpu" and library.op is torch.ops.fastebm else SIMD_LEVELS[-1:]


def fitting(batch, widths):
    """The batch, or of wide networks a small one where kernels are emulated, and a hundred times
    slower."""
    emulated = library.op is not torch.ops.fastebm
    return min(batch, 3) if emulated and max(widths) > 200 else batch


def rng(device="cpu"):
    return ChainRNG(11).state(device)


def adjusted(net, x, n_steps, step=0.1, sigma=0.3, **options):
    """The operator on a copy of x: x, energy, gradient, acceptance."""
    energy, sums = torch.empty(len(x), device=x.device), torch.zeros(2, len(x), device=x.device)
    state = x.clone(), energy, torch.empty_like(x), sums
    mlp_adjusted_chain_(*state, net, n_steps, step, sigma, rng(x.device), **options)
    return state


@pytest.mark.parametrize("batch, dim, widths, activation", CASES)
def test_energy_and_gradient(device, batch, dim, widths, activation, set_simd):
    batch = fitting(batch, widths)
    full = with_base_and_rows(network(dim, widths, activation, device=device), batch)
    x = (2 * torch.randn(batch, dim)).to(device)
    for net in (full, full._replace(base_mean=None), full._replace(row_bias=None)):
        host, at = converted(net, torch.Tensor.cpu), x.cpu()
        e, g, *_ = reference.mlp_gradient(double(host), at.double())
        e_error, g_error, _ = rounding_errors(host, at)
        for level in levels(device):
            set_simd(level)
            energy, grad = torch.empty(batch, device=device), torch.empty_like(x)
            mlp_chain_(x.clone(), net, 1, 0.1, 0.1, rng(device), energy=energy, grad=grad)
            assert ((energy.cpu() - e).abs() <= e_error).all(), level
            assert ((grad.cpu() - g).abs() <= g_error).all(), level
            _, energy, grad, _ = adjusted(net, x, 0)
            assert ((energy.cpu() - e).abs() <= e_error).all(), level
            assert ((grad.cpu() - g).abs() <= g_error).all(), level


@pytest.mark.parametrize("batch, dim, widths", SHAPES[1:4])
def test_rows_alike_and_a_base_of_zeros_are_none(device, batch, dim, widths, set_simd):
    batch = fitting(batch, widths)
    plain, x = network(dim, widths, device=device), torch.randn(batch, dim, device=device)
    mean, zeros = torch.randn(dim, device=device), torch.zeros(dim, device=device)
    same = plain._replace(row_bias=plain.biases[0].expand(batch, -1), base_precision=zeros)
    for level in levels(device):
        set_simd(level)
        for net in (same, same._replace(base_mean=mean)):
            chains = [mlp_chain_(x.clone(), n, 3, 0.1, 0.1, rng(device)) for n in (plain, net)]
            assert torch.equal(*chains), level
            for a, b in zip(adjusted(plain, x, 3), adjusted(net, x, 3), strict=True):
                assert torch.equal(a, b), level


@pytest.mark.parametrize("batch, dim, widths", SHAPES[:5])
def test_samples_do_not_depend_on_batch_threads_or_vectors(
    device, batch, dim, widths, set_simd, set_threads
):
    batch = fitting(batch, widths)
    net = with_base_and_rows(network(dim, widths, device=device), batch)
    x, results = torch.randn(batch, dim, device=device), {}

    def run(rows):
        own = net._replace(row_bias=net.row_bias[rows])
        ids = torch.arange(batch, device=device)[rows]
        chain = mlp_chain_(x[rows].clone(), own, 3, 0.1, 0.1, rng(device), sample_ids=ids)
        return torch.cat([chain, adjusted(own, x[rows], 3, sample_ids=ids)[0]], 1)

    for level in levels(device):
        set_simd(level)
        set_threads(2)
        whole = results[level] = run(slice(None))
        set_threads(1)
        parts = [slice(0, batch // 3), slice(batch // 3, batch)]
        assert torch.equal(torch.cat([run(part) for part in parts]), whole), level
        backwards = torch.arange(batch - 1, -1, -1, device=device)
        assert torch.equal(run(backwards).flip(0), whole), level
    if len(results) == 3:  # all levels of a CPU
        assert torch.equal(results["avx2"], results["avx512"])


def test_adjusted_chains_have_the_law_of_their_base(device):
    """Without a perceptron it is normal, by proposals alone: means and variances, each chain's own
    start being drawn of it."""
    n, steps = 20_000, 20
    if library.op is not torch.ops.fastebm:  # emulated, a hundred times slower
        n, steps = 200, 10
    net = network(3, (4,), bias=False, device=device)
    net.weights[-1].zero_()
    precision, mean = torch.tensor([[0.5, 2.0, 4.0], [1.0, -3.0, 0.0]])
    net = net._replace(base_precision=precision.to(device), base_mean=mean.to(device))
    start = mean + torch.randn(n, 3) / precision.sqrt()
    x, energy, _, accepted = adjusted(net, start.to(device), steps, 0.3, math.sqrt(0.6))
    assert 0.5 < accepted[0].mean() / steps < 0.95
    x = x.cpu().double()
    assert ((x - start).abs().mean(0) > 0.7 / precision.sqrt()).all()  # they have moved
    z = (x - mean) * precision.sqrt()
    assert (z.mean(0).abs() < 4 / math.sqrt(n)).all()
    assert ((z.square().mean(0) - 1).abs() < 4 * math.sqrt(2 / n)).all()
    torch.testing.assert_close(energy.cpu().double(), z.square().sum(1) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [1, 6, 65])
def test_a_box_of_tensors(device, dim, set_simd):
    net, x = network(dim, (20, 9), device=device), torch.randn(40, dim, device=device)
    lo = -torch.rand(dim, device=device)
    hi = torch.where(torch.arange(dim, device=device) % 3 == 0, math.inf, lo + 0.5)
    numbers = tuple(torch.full((dim,), v, device=device) for v in (-0.5, 0.7))
    for level in levels(device):
        set_simd(level)
        run = lambda clamp, n=1: mlp_chain_(  # noqa: E731
            x.clone(), net, n, 0.3, 0.2, rng(device), clamp=clamp
        )
        free = run(None)
        assert torch.equal(run((lo, hi)), free.clamp(lo, hi)), level
        assert torch.equal(run((None, hi)), free.clamp(max=hi)), level
        assert torch.equal(run((0.1, hi.clamp(min=0.1))), free.clamp(0.1).minimum(hi.clamp(0.1)))
        assert torch.equal(run(numbers, 4), run((-0.5, 0.7), 4)), level


def test_bad_networks_and_boxes(device):
    net, x = network(3, (4,), device=device), torch.randn(5, 3, device=device)
    ones, rows = torch.ones(3, device=device), torch.ones(5, 4, device=device)

    def run(match, clamp=None, **fields):
        bad = net._replace(**fields)
        with pytest.raises(RuntimeError, match=match):
            mlp_chain_(x, bad, 2, 0.1, 0.1, rng(device), clamp=clamp)
        if clamp is None:
            with pytest.raises(RuntimeError, match=match):
                adjusted(bad, x, 2)
        if clamp is None and library.op is torch.ops.fastebm and device == "cpu":
            with pytest.raises(RuntimeError, match=match):
                mlp_gradient(bad, x)

    run(r"base_precision must have shape \(3,\), one value for each", base_precision=ones[:2])
    run(r"base_precision must have shape \(3,\)", base_precision=ones[None])
    run("base_precision must be float32, got Double", base_precision=ones.double())
    run(r"base_mean must have shape \(3,\)", base_precision=ones, base_mean=rows[0])
    run("base_mean must be float32, got Half", base_precision=ones, base_mean=ones.half())
    run("base_mean needs base_precision", base_mean=ones)
    run(r"row_bias must have shape \(5, 4\), the first layer's biases", row_bias=rows[:4])
    run(r"row_bias must have shape \(5, 4\)", row_bias=rows[:, :3])
    run(r"row_bias must have shape \(5, 4\)", row_bias=rows[0])
    run("row_bias must be float32, got Double", row_bias=rows.double())
    run("beta must be finite in float32, got inf", activation="elu", beta=math.inf)
    run("beta must be finite in float32, got nan", activation="leaky_relu", beta=math.nan)
    run(r"lo must be a number or of the event's shape \(3,\), got \(2,\)", (ones[:2], None))
    run(r"hi must be a number or of the event's shape \(3,\), got \(5, 4\)", (None, rows))
    run("lo must be float32, got Double", (ones.double(), 2.0))
    if device == "cpu":
        for bad in (-1.0, math.nan, math.inf):
            values = torch.tensor([1.0, bad, 0.0])
            run(f"base_precision must be finite and >= 0, got {bad:g}", base_precision=values)
        run("base_mean must be finite, got inf", base_precision=ones, base_mean=math.inf * ones)
        run("lo must be <= hi, got 1 and 0.5 for element 0", (ones, 0.5))


def gradients(net, x, **terms):
    """Energies, and gradients in x, in the parameters and in the row biases."""
    count = sum(w.numel() + len(w) for w in net.weights)
    rows = torch.zeros(len(x), len(net.weights[0]))
    out = torch.empty_like(x[terms.get("n_data", 0) :]), torch.zeros(count), rows
    e = mlp_gradient(net, x, **terms, grad=out[0], sums=out[1], to_row_bias=out[2])
    return e, *out


@pytest.mark.parametrize("with_v", [False, True])
@pytest.mark.parametrize("batch, dim, widths, activation", CASES)
def test_gradients_in_parameters_and_rows(batch, dim, widths, activation, with_v, set_simd):
    net = with_base_and_rows(network(dim, widths, activation), batch)
    x, v = 2 * torch.randn(batch, dim), torch.randn(batch, dim) if with_v else None
    n = batch // 2
    terms = {"n_data": n, "factor": 0.1, "square_factor": 0.03, "v": v}
    in_double = terms | {"v": v.double() if with_v else None}
    exact = reference.mlp_gradient(double(net), x.double(), **in_double)
    errors = all_rounding_errors(net, x, **terms)
    exact, errors = ([e, g[n:], s, r] for e, g, s, r in (exact, errors))
    for level in SIMD_LEVELS:
        set_simd(level)
        found = gradients(net, x, **terms)
        for mine, other, error in zip(found, exact, errors, strict=True):
            assert ((mine - other).abs() <= error).all(), level


def test_gradients_in_rows_are_added_and_alone(set_simd, set_threads):
    net, x = with_base_and_rows(network(5, (20, 9)), 300), torch.randn(300, 5)
    terms, there = {"factor": 0.3, "v": torch.randn(300, 5)}, torch.randn(300, 20)
    results = {}
    for level in SIMD_LEVELS:
        set_simd(level)
        set_threads(1)
        e, g, sums, rows = results[level] = gradients(net, x, **terms)
        set_threads(3)
        for a, b in zip(gradients(net, x, **terms), results[level], strict=True):
            assert torch.equal(a, b), level
        added = there.clone()
        mlp_gradient(net, x, **terms, sums=torch.zeros_like(sums), to_row_bias=added)
        assert torch.equal(added, there + rows), level
        part = slice(40, 111)
        some = net._replace(row_bias=net.row_bias[part])
        alone = gradients(some, x[part], factor=0.3, v=terms["v"][part])
        assert torch.equal(alone[0], e[part]) and torch.equal(alone[3], rows[part]), level
        bias = sums[100:120].double()
        errors = 300 * UNIT * rows.abs().double().sum(0)
        assert ((rows.double().sum(0) - bias).abs() <= errors).all(), level
    for a, b in zip(results["avx2"], results["avx512"], strict=True) if len(results) == 3 else ():
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    if len(results) == 3:
        assert torch.equal(results["avx2"][3], results["avx512"][3])


def test_gradient_in_rows_needs_them_and_sums():
    net, x = network(3, (4,)), torch.randn(5, 3)
    rows, sums = torch.zeros(5, 4), torch.zeros(21)
    conditioned = net._replace(row_bias=rows)

    def fails(match, net=conditioned, sums=sums, to_row_bias=rows):
        with pytest.raises(RuntimeError, match=match):
            mlp_gradient(net, x, sums=sums, to_row_bias=to_row_bias)

    fails("to_row_bias needs row_bias and sums", net=net)
    fails("to_row_bias needs row_bias and sums", sums=None)
    fails(r"to_row_bias must be contiguous, of shape \(B, width_1\)", to_row_bias=rows[:4])
    fails("to_row_bias must be float32, got Double", to_row_bias=rows.double())


def test_opcheck(device):
    net = with_base_and_rows(network(3, (4, 5), device=device), 6)
    x, one = torch.randn(6, 3, device=device), torch.ones(3, device=device)
    args = (x, *net.arguments, 2, 0.1, 0.1, None, None, rng(device), 0, None, None, None, None)
    args += (None, None, -one, one, 0x80, False, False, None, None)
    torch.library.opcheck(library.op.mlp_chain_.default, args)
    state = x, x[:, 0].clone(), x.clone(), torch.zeros(2, 6, device=device)
    args = (*state, *net.arguments, 2, 0.1, 0.1, None, None, rng(device), 0, None, False)
    args += (None, None, None, None, 0, 0, 0.0)
    torch.library.opcheck(library.op.mlp_adjusted_chain_.default, args)
    if device == "cpu" and library.op is torch.ops.fastebm:
        out = torch.zeros(47), x.clone(), torch.zeros(6, 4)
        args = (x, *net.arguments, 0, 0.3, 0.1, None, *out)
        torch.library.opcheck(library.op.mlp_gradient.default, args)
