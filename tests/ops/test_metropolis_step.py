"""Transitions under Metropolis' rule on any energy: the operator against its twin, bits, errors."""

import math

import pytest
import torch
from conftest import SIMD_LEVELS
from mlp_networks import UNIT

from fastebm import ChainRNG
from fastebm.ops import library, reference
from fastebm.ops.langevin import langevin_step_
from fastebm.ops.metropolis import metropolis_step_
from fastebm.ops.reference.metropolis import State, drift

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


def chains(n, dim, dtype=torch.float32, device="cpu"):
    """x, energy, grad, acceptance."""
    x = torch.randn(n, dim).to(dtype)
    return [v.to(device) for v in (x, *energy(x), torch.zeros(2, n))]


def transitions(x, steps, sigmas, rng, t=T, device="cpu", **options):
    """Langevin transitions by the operator, one call for each and one more: what they leave."""
    now = chains_at(x, device)
    y = torch.full_like(now[0], math.nan)
    pairs = list(zip(steps, sigmas, strict=True))
    metropolis_step_(*now, y, None, None, *pairs[0], rng, t=t, **options)
    for k, pair in enumerate(pairs):
        after = pairs[k + 1] if k + 1 < len(pairs) else None
        e_y, grad_y = energy(y)
        metropolis_step_(*now, y, e_y, grad_y, *pair, rng, t=t + k, next_step=after, **options)
    return now


