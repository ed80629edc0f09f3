"""The fused Langevin step against plain torch: values, gradients, bounds, errors."""

import math

import pytest
import torch
from conftest import SIMD_LEVELS

from fastebm import ChainRNG, ops
from fastebm.ops import library, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INF = math.inf

OPTIONS = {
    "plain": {},
    "clamp": {"clamp": (-0.5, 0.7)},
    "one bound": {"clamp": (None, 0.1)},
    "clip": {"grad_clip": 0.8},
    "norm clip": {"grad_norm_clip": 2.5},
    "displacement": {"displacement_clip": 0.2},
    "all": {
        "clamp": (-1.0, 1.0),
        "grad_clip": 0.8,
        "grad_norm_clip": 3.0,
        "displacement_clip": 0.3,
    },
}
# Blocks of four of which some are the second of a CUDA thread, and samples that share a group of
# threads by 256, 16 and 4, or have one alone.
SHAPES = [(70, 1), (150, 2), (9, 3), (5, 40), (40, 6), (5, 132), (3, 1028), (3, 1030)]


def sample(shape, dtype=torch.float32, device="cpu", requires_grad=False):
    x = torch.randn(shape, dtype=torch.float64).to(device, dtype)
    g = torch.randn(shape, dtype=torch.float64).to(device, dtype)
    return x.requires_grad_(requires_grad), g.requires_grad_(requires_grad)


def rng(device="cpu", seed=11, t=0):
    return ChainRNG(seed, t).state(device)


def exact(x, g, step, sigma, device, **options):
    """The float64 reference on the noise that the operator uses."""
    noise = ops.langevin_step_(torch.zeros(x.shape, device=device), None, 0.0, 1.0, rng(device))
    return reference.langevin_step(x.double(), g.double(), step, sigma, noise.double(), **options)


def rounding(x, g, step, sigma, dtype):
    """A few units in the last place of every term, and of the 16-bit result."""
    size = x.double().abs() + step * g.double().abs() + 6 * sigma + 1
    compute = 2.0**-50 if dtype == torch.float64 else 2.0**-22
    store = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}.get(dtype, 0)
    return size * (compute + store)


