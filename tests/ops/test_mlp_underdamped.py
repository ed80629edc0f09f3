"""Underdamped Langevin chains on a small perceptron: steps, cuts, NaN, contracts, law."""

import math
from typing import NamedTuple

import pytest
import torch
from conftest import SIMD_LEVELS
from mlp_networks import (
    UNIT,
    Rounded,
    converted,
    double,
    exact,
    network,
    normal_errors,
    rounding_errors,
    with_base_and_rows,
)

from fastebm.ops import reference
from fastebm.ops.mlp.gradient import mlp_gradient
from fastebm.ops.mlp.network import ACTIVATIONS
from fastebm.ops.mlp.underdamped import mlp_underdamped_chain_
from fastebm.ops.underdamped import underdamped_step_
from fastebm.rng import NOISE, ChainRNG

SEED = 11
CASES = [(batch, dim) for dim in (1, 2, 3, 5, 10, 33) for batch in (1, 31, 130)]


class State(NamedTuple):
    x: torch.Tensor
    velocity: torch.Tensor
    energy: torch.Tensor
    grad: torch.Tensor


def rng():
    return ChainRNG(SEED).state()


def start_at(x, velocity=None):
    """Energy and gradient of which are not known."""
    v = torch.zeros_like(x) if velocity is None else velocity
    return State(x, v, torch.full_like(x[:, 0], 7.0), torch.full_like(x, 7.0))


def chain(net, start, n_steps, kick=0.0, step=0.1, decay=0.9, sigma=0.3, **options):
    """The operator on a copy of a state."""
    state = State(*(v.clone() for v in start))
    mlp_underdamped_chain_(*state, net, n_steps, kick, step, decay, sigma, rng(), **options)
    return state


def same(a, b):
    return all(torch.equal(v, w) for v, w in zip(a, b, strict=True))


def step_errors(net, state, kick, half, decay, sigma, t, ids):
    """What one step's x and velocity may err by, without a box, and energy and gradient there."""
    dim = state.x.shape[1]
    n = reference.normals(SEED, t, ids, dim + dim % 2, NOISE)
    n = Rounded(n[:, :dim], normal_errors(n)[:, :dim])
    kick, half, decay, sigma = (exact(v[:, None]) for v in (kick, half, decay, sigma))
    kick = Rounded(kick.value, UNIT * kick.value)
    x, v, minus = exact(state.x), exact(state.velocity), exact(-torch.ones(1, 1))
    v = v + minus * kick * exact(state.grad)
    x = x + half * v
    v = decay * v + sigma * n
    x = x + half * v
    # a reflection subtracts twice from a face of at most 2
    reflected = 2 * UNIT * (4 + x.value.abs())
    e_error, g_error, _ = rounding_errors(net, x.value, x_error=x.error + reflected)
    return x.error + reflected, v.error, e_error, g_error, n.value


