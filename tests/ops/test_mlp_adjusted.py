"""Metropolis-adjusted chains on a small perceptron: transitions, cuts, refusals, contracts, law."""

import math

import pytest
import torch
from conftest import SIMD_LEVELS
from mlp_networks import UNIT, converted, double, network, rounding_errors, with_base_and_rows

from fastebm.ops import library, reference
from fastebm.ops.mlp.adjusted import mlp_adjusted_chain_
from fastebm.ops.mlp.network import ACTIVATIONS
from fastebm.ops.reference.metropolis import State
from fastebm.rng import NOISE, ChainRNG

SEED = 11
CASES = [(batch, dim) for dim in (1, 2, 3, 5, 10, 33) for batch in (1, 31, 130)]


def rng(device="cpu"):
    return ChainRNG(SEED).state(device)


def levels(device):
    return SIMD_LEVELS if device == "cpu" and library.op is torch.ops.fastebm else SIMD_LEVELS[-1:]


def chain(net, x, n_steps, step, sigma, start=None, **options):
    """The operator on a copy of x, or from ``start``, a state."""
    zeros = torch.zeros(2, len(x), device=x.device)
    start = start or State(x, torch.full_like(x[:, 0], 7.0), torch.full_like(x, 7.0), zeros)
    state = State(*(v.clone() for v in start))
    mlp_adjusted_chain_(*state, net, n_steps, step, sigma, rng(x.device), **options)
    return state


def same(a, b):
    return all(torch.equal(v, w) for v, w in zip(a, b, strict=True))


def options_for(dim, device="cpu"):
    """Jumps and a box for samples of a normal law."""
    lo = torch.full((dim,), -2.5, device=device) - torch.rand(dim, device=device)
    centres = torch.randn(50, dim, device=device)
    modes = {"centres": centres, "scales": 0.5 + torch.rand(50, device=device)}
    return {"lo": lo, "hi": -lo, **modes, "every": 2, "uniform_share": 0.3}


def normal_errors(n):
    """What float32 normals, in pairs, err by: the bounds that tests/ops/test_noise.py holds."""
    square = (n[:, 0::2].square() + n[:, 1::2].square()).repeat_interleave(2, 1)
    of_square = 2.5e-7 + 2**-21 * square
    return of_square / torch.maximum(square, of_square).sqrt() + 5e-7 * square.sqrt()


def rounding_of_distances(x, y, most):
    """What two squared distances to centres whose elements are at most ``most`` may err by, of x or
    of y, which errs by 4 roundings: D + 3 of the sum, 8 of y."""
    wide = (torch.maximum(x.abs(), y.abs()) + most).square().sum(1)
    return 2 * (x.shape[1] + 11) * UNIT * wide


def drift_errors(grad, grad_error, step, sigma):
    """a of the drift and its error: a norm of D squares, its root, a product and a quotient."""
    square, dim = grad.square().sum(1), grad.shape[1]
    share = (grad.abs() * grad_error).sum(1) / square + (dim / 2 + 4) * UNIT
    most = sigma * math.sqrt(dim) / square.sqrt()
    return torch.minimum(most, step), torch.where(most * (1 - share) < step, most * share, 0)


def proposal_error(state, step, sigma, t, ids):
    """Of y = x - a g + sigma n: each of two sums, two products, a and n."""
    dim = state.x.shape[1]
    n = reference.normals(SEED, t, ids, dim + dim % 2, NOISE)
    n, n_error = n[:, :dim], normal_errors(n)[:, :dim]
    a, a_error = drift_errors(state.grad, torch.zeros_like(state.grad), step, sigma)
    down, noise = a[:, None] * state.grad, sigma[:, None] * n
    sizes = 2 * state.x.abs() + 3 * down.abs() + 2 * noise.abs()
    return UNIT * sizes + a_error[:, None] * state.grad.abs() + sigma[:, None] * n_error


