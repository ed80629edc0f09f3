"""Hamiltonian Monte Carlo: the operator against its twin, laws of the leapfrog, bits, errors."""

import math

import pytest
import torch
from conftest import SIMD_LEVELS

from fastebm import ChainRNG
from fastebm.ops import library, reference
from fastebm.ops.hamiltonian import hmc_step_
from fastebm.ops.langevin import langevin_step_
from fastebm.rng import VELOCITY

SEED, STEP, OFFSET, T = 2**63 + 7, 11, 2**33, 3
FLOATS = [torch.float32, torch.float64]


def state(device="cpu"):
    return ChainRNG(SEED, STEP, OFFSET).state(device)


def energy(x):
    """Quartic, its elements coupled: (B, D) -> (B,), (B, D)."""
    near = x.roll(1, 1) if x.shape[1] > 1 else torch.zeros_like(x)
    e = (x**4 / 4 + (x - near) ** 2 / 2).sum(1)
    far = x - x.roll(-1, 1) if x.shape[1] > 1 else 0
    return e, x**3 + (x - near) + far


def gaussian(x):
    return x.square().sum(1) / 2, x


def chains(x, of=energy):
    """x, energy, grad, y, v, kinetic, acceptance, divergent."""
    counts = torch.zeros(len(x), device=x.device), torch.zeros_like(x[:, 0], dtype=torch.int32)
    y, v = torch.full_like(x, math.nan), torch.full_like(x, math.nan)
    return [x.clone(), *(u.clone() for u in of(x)), y, v, torch.empty_like(x[:, 0]), *counts]


