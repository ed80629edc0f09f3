"""The noise stream: known answers, the same bits on every path, and the right law."""

import hashlib
import math

import pytest
import torch
from conftest import HAS_GPU, HAS_SIMT, SIMD_LEVELS

from fastebm import _C, ChainRNG, ops
from fastebm.ops import library, reference
from fastebm.rng import INIT

# tests/kat_vectors of Random123 (philox4x32, 10 rounds): counter, key, words
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SHAPES = [(1, 1), (9, 1), (17, 2), (5, 3), (6, 4), (11, 5), (3, 31), (4, 32), (2, 33), (3, 36)]
SHAPES += [(300, 1), (301, 2), (299, 3), (2, 100), (1, 257), (2, 3, 5, 7), (3, 1024)]
SHAPES += [(40, 20), (30, 62), (2, 16_380), (2, 16_390)]  # around kShortSample blocks


def noise(shape, rng=None, device="cpu", **options):
    rng = (rng or ChainRNG(2026)).state(device)
    return ops.langevin_step_(torch.zeros(shape, device=device), None, 0.0, 1.0, rng, **options)


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    assert _C.philox4x32(*counter, *key) == expected
    assert tuple(reference.philox4x32(torch.tensor(counter), key).tolist()) == expected


@pytest.mark.parametrize("rng", [ChainRNG(5), ChainRNG(2**64 - 1, 2**32 - 1, 2**40 + 3)])
def test_noise_is_box_muller_of_philox(device, rng):
    n_rows, dim = 40, 1000
    got = noise((n_rows, dim), rng, device, tag=0x81).double().cpu().reshape(-1, 2)
    ids = torch.arange(n_rows) + rng.first_sample(0)
    exact = reference.normals(rng.seed, rng.t, ids, dim, tag=0x81).reshape(-1, 2)
    # u is rounded to 24 bits (6e-8 near 1, twice that in -2 log u), the polynomial is good to 7e-8
    # and each of a few roundings to 2^-24 of r^2; the angle is good to 3e-8 plus roundings.
    r2, exact_r2 = got.square().sum(1), exact.square().sum(1)
    assert ((r2 - exact_r2).abs() <= 2.5e-7 + 2**-21 * exact_r2).all()
    unit, exact_unit = got / r2.sqrt()[:, None], exact / exact_r2.sqrt()[:, None]
    assert (unit - exact_unit).abs().max() < 5e-7