def ratio_error(net, state, y, y_error, step, sigma, jump):
    """What log r may err by, to first order, and what energy and gradient at y may."""
    e_error, g_error, _ = rounding_errors(net, y, x_error=y_error)
    e, g, *_ = reference.mlp_gradient(double(net), y)
    fall = (state.energy - e).abs()
    error, size = 2 * step * (e_error + 3 * UNIT * fall), 2 * step * fall
    if not jump:

        def product(a, a_error, b, b_error):
            rounding = (y.shape[1] + 1) * UNIT * (a * b).abs()
            return (a * b).sum(1).abs(), (a.abs() * b_error + b.abs() * a_error + rounding).sum(1)

        u, none = y - state.x, torch.zeros_like(y)
        for a_of, b, b_error in ((state.grad, state.grad, none), (g, g, g_error)):
            a, a_error = drift_errors(a_of, b_error, step, sigma)
            along, along_error = product(u, y_error + UNIT * u.abs(), b, b_error)
            square, square_error = product(b, b_error, b, b_error)
            size = size + a * along + a**2 * square
            error = error + a_error * along + a * along_error
            error = error + a * a_error * square + a**2 * square_error / 2
        error = error + 6 * UNIT * size
    return (error + 3 * UNIT * size) / sigma**2, e_error, g_error