def run(now, steps, temperatures, n_leapfrog, rng, t=T, of=energy, **options):
    """Transitions by the operator, a call for each gradient and one more."""
    pairs = list(zip(steps, temperatures, strict=True))
    y = now[3]
    hmc_step_(*now, None, None, *pairs[0], rng, t=t, **options)
    for k, pair in enumerate(pairs):
        for _ in range(n_leapfrog - 1):
            hmc_step_(*now, None, of(y)[1], *pair, rng, t=t + k, **options)
        after = pairs[k + 1] if k + 1 < len(pairs) else None
        e_y, grad_y = (u.clone() for u in of(y))
        hmc_step_(*now, e_y, grad_y, *pair, rng, t=t + k, next_step=after, **options)
    return now


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 33, 300])
@pytest.mark.parametrize("own", [False, True])
def test_chains_are_those_of_the_reference(device, dim, own):
    """Of float64, whose draws alone have errors, of float32."""
    n, x = 40, torch.randn(40, dim).double()
    scale = dim**-0.25
    steps, temperatures = [0.5 * scale, 0.4 * scale, 0.6 * scale], [1.0, 0.7, 1.3]
    who, options, box = torch.arange(n) + OFFSET, {}, {}
    if own:
        steps = [s * (0.5 + torch.rand(n).double()) for s in steps]
        temperatures = [t * (0.5 + torch.rand(n).double()) for t in temperatures]
        who = torch.randint(2**56, (n,))
        box = {"lo": torch.full((dim,), -3.0).double(), "hi": 2.0 + torch.rand(n, dim).double()}
        x.clamp_(-2.9, 1.9)
        options = {**box, "sample_ids": who}
    on = {k: v.to(device) for k, v in options.items()}
    there = [[v.to(device) if own else v for v in values] for values in (steps, temperatures)]
    jitter = 0.3 if own else 0.0
    found = run(chains(x.to(device)), *there, 3, state(device), jitter=jitter, **on)
    wanted, trajectories = reference.hamiltonian_chain(
        *(energy, x, steps, temperatures, 3, SEED, who), t=STEP + T, jitter=jitter, **box
    )
    sure = torch.stack([(p.log_r - p.log_u).abs() for p in trajectories]).amin(0) > 1e-3
    assert sure.sum() > 0.9 * n
    accepted = torch.stack([(p.log_r > p.log_u) & p.inside for p in trajectories])
    assert 0.1 < accepted.double().mean() < 0.999
    if own and dim > 4:
        assert not all(p.inside.all() for p in trajectories)
    for mine, exact in zip((*found[:3], *found[6:]), wanted, strict=True):
        torch.testing.assert_close(mine.cpu()[sure].double(), exact[sure], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dim", [1, 2, 5, 70, 1030])
def test_velocities_are_the_streams(device, dtype, dim):
    x = torch.randn(20, dim, device=device).to(dtype)
    now = chains(x)
    hmc_step_(*now, None, None, 0.0, 0.49, state(device), t=T)
    noise = langevin_step_(torch.zeros_like(x), None, 0.0, 1.0, state(device), t=T, tag=VELOCITY)
    v = math.sqrt(0.49) * noise
    torch.testing.assert_close(now[4], v, rtol=1e-6, atol=0)
    torch.testing.assert_close(now[5], now[4].double().square().sum(1).to(dtype) / 2)
    assert torch.equal(now[3], x)


def trajectory(x, h, n_leapfrog, device, dtype=torch.float64):
    """Of one transition, by the operator: y, and v half a kick before its end, and their H."""
    now = chains(x.to(device, dtype))
    y, v = now[3:5]
    hmc_step_(*now, None, None, h, 1.0, state(device), t=T)
    start = now[1] + now[5]
    for _ in range(n_leapfrog - 1):
        hmc_step_(*now, None, energy(y)[1], h, 1.0, state(device), t=T)
    e, grad = energy(y)
    return now, start, e + (v - h / 2 * grad).square().sum(1) / 2


@pytest.mark.parametrize("dim", [2, 7, 300])
def test_the_leapfrog_is_reversible(device, dim):
    """With the velocity turned round it goes back to where it was."""
    x, h = torch.randn(10, dim).double(), 0.1
    now, _, _ = trajectory(x, h, 8, device)
    y, v = now[3:5]
    v.neg_().add_(energy(y)[1], alpha=h)
    for _ in range(8):
        hmc_step_(*now, None, energy(y)[1], h, 1.0, state(device), t=T)
    assert (y.cpu() - x).abs().max() < 1e-12


@pytest.mark.parametrize("dim", [1, 5])
def test_the_energy_error_is_of_second_order(device, dim):
    x, errors = torch.randn(200, dim).double(), []
    for n in (10, 20, 40):
        _, start, end = trajectory(x, 0.8 / n, n, device)
        errors.append((end - start).abs().mean().item())
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 3.8 < coarse / fine < 4.3
    assert errors[0] > 1e-3


def test_the_law_stays_whatever_is_accepted(device):
    """Exact samples of N(0, T), half of them at another temperature, after steps so large that many
    are refused; a box cuts the law off."""
    n = 40_000 if library.op is torch.ops.fastebm else 600
    temperature = torch.where(torch.arange(n) < n // 2, 1.0, 0.25).to(device)
    x = temperature.sqrt()[:, None] * torch.randn(n, 2, device=device)
    now = chains(x, gaussian)
    run(now, [1.7] * 4, [temperature] * 4, 2, state(device), of=gaussian, jitter=0.1)
    share = now[6].mean() / 4
    assert 0.3 < share < 0.9 and not now[7].any()
    for half in (slice(n // 2), slice(n // 2, n)):
        ratio = now[0][half].square().mean() / temperature[half][0]
        assert abs(ratio - 1) < 4 * math.sqrt(2 / n)
    inside = torch.randn(n, 1, device=device)
    inside = inside[((inside > -0.5) & (inside < 1.5))[:, 0]]
    now = chains(inside, gaussian)
    run(now, [0.9] * 4, [1.0] * 4, 2, state(device), of=gaussian, lo=-0.5, hi=1.5)
    assert now[0].min() >= -0.5 and now[0].max() <= 1.5 and not torch.equal(now[0], inside)
    se = math.sqrt(2 * inside.var() / len(inside))
    assert abs(now[0].mean() - inside.mean()) < 4 * se


def test_trajectories_that_are_lost_are_counted_and_refused(device):
    x = torch.randn(50, 3, device=device)
    now = run(chains(x), [3.0], [1.0], 6, state(device))
    assert now[7].sum() > 40 and now[7].max() == 1 and torch.equal(now[0], x)
    assert now[6].max() == 0 and now[0].isfinite().all()
    for place, value in ((8, math.nan), (9, math.nan), (8, math.inf)):
        now = chains(x)
        hmc_step_(*now, None, None, 0.1, 1.0, state(device))
        bad = [u.clone() for u in energy(now[3])]
        bad[place - 8][4] = value
        hmc_step_(*now, *bad, 0.1, 1.0, state(device))
        assert torch.equal(now[7].cpu(), (torch.arange(50) == 4).int())
        assert torch.equal(now[0][4], x[4]) and (now[0] != x).any(1).sum() > 40


def test_jitter_varies_the_step_evenly(device):
    n = 20_000
    x = torch.zeros(n, 1, device=device)
    now = chains(x, gaussian)
    hmc_step_(*now, None, None, 0.5, 1.0, state(device), jitter=0.4)
    h = (now[3] / now[4])[:, 0]  # y = x + h v, and the gradient at x is 0
    assert h.min() > 0.3 - 1e-6 and h.max() < 0.7 + 1e-6
    assert abs(h.mean() - 0.5) < 4 * 0.4 / math.sqrt(12 * n)
    assert abs(h.var() - 0.4**2 / 12) < 4 * (0.4**2 / 12) * math.sqrt(0.8 / n)


def same_bits(a, b):
    pairs = zip(a, b, strict=True)
    return all(torch.equal(*(u.cpu().flatten().nan_to_num(7.0) for u in pair)) for pair in pairs)


def everything(n, dim, dtype, way):
    """Arguments of a call, with rows that are not finite among them."""
    now = chains(torch.randn(n, dim).to(dtype))
    now[3], now[4], now[5] = (now[0] + 0.3 * torch.randn(n, dim), torch.randn(n, dim), now[1] * 0)
    now[3:6] = [v.to(dtype) for v in now[3:6]]
    now[5] += now[4].square().sum(1) / 2
    e_y, grad_y = energy(now[3])
    now[3][1 % n, -1], e_y[2 % n], grad_y[3 % n, 0] = math.nan, math.nan, math.inf
    steps = 0.3 * torch.rand(n).to(dtype)
    steps[4 % n] = -1.0
    options = {"jitter": 0.5, "next_step": (0.2, 0.7)}
    if way == "own":
        options |= {"next_step": (steps, steps.flip(0) + 2), "sample_ids": torch.arange(n) * 7}
        options |= {"lo": now[3] - 1, "hi": now[3] + 1}
        options["hi"][::5] = -9
    if way in ("begin", "middle"):
        del options["next_step"]
    e_y = e_y if way in ("plain", "own") else None
    return [*now, e_y, None if way == "begin" else grad_y], steps, options


def call(arguments, steps, options, device="cpu"):
    def there(v):
        return v.to(device, copy=True) if isinstance(v, torch.Tensor) else v

    arguments = [there(v) for v in arguments]
    options = {
        k: tuple(map(there, v)) if isinstance(v, tuple) else there(v) for k, v in options.items()
    }
    hmc_step_(*arguments, there(steps), 0.5, state(device), t=T, **options)
    return arguments[:8]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("way", ["begin", "middle", "plain", "own"])
@pytest.mark.parametrize(
    "n, dim",
    [(1, 1), (140, 2), (17, 3), (129, 4), (18, 5), (33, 8), (21, 33), (17, 64), (6, 130)]
    + [(7, 256), (6, 257), (6, 1030), (6, 4500)],
)
def test_same_bits_on_all_levels_and_devices(device, dtype, way, n, dim, set_simd):
    arguments, steps, options = everything(n, dim, dtype, way)
    set_simd("scalar")
    op, library.op = library.op, torch.ops.fastebm
    wanted = call(arguments, steps, options)
    library.op = op
    if way in ("plain", "own"):
        assert not wanted[0].isnan().any()
    for level in SIMD_LEVELS:
        set_simd(level)
        assert same_bits(wanted, call(arguments, steps, options, device)), level


@pytest.mark.parametrize("dim", [2, 70, 300])
def test_a_sample_is_the_same_beside_any_others(device, dim):
    arguments, steps, options = everything(40, dim, torch.float32, "own")
    whole = call(arguments, steps, options, device)
    for rows in (slice(0, 1), slice(3, 20), slice(20, 40)):
        of_part = {k: v[rows] for k, v in options.items() if isinstance(v, torch.Tensor)}
        of_part["next_step"] = tuple(v[rows] for v in options["next_step"])
        got = call([v[rows] for v in arguments], steps[rows], {"jitter": 0.5, **of_part}, device)
        assert same_bits([w[rows] for w in whole], got)


def test_same_bits_for_any_number_of_threads(set_threads):
    for n, dim in ((9001, 2), (500, 70), (9, 4500)):
        arguments, steps, options = everything(n, dim, torch.float32, "own")
        results = []
        for threads in (1, 2, 3):
            set_threads(threads)
            results.append(call(arguments, steps, options))
        assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


def test_events_and_strides(device):
    for way in ("begin", "middle", "plain"):
        arguments, steps, options = everything(6, 12, torch.float32, way)
        flat = call(arguments, steps, options, device)
        turned = [
            v.view(6, 3, 4).transpose(1, 2).contiguous().transpose(1, 2)
            if v is not None and v.shape == (6, 12)
            else v
            for v in arguments
        ]
        assert same_bits(flat, call(turned, steps, options, device))


@pytest.mark.parametrize(
    "change, match",
    [
        ({"x": torch.zeros(5, 3).half()}, "x must be float32 or float64, got Half"),
        ({"kinetic": torch.zeros(4)}, r"kinetic must have one value for each sample"),
        ({"v": torch.zeros(5, 3).double()}, "v must have the dtype of x, Float, got Double"),
        ({"y": torch.zeros(5, 2)}, "y must have the shape of x"),
        ({"acceptance": torch.zeros(2, 5)}, r"acceptance must be contiguous, of shape \(B,\)"),
        ({"divergent": torch.zeros(5)}, r"divergent must be a contiguous int32 tensor \(5,\)"),
        ({"grad_y": None}, "e_y is of a trajectory's end, which needs grad_y"),
        ({"e_y": None}, "next_step is after a decision: it needs e_y and grad_y"),
        ({"step_size": -0.1}, "step_size must be finite and >= 0, got -0.1"),
        ({"temperature": 0.0}, "temperature must be finite and > 0, got 0"),
        ({"next_step": (0.1, -1.0)}, "next_temperature must be finite and > 0, got -1"),
        ({"jitter": 1.0}, r"jitter must be in \[0, 1\), got 1"),
        ({"lo": 1.0, "hi": 0.5}, "lo must be <= hi, got 1 and 0.5 for element 0"),
        ({"t": 2**32 - STEP - 1}, "t is 4294967284, for 2 steps"),
        ({"sample_ids": torch.arange(4)}, r"sample_ids must be a contiguous int64 tensor \(5,\)"),
    ],
)
def test_wrong_arguments(change, match, device):
    names = ("x", "energy", "grad", "y", "v", "kinetic", "acceptance", "divergent")
    arguments = dict(zip(names, chains(torch.randn(5, 3)), strict=True))
    arguments |= {"e_y": torch.zeros(5), "grad_y": torch.zeros(5, 3), "step_size": 0.1}
    arguments |= {"temperature": 1.0, "next_step": (0.1, 1.0), "rng": state(), **change}
    arguments = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()
    }
    with pytest.raises(RuntimeError, match=match):
        hmc_step_(**arguments)


def test_a_trajectory_has_memory_of_its_own(device):
    now = chains(torch.randn(5, 3, device=device))
    for i, j in ((3, 0), (4, 3), (4, 2)):
        same = [*now]
        same[i] = same[j]
        with pytest.raises(RuntimeError, match="y and v must have memory of their own"):
            hmc_step_(*same, None, None, 0.1, 1.0, state(device))


def test_opcheck_and_compile():
    now, op = chains(torch.randn(5, 3)), library.op.hmc_step_.default
    now[3:5] = [v.nan_to_num() for v in now[3:5]]
    e, grad, lo = torch.zeros(5), torch.ones(5, 3), torch.full((3,), -1.0)
    pair = (0.1, 1.0, None, None)
    for ends in ((None, None), (None, grad), (e, grad)):
        torch.library.opcheck(
            op, (*now, *ends, *pair, ends[1] is None, *pair, 0.1, state(), 0, None, lo, -lo)
        )

    def f(now, rng):
        hmc_step_(*now, None, None, 0.1, 1.0, rng)
        return now[3] + 1

    wanted = f([v.clone() for v in now], state())
    assert torch.equal(torch.compile(f, fullgraph=True)(now, state()), wanted)
