"""Chains on a small perceptron inside one operator: values, noise, independence, contracts, law."""

import math

import pytest
import torch
from conftest import SIMD_LEVELS
from mlp_networks import SHAPES, UNIT, double, network, noise, rounding_errors

from fastebm import ops
from fastebm.chains import mlp_chain
from fastebm.ops import library, reference
from fastebm.ops.mlp.chain import mlp_chain_
from fastebm.ops.mlp.network import ACTIVATIONS, Network
from fastebm.rng import ChainRNG

OPTIONS = {
    "plain": {},
    "clamp": {"clamp": (-0.5, 0.7)},
    "clip": {"grad_clip": 0.05},
    "norm clip": {"grad_norm_clip": 0.1},
    "displacement": {"displacement_clip": 0.1},
    "noise first": {"noise_first": True, "clamp": (None, 1.0), "displacement_clip": 0.01},
    "ids": {"sample_ids": torch.arange(70).flip(0) + 2**40, "t": 5, "tag": 7},
}


def rng(device="cpu", seed=11):
    return ChainRNG(seed).state(device)


def exact(net, x):
    """Energy and gradient in float64."""
    no_noise = x.new_zeros(1, 1, 1).double()
    return reference.mlp_chain(double(net), x.double(), [0.0], [0.0], no_noise)[1:]


def levels(device):
    return SIMD_LEVELS if device == "cpu" and library.op is torch.ops.fastebm else SIMD_LEVELS[-1:]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_slopes_to_their_last_digits(device, activation, set_simd):
    # One unit of weight 1: the energy is the activation, the gradient its slope.
    z = torch.cat([torch.linspace(-30, 30, 12001), torch.logspace(-8, 4, 4001)])
    z = torch.cat([z, -z])[:, None].to(device)
    if library.op is not torch.ops.fastebm:  # emulated, a hundred times slower
        z = z[::16].contiguous()
    net = network(1, (1,), activation, bias=False)
    net = net._replace(weights=[torch.ones(1, 1, device=device)] * 2)
    e, g = exact(net, z)
    size = z[:, 0].double().abs()
    # exp(-y) has the error of y, which grows with z; a tail far below 1 needs no digits
    error = UNIT * ((8 + 4 * size.clamp(max=5)) * e.abs() + size.clamp(max=1) / 256)
    for level in levels(device):
        set_simd(level)
        energy, grad = torch.empty(len(z), device=device), torch.empty_like(z)
        mlp_chain_(z.clone(), net, 1, 0.0, 0.0, rng(device), energy=energy, grad=grad)
        assert ((energy.double() - e).abs() <= error).all(), level
        assert ((grad.double() - g).abs() <= 5 * UNIT).all(), level