@pytest.mark.parametrize("number", range(len(CASES)))
def test_each_transition_is_that_of_the_reference(device, number, set_simd):
    """One after another, each from where the operator is. Whether log r is above log u is not asked
    where the two are nearer than what they may err by."""
    batch, dim = CASES[number]
    net = network(
        dim, (20, 9), ACTIVATIONS[number % len(ACTIVATIONS)], bias=number % 4 != 0, device=device
    )
    if number % 2:
        net = with_base_and_rows(net, batch)
    x = torch.randn(batch, dim, device=device)
    step = 0.02 + 0.3 * torch.rand(1, batch, device=device)
    sigma = 0.1 + 0.5 * torch.rand(1, batch, device=device)
    ids = torch.randint(2**56, (batch,), device=device)
    options, t = options_for(dim, device), 5
    cpu = {k: v.double().cpu() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    host = converted(net, torch.Tensor.cpu)
    exact = {k: cpu[k] for k in ("lo", "hi", "centres", "scales", "uniform_share")}
    energy = lambda y: reference.mlp_gradient(double(host), y)[:2]  # noqa: E731
    s, d, who = step[0].cpu().double(), sigma[0].cpu().double(), ids.cpu()
    for level in levels(device):
        set_simd(level)
        at = chain(net, x, 0, step, sigma)
        e_error, g_error, _ = rounding_errors(host, x.cpu())
        e, g = energy(x.cpu().double())
        assert ((at.energy.cpu() - e).abs() <= e_error).all(), level
        assert ((at.grad.cpu() - g).abs() <= g_error).all(), level
        assert torch.equal(at.x, x) and not at.acceptance.any()
        asked = moved = 0
        for k in range(4):
            jump = k % 2 == 1
            common = {"sample_ids": ids, "t": t + k, "first": k, "known": True}
            after = chain(net, x, 1, step, sigma, at, **common, **options)
            was, now = (State(*(v.cpu().double() for v in state)) for state in (at, after))
            proposal, e, g = reference.propose(energy, was, s, d, SEED, t + k, who, jump, **exact)
            y, log_r, log_u, margin = proposal
            corner = cpu["lo"].abs() + y.abs()
            y_error = 4 * UNIT * (corner + y.abs() + cpu["centres"].abs().amax(0))
            if not jump:
                y_error = proposal_error(was, s, d, t + k, who)
            error, e_error, g_error = ratio_error(host, was, y, y_error, s, d, jump)
            near_wall = ((y - cpu["lo"]).abs() <= y_error) | ((y - cpu["hi"]).abs() <= y_error)
            near = (log_r - log_u).abs() <= error + 2e-7 + 2**-21 * log_u.abs()
            in_doubt = margin <= rounding_of_distances(was.x, y, cpu["centres"].abs().max())
            sure = ~(near | near_wall.any(1) | in_doubt)
            accepted = log_r > log_u
            wanted = State(
                torch.where(accepted[:, None], y, was.x),
                torch.where(accepted, e, was.energy),
                torch.where(accepted[:, None], g, was.grad),
                was.acceptance,
            )
            for mine, other, bound in (
                (now.x, wanted.x, accepted[:, None] * y_error),
                (now.energy, wanted.energy, accepted * e_error),
                (now.grad, wanted.grad, accepted[:, None] * g_error),
            ):
                assert ((mine - other).abs() <= bound)[sure].all(), (level, k)
            gained = now.acceptance - was.acceptance
            share = log_r.exp().clamp(max=1)
            if jump:
                assert torch.equal(gained[1][sure], accepted[sure].double())
            else:
                bound = share * error + 8 * UNIT * now.acceptance[0].clamp(min=1)
                assert ((gained[0] - share).abs() <= bound)[sure].all(), (level, k)
            assert not gained[1 - int(jump)].any()
            asked, moved, at = asked + sure.sum(), moved + accepted.sum(), after
        assert asked >= 4 * batch * 0.97 - 1, level
        if batch == 130:
            assert 0.05 < moved / (4 * batch) < 0.98, level


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize("by_step", [False, True])
def test_cuts_threads_vectors_and_neighbours_change_nothing(
    device, by_step, by_sample, set_simd, set_threads
):
    batch, dim, steps = 70 if library.op is torch.ops.fastebm else 35, 5, 6
    rows, columns = steps if by_step else 1, batch if by_sample else 1
    step, sigma = (0.1 + 0.2 * torch.rand(2, rows, columns, device=device)).unbind(0)
    net, x = network(dim, (20, 9), device=device), torch.randn(batch, dim, device=device)
    options, results = options_for(dim, device) | {"every": 3}, {}
    for level in levels(device):
        set_simd(level)
        set_threads(1)
        whole = results[level] = chain(net, x, steps, step, sigma, first=4, t=2, **options)
        assert whole.acceptance.any(1).all()
        set_threads(3)
        assert same(chain(net, x, steps, step, sigma, first=4, t=2, **options), whole), level
        for cuts in ((0, 0, 2, 6), (0, 3, 4, 6), range(steps + 1)):
            at = None
            for a, b in zip(cuts, cuts[1:], strict=False):
                part = [v[a:b] if by_step and a < b else v[:1] for v in (step, sigma)]
                common = {"known": at is not None, "first": 4 + a, "t": 2 + a}
                at = chain(net, x, b - a, *part, at, **common, **options)
            assert same(at, whole), (level, cuts)
        parts = []
        for a, b in ((0, 1), (1, 23), (23, batch)):
            own = [v[:, a:b] if by_sample else v for v in (step, sigma)]
            common = {"sample_ids": torch.arange(a, b, device=device), "first": 4, "t": 2}
            parts.append(chain(net, x[a:b].contiguous(), steps, *own, **common, **options))
        joined = [torch.cat(v, 1 if i == 3 else 0) for i, v in enumerate(zip(*parts, strict=True))]
        assert same(joined, whole), level
    if len(results) == 3:  # all levels of a CPU
        assert same(results["avx2"], results["avx512"])


def test_known_or_not_and_sums_go_on(device):
    net, x = network(3, (9,), device=device), torch.randn(40, 3, device=device)
    start = chain(net, x, 0, 0.1, 0.4)
    fresh, known = chain(net, x, 4, 0.1, 0.4), chain(net, x, 4, 0.1, 0.4, start, known=True)
    assert same(fresh, known)
    more = start._replace(acceptance=torch.full((2, 40), 2.0, device=device))
    sums = chain(net, x, 4, 0.1, 0.4, more, known=True).acceptance
    torch.testing.assert_close(sums, fresh.acceptance + 2)
    # what is said to be known is believed: far below, nothing is accepted
    low = start._replace(energy=torch.full((40,), -1e6, device=device))
    assert same(chain(net, x, 4, 0.1, 0.4, low, known=True), low)
    empty = chain(net, x[:0], 4, 0.1, 0.4, lo=-1.0)
    assert empty.x.shape == (0, 3)


def test_what_is_not_a_number_is_refused(device, set_simd):
    for activation in ACTIVATIONS:
        net, x = network(4, (20, 10), activation, device=device), torch.randn(40, 4, device=device)
        x[3, 1], x[7, 0] = math.nan, math.inf
        broken = network(4, (20, 10), activation, device=device)
        broken.weights[0][5, 1] = math.nan
        options = options_for(4, device)
        for level in levels(device):
            set_simd(level)
            good = [i for i in range(40) if i not in (3, 7)]
            state = chain(net, x, 4, 0.05, 0.3, **options)
            assert state.x[good].isfinite().all() and state.energy[good].isfinite().all()
            assert state.x[3, 1].isnan() and not state.acceptance[:, 3].any(), activation
            state = chain(broken, x, 4, 0.05, 0.3, **options)
            assert torch.equal(state.x[good], x[good]) and not state.acceptance.any(), activation
            assert state.energy.isnan().all()


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_coefficients_of_a_table_that_are_not_positive_refuse(device, bad, set_simd):
    net, x = network(3, (9,), device=device), torch.randn(40, 3, device=device)
    step, sigma = (torch.full((1, 40), v, device=device) for v in (0.1, 0.4))
    for level in levels(device):
        set_simd(level)
        for table in (step, sigma):
            if table is step and bad == 0.0:
                continue  # no drift is a random walk
            table[0, 5] = bad
            state = chain(net, x, 6, step, sigma, **options_for(3, device))
            assert torch.equal(state.x[5], x[5]) and not state.acceptance[:, 5].any(), level
            assert (state.x != x).any(1).sum() > 30
            table[0, 5] = 0.1


def test_chains_stay_in_the_box(device):
    net, x = network(2, (9,), device=device), torch.rand(130, 2, device=device)
    lo, hi = torch.tensor([[0.0, -0.5], [1.0, 1.2]], device=device)
    state = chain(net, x, 12, 0.5, 1.0, lo=lo, hi=hi, every=3, uniform_share=1.0)
    assert ((state.x >= lo) & (state.x <= hi)).all() and (state.x != x).all(1).float().mean() > 0.9
    above = chain(net, x, 12, 0.5, 1.0, lo=0.0).x
    assert (above >= 0).all() and (above > 1).any()


def test_chains_have_the_law_of_their_energy(device):
    """A small perceptron on a box, against sums over a grid; steps so large that a third of the
    proposals are refused."""
    n, steps = 20_000, 60
    if library.op is not torch.ops.fastebm:  # emulated, a hundred times slower
        n, steps = 200, 12
    net = network(2, (12,), "tanh")
    net.weights[-1].mul_(2.5)
    axis = (torch.arange(400).double() + 0.5) / 100 - 2
    grid = torch.cartesian_prod(axis, axis)
    p = (-reference.mlp_energy(double(net), grid)).softmax(0)
    to = lambda values: [v.to(device) for v in values]  # noqa: E731
    there = net._replace(weights=to(net.weights), biases=to(net.biases))
    start = grid[torch.multinomial(p, n, replacement=True)].float() + (torch.rand(n, 2) - 0.5) / 100
    centres, scales = torch.randn(200, 2, device=device), 0.5 + torch.rand(200, device=device)
    options = {"lo": -2.0, "hi": 2.0, "centres": centres, "scales": scales, "uniform_share": 0.2}
    for every in (0, 3):
        state = chain(there, start.to(device), steps, 0.3, math.sqrt(0.6), every=every, **options)
        mean = state.acceptance.mean(1).cpu() / steps
        assert 0.3 < mean[0] / (1 - (1 / every if every else 0)) < 0.9
        assert bool(every) == (mean[1] > 0.05)
        x = state.x.cpu().double()
        for f in (lambda v: v, lambda v: v.square(), lambda v: v.prod(1, keepdim=True)):
            values, weights = f(grid), p[:, None]
            expected = (weights * values).sum(0)
            spread = ((weights * (values - expected).square()).sum(0) / n).sqrt()
            z = (f(x).mean(0) - expected) / spread
            assert (z.abs() < 4).all(), (every, z)


def test_opcheck(device):
    net, x = network(3, (4, 5), device=device), torch.randn(6, 3, device=device)
    state = (x, torch.empty(6, device=device), torch.empty_like(x))
    step, lo = torch.full((2, 6), 0.1, device=device), torch.full((3,), -2.0, device=device)
    args = (*state, torch.zeros(2, 6, device=device), *net.arguments)
    args += (2, 0.0, 0.1, step, None, rng(device), 0, None)
    op = library.op.mlp_adjusted_chain_.default
    torch.library.opcheck(op, (*args, False, None, None, None, None, 0, 0, 0.0))
    modes = torch.randn(9, 3, device=device), torch.ones(9, device=device)
    torch.library.opcheck(op, (*args, True, lo, -lo, *modes, 2, 1, 0.5))


def test_errors(device):
    net, x = network(3, (4,), device=device), torch.randn(5, 3, device=device)
    modes = {"centres": torch.randn(9, 3, device=device), "scales": torch.ones(9, device=device)}

    def run(match, x=x, net=net, n_steps=2, step=0.1, sigma=0.1, start=None, **options):
        with pytest.raises(RuntimeError, match=match):
            chain(net, x, n_steps, step, sigma, start, **options)

    x[0] = 1  # scales may be
    state = State(x, x[:, 0].clone(), x.clone(), torch.zeros(2, 5, device=device))
    run("x must be float32, got Double", x=x.double())
    run("x must be contiguous, of shape", start=state._replace(x=x[None]))
    run(r"energy must be contiguous, of shape \(B,\)", start=state._replace(energy=x))
    run(r"grad must be contiguous, of shape \(B, D\)", start=state._replace(grad=x[:, :2]))
    run(r"acceptance must be contiguous, of shape \(2, B\)", start=state._replace(acceptance=x))
    run("energy must be float32", start=state._replace(energy=x[:, 0].double()))
    run("n_steps must be >= 0, got -1", n_steps=-1)
    run("step_size must be finite and >= 0, got -1", step=-1.0)
    for sigma in (0.0, 1e-60):
        run(f"noise_std must be > 0, also in float32, got {sigma:g}", sigma=sigma)
    run("noise_std must be finite and >= 0, got inf", sigma=math.inf)
    run(r"step_sizes must have shape \(K or 1, B or 1\)", step=torch.ones(3, 1, device=device))
    run("sample_ids must be", sample_ids=torch.arange(4, device=device))
    run("every must be >= 0, got -1", every=-1)
    run(r"first must be in 0\.\.2\^62 - 1, got -1", first=-1)
    run("lo must be <= hi, got 1 and 0 for element 0", lo=1.0, hi=0.0)
    run(r"hi must be a number or of the event's shape \(3,\)", hi=torch.ones(2, device=device))
    run("uniform_share must be 1 without centres, got 0", every=2)
    run("uniform_share must be 0 without lo and hi, got 1", every=2, uniform_share=1.0)
    run("must be finite for uniform_share > 0", every=2, uniform_share=1.0, lo=0.0)
    run(r"must be in \[0, 1\], got 2", every=2, uniform_share=2.0, **modes)
    centres, scales = modes.values()
    run(r"centres must be 2\.\.", every=2, centres=centres[:1], scales=scales[:1])
    run(r"centres must have shape \(M, 3\)", every=2, centres=centres[:, :2], scales=scales)
    run("centres and scales must be given together", every=2, centres=centres)
    run(r"weights\[0\] must have shape \(outputs, 3\)", net=network(2, (4,), device=device))
    step = torch.ones(1, 1, device=device)
    for shared, own in (("centres", (x[1:4], scales[:3])), ("scales", (centres[:3], x[0]))):
        own = dict(zip(modes, own, strict=True))
        with pytest.raises(RuntimeError, match=f"{shared} and x must not share memory"):
            mlp_adjusted_chain_(*state, net, 2, step, 0.1, rng(device), every=2, **own)
    assert same(state, (x, x[:, 0], x, torch.zeros(2, 5, device=device)))


def test_fake_refuses_what_it_cannot_know():
    net = network(3, (4,))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = net._replace(weights=[mode.from_tensor(w) for w in net.weights], biases=[None] * 2)
        x = torch.empty(5, 3).double()
        with pytest.raises(RuntimeError, match="x must be float32"):
            mlp_adjusted_chain_(
                x, x[:, 0], x, torch.empty(2, 5), fake, 1, 0.1, 0.1, mode.from_tensor(rng())
            )