@pytest.mark.parametrize("number", range(len(CASES)))
def test_each_step_is_that_of_the_reference(number, set_simd):
    """One after another, each from where the operator is. A point that is nearer to a face than
    what it may err by is not asked about: whether its velocity turns is in doubt."""
    batch, dim = CASES[number]
    net = network(dim, (20, 9), ACTIVATIONS[number % len(ACTIVATIONS)], bias=number % 4 != 0)
    if number % 2:
        net = with_base_and_rows(net, batch)
    boxed = number % 3 != 0
    box = {"lo": -1 - torch.rand(dim), "hi": 1 + torch.rand(dim)} if boxed else {}
    x, v = torch.randn(batch, dim).clamp(-0.9, 0.9), torch.randn(batch, dim)
    kick, step, decay, sigma = torch.rand(4, 1, batch)
    ids, t = torch.randint(2**56, (batch,)), 5
    factors = [u[0].double() for u in (kick, step, decay, sigma)]
    faces = {name: face.double() for name, face in box.items()}
    for level in SIMD_LEVELS:
        set_simd(level)
        at = chain(net, start_at(x, v), 0)
        e_error, g_error, _ = rounding_errors(net, x)
        e, g, *_ = reference.mlp_gradient(double(net), x.double())
        assert ((at.energy - e).abs() <= e_error).all(), level
        assert ((at.grad - g).abs() <= g_error).all(), level
        assert torch.equal(at.x, x) and torch.equal(at.velocity, v)
        asked = turned = 0
        for k in range(3):
            common = {"sample_ids": ids, "t": t + k, "known": True, **box}
            now = chain(net, at, 1, kick, step, decay, sigma, **common)
            was, half = State(*(u.double() for u in at)), factors[1] / 2
            whole, rest = factors[0] + half, factors[2:]
            x_error, v_error, e_error, g_error, n = step_errors(
                net, was, whole, half, *rest, t + k, ids
            )
            motion = was.x, was.velocity, was.grad, whole, half, *rest, n
            y, velocity = reference.underdamped_step(*motion, **faces)
            sure = torch.ones_like(y, dtype=torch.bool)
            if boxed:
                first = was.x + half[:, None] * (was.velocity - whole[:, None] * was.grad)
                free, _ = reference.underdamped_step(*motion)
                for point in (first, free, y):
                    for face in box.values():
                        sure &= ((point - face).abs() > x_error) | (y == face)
                turned += ((y - free).abs() > x_error).sum()
            assert ((now.x - y).abs() <= x_error)[sure].all(), (level, k)
            assert ((now.velocity - velocity).abs() <= v_error)[sure].all(), (level, k)
            e, g, *_ = reference.mlp_gradient(double(net), now.x.double())
            e_error, g_error, _ = rounding_errors(net, now.x)
            assert ((now.energy - e).abs() <= e_error).all(), (level, k)
            assert ((now.grad - g).abs() <= g_error).all(), (level, k)
            asked, at = asked + sure.sum(), now
        assert asked >= 3 * batch * dim * 0.97 - 1, level
        assert not boxed or batch == 1 or turned > 0, level


