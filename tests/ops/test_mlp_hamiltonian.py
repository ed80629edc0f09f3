"""Hamiltonian Monte Carlo on a small perceptron: trajectories, cuts, refusals, contracts, law."""

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
from fastebm.ops.hamiltonian import hmc_step_
from fastebm.ops.mlp.gradient import mlp_gradient
from fastebm.ops.mlp.hamiltonian import mlp_hmc_chain_
from fastebm.ops.mlp.network import ACTIVATIONS
from fastebm.ops.reference.hamiltonian import jittered_step
from fastebm.rng import ACCEPT, VELOCITY, ChainRNG

SEED = 11
CASES = [(batch, dim) for dim in (1, 2, 3, 5, 10, 33) for batch in (1, 31, 130)]


class State(NamedTuple):
    x: torch.Tensor
    energy: torch.Tensor
    grad: torch.Tensor
    acceptance: torch.Tensor
    divergent: torch.Tensor


def rng():
    return ChainRNG(SEED).state()


def start_at(x):
    """Energy and gradient of which are not known."""
    counts = torch.zeros(len(x)), torch.zeros(len(x), dtype=torch.int32)
    return State(x, torch.full_like(x[:, 0], 7.0), torch.full_like(x, 7.0), *counts)


def chain(net, x, n_steps, n_leapfrog, step, temperature=1.0, jitter=0.2, start=None, **options):
    """The operator on a copy of x, or from ``start``, a state."""
    state = State(*(v.clone() for v in start or start_at(x)))
    mlp_hmc_chain_(*state, net, n_steps, n_leapfrog, jitter, step, temperature, rng(), **options)
    return state


def same(a, b):
    return all(torch.equal(v, w) for v, w in zip(a, b, strict=True))


def square_norm(v):
    """|v|^2 / 2."""
    size, rounding = v.value.square().sum(1), (v.value.shape[1] + 2) * UNIT
    return Rounded(size / 2, (v.value.abs() * v.error).sum(1) + rounding * size)


def trajectory(net, state, n_leapfrog, step, temperature, jitter, t, ids):
    """From a state, and what float32 errs by: the end, its energy and gradient, log r."""
    minus, dim = exact(-torch.ones(1, 1)), state.x.shape[1]
    h = jittered_step(step, jitter, SEED, t, ids)
    h = Rounded(h, 5 * UNIT * h)
    n = reference.normals(SEED, t, ids, dim + dim % 2, VELOCITY)
    n = Rounded(n[:, :dim], normal_errors(n)[:, :dim])
    width = Rounded(temperature.sqrt()[:, None], UNIT * temperature.sqrt()[:, None])
    v, x, grad = width * n, exact(state.x), exact(state.grad)
    start = square_norm(v)
    half = h * exact(torch.full((1, 1), 0.5))
    for k in range(n_leapfrog):
        v = v + minus * (h if k else half) * grad
        x = x + h * v
        e, g, *_ = reference.mlp_gradient(double(net), x.value)
        e_error, g_error, _ = rounding_errors(net, x.value, x_error=x.error)
        grad = Rounded(g, g_error)
    end, minus = square_norm(v + minus * half * grad), exact(-torch.ones(1))
    e = Rounded(e, e_error)
    fall = (exact(state.energy) + minus * e) + (start + minus * end)
    return x, e, grad, fall * exact(1 / temperature)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_each_trajectory_is_that_of_the_reference(number, set_simd):
    """One after another, each from where the operator is. Whether log r is above log u is not asked
    where the two are nearer than what they may err by."""
    batch, dim = CASES[number]
    net = network(dim, (20, 9), ACTIVATIONS[number % len(ACTIVATIONS)], bias=number % 4 != 0)
    net = net._replace(threshold=20.0)  # torch's jump there, exp(-4), would be in every bound
    if number % 2:
        net = with_base_and_rows(net, batch)
    x, n_leapfrog = torch.randn(batch, dim), 1 + number // 3 % 3
    step = 0.05 + 0.2 * torch.rand(1, batch)
    temperature = 0.3 + torch.rand(1, batch)
    ids, t = torch.randint(2**56, (batch,)), 5
    box = {"lo": -2.5 - torch.rand(dim), "hi": 2.5 + torch.rand(dim)}
    for level in SIMD_LEVELS:
        set_simd(level)
        at = chain(net, x, 0, 1, step, temperature)
        e_error, g_error, _ = rounding_errors(net, x)
        e, g, *_ = reference.mlp_gradient(double(net), x.double())
        assert ((at.energy - e).abs() <= e_error).all(), level
        assert ((at.grad - g).abs() <= g_error).all(), level
        assert torch.equal(at.x, x) and not at.acceptance.any() and not at.divergent.any()
        asked = moved = 0
        for k in range(3):
            common = {"sample_ids": ids, "t": t + k, "known": True, **box}
            now = chain(net, x, 1, n_leapfrog, step, temperature, start=at, **common)
            was = State(*(v.double() for v in at))
            y, e, grad, log_r = trajectory(
                net, was, n_leapfrog, step[0].double(), temperature[0].double(), 0.2, t + k, ids
            )
            log_u = -reference.normals(SEED, t + k, ids, 2, ACCEPT).square().sum(1) / 2
            near = (log_r.value - log_u).abs() <= log_r.error + 2e-7 + 2**-21 * log_u.abs()
            for face in box.values():
                near |= ((y.value - face).abs() <= y.error).any(1)
            inside = ((y.value >= box["lo"]) & (y.value <= box["hi"])).all(1)
            accepted, sure = (log_r.value > log_u) & inside, ~near
            for mine, old, new in (
                (now.x, was.x, y),
                (now.energy, was.energy, e),
                (now.grad, was.grad, grad),
            ):
                took = accepted.view(-1, *[1] * (mine.dim() - 1))
                wanted, bound = torch.where(took, new.value, old), took * new.error
                bound = bound + UNIT * took * new.value.abs()
                assert ((mine - wanted).abs() <= bound)[sure].all(), (level, k)
            share = inside * log_r.value.exp().clamp(max=1)
            bound = share * log_r.error + 8 * UNIT * now.acceptance.clamp(min=1)
            gained = now.acceptance.double() - was.acceptance
            assert ((gained - share).abs() <= bound)[sure].all(), (level, k)
            assert torch.equal(now.divergent, at.divergent)
            asked, moved, at = asked + sure.sum(), moved + accepted.sum(), now
        assert asked >= 3 * batch * 0.9 - 1, level
        if batch == 130:
            assert 0.05 < moved / (3 * batch) < 0.995, level