@pytest.mark.parametrize("shape", [(1, 1), (7,), (5, 2), (3, 4), (2, 3, 4, 5), (4, 33), (2, 300)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(device, dtype, options, shape):
    x, g = sample(shape, dtype, device)
    expected = exact(x, g, 0.3, 0.2, device, **options)
    out = ops.langevin_step(x, g, 0.3, 0.2, rng(device), **options)
    assert out.dtype == dtype
    assert ((out.double() - expected).abs() <= rounding(x, g, 0.3, 0.2, dtype)).all()
    if "grad_norm_clip" not in options:  # otherwise torch sums the norm, in an order of its own
        assert torch.equal(ops.langevin_step_(x.clone(), g, 0.3, 0.2, rng(device), **options), out)
    in_place = ops.langevin_step_(x, g, 0.3, 0.2, rng(device), **options)
    assert in_place is x
    assert ((x.double() - expected).abs() <= rounding(x, g, 0.3, 0.2, dtype) * 2).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_step_and_noise_per_sample(device, dtype):
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    step = torch.tensor([0.0, 0.1, 0.7], dtype=compute, device=device)
    sigma = torch.tensor([0.5, 0.0, 0.3], dtype=compute, device=device)
    for shape in [(3, 2), (3, 6), (3, 4, 16)]:
        x, g = sample(shape, dtype, device)
        expected = exact(x, g, step.double(), sigma.double(), device)
        out = ops.langevin_step_(x.clone(), g, step, sigma, rng(device))
        assert ((out.double() - expected).abs() <= rounding(x, g, 0.7, 0.5, dtype)).all()
        for row in range(3):
            alone = ops.langevin_step_(
                *(x[row : row + 1].clone(), g[row : row + 1], step[row].item(), sigma[row].item()),
                rng(device),
                sample_ids=torch.tensor([row], device=device),
            )
            assert torch.equal(alone[0], out[row])


def test_a_tensor_with_one_value_serves_all_samples(device):
    x, g = sample((3, 5), device=device)
    for one in (torch.tensor(0.25, device=device), torch.tensor([0.25], device=device)):
        assert torch.equal(
            ops.langevin_step(x, g, one, one, rng(device)),
            ops.langevin_step(x, g, 0.25, 0.25, rng(device)),
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("per_sample", [False, True])
def test_same_bits_as_the_scalar_path(device, dtype, shape, options, per_sample, set_simd):
    x, g = sample(shape, dtype)
    step = torch.linspace(0.1, 0.5, shape[0]) if per_sample else 0.3
    set_simd("scalar")
    scalar, op = x.clone(), library.op
    library.op = torch.ops.fastebm
    ops.langevin_step_(scalar, g, step, 0.2, rng(), **options)
    library.op = op
    for level in SIMD_LEVELS:
        set_simd(level)
        on = step.to(device) if per_sample else step
        other = ops.langevin_step_(
            x.to(device, copy=True), g.to(device), on, 0.2, rng(device), **options
        )
        assert torch.equal(other.cpu(), scalar), level


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("displacement", [None, 0.2])
def test_masks_are_the_same_on_every_path(device, shape, displacement, set_simd):
    x, g = sample(shape)
    bounds = (0.8, displacement, -0.5, 0.5)
    args = (0.3, 0.2, None, None, rng(), 0, None, *bounds, 0x80)
    set_simd("scalar")
    out, mask = torch.ops.fastebm.langevin_step(x, g, *args)
    assert mask.count_nonzero() > 0
    args = (0.3, 0.2, None, None, rng(device), 0, None, *bounds, 0x80)
    for level in SIMD_LEVELS:
        set_simd(level)
        other, bits = library.op.langevin_step(x.to(device), g.to(device), *args)
        assert torch.equal(other.cpu(), out) and torch.equal(bits.cpu(), mask), level


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sixteen_bit_rounding_and_specials(device, dtype, set_simd):
    """Every 16-bit pattern survives a step of zero; sums round to nearest even as in torch."""
    if dtype in (torch.bfloat16, torch.float16):
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    else:
        x = torch.cat([torch.randn(65_531), torch.tensor([0.0, -0.0, INF, -INF, math.nan])])
    x = x.to(device, dtype).reshape(256, 256)
    zero = torch.zeros_like(x)
    for level in SIMD_LEVELS:
        set_simd(level)
        kept = ops.langevin_step_(x.clone(), zero, 0.5, 0.0, rng(device))
        assert torch.equal(kept.nan_to_num(7.0), x.nan_to_num(7.0))
        g = torch.randn_like(x)
        moved = ops.langevin_step_(x.clone(), g, 1.0, 0.0, rng(device))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        expected = (x.to(wide) - g.to(wide)).to(dtype)
        assert torch.equal(moved.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 6, 64])
def test_nan_and_infinity_propagate(device, dtype, dim):
    x, g = sample((6, dim), dtype, device)
    g[1, -1], g[2, 0], x[3, 0] = math.nan, INF, math.nan
    options = {"clamp": (-1.0, 1.0), "grad_clip": 0.5}
    for out in (
        ops.langevin_step(x, g, 0.1, 0.1, rng(device), **options),
        ops.langevin_step_(x.clone(), g, 0.1, 0.1, rng(device), **options),
    ):
        bad = out.isnan()
        assert bad[1, -1] and bad[3, 0] and bad.sum() == 2  # an infinite gradient is clipped
    no_clip = ops.langevin_step_(x.clone(), g, 0.1, 0.1, rng(device))
    assert no_clip[2, 0] == -INF


def bits(t):
    """As integers; any NaN as the same one, since CUDA's arithmetic gives one NaN only."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    return torch.where(t.isnan(), math.nan, t).view(integers)


def bounded(v, lo, hi):
    """Comparisons are false for NaN, and for -0 at +0."""
    lo, hi = (torch.tensor(bound, dtype=v.dtype) for bound in (lo, hi))
    return torch.where(v < lo, lo, torch.where(v > hi, hi, v))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [7, 8])
@pytest.mark.parametrize("clamp", [(0.0, 1.0), (-0.0, INF), (-1.0, 0.0), (-1.0, -0.0), (0.0, 0.0)])
def test_bits_at_the_bounds(device, dtype, dim, clamp, set_simd):
    """Every pair of special values, under noise that leaves zeros of both signs."""
    wide = torch.promote_types(dtype, torch.float32)
    values = torch.tensor([0.0, 0.5, 1.0, 3.0, INF, torch.finfo(dtype).tiny], dtype=wide)
    values = torch.cat([values, -values, torch.tensor([math.nan], dtype=wide)])
    pairs = torch.cartesian_prod(values, values).repeat(dim, 1)
    x, g = pairs.T.reshape(2, -1, dim).to(dtype)
    faint = torch.finfo(wide).smallest_normal * torch.finfo(wide).eps  # the least there is

    def step(x, g, **options):
        args = (x.to(device, copy=True), g.to(device), 1.0, faint, rng(device))
        return ops.langevin_step_(*args, **options).cpu()

    for level in SIMD_LEVELS:
        set_simd(level)
        for clip in (0.5, 1e-60):  # the second one is 0 in float32
            free = step(x.to(wide), bounded(g.to(wide), -clip, clip))
            assert (free.signbit() & (free == 0)).any() and free.isnan().any()
            expected = bounded(free, *clamp).to(dtype)
            assert torch.equal(bits(step(x, g, clamp=clamp, grad_clip=clip)), bits(expected)), level
            assert torch.equal(bits(step(x, g, grad_clip=clip)), bits(free.to(dtype))), level


@pytest.mark.parametrize("bad", [-0.1, INF, math.nan])
def test_a_bad_value_in_a_tensor_makes_its_sample_nan(device, bad):
    x, g = sample((3, 5), device=device)
    values = torch.tensor([0.1, bad, 0.1], device=device)
    for step, sigma in ((values, 0.1), (0.1, values)):
        out = ops.langevin_step_(x.clone(), g, step, sigma, rng(device), clamp=(-1, 1))
        assert out[1].isnan().all() and out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_are_torch_clamps(device, dtype):
    """On the bounds too: torch passes the gradient where a value equals its bound."""
    x = torch.tensor([[0.0, 1.0, 0.5, -0.2, 1.3, 0.9]], dtype=dtype, device=device)
    g = torch.tensor([[0.0, 0.0, 2.0, 0.5, -0.5, -3.0]], dtype=dtype, device=device)
    x.requires_grad_(), g.requires_grad_()
    weights = torch.randn_like(x)
    out = ops.langevin_step(x, g, 0.1, 0.0, rng(device), clamp=(0, 1), grad_clip=2.0)
    mine = torch.autograd.grad((out * weights).sum(), (x, g))
    plain = (x - 0.1 * g.clamp(-2, 2)).clamp(0, 1)
    torchs = torch.autograd.grad((plain * weights).sum(), (x, g))
    for a, b in zip(mine, torchs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("shape", [(3, 2), (2, 5), (2, 9)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_gradcheck(device, options, shape, per_sample):
    x, g = sample(shape, torch.float64, device, requires_grad=True)
    step = torch.linspace(0.2, 0.4, shape[0], device=device).double() if per_sample else 0.3

    def f(x, g):
        return ops.langevin_step(x, g, step, 0.2, rng(device), **options)

    assert torch.autograd.gradcheck(f, (x, g))
    assert torch.autograd.gradgradcheck(f, (x, g))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_sixteen_bits(device, dtype):
    x, g = sample((4, 10), dtype, device, requires_grad=True)
    out = ops.langevin_step(x, g, 0.5, 0.1, rng(device), clamp=(-1, 1), grad_clip=1.0)
    gx, gg = torch.autograd.grad(out.sum(), (x, g))
    inside = exact(x, g, 0.5, 0.1, device, grad_clip=1.0).abs() <= 1
    assert torch.equal(gx, inside.to(dtype))
    assert torch.equal(gg, (-0.5 * (inside & (g.abs() <= 1))).to(dtype))


def test_third_derivative_through_the_step(device):
    """The step inside a longer graph: x' = x - s x^3, differentiated three times."""
    x = torch.tensor([[0.7, -0.4]], dtype=torch.float64, device=device, requires_grad=True)
    y = ops.langevin_step(x, x**3, 0.1, 0.0, rng(device)).sum()
    for expected in (1 - 0.3 * x**2, -0.6 * x, torch.full_like(x, -0.6)):
        (y,) = torch.autograd.grad(y, x, create_graph=True)
        torch.testing.assert_close(y, expected)
        y = y.sum()


def test_non_contiguous(device):
    for x, g in [
        [v.t() for v in sample((6, 8), device=device)],
        [v[:, ::2] for v in sample((4, 14), device=device)],
        [v.to(memory_format=torch.channels_last) for v in sample((2, 3, 4, 4), device=device)],
        [v[0].expand(3, 5) for v in sample((1, 5), device=device)],
    ]:
        expected = ops.langevin_step(x.contiguous(), g.contiguous(), 0.1, 0.2, rng(device))
        assert torch.equal(ops.langevin_step(x, g, 0.1, 0.2, rng(device)), expected)
        if x.stride(0) != 0:
            before = x.data_ptr()
            ops.langevin_step_(x, g, 0.1, 0.2, rng(device))
            assert torch.equal(x, expected) and x.data_ptr() == before
        else:
            with pytest.raises(RuntimeError, match="elements of x must not share memory"):
                ops.langevin_step_(x, g, 0.1, 0.2, rng(device))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (0, 3, 2)])