@pytest.mark.parametrize("dim", [1, 2, 7, 40])
def test_they_are_those_of_steps_by_one_operator_each(dim, set_simd):
    """underdamped_step_ and mlp_gradient: the same noise, results up to rounding."""
    net, x, v = network(dim, (20, 9)), torch.rand(70, dim), torch.randn(70, dim)
    steps, decays, sigmas = 0.05 + torch.rand(3, 6, 1) / 4
    box = {"lo": -0.8, "hi": 1.3}
    for level in SIMD_LEVELS:
        set_simd(level)
        one = chain(net, start_at(x, v), 6, 0.1, steps, decays, sigmas, t=2, **box)
        y, velocity, kick = x.clone(), v.clone(), 0.1
        for k in range(6):
            grad, half = torch.empty_like(x), steps[k].item() / 2
            mlp_gradient(net, y, grad=grad)
            factors = kick + half, half, decays[k].item(), sigmas[k].item()
            underdamped_step_(y, velocity, grad, *factors, rng(), t=2 + k, **box)
            kick = half
        torch.testing.assert_close(one.x, y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.velocity, velocity, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize("by_step", [False, True])
def test_cuts_threads_vectors_and_neighbours_change_nothing(
    by_sample, by_step, set_simd, set_threads
):
    batch, dim, steps = 70, 5, 6
    rows, columns = steps if by_step else 1, batch if by_sample else 1
    tables = [u for u in 0.1 + 0.4 * torch.rand(3, rows, columns)]
    kick = torch.rand(1, columns)
    net = with_base_and_rows(network(dim, (20, 9)), batch)
    start, options = start_at(*torch.rand(2, batch, dim)), {"lo": -0.5, "hi": 1.5}
    results = {}
    for level in SIMD_LEVELS:
        set_simd(level)
        set_threads(1)
        whole = results[level] = chain(net, start, steps, kick, *tables, t=2, **options)
        set_threads(3)
        assert same(chain(net, start, steps, kick, *tables, t=2, **options), whole), level
        for cuts in ((0, 0, 2, 6), (0, 3, 4, 6), range(steps + 1)):
            at, behind = None, kick
            for a, b in zip(cuts, cuts[1:], strict=False):
                part = [u[a:b] if by_step and a < b else u[:1] for u in tables]
                common = {"known": at is not None, "t": 2 + a}
                at = chain(net, at or start, b - a, behind, *part, **common, **options)
                behind = part[0][-1:] / 2 if a < b else behind
            assert same(at, whole), (level, cuts)
        parts = []
        for a, b in ((0, 1), (1, 23), (23, batch)):
            own = [u[:, a:b] if by_sample else u for u in (kick, *tables)]
            some = net._replace(row_bias=net.row_bias[a:b])
            common = {"sample_ids": torch.arange(a, b), "t": 2}
            cut = [u[a:b].contiguous() for u in start]
            parts.append(chain(some, cut, steps, *own, **common, **options))
        assert same([torch.cat(u) for u in zip(*parts, strict=True)], whole), level
    if len(results) == 3:
        assert same(results["avx2"], results["avx512"])


def test_known_or_not():
    net, start = network(3, (9,)), start_at(*torch.randn(2, 40, 3))
    known = chain(net, start, 0)
    assert torch.equal(known.x, start.x) and torch.equal(known.velocity, start.velocity)
    fresh = chain(net, start, 4)
    assert same(fresh, chain(net, known, 4, known=True))
    # what is said to be known is believed: without a force a body goes straight on
    free = known._replace(grad=torch.zeros(40, 3))
    free = chain(net, free, 1, 0.0, 0.5, 1.0, 0.0, known=True)
    torch.testing.assert_close(free.x, start.x + 0.5 * start.velocity)
    assert chain(net, start_at(start.x[:0]), 4, lo=-1.0).x.shape == (0, 3)


def test_nan_stays_where_it_is(set_simd):
    for activation in ACTIVATIONS:
        net, start = network(4, (20, 10), activation), start_at(*torch.randn(2, 40, 4))
        clean = chain(net, start, 4, lo=-5.0, hi=5.0)
        start.x[3, 1] = start.velocity[7, 0] = math.nan
        good = [i for i in range(40) if i not in (3, 7)]
        for level in SIMD_LEVELS:
            set_simd(level)
            state = chain(net, start, 4, lo=-5.0, hi=5.0)
            for mine, other in zip(state, clean, strict=True):
                torch.testing.assert_close(mine[good], other[good], rtol=1e-4, atol=1e-4)
            assert state.x[3, 1].isnan() and state.x[7, 0].isnan(), activation
            assert state.energy[[3, 7]].isnan().all(), activation


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_coefficients_of_a_table_that_are_negative_make_nan(bad, set_simd):
    net, start = network(3, (9,)), start_at(*torch.randn(2, 40, 3))
    tables = [torch.full((1, 40), 0.2) for _ in range(4)]
    for level in SIMD_LEVELS:
        set_simd(level)
        for table in tables:
            table[0, 5] = bad
            state = chain(net, start, 2, *tables)
            assert state.x[5].isnan().all() and state.velocity[5].isnan().all(), level
            assert state.x.isnan().sum() == 3 and state.energy.isnan().sum() == 1
            table[0, 5] = 0.2


def test_positions_of_a_gaussian_are_exact():
    """BAOAB's law of positions in a quadratic well is exp(-E / T) at any stable step (Leimkuhler
    and Matthews 2013); the energy is a base alone."""
    n, temperature, step = 20_000, 0.7, 0.9
    precision, mean = torch.tensor([1.0, 2.5]), torch.tensor([0.3, -1.0])
    net = network(2, (4,), bias=False)
    net.weights[-1].zero_()
    net = net._replace(base_precision=precision, base_mean=mean)
    decay = math.exp(-step)
    sigma = math.sqrt((1 - decay**2) * temperature)
    state = chain(net, start_at(torch.zeros(n, 2)), 40, 0.0, step, decay, sigma)
    u, variance = state.x.double() - mean, temperature / precision
    assert (u.mean(0).abs() < 4 * (variance / n).sqrt()).all()
    assert ((u.square().mean(0) / variance - 1).abs() < 4 * math.sqrt(2 / n)).all()
    e = (precision * u.square()).sum(1) / 2
    torch.testing.assert_close(state.energy.double(), e, rtol=1e-5, atol=1e-6)


def test_opcheck():
    net, start = with_base_and_rows(network(3, (4, 5)), 6), start_at(*torch.randn(2, 6, 3))
    table, lo = torch.full((2, 6), 0.1), torch.full((3,), -2.0)
    args, none = (*start, *net.arguments, 2, 0.1, 0.1, 0.9, 0.3), (None,) * 4
    op = torch.ops.fastebm.mlp_underdamped_chain_.default
    torch.library.opcheck(op, (*args, *none, rng(), 0, None, False, None, None))
    torch.library.opcheck(op, (*args, None, table, table, None, rng(), 0, None, True, lo, -lo))


def test_errors():
    net, start = network(3, (4,)), start_at(*torch.randn(2, 5, 3))
    x = start.x

    def run(match, start=start, net=net, n_steps=2, **options):
        with pytest.raises(RuntimeError, match=match):
            chain(net, start, n_steps, **options)

    run("x must be float32, got Double", start=start_at(x.double()))
    run("x must be contiguous, of shape", start=start._replace(x=x[None]))
    run(r"velocity must be contiguous, of shape \(B, D\)", start=start._replace(velocity=x[:4]))
    run(r"energy must be contiguous, of shape \(B,\)", start=start._replace(energy=x))
    run(r"grad must be contiguous, of shape \(B, D\)", start=start._replace(grad=x[:, :2]))
    run("n_steps must be >= 0, got -1", n_steps=-1)
    run("first_kick must be finite and >= 0, got -1", kick=-1.0)
    run("step_size must be finite and >= 0, got -1", step=-1.0)
    run("decay must be finite and >= 0, got inf", decay=math.inf)
    run("noise_std must be finite and >= 0, got -1", sigma=-1.0)
    run(r"first_kicks must have shape .* with K = 1", kick=torch.ones(2, 5))
    run(r"step_sizes must have shape \(K or 1, B or 1\)", step=torch.ones(3, 1))
    run(r"decays must have shape \(K or 1, B or 1\)", decay=torch.ones(2, 4))
    run("sample_ids must be", sample_ids=torch.arange(4))
    run("lo must be <= hi, got 1 and 0 for element 0", lo=1.0, hi=0.0)
    run(r"weights\[0\] must have shape \(outputs, 3\)", net=network(2, (4,)))
    run("would pass its end", t=2**32 - 1)
    assert same(start, start_at(x, start.velocity))


def test_a_device_is_refused():
    start = start_at(torch.randn(5, 3, device="meta"))
    with pytest.raises(RuntimeError, match="x must be on a CPU, got meta"):
        chain(converted(network(3, (4,)), lambda v: v.to("meta")), start, 1)


def test_fake_refuses_what_it_cannot_know():
    with torch._subclasses.FakeTensorMode() as mode:
        fake = converted(network(3, (4,)), mode.from_tensor)
        with pytest.raises(RuntimeError, match="x must be float32"):
            mlp_underdamped_chain_(
                *start_at(torch.empty(5, 3).double()),
                *(fake, 1, 0.0, 0.1, 0.9, 0.3, mode.from_tensor(rng())),
            )