def chains_at(x, device):
    x = x.to(device, copy=True)
    return [x, *energy(x), torch.zeros(2, len(x), device=device)]


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 33, 300])
@pytest.mark.parametrize("own", [False, True])
def test_chains_are_those_of_the_reference(device, dim, own):
    """Of float64, whose noise alone has errors, of float32: so decisions and points are the same
    but where a ratio is so near."""
    n, x = 40, torch.randn(40, dim).double()
    steps, sigmas = [0.3, 0.2, 0.25], [0.6, 0.7, 0.5]
    ids, options, box = None, {}, {}
    who = torch.arange(n) + OFFSET
    if own:
        steps = [s * (0.5 + torch.rand(n).double()) for s in steps]
        who = ids = torch.randint(2**56, (n,))
        box = {"lo": torch.full((dim,), -2.5).double(), "hi": torch.full((dim,), 2.2).double()}
        x.clamp_(-2.4, 2.1)
        options = {k: v.to(device) for k, v in {**box, "sample_ids": ids}.items()}
    on = [s.to(device) if own else s for s in steps]
    found = transitions(x, on, sigmas, state(device), device=device, **options)
    wanted, proposals = reference.adjusted_chain(
        energy, x, steps, sigmas, SEED, who, t=STEP + T, **box
    )
    margins = torch.stack([(p.log_r - p.log_u).abs() for p in proposals]).amin(0)
    sure = margins > 1e-3
    assert sure.sum() > 0.9 * n
    accepted = torch.stack([p.log_r > p.log_u for p in proposals]).double().mean()
    assert 0.1 < accepted < 0.95
    for mine, exact in zip(found, wanted, strict=True):
        rows = sure if mine.shape[0] == n else (slice(None), sure)
        torch.testing.assert_close(mine.cpu()[rows].double(), exact[rows], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dim", [1, 2, 5, 70, 1030])
def test_a_proposal_is_a_langevin_step_with_a_bounded_drift(device, dtype, dim):
    """Its noise has the bits of langevin_step_; without drift so has the proposal."""
    x, e, grad, sums = chains(20, dim, dtype, device)
    grad[3] *= 1e4  # far over the bound
    y = torch.empty_like(x)
    metropolis_step_(x, e, grad, sums, y, None, None, 0.0, 0.7, state(device), t=T)
    plain = langevin_step_(x.clone(), torch.zeros_like(x), 0.0, 0.7, state(device), t=T)
    assert torch.equal(y, plain)
    metropolis_step_(x, e, grad, sums, y, None, None, 0.3, 0.7, state(device), t=T)
    noise = (plain - x).double()
    wanted = x.double() + drift(grad.double(), 0.3, 0.7) + noise
    unit = UNIT if dtype == torch.float32 else 2.0**-53
    error = unit * (4 * x.double().abs() + (dim + 8) * (wanted - x).abs() + 8 * noise.abs())
    assert ((y.double() - wanted).abs() <= error + 4 * unit).all()
    assert (y[3] - x[3]).norm() < 0.7 * math.sqrt(dim) + noise[3].norm() + 1e-3


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_decision_at_a_time(device, dtype):
    """Given points, whatever proposed them: of each row the reference's decision, and all of it."""
    n, dim = 300, 7
    x, e, grad, sums = chains(n, dim, dtype)
    y = x + 0.3 * torch.randn(n, dim).to(dtype)
    e_y, grad_y = energy(y)
    wide = [v.double() for v in (x, e, grad, sums)]
    log_r = reference.log_ratio(State(*wide), y.double(), e_y.double(), grad_y.double(), 0.2, 0.5)
    who = torch.arange(n) + OFFSET
    log_u = -reference.normals(SEED, STEP + T, who, 2, 0x88).square().sum(1) / 2
    unit = UNIT if dtype == torch.float32 else 2.0**-53
    # Terms of up to |E| and |u| |g| are added, D + 8 roundings each, over sigma^2.
    u, g = (y - x).double().norm(dim=1), torch.maximum(grad.norm(dim=1), grad_y.norm(dim=1))
    sizes = 0.4 * (e.abs() + e_y.abs()) + 0.4 * u * g.double() + 0.04 * g.double() ** 2
    error = unit * (dim + 8) * sizes.double() / 0.25
    sure = (log_r - log_u).abs() > error + 1e-6  # of log u, by float32
    accepted = log_r > log_u
    assert sure.sum() > 0.98 * n and 0.2 < accepted.double().mean() < 0.9
    now = [v.to(device, copy=True) for v in (x, e, grad, sums, y, e_y, grad_y)]
    metropolis_step_(*now, 0.2, 0.5, state(device), t=T)
    found = [v.cpu() for v in now]
    assert torch.equal(found[4], y)  # nothing is proposed
    for mine, before, after in zip(found[:3], (x, e, grad), (y, e_y, grad_y), strict=True):
        took = accepted.view(-1, *[1] * (mine.dim() - 1))
        assert torch.equal(mine[sure], torch.where(took, after, before)[sure])
    share = log_r.exp().clamp(max=1)
    assert ((found[3][0] - share).abs() <= error * share + 4 * UNIT).all()
    assert not found[3][1].any()


def same_bits(a, b):
    """Of two lists of tensors, shapes left aside; any NaN is the same one."""
    pairs = zip(a, b, strict=True)
    return all(torch.equal(*(u.cpu().flatten().nan_to_num(7.0) for u in pair)) for pair in pairs)


def everything(n, dim, dtype, way):
    """Arguments of a call, with rows that are not finite among them."""
    x, e, grad, sums = chains(n, dim, dtype)
    y = x + 0.3 * torch.randn(n, dim).to(dtype)
    e_y, grad_y = energy(y)
    y[1 % n, -1], e_y[2 % n], grad_y[3 % n, 0], grad[4 % n] = math.nan, math.nan, math.inf, 0.0
    steps = torch.rand(n).to(dtype)
    steps[5 % n] = -1.0
    options = {"next_step": (0.2, 0.5)}
    if way == "own":
        options = {"next_step": (steps, steps.flip(0) + 0.1), "sample_ids": torch.arange(n) * 7}
        options |= {"lo": x - 0.8, "hi": x + 0.5}
    if way == "jump":
        options |= {"log_factor": torch.randn(n).to(dtype), "lo": -2.0, "hi": 1.5}
    first = None if way == "propose" else (e_y, grad_y)
    return [x, e, grad, sums, y, *(first or (None, None))], steps, options if first else {}


def call(arguments, steps, options, device="cpu"):
    def there(v):
        return v.to(device, copy=True) if isinstance(v, torch.Tensor) else v

    arguments = [there(v) for v in arguments]
    options = {
        k: tuple(map(there, v)) if isinstance(v, tuple) else there(v) for k, v in options.items()
    }
    metropolis_step_(*arguments, there(steps), 0.5, state(device), t=T, **options)
    return arguments[:5]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("way", ["propose", "plain", "own", "jump"])
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
    if way != "propose":
        assert not wanted[0].isnan().any()  # what is not finite is refused
    for level in SIMD_LEVELS:
        set_simd(level)
        assert same_bits(wanted, call(arguments, steps, options, device)), level


@pytest.mark.parametrize("dim", [2, 70, 300])
def test_a_sample_is_the_same_beside_any_others(device, dim):
    arguments, steps, options = everything(40, dim, torch.float32, "own")
    ids = torch.arange(40) * 7
    whole = call(arguments, steps, options, device)
    for rows in (slice(0, 1), slice(3, 20), slice(20, 40)):
        part = [v[:, rows] if i == 3 else v[rows] for i, v in enumerate(arguments)]
        of_part = {k: v[rows] for k, v in options.items() if k in ("lo", "hi")}
        after = tuple(v[rows] for v in options["next_step"])
        got = call(
            part, steps[rows], {"next_step": after, "sample_ids": ids[rows], **of_part}, device
        )
        want = [v[:, rows] if i == 3 else v[rows] for i, v in enumerate(whole)]
        assert same_bits(want, got)


def test_what_is_outside_or_not_a_number_is_refused(device):
    x, e, grad, sums = chains(8, 3, device=device)
    e, grad = e * 0, grad * 0
    y = x + 0.1
    e_y, grad_y = e - 50, grad.clone()  # all else is accepted
    y[0, 1], y[1, 2], y[2, 0] = 9.0, math.nan, -9.0
    e_y[3], grad_y[4, 1], e_y[5] = math.nan, math.nan, math.inf
    for log_factor in (None, torch.zeros(8, device=device)):
        now = [v.clone() for v in (x, e, grad, sums)]
        options = {"lo": -8.0, "hi": torch.full((3,), 8.0, device=device)}
        metropolis_step_(
            *(*now, y, e_y, grad_y, 0.2, 0.5, state(device)), log_factor=log_factor, **options
        )
        jump = log_factor is not None
        taken = torch.tensor([0, 0, 0, 0, jump, 0, 1, 1], device=device)  # no gradient in a jump
        assert torch.equal((now[0] != x).any(1), taken == 1)
        assert torch.equal(now[3][int(jump)], taken.float()) and not now[3][int(not jump)].any()
        assert torch.equal(now[1], torch.where(taken == 1, e_y, e))


@pytest.mark.parametrize("bad", [-0.1, 0.0, math.inf, math.nan])
def test_a_bad_coefficient_in_a_tensor_keeps_its_sample(device, bad):
    x, e, grad, sums = chains(3, 5, device=device)
    values = torch.tensor([0.5, bad, 0.5], device=device)
    y = torch.empty_like(x)
    now = [v.clone() for v in (x, e, grad, sums)]
    metropolis_step_(*now, y, None, None, 0.2, values, state(device))
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()
    metropolis_step_(*now, x + 0.01, e - 50, grad, 0.2, values, state(device))
    assert torch.equal((now[0] != x).any(1).cpu(), torch.tensor([True, False, True]))


def test_events_and_strides(device):
    arguments, steps, _ = everything(6, 12, torch.float32, "plain")
    flat = call(arguments, steps, {"next_step": (0.2, 0.5)}, device)
    turned = [
        v.view(6, 3, 4).transpose(1, 2).contiguous().transpose(1, 2) if v.shape == (6, 12) else v
        for v in arguments
    ]
    shaped = call(turned, steps, {"next_step": (0.2, 0.5)}, device)
    assert same_bits(flat, shaped)
    scalars = [v[:, 0] if v.shape == (6, 12) else v for v in arguments]
    columns = [v[:, :1] if v.shape == (6, 12) else v for v in arguments]
    one, two = (call(v, steps, {}, device) for v in (scalars, columns))
    assert same_bits(one, two)


def test_same_bits_for_any_number_of_threads(set_threads):
    for n, dim in ((9001, 2), (500, 70), (9, 4500)):
        arguments, steps, options = everything(n, dim, torch.float32, "own")
        results = []
        for threads in (1, 2, 3):
            set_threads(threads)
            results.append(call(arguments, steps, options))
        assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


@pytest.mark.parametrize(
    "change, match",
    [
        ({"x": torch.zeros(5, 3).half()}, "x must be float32 or float64, got Half"),
        ({"x": torch.tensor(1.0)}, "x must have a batch dimension"),
        ({"energy": torch.zeros(4)}, r"energy must have one value for each sample, shape \(5,\)"),
        ({"energy": torch.zeros(5).double()}, "energy must have the dtype of x, Float, got Double"),
        ({"grad": torch.zeros(5, 2)}, "grad must have the shape of x"),
        ({"acceptance": torch.zeros(5)}, r"acceptance must be contiguous, of shape \(2, B\)"),
        ({"e_y": None}, "e_y and grad_y must be given together, got grad_y alone"),
        ({"e_y": None, "grad_y": None}, "next_step is after a decision: it needs e_y and grad_y"),
        ({"step_size": -0.1}, "step_size must be finite and >= 0, got -0.1"),
        ({"noise_std": 0.0}, "noise_std must be finite and > 0, got 0"),
        ({"next_step": (0.1, math.nan)}, "next_noise_std must be finite and > 0, got nan"),
        ({"next_step": (torch.ones(2), 1.0)}, r"next_step_size must hold 1 or B = 5 values"),
        ({"log_factor": torch.zeros(3)}, "log_factor must have one value for each sample"),
        ({"lo": 1.0, "hi": 0.5}, "lo must be <= hi, got 1 and 0.5 for element 0"),
        ({"lo": torch.zeros(2)}, r"event's shape \(3,\), or of that of x, \(5, 3\), got \(2,\)"),
        ({"hi": torch.zeros(3).double()}, "hi must have the dtype of x, Float, got Double"),
        ({"rng": torch.zeros(3).long()}, "rng must be an int64 tensor of 4 values"),
        ({"t": 2**32 - STEP - 1}, "t is 4294967284, for 2 steps"),
        ({"sample_ids": torch.arange(4)}, r"sample_ids must be a contiguous int64 tensor \(5,\)"),
    ],
)
def test_wrong_arguments(change, match, device):
    x, e, grad, sums = chains(5, 3)
    arguments = {"x": x, "energy": e, "grad": grad, "acceptance": sums, "y": x.clone()}
    arguments |= {"e_y": e.clone(), "grad_y": grad.clone(), "step_size": 0.1, "noise_std": 0.4}
    arguments |= {"next_step": (0.1, 0.4), "rng": state(), **change}
    arguments = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()
    }
    with pytest.raises(RuntimeError, match=match):
        metropolis_step_(**arguments)


def test_y_has_memory_of_its_own(device):
    x, e, grad, sums = chains(5, 3, device=device)
    with pytest.raises(RuntimeError, match="y must have memory of its own"):
        metropolis_step_(x, e, grad, sums, x, None, None, 0.1, 0.4, state(device))


def test_opcheck_and_compile():
    (x, e, grad, sums, y, e_y, grad_y), steps, _ = everything(5, 3, torch.float32, "plain")
    op, lo = library.op.metropolis_step_.default, torch.full((3,), -1.0)
    now, after = (0.1, 0.4, None, None), (0.1, 0.4, steps, None)
    for first, more in (((e.clone(), grad.clone()), torch.ones(5)), ((None, None), None)):
        torch.library.opcheck(
            op, (x, e, grad, sums, y, *first, *now, True, *after, state(), 0, None, lo, -lo, more)
        )

    def f(x, e, grad, sums, y, rng):
        metropolis_step_(x, e, grad, sums, y, None, None, 0.1, 0.4, rng)
        return y + 1

    wanted = f(x, e, grad, sums, y.clone(), state())
    assert torch.equal(torch.compile(f, fullgraph=True)(x, e, grad, sums, y, state()), wanted)