@pytest.mark.parametrize("batch, dim, widths", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_energy_and_gradient(device, activation, batch, dim, widths, set_simd):
    net = network(dim, widths, activation, bias=batch != 5, device=device)
    x = (2 * torch.randn(batch, dim)).to(device)
    e, g = exact(net, x)
    e_error, g_error, _ = rounding_errors(net, x)
    single = x.clone().requires_grad_()
    (torch_g,) = torch.autograd.grad(reference.mlp_energy(net, single).sum(), single)
    torch_error = (torch_g.double() - g).square().mean().sqrt()
    for level in levels(device):
        set_simd(level)
        energy, grad = torch.empty(batch, device=device), torch.empty_like(x)
        mlp_chain_(x.clone(), net, 1, 0.1, 0.1, rng(device), energy=energy, grad=grad)
        assert ((energy.double() - e).abs() <= e_error).all(), level
        assert ((grad.double() - g).abs() <= g_error).all(), level
        # and on the whole as good as torch's own, whose sums have more parts
        error = (grad.double() - g).square().mean().sqrt()
        assert error <= 3 * torch_error + 4 * UNIT * g.abs().max(), level


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dim", [1, 2, 6, 65])
def test_each_step_is_langevin_step_at_its_gradient(device, options, dim, set_simd):
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    which = {k: options[k] for k in ("t", "tag", "sample_ids") if k in options}
    first, net = options.get("noise_first", False), network(dim, (20, 9), device=device)
    rest = {k: v for k, v in options.items() if k != "noise_first"}
    for level in levels(device):
        set_simd(level)
        x = torch.randn(70, dim, device=device)
        expected, grad = x.clone(), torch.empty_like(x)
        mlp_chain_(x, net, 1, 0.3, 0.2, rng(device), grad=grad, **options)
        if first:
            ops.langevin_step_(expected, None, 0.0, 0.2, rng(device), **which)
        ops.langevin_step_(expected, grad, 0.3, 0.0 if first else 0.2, rng(device), **rest)
        if "grad_norm_clip" in options:  # a norm is summed in another order
            torch.testing.assert_close(x, expected, rtol=0, atol=4 * UNIT)
        else:
            assert torch.equal(x, expected), level


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_chain_against_the_reference(device, options):
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    which = {k: options[k] for k in ("t", "tag", "sample_ids") if k in options}
    rest = {k: v for k, v in options.items() if k not in which}
    net, x = network(3, (16, 16), "tanh", device=device), torch.randn(70, 3, device=device)
    n = torch.stack([noise(x.shape, k, rng(device), **which) for k in range(8)]).double()
    expected, e, g = reference.mlp_chain(double(net), x.double(), [0.1] * 8, [0.2] * 8, n, **rest)
    energy, grad = torch.empty(70, device=device), torch.empty_like(x)
    mlp_chain_(x, net, 8, 0.1, 0.2, rng(device), energy=energy, grad=grad, **options)
    # A step of 0.1 on curvatures of about 3 makes errors grow no more than 1.3-fold.
    for mine, exact in ((x, expected), (energy, e), (grad, g)):
        torch.testing.assert_close(mine.double(), exact, rtol=0, atol=3e-5)


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize("by_step", [False, True])
def test_tables_of_coefficients_and_segments(device, by_step, by_sample, set_simd):
    steps, rows = 5 if by_step else 1, 40 if by_sample else 1
    step = (0.05 + 0.1 * torch.rand(steps, rows)).to(device)
    sigma = (0.05 + 0.1 * torch.rand(steps, rows)).to(device)
    net = network(6, (20,), device=device)
    for level in levels(device):
        set_simd(level)
        x = torch.randn(40, 6, device=device)
        whole = mlp_chain_(x.clone(), net, 5, step, sigma, rng(device))
        parts = x.clone()
        for k in range(5):
            row = k if by_step else 0
            one = (v[row].expand(40)[:, None].contiguous().T for v in (step, sigma))
            mlp_chain_(parts, net, 1, *one, rng(device), t=k)
        assert torch.equal(whole, parts), level
        parts = x.clone()
        for a, b in ((0, 2), (2, 5)):
            cut = (v[a:b] if by_step else v for v in (step, sigma))
            mlp_chain_(parts, net, b - a, *cut, rng(device), t=a)
        assert torch.equal(whole, parts), level
    bad = step.clone()
    bad[-1, -1] = -1.0
    x = mlp_chain_(torch.randn(40, 6, device=device), net, 5, bad, sigma, rng(device))
    assert x[-1].isnan().all() and (by_sample <= x[:-1].isfinite().all().item())


@pytest.mark.parametrize("batch, dim, widths", SHAPES)
def test_samples_do_not_depend_on_batch_threads_or_vectors(device, batch, dim, widths, set_simd):
    net, x = network(dim, widths, device=device), torch.randn(batch, dim, device=device)
    threads = torch.get_num_threads()

    def run(x, first=0):
        ids = torch.arange(first, first + len(x), device=device)
        return mlp_chain_(x.clone(), net, 3, 0.1, 0.1, rng(device), sample_ids=ids)

    results = {}
    try:
        for level in levels(device):
            set_simd(level)
            torch.set_num_threads(2)
            whole = results[level] = run(x)
            assert torch.equal(mlp_chain_(x.clone(), net, 3, 0.1, 0.1, rng(device)), whole), (
                "ids are rows"
            )
            torch.set_num_threads(1)
            assert torch.equal(run(x), whole), level
            cut = batch // 3
            assert torch.equal(torch.cat([run(x[:cut]), run(x[cut:], cut)]), whole), level
            assert torch.equal(run(x[-1:], batch - 1), whole[-1:]), level
    finally:
        torch.set_num_threads(threads)
    if len(results) == 3:  # all levels of a CPU
        assert torch.equal(results["avx2"], results["avx512"])


def test_what_is_not_finite_stays_as_in_torch(device, set_simd):
    for activation in ACTIVATIONS:
        net = network(4, (20, 10), activation, device=device)
        x = torch.randn(40, 4, device=device)
        x[3, 1], x[7, 0], x[8, 2], x[20, 3] = math.nan, math.inf, -math.inf, 1e30
        single = x.clone().requires_grad_()
        e = reference.mlp_energy(net, single)
        (g,) = torch.autograd.grad(e.sum(), single)
        expected = ops.langevin_step_(x.clone(), g, 0.1, 0.1, rng(device))
        for level in levels(device):
            set_simd(level)
            energy = torch.empty(40, device=device)
            out = mlp_chain_(x.clone(), net, 1, 0.1, 0.1, rng(device), energy=energy)
            assert torch.equal(out.isfinite().all(1), expected.isfinite().all(1)), activation
            assert torch.equal(energy.isfinite(), e.isfinite()), activation
            assert not out[[3, 7, 8]].isfinite().all(1).any()
        broken = network(4, (20, 10), activation, device=device)
        broken.weights[0][5, 1] = math.nan
        out = mlp_chain_(torch.randn(40, 4, device=device), broken, 2, 0.1, 0.1, rng(device))
        assert not out.isfinite().all(1).any(), activation


def test_chains_have_the_law_of_their_energy(device):
    # softplus(x) + softplus(-x) is minus the log of the logistic density: variance pi^2 / 3.
    net = Network(
        [torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]), torch.ones(1, 4)],
        [None, None],
        "softplus",
    )
    net = net._replace(weights=[w.to(device) for w in net.weights])
    n, step, steps = 20_000, 0.05, 200
    if library.op is not torch.ops.fastebm:  # emulated, a hundred times slower
        n, steps = 2_000, 40
    start = torch.rand(n, 2).logit().to(device)  # already of that law
    x = mlp_chain_(start.clone(), net, steps, step, math.sqrt(2 * step), rng(device)).cpu().double()
    assert (x - start.cpu()).abs().mean() > 1.0  # they have moved
    variance, kurtosis = math.pi**2 / 3, 4.2
    for column in x.T:
        assert abs(column.mean()) < 4 * math.sqrt(variance / n)
        # the step's bias of the variance is of first order, E'' is at most 1 / 2
        spread = 4 * math.sqrt((kurtosis - 1) / n)
        assert -spread < column.var().item() / variance - 1 < spread + step / 2
    assert abs((x[:, 0] * x[:, 1]).mean()) < 4 * variance / math.sqrt(n)


