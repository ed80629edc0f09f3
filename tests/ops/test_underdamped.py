"""The underdamped step against plain torch: values, bits, box, laws, errors."""

import math

import pytest
import torch
from conftest import SIMD_LEVELS

from fastebm import ChainRNG, ops
from fastebm.ops import library, reference
from fastebm.ops.underdamped import underdamped_step_
from fastebm.rng import VELOCITY

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INF = math.inf
# Short samples, several of them more than a run; ragged ones; vectors and blocks, full and not.
SHAPES = [(1, 1), (300, 1), (201, 2), (9, 3), (70, 5), (33, 8), (5, 132), (3, 1030)]
COEFFICIENTS = {"kick": 0.3, "drift": 0.2, "decay": 0.7, "noise_std": 0.4}
BOXES = ["none", "numbers", "one side", "sample", "batch", "mixed"]


def rng(device="cpu", seed=11, t=0):
    return ChainRNG(seed, t).state(device)


def compute(dtype):
    return torch.promote_types(dtype, torch.float32)


def sample(shape, dtype, n=3):
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(n)]


def box_of(kind, x):
    """Faces of which one in four elements is outside, of x (B, ...)."""
    faces = -0.7 - torch.rand(x.shape, dtype=torch.float64), torch.rand(x.shape).double() + 0.6
    lo, hi = (face.to(compute(x.dtype)) for face in faces)
    options = {"none": {}, "numbers": {"lo": -0.8, "hi": 0.9}, "one side": {"hi": 0.5}}
    options |= {"sample": {"lo": lo[0], "hi": hi[0]}, "batch": {"lo": lo, "hi": hi}}
    return (options | {"mixed": {"lo": lo[0], "hi": hi}})[kind]


def coefficients(per_sample, n, dtype):
    """Of which every other one is a tensor."""
    if not per_sample:
        return COEFFICIENTS
    spread = torch.linspace(0.5, 1.5, n, dtype=compute(dtype))
    return {
        name: value * spread if (i % 2 or per_sample == "all") else value
        for i, (name, value) in enumerate(COEFFICIENTS.items())
    }


def to(device, values):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in values.items()}


def stepped(device, x, v, grad, factors, box, **options):
    x, v = x.to(device, copy=True), v.to(device, copy=True)
    factors, box = to(device, factors), to(device, box)
    underdamped_step_(x, v, grad.to(device), **factors, rng=rng(device), **box, **options)
    return x.cpu(), v.cpu()


@pytest.mark.parametrize("shape", [(1, 1), (7,), (5, 2), (3, 4), (2, 3, 4, 5), (4, 33)])
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(device, dtype, box, shape):
    x, v, grad = sample(shape, dtype)
    box = box_of(box, x)
    noise = torch.zeros(shape, device=device)
    noise = ops.langevin_step_(noise, None, 0.0, 1.0, rng(device)).cpu().double()
    for per_sample in (False, True, "all"):
        factors = coefficients(per_sample, shape[0], dtype)
        exact = [
            {k: t.double() if isinstance(t, torch.Tensor) else t for k, t in of.items()}
            for of in (factors, box)
        ]
        state = (t.double() for t in (x, v, grad))
        wanted = reference.underdamped_step(*state, **exact[0], noise=noise, **exact[1])
        got = stepped(device, x, v, grad, factors, box)
        size = 2 + x.double().abs() + v.double().abs() + grad.double().abs() + noise.abs()
        unit = 2.0**-50 if dtype == torch.float64 else 2.0**-21
        unit += {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}.get(dtype, 0)
        for a, b in zip(got, wanted, strict=True):
            assert a.dtype == dtype and ((a.double() - b).abs() <= unit * size).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_on_every_path(device, dtype, shape, set_simd):
    x, v, grad = sample(shape, dtype)
    ids = torch.randint(2**56, shape[:1])
    for box in BOXES:
        box = box_of(box, x)
        for per_sample, own, sigma in ((False, None, None), (True, ids, None), (False, None, 0.0)):
            factors = coefficients(per_sample, shape[0], dtype)
            factors = factors if sigma is None else {**factors, "noise_std": sigma}
            set_simd("scalar")
            op, library.op = library.op, torch.ops.fastebm
            wanted = stepped("cpu", x, v, grad, factors, box, sample_ids=own)
            library.op = op
            own = own if own is None else own.to(device)
            for level in SIMD_LEVELS if device == "cpu" else SIMD_LEVELS[:1]:
                set_simd(level)
                got = stepped(device, x, v, grad, factors, box, sample_ids=own)
                assert all(map(torch.equal, got, wanted)), (level, per_sample)