@pytest.mark.parametrize("dim", [1, 2, 7, 40])
def test_they_are_those_of_steps_by_one_operator_each(dim, set_simd):
    """hmc_step_ and mlp_gradient: the same random numbers, results up to rounding."""
    net, x, n_leapfrog = network(dim, (20, 9)), torch.randn(70, dim), 3
    box, coefficients = {"lo": -3.0, "hi": 4.0}, (0.3, 0.8)
    for level in SIMD_LEVELS:
        set_simd(level)
        one = chain(net, x, 4, n_leapfrog, *coefficients, t=2, **box)
        state = chain(net, x, 0, 1, *coefficients)
        y, v, kinetic = torch.empty_like(x), torch.empty_like(x), torch.empty(len(x))
        now = (*state[:3], y, v, kinetic, *state[3:])
        options = {"jitter": 0.2, **box}
        hmc_step_(*now, None, None, *coefficients, rng(), t=2, **options)
        for k in range(2, 6):
            for _ in range(n_leapfrog - 1):
                grad = torch.empty_like(x)
                mlp_gradient(net, y, grad=grad)
                hmc_step_(*now, None, grad, *coefficients, rng(), t=k, **options)
            grad, after = torch.empty_like(x), None if k == 5 else coefficients
            e = mlp_gradient(net, y, grad=grad)
            hmc_step_(*now, e, grad, *coefficients, rng(), t=k, next_step=after, **options)
        for mine, other in zip(one, state, strict=True):
            torch.testing.assert_close(mine, other, rtol=2e-4, atol=2e-4)
        assert (one.x != x).all(1).any() and one.acceptance.mean() < 3.999


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize("by_step", [False, True])
def test_cuts_threads_vectors_and_neighbours_change_nothing(
    by_sample, by_step, set_simd, set_threads
):
    batch, dim, steps = 70, 5, 6
    rows, columns = steps if by_step else 1, batch if by_sample else 1
    step, temperature = (0.2 + 0.4 * torch.rand(2, rows, columns)).unbind(0)
    net, x = with_base_and_rows(network(dim, (20, 9)), batch), torch.randn(batch, dim)
    options, results = {"lo": -3.0, "hi": 3.0}, {}
    for level in SIMD_LEVELS:
        set_simd(level)
        set_threads(1)
        whole = results[level] = chain(net, x, steps, 3, step, temperature, t=2, **options)
        assert whole.acceptance.any() and whole.acceptance.mean() < 5.9
        set_threads(3)
        assert same(chain(net, x, steps, 3, step, temperature, t=2, **options), whole), level
        for cuts in ((0, 0, 2, 6), (0, 3, 4, 6), range(steps + 1)):
            at = None
            for a, b in zip(cuts, cuts[1:], strict=False):
                part = [v[a:b] if by_step and a < b else v[:1] for v in (step, temperature)]
                common = {"known": at is not None, "t": 2 + a, "start": at}
                at = chain(net, x, b - a, 3, *part, **common, **options)
            assert same(at, whole), (level, cuts)
        parts = []
        for a, b in ((0, 1), (1, 23), (23, batch)):
            own = [v[:, a:b] if by_sample else v for v in (step, temperature)]
            some = net._replace(row_bias=net.row_bias[a:b])
            common = {"sample_ids": torch.arange(a, b), "t": 2}
            parts.append(chain(some, x[a:b].contiguous(), steps, 3, *own, **common, **options))
        assert same([torch.cat(v) for v in zip(*parts, strict=True)], whole), level
    if len(results) == 3:
        assert same(results["avx2"], results["avx512"])