def test_no_steps_and_no_samples(device):
    net, x = network(3, (4,), device=device), torch.randn(5, 3, device=device)
    assert torch.equal(mlp_chain_(x.clone(), net, 0, 0.1, 0.1, rng(device)), x)
    assert mlp_chain_(x[:0].clone(), net, 3, 0.1, 0.1, rng(device)).shape == (0, 3)


def test_opcheck(device):
    net, x = network(3, (4, 5), device=device), torch.randn(6, 3, device=device)
    step = torch.full((2, 6), 0.1, device=device)
    args = (x, *net.arguments, 2, 0.0, 0.1, step, None, rng(device), 0)
    args += (None, 1.0, None, 0.2, -1.0, 1.0, None, None, 0x80, False, False)
    for outputs in ((None, None), (x.new_empty(6), torch.empty_like(x))):
        torch.library.opcheck(library.op.mlp_chain_.default, (*args, *outputs))


def test_errors(device):
    net, x = network(3, (4,), device=device), torch.randn(5, 3, device=device)

    def run(match, x=x, net=net, n_steps=2, step=0.1, sigma=0.1, **options):
        with pytest.raises(RuntimeError, match=match):
            mlp_chain_(x, net, n_steps, step, sigma, rng(device), **options)

    run("x must be float32, got Double", x=x.double())
    run("x must be contiguous, of shape", x=x[None])
    run("x must be contiguous, of shape", x=torch.randn(3, 5, device=device).T)
    run("n_steps must be >= 0, got -1", n_steps=-1)
    run("step_size must be finite and >= 0, got -1", step=-1.0)
    run(r"step_sizes must have shape \(K or 1, B or 1\)", step=torch.ones(3, 1, device=device))
    run("noise_stds must be float32", sigma=torch.ones(1, 1, device=device).double())
    run("grad_clip must be > 0", grad_clip=0.0)
    run("displacement_clip must be > 0", displacement_clip=0.0)
    run("lo <= hi", clamp=(1.0, 0.0))
    run("sample_ids must be", sample_ids=torch.arange(4, device=device))
    run(r"weights\[0\] must have shape \(outputs, 3\)", net=network(2, (4,), device=device))
    run(r"weights\[0\] must have 1..512 outputs, got 513", net=network(3, (513,), device=device))
    wide = net._replace(weights=[net.weights[0], torch.ones(2, 4, device=device)])
    run(r"weights\[1\] must have 1..1 outputs, got 2", net=wide)
    run("those of 2..5 layers, got 1", net=network(3, (), device=device))
    run("those of 2..5 layers, got 6", net=network(3, (2,) * 5, device=device))
    run("weights must be float32", net=double(net))
    run(r"biases\[0\] must have shape \(4,\)", net=net._replace(biases=[net.biases[1]] * 2))
    run("biases must hold one for each", net=net._replace(biases=net.biases[:1]))
    run("beta of softplus must be > 0", net=net._replace(activation="softplus", beta=0.0))
    run("energy must be contiguous", energy=torch.empty(4, device=device))
    run("grad must be contiguous", grad=torch.empty(5, 2, device=device))
    run(r"precision must be one of .*, got 'fp64'", precision="fp64")


def test_fake_refuses_what_it_cannot_know():
    net = network(3, (4,))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mlp_chain.Network([mode.from_tensor(w) for w in net.weights], [None] * 2, "silu")
        with pytest.raises(RuntimeError, match="x must be float32"):
            mlp_chain_(torch.empty(5, 3).double(), fake, 1, 0.1, 0.1, mode.from_tensor(rng()))