def test_the_noise_is_that_of_langevin_steps(device):
    x, v = torch.randn(5, 7, device=device), torch.randn(5, 7, device=device)
    n = ops.langevin_step_(torch.zeros_like(x), None, 0.0, 1.0, rng(device), t=3)
    before = x.clone()
    underdamped_step_(x, v, torch.randn_like(x), 0.5, 0.0, 0.0, 1.0, rng(device), t=3)
    assert torch.equal(v, n) and torch.equal(x, before)


def test_a_sample_does_not_depend_on_those_beside_it(device):
    x, v, grad = sample((6, 5), torch.float32)
    whole = stepped(device, x, v, grad, COEFFICIENTS, {"lo": -0.5})
    ids = torch.tensor([4], device=device)
    state = (t[4:5] for t in (x, v, grad))
    alone = stepped(device, *state, COEFFICIENTS, {"lo": -0.5}, sample_ids=ids)
    assert torch.equal(alone[0][0], whole[0][4]) and torch.equal(alone[1][0], whole[1][4])


def test_a_ball_in_a_box(device):
    """Without forces and friction the path is a triangle wave, and the speed stays."""
    start, speed = torch.rand(50, 3).double(), torch.randn(50, 3).double() / 10
    x, v, zero = (t.to(device, copy=True) for t in (start, speed, 0 * start))
    for k in range(1, 31):
        underdamped_step_(x, v, zero, 1.0, 0.5, 1.0, 0.0, rng(device), lo=0.0, hi=1.0)
        phase = (start + k * speed) % 2
        torch.testing.assert_close(x.cpu(), torch.minimum(phase, 2 - phase))
        torch.testing.assert_close(v.cpu(), torch.where(phase < 1, speed, -speed))


