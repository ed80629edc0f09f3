"""Bernoulli(sigmoid) in one pass: its law, the same bits on every path, and its errors."""

import math

import pytest
import torch
from conftest import HAS_GPU, SIMD_LEVELS

from fastebm import ChainRNG
from fastebm.ops import bernoulli, library, reference
from fastebm.rng import HIDDEN, VISIBLE

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (9, 1), (40, 2), (17, 3), (5, 4), (11, 5), (3, 31), (4, 32), (2, 33), (6, 64)]
SHAPES += [(2, 100), (1, 257), (2, 3, 5, 7), (3, 500), (2, 16_390)]
INF = math.inf
# Of exp: 2e-7; of its argument, whose size is at most 24, 2^-24 twice; of u and of the comparison.
NEAR = 4e-6


def draw(logits, rng=None, device="cpu", **options):
    state = (rng or ChainRNG(2026)).state(device)
    return bernoulli.bernoulli_sigmoid(logits.to(device), state, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("beta", [1.0, 0.3, 0.0])
def test_values(device, dtype, beta):
    """u < sigmoid(beta logit), but where u is so near that rounding decides."""
    logits = (6 * torch.randn(200, 997, dtype=torch.float64)).to(dtype)
    rng = ChainRNG(2**64 - 5, 2**32 - 9, 2**40 + 3)
    got = draw(logits, rng, device, t=7, beta=beta)
    assert got.dtype == dtype and got.shape == logits.shape
    ids = torch.arange(200) + rng.first_sample(0)
    expected, distance = reference.bernoulli_sigmoid(logits, rng.seed, rng.t + 7, ids, beta)
    assert (distance[got.cpu().double() != expected] < NEAR).all()
    assert (distance < NEAR).sum() < 20  # so nearly all of them were compared


def test_frequencies():
    """Each within 5 standard deviations of the sigmoid's, and chi-square over all."""
    n = 200_000
    logits = torch.linspace(-14, 14, 113)
    ones = torch.zeros(113, dtype=torch.float64)
    for part in range(4):
        rng = ChainRNG(5, sample_offset=part * n // 4)
        ones += draw(logits.expand(n // 4, -1), rng, dtype=torch.uint8).sum(0, dtype=torch.int64)
    p = logits.double().sigmoid()
    z = (ones - n * p) / (n * p * (1 - p)).sqrt()
    many = n * p.minimum(1 - p) > 10
    assert z[many].abs().max() < 5
    chi2, dof = z[many].square().sum().item(), int(many.sum())
    assert dof > 70 and abs(chi2 - dof) < 5 * math.sqrt(2 * dof)
    rare = torch.where(p < 0.5, ones, n - ones)[~many]
    assert rare.max() < 35  # a count of mean at most 10: 35 comes once in 1e9


def test_rare_draws_have_the_right_frequency():
    """p = 1e-6, on both sides: no floor of the uniform number's bits."""
    logits = torch.full((1000, 20_000), math.log(1e-6))
    ones = draw(logits, dtype=torch.uint8).sum(dtype=torch.int64).item()
    zeros = (draw(-logits, dtype=torch.uint8) == 0).sum().item()
    for count in (ones, zeros):
        assert abs(count - 20) < 5 * math.sqrt(20)


def test_neighbours_are_independent():
    x = draw(torch.zeros(2000, 2000)) * 2 - 1
    n = x.numel()
    for a, b in [(x[:, :-1], x[:, 1:]), (x[:, :-4], x[:, 4:]), (x[:-1], x[1:])]:
        assert abs((a * b).sum().item()) < 5 * math.sqrt(n)
    other = draw(torch.zeros(2000, 2000), ChainRNG(2026, 1)) * 2 - 1
    assert abs((x * other).sum().item()) < 5 * math.sqrt(n)


def test_draws_do_not_fall_as_the_logit_rises(device):
    rise = torch.linspace(-9, 9, 50)
    draws = [draw(torch.full((30, 61), a), device=device) for a in rise.tolist()]
    assert (torch.stack(draws).diff(dim=0) >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [3, 64])
def test_extreme_logits(device, dtype, dim, set_simd):
    for level in SIMD_LEVELS:
        set_simd(level)
        for size in (24.0, 88.0, 1e4, INF):
            logits = torch.full((500, dim), size, dtype=dtype)
            assert (draw(logits, device=device) == 1).all()
            assert (draw(-logits, device=device) == 0).all()
    if dtype == torch.float64:
        assert (draw(torch.full((50, dim), 1e300, dtype=dtype), device=device) == 1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [3, 64])
def test_nan_is_seen(device, dtype, dim, set_simd):
    logits = torch.randn(40, dim).to(dtype)
    logits[7, 1] = logits[39, dim - 1] = math.nan
    for level in SIMD_LEVELS:
        set_simd(level)
        bad = logits.isnan()
        for sign in (1, -1):
            x = draw(sign * logits, device=device).cpu()
            assert torch.equal(x.isnan(), bad) and ((x == 0) | (x == 1) | bad).all()
            x = draw(sign * logits, device=device, dtype=torch.uint8).cpu()
            assert torch.equal(x == 255, bad) and ((x <= 1) | bad).all()
    assert draw(torch.full((2, 4), INF), device=device, beta=0.0).isnan().all()  # 0 * infinity


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_on_every_path(device, dtype, shape, set_simd):
    logits = (4 * torch.randn(shape)).to(dtype)
    ids = torch.randint(0, 2**40, shape[:1])
    rng = ChainRNG(5, 2**32 - 1, 2**32 - 3)
    for sample_ids in (None, ids):
        set_simd("scalar")
        op, library.op = library.op, torch.ops.fastebm
        plain = draw(logits, rng, sample_ids=sample_ids)
        library.op = op
        for level in SIMD_LEVELS:
            set_simd(level)
            on = None if sample_ids is None else ids.to(device)
            x = draw(logits, rng, device, sample_ids=on)
            assert torch.equal(x.cpu(), plain), level
            as_bytes = draw(logits, rng, device, sample_ids=on, dtype=torch.uint8)
            assert as_bytes.dtype == torch.uint8 and torch.equal(as_bytes.cpu(), plain.byte())
            in_place = logits.to(device, copy=True)
            state = rng.state(device)
            assert bernoulli.bernoulli_sigmoid_(in_place, state, sample_ids=on) is in_place
            assert torch.equal(in_place.cpu(), plain), level


@pytest.mark.parametrize("shape", [(13, 40_001), (30_000, 7), (9000, 60)])
def test_same_bits_for_any_number_of_threads(shape, set_simd):
    logits = torch.randn(shape)
    set_simd("scalar")
    plain = draw(logits)
    threads = torch.get_num_threads()
    try:
        for level in SIMD_LEVELS:
            set_simd(level)
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                assert torch.equal(draw(logits), plain), (level, n)
    finally:
        torch.set_num_threads(threads)


def test_any_batch_split_gives_the_same(device):
    logits = torch.randn(12, 7)
    whole = draw(logits, ChainRNG(3, 4, 100), device)
    for a, b in ((0, 5), (5, 6), (6, 12)):
        assert torch.equal(draw(logits[a:b], ChainRNG(3, 4, 100 + a), device), whole[a:b])
        ids = torch.arange(100 + a, 100 + b, device=device)
        assert torch.equal(draw(logits[a:b], ChainRNG(3), device, t=4, sample_ids=ids), whole[a:b])


def test_seed_step_sample_and_tag_all_matter(device):
    zeros = torch.zeros(2, 4000)
    base = draw(zeros, ChainRNG(1), device)
    for rng, options in [
        (ChainRNG(2), {}),
        (ChainRNG(1, 1), {}),
        (ChainRNG(1), {"t": 1}),
        (ChainRNG(1, 0, 2), {}),
        (ChainRNG(1), {"tag": VISIBLE}),
    ]:
        other = draw(zeros, rng, device, **options)
        assert abs((other == base).double().mean().item() - 0.5) < 5 * 0.5 / math.sqrt(8000)
    assert torch.equal(draw(zeros, ChainRNG(1), device, tag=HIDDEN), base)


def test_strides(device):
    logits = torch.randn(6, 5, 8, device=device)
    turned = logits.permute(0, 2, 1)
    expected = draw(turned.contiguous(), device=device)
    assert torch.equal(draw(turned, device=device), expected)
    bernoulli.bernoulli_sigmoid_(turned, ChainRNG(2026).state(device))
    assert torch.equal(logits.permute(0, 2, 1), expected)


def test_empty(device):
    for shape in ((0, 4), (3, 0)):
        assert draw(torch.zeros(shape), device=device).shape == shape


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, s: bernoulli.bernoulli_sigmoid(x.long(), s), "logits must be float32"),
        (lambda x, s: bernoulli.bernoulli_sigmoid(x[0, 0], s), "batch dimension"),
        (lambda x, s: bernoulli.bernoulli_sigmoid(x, s[:3]), "rng must be an int64 tensor of 4"),
        (lambda x, s: bernoulli.bernoulli_sigmoid(x, s, t=-1), "t must be in 0"),
        (lambda x, s: bernoulli.bernoulli_sigmoid(x, s, beta=-1.0), "beta must be finite and >= 0"),
        (lambda x, s: bernoulli.bernoulli_sigmoid(x, s, beta=math.nan), "beta must be finite"),
        (lambda x, s: bernoulli.bernoulli_sigmoid(x, s, tag=0), "tag must be in 1..255"),
        (lambda x, s: bernoulli.bernoulli_sigmoid(x, s, sample_ids=s), "sample_ids must be"),
        (
            lambda x, s: bernoulli.bernoulli_sigmoid(x, s, dtype=torch.int64),
            "dtype must be that of",
        ),
        (lambda x, s: bernoulli.bernoulli_sigmoid_(x[:1].expand(3, 5), s), "must not share memory"),
    ],
)
def test_errors(device, call, message):
    x = torch.zeros(3, 5, device=device)
    with pytest.raises(RuntimeError, match=message):
        call(x, ChainRNG(0).state(device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3,), (2, 5), (0, 4), (2, 3, 4)])
def test_opcheck(dtype, shape):
    x, state = torch.randn(shape).to(dtype), ChainRNG(1).state()
    for as_bytes in (False, True):
        args = (x, state, 3, None, 0.5, as_bytes, HIDDEN)
        torch.library.opcheck(torch.ops.fastebm.bernoulli_sigmoid.default, args)
    args = (x, state, 3, None, 0.5, HIDDEN)
    torch.library.opcheck(torch.ops.fastebm.bernoulli_sigmoid_.default, args)


def test_compile_fullgraph():
    state = ChainRNG(1).state()

    def f(x):
        return (
            bernoulli.bernoulli_sigmoid_(x @ x.T, state, t=2)
            + bernoulli.bernoulli_sigmoid(x, state)[:, :1]
        )

    x = torch.randn(8, 6)
    assert torch.equal(torch.compile(f, fullgraph=True)(x), f(x))


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
def test_same_bits_on_the_gpu():
    logits = 3 * torch.randn(1000, 4096)
    assert torch.equal(draw(logits, device="cuda").cpu(), draw(logits))