def test_known_or_not_and_sums_go_on():
    net, x = network(3, (9,)), torch.randn(40, 3)
    start = chain(net, x, 0, 1, 0.1)
    fresh, known = chain(net, x, 4, 2, 0.4), chain(net, x, 4, 2, 0.4, start=start, known=True)
    assert same(fresh, known)
    counts = torch.full((40,), 2.0), torch.full((40,), 3, dtype=torch.int32)
    sums = chain(net, x, 4, 2, 0.4, start=State(*start[:3], *counts), known=True)
    torch.testing.assert_close(sums.acceptance, fresh.acceptance + 2)
    assert torch.equal(sums.divergent, fresh.divergent + 3)
    # what is said to be known is believed: far below, nothing is accepted
    low = start._replace(energy=torch.full((40,), -1e6))
    found = chain(net, x, 4, 2, 0.4, start=low, known=True)
    assert same(found[:4], low[:4]) and (found.divergent == 4).all()
    assert chain(net, x[:0], 4, 1, 0.4, lo=-1.0).x.shape == (0, 3)


def test_what_is_not_a_number_is_refused_and_counted(set_simd):
    for activation in ACTIVATIONS:
        net, x = network(4, (20, 10), activation), torch.randn(40, 4)
        x[3, 1], x[7, 0] = math.nan, math.inf
        broken = network(4, (20, 10), activation)
        broken.weights[0][5, 1] = math.nan
        good = [i for i in range(40) if i not in (3, 7)]
        for level in SIMD_LEVELS:
            set_simd(level)
            state = chain(net, x, 4, 2, 0.1)
            assert state.x[good].isfinite().all() and state.energy[good].isfinite().all()
            assert not state.divergent[good].any() and state.divergent[3] == 4
            assert state.x[3, 1].isnan() and not state.acceptance[3], activation
            state = chain(broken, x, 4, 2, 0.1)
            assert torch.equal(state.x[good], x[good]) and not state.acceptance.any(), activation
            assert state.energy.isnan().all() and (state.divergent == 4).all()


def test_trajectories_that_are_lost_are_counted(set_simd):
    """A base of precision p is stable below p h^2 = 4: above, |dH| grows by orders a step."""
    net = network(2, (4,))._replace(base_precision=torch.tensor([100.0, 1.0]))
    x = torch.randn(130, 2)
    for level in SIMD_LEVELS:
        set_simd(level)
        state = chain(net, x, 3, 8, 0.5, jitter=0.0)
        assert (state.divergent == 3).all() and torch.equal(state.x, x), level
        assert not chain(net, x, 3, 8, 0.05, jitter=0.0).divergent.any()
        hot = chain(net, x, 3, 8, 0.5, 1e30, jitter=0.0)  # by |dH| / T it is not
        assert (hot.divergent > 0).all()


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_coefficients_of_a_table_that_are_not_positive_refuse(bad, set_simd):
    net, x = network(3, (9,)), torch.randn(40, 3)
    step, temperature = torch.full((1, 40), 0.3), torch.full((1, 40), 0.9)
    for level in SIMD_LEVELS:
        set_simd(level)
        for table in (step, temperature):
            if table is step and bad == 0.0:
                continue  # no step moves nothing
            kept = table[0, 5].item()
            table[0, 5] = bad
            state = chain(net, x, 6, 2, step, temperature)
            assert torch.equal(state.x[5], x[5]) and not state.acceptance[5], level
            assert state.divergent[5] == 6 and state.divergent.sum() == 6
            assert (state.x != x).any(1).sum() > 30
            table[0, 5] = kept


def test_chains_stay_in_the_box():
    net, x = network(2, (9,)), torch.rand(130, 2)
    lo, hi = torch.tensor([[0.0, -0.5], [1.0, 1.2]])
    state = chain(net, x, 20, 2, 0.4, lo=lo, hi=hi)
    assert ((state.x >= lo) & (state.x <= hi)).all() and (state.x != x).all(1).float().mean() > 0.9
    assert 1 < state.acceptance.mean() < 15 and not state.divergent.any()
    above = chain(net, x, 20, 2, 0.4, lo=0.0).x
    assert (above >= 0).all() and (above > 1).any()