@pytest.mark.parametrize("rng", [ChainRNG(2026), ChainRNG(5, 2**32 - 1, 2**32 - 3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_on_every_cpu_path(shape, rng, set_simd):
    set_simd("scalar")
    scalar = noise(shape, rng)
    for level in SIMD_LEVELS:
        set_simd(level)
        assert torch.equal(noise(shape, rng), scalar), level


@pytest.mark.parametrize("shape", [(13, 40_001), (40_000, 2), (40_000, 7), (9000, 60)])
def test_same_bits_for_any_number_of_threads(shape, set_simd):
    """Many grains, which end inside samples."""
    set_simd("scalar")
    scalar = noise(shape)
    threads = torch.get_num_threads()
    try:
        for level in SIMD_LEVELS:
            set_simd(level)
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                assert torch.equal(noise(shape), scalar), (level, n)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.skipif(not HAS_SIMT, reason="built without FASTEBM_SIMT=ON")
def test_same_bits_from_the_cuda_kernel(shape, monkeypatch):
    cpu = noise(shape)
    monkeypatch.setattr(library, "op", torch.ops.fastebm_simt)
    assert torch.equal(noise(shape), cpu)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
@pytest.mark.parametrize("shape", [*SHAPES, (1000, 4096)])
def test_same_bits_on_the_gpu(shape):
    assert torch.equal(noise(shape, device="cuda").cpu(), noise(shape))


def test_any_batch_split_gives_the_same_noise(device):
    whole = noise((12, 7), ChainRNG(3, 4, 100), device)
    for cuts in ([0, 12], [0, 1, 12], [0, 5, 6, 12], list(range(13))):
        parts = [
            noise((b - a, 7), ChainRNG(3, 4, 100 + a), device)
            for a, b in zip(cuts, cuts[1:], strict=False)
        ]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("dim", [1, 2, 3, 10])
def test_sample_ids_name_the_samples(device, dim):
    ids = torch.tensor([9, 0, 2**33 + 1, 9] + [7] * 40, device=device)
    got = noise((44, dim), ChainRNG(3), device, sample_ids=ids)
    for row, i in enumerate(ids.tolist()):
        assert torch.equal(got[row], noise((1, dim), ChainRNG(3, 0, i), device)[0])


def test_shape_of_a_sample_does_not_matter(device):
    assert torch.equal(noise((3, 2, 5, 4), device=device).flatten(1), noise((3, 40), device=device))


def test_step_counter_is_state_plus_t(device):
    assert torch.equal(
        noise((3, 9), ChainRNG(1, 40), device, t=2), noise((3, 9), ChainRNG(1, 42), device)
    )
    last = noise((3, 9), ChainRNG(1, 2**32 - 1), device)
    assert torch.equal(noise((3, 9), ChainRNG(1, 1), device, t=2**32 - 2), last)


def test_seed_step_sample_and_tag_all_matter(device):
    base = noise((2, 64), ChainRNG(1), device)
    others = [
        noise((2, 64), ChainRNG(2), device),
        noise((2, 64), ChainRNG(1 + 2**32), device),
        noise((2, 64), ChainRNG(1, 1), device),
        noise((2, 64), ChainRNG(1, 0, 2**32), device),
        noise((2, 64), ChainRNG(1), device, tag=INIT),
    ]
    for other in others:
        assert not (other == base).any()
    assert not (base[0] == base[1]).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_gets_the_same_noise(device, dtype):
    rng = ChainRNG(8).state(device)
    x = torch.zeros(5, 37, dtype=dtype, device=device)
    expected = noise((5, 37), ChainRNG(8), device).to(dtype)
    assert torch.equal(ops.langevin_step_(x, None, 0.0, 1.0, rng), expected)


GOLDEN = {
    (2026, 0, 0, (4, 1000)): "647a1443005f24791ab97a05c96afff270c8e1785697dfaef592cd38f3f2dee6",
    (
        2**63 + 11,
        7,
        2**34,
        (3, 33),
    ): "bd13da745ce4a21cd3df5a9e0c4c94a204af0f6f6ae40c2c5a68320ad4ff2a39",
}


@pytest.mark.parametrize("stream", GOLDEN)
def test_golden_hashes(stream):
    """A change here is a change of every seeded run in the world."""
    seed, t, offset, shape = stream
    values = noise(shape, ChainRNG(seed, t, offset))
    assert hashlib.sha256(values.numpy().tobytes()).hexdigest() == GOLDEN[stream]


def check_law(n_rows, dim):
    """Moments, a chi-square over 1024 equal cells, and correlations that a counter could leave."""
    x = noise((n_rows, dim)).double()
    n = x.numel()
    mean_of = {1: 0, 2: 1, 3: 0, 4: 3, 6: 15}
    for power, mean in mean_of.items():
        variance = {1: 1, 2: 2, 3: 15, 4: 96, 6: 10170}[power]
        z = (x.pow(power).mean().item() - mean) / math.sqrt(variance / n)
        assert abs(z) < 5, f"moment {power}: z = {z:.2f}"
    cells = torch.special.ndtr(x).mul_(1024).floor_().clamp_(0, 1023)
    counts = torch.histc(cells, 1024, 0, 1024)
    chi2 = ((counts - n / 1024) ** 2 / (n / 1024)).sum().item()
    assert abs(chi2 - 1023) < 5 * math.sqrt(2 * 1023), f"chi-square {chi2:.0f} for 1023"
    for name, a, b in [
        ("neighbours", x[:, :-1], x[:, 1:]),
        ("blocks", x[:, :-4], x[:, 4:]),
        ("samples", x[:-1], x[1:]),
        ("squares", x[:, :-1].square() - 1, x[:, 1:].square() - 1),
        ("radius and sign", x[:, 0::2].square() - 1, x[:, 1::2]),
    ]:
        product = a * b
        z = (product.sum() / product.square().sum().sqrt()).item()
        assert abs(z) < 5, f"{name}: z = {z:.2f}"
    return x


def test_law_of_four_million():
    check_law(1000, 4000)


@pytest.mark.slow
def test_law_of_a_hundred_million():
    x = torch.cat([noise((1000, 10_000), ChainRNG(77, part)) for part in range(10)])
    n = x.numel()
    assert n == 100_000_000
    # Expected maximum of 1e8 normals is 5.6; one above 6.7 cannot come from 32 bits.
    assert 5.2 < x.abs().max().item() < 6.7
    totals = torch.zeros(5, dtype=torch.float64)
    counts = torch.zeros(1024, dtype=torch.float64)
    lags = torch.zeros(2, dtype=torch.float64)
    for rows in x.split(500):
        v = rows.double()
        totals += torch.stack([v.pow(p).sum() for p in (1, 2, 3, 4, 6)])
        counts += torch.histc(torch.special.ndtr(v) * 1024, 1024, 0, 1024)
        lags += torch.stack([(v[:, :-1] * v[:, 1:]).sum(), (v[:, :-4] * v[:, 4:]).sum()])
    expected = torch.tensor([0, 1, 0, 3, 15], dtype=torch.float64)
    spread = torch.tensor([1, 2, 15, 96, 10170], dtype=torch.float64).div(n).sqrt()
    assert ((totals / n - expected) / spread).abs().max() < 5
    chi2 = ((counts - n / 1024) ** 2 / (n / 1024)).sum().item()
    assert abs(chi2 - 1023) < 5 * math.sqrt(2 * 1023)
    assert (lags / math.sqrt(n)).abs().max() < 5