def test_empty(device, shape):
    x, g = sample(shape, device=device, requires_grad=True)
    out = ops.langevin_step(x, g, 0.1, 0.1, rng(device))
    assert out.shape == shape
    out.sum().backward()
    assert x.grad.shape == g.grad.shape == shape
    assert (
        ops.langevin_step_(torch.empty(shape, device=device), None, 0.1, 0.1, rng(device)).shape
        == shape
    )


X = torch.zeros(2, 3)
ERRORS = [
    (dict(x=torch.zeros(())), "batch dimension"),
    (dict(x=torch.zeros(2, 3, dtype=torch.int64)), "x must be float32.*Long"),
    (dict(grad=torch.zeros(3, 2)), "grad must have the shape of x"),
    (dict(grad=torch.zeros(2, 3).double()), "grad must have the dtype of x, Float, got Double"),
    (dict(grad=torch.zeros(2, 3, device="meta")), "grad and x are on different devices"),
    (dict(step_size=-0.1), "step_size must be finite and >= 0, got -0.1"),
    (dict(step_size=INF), "step_size must be finite and >= 0, got inf"),
    (dict(step_size=math.nan), "step_size must be finite and >= 0, got nan"),
    (dict(noise_std=-1.0), "noise_std must be finite and >= 0, got -1"),
    (dict(noise_std=math.nan), "noise_std must be finite"),
    (dict(step_size=torch.ones(3)), r"step_size must hold 1 or B = 2 values, got shape \(3,\)"),
    (dict(step_size=torch.ones(2, requires_grad=True)), "step_size must not require a gradient"),
    (dict(rng=torch.zeros(3, dtype=torch.int64)), "rng must be an int64 tensor of 4"),
    (dict(rng=torch.zeros(4)), "rng must be an int64 tensor of 4"),
    (dict(t=-1), r"t must be in 0..2\^32 - 1, got -1"),
    (dict(tag=0), "tag must be in 1..255, got 0"),
    (dict(sample_ids=torch.zeros(3, dtype=torch.int64)), "sample_ids must be a contiguous int64"),
    (dict(sample_ids=torch.zeros(2)), "sample_ids must be a contiguous int64"),
    (dict(grad_clip=0.0), "grad_clip must be > 0, got 0"),
    (dict(grad_clip=math.nan), "grad_clip must be > 0, got -?nan"),
    (dict(grad_norm_clip=-1.0), "grad_norm_clip must be > 0, got -1"),
    (dict(grad_norm_clip=math.nan), "grad_norm_clip must be > 0, got -?nan"),
    (dict(displacement_clip=0.0), "displacement_clip must be > 0, got 0"),
    (dict(displacement_clip=math.nan), "displacement_clip must be > 0, got -?nan"),
    (dict(clamp=(torch.zeros(2), None)), r"broadcast to the shape of x, \(2, 3\), got \(2,\)"),
    (dict(clamp=(torch.zeros(3, 2, 3), 1)), r"the shape of x, \(2, 3\), got \(3, 2, 3\)"),
    (dict(clamp=(1.0, 0.0)), r"clamp must be \(lo, hi\) with lo <= hi, got \(1, 0\)"),
    (dict(clamp=(math.nan, 0.0)), r"clamp must be \(lo, hi\) with lo <= hi, got \(-?nan, 0\)"),
    (dict(clamp=(0.0, math.nan)), r"clamp must be \(lo, hi\) with lo <= hi, got \(0, -?nan\)"),
]


@pytest.mark.parametrize("step", [ops.langevin_step, ops.langevin_step_], ids=["new", "in place"])
@pytest.mark.parametrize("change, message", ERRORS, ids=[str(m) for _, m in ERRORS])
def test_errors_name_the_argument_and_change_nothing(step, change, message):
    x = torch.arange(6.0).reshape(2, 3)
    args = dict(x=x, grad=torch.zeros(2, 3), step_size=0.1, noise_std=0.1, rng=rng()) | change
    if args["x"].shape != (2, 3):
        args["grad"] = torch.zeros_like(args["x"])
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        step(**args)
    assert torch.equal(x, torch.arange(6.0).reshape(2, 3))