def test_what_is_outside_after_a_reflection_is_clamped(device):
    x, v = torch.zeros(1, 3), torch.tensor([[-50.0, 7.0, 0.5]])
    factors = {"kick": 0.0, "drift": 1.0, "decay": 0.0, "noise_std": 0.0}
    x, v = stepped(device, x, v, torch.zeros(1, 3), factors, {"lo": -1.0, "hi": 2.0})
    assert torch.equal(x, torch.tensor([[2.0, -1.0, 0.5]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [2, 6, 64])
def test_nan_stays_and_its_neighbours_do_not_change(device, dtype, dim, set_simd):
    x, v, grad = sample((6, dim), dtype)
    clean = stepped(device, x, v, grad, COEFFICIENTS, {"lo": -1.0, "hi": 1.0})
    for i, of in enumerate((x, v, grad)):
        of[i, -1] = math.nan
    for level in SIMD_LEVELS:
        set_simd(level)
        got = stepped(device, x, v, grad, COEFFICIENTS, {"lo": -1.0, "hi": 1.0})
        assert got[0][:3, -1].isnan().all() and got[1][1:3, -1].isnan().all()
        for a, b in zip(got, clean, strict=True):
            a, b = a.clone(), b.clone()
            a[:3, -1] = b[:3, -1] = 0
            assert torch.equal(a, b)


@pytest.mark.parametrize("bad", [-0.1, INF, math.nan])
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_a_bad_value_in_a_tensor_makes_its_sample_nan(device, name, bad):
    x, v, grad = sample((3, 5), torch.float32)
    factors = COEFFICIENTS | {name: torch.tensor([0.1, bad, 0.1])}
    x, _ = stepped(device, x, v, grad, factors, {})
    assert x[1].isnan().all() and x[[0, 2]].isfinite().all()


@pytest.mark.parametrize("step", [0.5, 1.5])
def test_positions_have_the_exact_law_on_a_harmonic_energy(device, step):
    """BAOAB on E = x^2 / 2: the variance of x is T at any stable step (Leimkuhler and Matthews
    2013), which is no other order's."""
    n, temperature, friction = 200_000 if library.op is torch.ops.fastebm else 2000, 0.7, 1.0
    decay = math.exp(-friction * step)
    sigma = math.sqrt((1 - decay**2) * temperature)
    x = torch.zeros(n, 1, device=device)
    v = ops.langevin_step_(
        torch.zeros_like(x), None, 0.0, temperature**0.5, rng(device), tag=VELOCITY
    )
    assert abs(v.square().mean() / temperature - 1) < 4 * math.sqrt(2 / n)
    for t in range(40):
        kick = step / 2 if t == 0 else step
        underdamped_step_(x, v, x, kick, step / 2, decay, sigma, rng(device), t=t)
    assert abs(x.mean()) < 4 * math.sqrt(temperature / n)
    assert abs(x.square().mean() / temperature - 1) < 4 * math.sqrt(2 / n)


def test_strides(device):
    for x, v, grad in [
        [t.t() for t in sample((6, 8), torch.float32)],
        [t[:, ::2] for t in sample((4, 14), torch.float32)],
    ]:
        wanted = stepped(device, *(t.contiguous() for t in (x, v, grad)), COEFFICIENTS, {})
        x, v, grad = (t.to(device) for t in (x, v, grad))
        underdamped_step_(x, v, grad, **COEFFICIENTS, rng=rng(device))
        assert torch.equal(x.cpu(), wanted[0]) and torch.equal(v.cpu(), wanted[1])
    with pytest.raises(RuntimeError, match="elements of v must not share memory"):
        x = torch.zeros(3, 5, device=device)
        underdamped_step_(x, x[:1].expand(3, 5), x, **COEFFICIENTS, rng=rng(device))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_empty(device, shape):
    x = torch.zeros(shape, device=device)
    underdamped_step_(x, x.clone(), x.clone(), **COEFFICIENTS, rng=rng(device), lo=0.0)


Z = torch.zeros(2, 3)
ERRORS = [
    (dict(x=torch.zeros(())), "batch dimension"),
    (dict(x=Z.long()), "x must be float32.*Long"),
    (dict(v=torch.zeros(3, 2)), "v must have the shape of x"),
    (dict(v=Z.double()), "v must have the dtype of x, Float, got Double"),
    (dict(grad=torch.zeros(2)), "grad must have the shape of x"),
    (dict(kick=-0.1), "kick must be finite and >= 0, got -0.1"),
    (dict(drift=INF), "drift must be finite and >= 0, got inf"),
    (dict(decay=math.nan), "decay must be finite and >= 0, got nan"),
    (dict(noise_std=-1.0), "noise_std must be finite and >= 0, got -1"),
    (dict(decay=torch.ones(3)), r"decay must hold 1 or B = 2 values, got shape \(3,\)"),
    (dict(kick=torch.ones(2, requires_grad=True)), "kick must not require a gradient"),
    (dict(lo=1.0, hi=0.0), "lo must be <= hi, got 1 and 0"),
    (dict(lo=math.nan), "lo must be <= hi, got -?nan and inf"),
    (dict(lo=torch.ones(3), hi=0.0), "lo must be <= hi, got 1 and 0 for element 0"),
    (dict(lo=torch.ones(2)), r"lo must be a number or of the shape \(3,\) of a sample or \(2, 3\)"),
    (dict(rng=torch.zeros(3).long()), "rng must be an int64 tensor of 4"),
    (dict(t=-1), r"t must be in 0..2\^32 - 1, got -1"),
    (dict(sample_ids=torch.zeros(3).long()), "sample_ids must be a contiguous int64"),
]


@pytest.mark.parametrize("change, message", ERRORS, ids=[str(m) for _, m in ERRORS])
def test_errors_name_the_argument_and_change_nothing(change, message):
    x, v = torch.arange(6.0).view(2, 3), torch.ones(2, 3)
    args = dict(x=x, v=v, grad=Z, **COEFFICIENTS, rng=rng()) | change
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        underdamped_step_(**args)
    assert torch.equal(x, torch.arange(6.0).view(2, 3)) and torch.equal(v, torch.ones(2, 3))


def test_opcheck_and_compile():
    x, v, grad = sample((5, 3), torch.float32)
    op, four, face = library.op.underdamped_step_.default, (0.1,) * 4, torch.ones(3)
    torch.library.opcheck(
        op, (x, v, grad, *four, *(None,) * 4, rng(), 0, None, -1.0, None, None, None)
    )
    args = (*(torch.ones(5),) * 4, rng(), 0, torch.arange(5), None, None, -face, face)
    torch.library.opcheck(op, (x, v, grad, *four, *args))

    stream = rng()

    def f(x, v, grad):
        x, v = x.clone(), v.clone()
        underdamped_step_(x, v, grad, **COEFFICIENTS, rng=stream, lo=-face, hi=1.0)
        return x + 1, v

    compiled = torch.compile(f, fullgraph=True)(x, v, grad)
    assert all(map(torch.equal, compiled, f(x, v, grad)))