def test_chains_have_the_law_of_their_energy():
    """A small perceptron on a box, against sums over a grid; steps so large that a third of the
    trajectories are refused."""
    n, steps, temperature = 20_000, 12, 0.7
    net = network(2, (12,), "tanh")
    net.weights[-1].mul_(2.5)
    axis = (torch.arange(400).double() + 0.5) / 100 - 2
    grid = torch.cartesian_prod(axis, axis)
    p = (-reference.mlp_energy(double(net), grid) / temperature).softmax(0)
    start = grid[torch.multinomial(p, n, replacement=True)].float() + (torch.rand(n, 2) - 0.5) / 100
    state = chain(net, start, steps, 3, 0.4, temperature, lo=-2.0, hi=2.0)
    assert 0.2 < state.acceptance.mean() / steps < 0.8
    x = state.x.double()
    for f in (lambda v: v, lambda v: v.square(), lambda v: v.prod(1, keepdim=True)):
        values, weights = f(grid), p[:, None]
        expected = (weights * values).sum(0)
        spread = ((weights * (values - expected).square()).sum(0) / n).sqrt()
        assert (((f(x).mean(0) - expected) / spread).abs() < 4).all()


def test_opcheck():
    net, x = with_base_and_rows(network(3, (4, 5)), 6), torch.randn(6, 3)
    step, lo = torch.full((2, 6), 0.1), torch.full((3,), -2.0)
    args = (*start_at(x), *net.arguments, 2, 3, 0.1)
    op = torch.ops.fastebm.mlp_hmc_chain_.default
    torch.library.opcheck(op, (*args, 0.1, 1.0, None, None, rng(), 0, None, False, None, None))
    torch.library.opcheck(op, (*args, 0.0, 1.0, step, None, rng(), 0, None, True, lo, -lo))


def test_errors():
    net, x = network(3, (4,)), torch.randn(5, 3)
    state = start_at(x)

    def run(match, x=x, net=net, n_steps=2, n_leapfrog=3, step=0.1, start=None, **options):
        with pytest.raises(RuntimeError, match=match):
            chain(net, x, n_steps, n_leapfrog, step, start=start, **options)

    run("x must be float32, got Double", x=x.double())
    run("x must be contiguous, of shape", start=state._replace(x=x[None]))
    run(r"energy must be contiguous, of shape \(B,\)", start=state._replace(energy=x))
    run(r"grad must be contiguous, of shape \(B, D\)", start=state._replace(grad=x[:, :2]))
    run(r"acceptance must be contiguous, of shape \(B,\)", start=state._replace(acceptance=x))
    run(r"divergent must be a contiguous int32 tensor \(B,\)", start=state._replace(divergent=x))
    run("n_steps must be >= 0, got -1", n_steps=-1)
    run("n_leapfrog must be >= 1, got 0", n_leapfrog=0)
    run("step_size must be finite and >= 0, got -1", step=-1.0)
    for jitter in (-0.1, 1.0, math.nan):
        run(r"jitter must be in \[0, 1\), got ", jitter=jitter)
    for temperature in (0.0, 1e-60):
        text = f"temperature must be > 0, also in float32, got {temperature:g}"
        run(text, temperature=temperature)
    run("temperature must be finite and >= 0, got inf", temperature=math.inf)
    run(r"step_sizes must have shape \(K or 1, B or 1\)", step=torch.ones(3, 1))
    run(r"temperatures must have shape \(K or 1, B or 1\)", temperature=torch.ones(2, 4))
    run("sample_ids must be", sample_ids=torch.arange(4))
    run("lo must be <= hi, got 1 and 0 for element 0", lo=1.0, hi=0.0)
    run(r"weights\[0\] must have shape \(outputs, 3\)", net=network(2, (4,)))
    run("would pass its end", t=2**32 - 1)
    assert same(state, start_at(x))


def test_a_device_is_refused():
    net, x = network(3, (4,)), torch.randn(5, 3, device="meta")
    with pytest.raises(RuntimeError, match="x must be on a CPU, got meta"):
        chain(converted(net, lambda v: v.to("meta")), x, 1, 1, 0.1)


def test_fake_refuses_what_it_cannot_know():
    net = network(3, (4,))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = converted(net, mode.from_tensor)
        with pytest.raises(RuntimeError, match="x must be float32"):
            mlp_hmc_chain_(
                *start_at(torch.empty(5, 3).double()),
                *(fake, 1, 1, 0.0, 0.1, 1.0),
                mode.from_tensor(rng()),
            )
