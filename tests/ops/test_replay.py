"""The replay operator: gathering, dequantising and restarting on every path, and its errors. What
augmentation does is tested in test_augmentation.py."""

import math

import pytest
import torch
from conftest import HAS_GPU, SIMD_LEVELS

from fastebm import Augmentation, ChainRNG, ops
from fastebm.ops import reference
from fastebm.rng import REPLAY, TRANSITION

SHAPES = [(1,), (2,), (7,), (12,), (3, 5, 5), (1, 28, 28), (3, 32, 32), (258,)]
STORED = 30


def stored(shape, dtype, n=STORED):
    if dtype == torch.uint8:
        return torch.randint(0, 256, (n, *shape), dtype=dtype)
    return torch.randn(n, *shape).to(dtype)


def uniforms(seed, t, ids, dim):
    """The uniform numbers of 24 bits behind the elements."""
    words = reference.words(seed, t, ids, dim, REPLAY).flatten(1)[:, :dim]
    return (words >> 8).double() / 2**24


# What an augmentation may be, and the names of its numbers.
MOVES = [0.2, 1, 0.7, 1.4, 0.5, 0.8, 1.2, 0.8, 1.2, 0.8, 1.2, -0.1, 0.1, 0.8, 0.2, 3, 0.1, 2, 0.5]
MOVE_NAMES = ("scale " * 2 + "ratio " * 2 + "hflip_p " + "brightness " * 2).split()
MOVE_NAMES += ("contrast " * 2 + "saturation " * 2 + "hue " * 2).split()
MOVE_NAMES += ["jitter_p", "grayscale_p", "kernel_size", "sigma", "sigma", "blur_p"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_come_out_as_they_are(device, dtype):
    data = stored((3, 5), dtype).to(device)
    index = torch.randint(0, STORED, (50,), device=device)
    x, slot = ops.replay_gather(data, index, ChainRNG(1).state(device))
    assert x.dtype == torch.float32 and torch.equal(x, data[index].float())
    assert torch.equal(slot, index)


@pytest.mark.parametrize("shape", SHAPES)
def test_uint8_is_dithered_inside_its_step(device, shape):
    data, index = stored(shape, torch.uint8), torch.randint(0, STORED, (40,))
    state = ChainRNG(5, 3, 2**33).state(device)
    options = {"t": 4, "value_range": (-2.0, 6.0)}
    x, _ = ops.replay_gather(data.to(device), index.to(device), state, **options)
    dim = math.prod(shape)
    u = 0.001 + 0.998 * uniforms(5, 7, torch.arange(40) + 2**33, dim)
    exact = -2 + (data[index].flatten(1).double() + u) * 8 / 256
    # u is rounded twice, q + u to 2^-17, and the result to 2^-22.
    assert (x.cpu().flatten(1) - exact).abs().max() < 2**-17 * 8 / 256 + 2**-21
    middle, _ = ops.replay_gather(data.to(device), index.to(device), state, dither=False, **options)
    assert torch.equal(middle.cpu(), -2 + (data[index] + 0.5) * (8 / 256))


@pytest.mark.parametrize("init", ["uniform", "normal", None])
@pytest.mark.parametrize("shape", [(2,), (3, 32, 32)])
def test_initial_samples(device, init, shape):
    n, dim = 60, math.prod(shape)
    data, index = stored(shape, torch.float32).to(device), torch.full((n,), -1, device=device)
    state = ChainRNG(8, 1).state(device)
    x, slot = ops.replay_gather(data, index, state, init=init, value_range=(-1.0, 3.0))
    assert (slot == -1).all()
    x, ids = x.cpu().flatten(1).double(), torch.arange(n)
    expected = torch.zeros(n, dim).double()
    if init == "uniform":
        expected = -1 + 4 * uniforms(8, 1, ids, dim)
    elif init == "normal":
        expected = reference.normals(8, 1, ids, dim, REPLAY)
    assert (x - expected).abs().max() < (1e-6 if init == "uniform" else 1e-5)


def test_restarts(device):
    n = 5000
    data, index = torch.zeros(1, 4, device=device), torch.zeros(n, dtype=torch.int64, device=device)
    state = ChainRNG(2).state(device)
    x, slot = ops.replay_gather(data, index, state, reinit_prob=0.05, init="uniform")
    word = reference.words(2, 0, torch.arange(n), 1, TRANSITION)[:, 0, 0]
    fresh = word / 2**32 < 0.05
    assert torch.equal(slot.cpu() == -1, fresh) and torch.equal((x != 0).all(1).cpu(), fresh)
    assert abs(fresh.double().mean() - 0.05) < 4 * math.sqrt(0.05 * 0.95 / n)
    for p, share in ((0.0, 0), (1.0, n)):
        slot = ops.replay_gather(data, index, state, reinit_prob=p, init="uniform")[1]
        assert (slot == -1).sum() == share


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_on_every_path(shape, dtype, device, set_simd):
    data, index = stored(shape, dtype), torch.randint(-1, STORED, (33,))
    augmentations = [()]
    if len(shape) == 3:
        augmentations.append(Augmentation(scale=(0.1, 1.0), hflip_p=0.5, brightness=0.5).parameters)
    for init in ("uniform", "normal", None):
        for augmentation in augmentations:
            options = {"reinit_prob": 0.3, "init": init, "augmentation": augmentation}
            set_simd("scalar")
            plain = ops.replay_gather(data, index, ChainRNG(1).state(), **options)
            for level in SIMD_LEVELS:
                set_simd(level)
                x, slot = ops.replay_gather(
                    data.to(device), index.to(device), ChainRNG(1).state(device), **options
                )
                assert torch.equal(slot.cpu(), plain[1]) and torch.equal(x.cpu(), plain[0]), level


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_rows_at_any_address(dtype, device):
    """A device moves four elements at once only where they lie at a multiple of their size."""
    index, state = torch.randint(-1, STORED, (33,), device=device), ChainRNG(1).state(device)
    augmentation = Augmentation(scale=(0.1, 1.0)).parameters
    for shape, parameters in (((12,), ()), ((1, 2, 6), augmentation)):
        data = stored(shape, dtype).to(device)
        expected = ops.replay_gather(data, index, state, augmentation=parameters)[0]
        for offset in (1, 2, 3):
            moved = data.new_empty(data.numel() + offset)[offset:].view(data.shape).copy_(data)
            got = ops.replay_gather(moved, index, state, augmentation=parameters)[0]
            assert torch.equal(got, expected), offset


def test_any_batch_split_gives_the_same(device):
    data, index = stored((3, 6, 6), torch.uint8).to(device), torch.randint(0, STORED, (12,))
    options = {"reinit_prob": 0.3, "init": "normal"}
    options["augmentation"] = Augmentation(scale=(0.1, 1.0), hue=0.2).parameters
    index = index.to(device)
    whole = ops.replay_gather(data, index, ChainRNG(3, 4, 100).state(device), **options)
    for a, b in ((0, 5), (5, 6), (6, 12)):
        state = ChainRNG(3, 4, 100 + a).state(device)
        part = ops.replay_gather(data, index[a:b], state, **options)
        ids = torch.arange(100 + a, 100 + b, device=device)
        state = ChainRNG(3).state(device)
        named = ops.replay_gather(data, index[a:b], state, t=4, sample_ids=ids, **options)
        for got in (part, named):
            assert torch.equal(got[0], whole[0][a:b]) and torch.equal(got[1], whole[1][a:b])


def test_many_threads(set_simd):
    data, index = stored((3, 17, 5), torch.uint8), torch.randint(-1, STORED, (501,))
    augmentation = Augmentation(scale=(0.1, 1.0), contrast=0.5, kernel_size=3).parameters
    options = {"reinit_prob": 0.3, "init": "uniform", "augmentation": augmentation}
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(ops.replay_gather(data, index, ChainRNG(1).state(), **options)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_visits_count_from_the_last_restart(device):
    n, shape = 300, (3, 4, 4)
    data = stored(shape, torch.uint8, n).to(device)
    before = torch.randint(0, 9, (n,), dtype=torch.int32)
    index = torch.randperm(n)[:200]
    index[::7] = -1
    for augmentation in ((), Augmentation(hflip_p=0.5).parameters):
        visits = before.clone().to(device)
        options = {"reinit_prob": 0.3, "init": "uniform", "augmentation": augmentation}
        _, slot = ops.replay_gather(
            data, index.to(device), ChainRNG(2).state(device), visits=visits, **options
        )
        drawn, fresh, expected = index >= 0, slot.cpu() < 0, before.clone()
        expected[index[drawn]] += 1
        expected[index[drawn & fresh]] = 1
        assert torch.equal(visits.cpu(), expected) and (drawn & fresh).any()


def test_no_samples(device):
    data = torch.zeros(3, 2, device=device)
    index = torch.zeros(0, dtype=torch.int64, device=device)
    x, slot = ops.replay_gather(data, index, ChainRNG(1).state(device))
    assert x.shape == (0, 2) and slot.shape == (0,)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
def test_index_out_of_range_on_a_device_is_seen():
    index = torch.tensor([0, 7, -2], device="cuda")
    x, slot = ops.replay_gather(torch.zeros(3, 2).cuda(), index, ChainRNG(1).state("cuda"))
    assert slot.tolist() == [0, -2, -2] and x.isnan().all(1).tolist() == [False, True, True]


IMAGES, TEN = torch.zeros(3, 3, 8, 8), [0.1, 1.0, 0.75, 1.5, *(0.0,) * 11]


@pytest.mark.parametrize(
    "change, match",
    [
        ({"data": torch.zeros(3, 2, dtype=torch.int32)}, "data must be float32, bfloat16 or uint8"),
        ({"data": torch.zeros(())}, r"data must be \(N, \*event\)"),
        ({"data": torch.zeros(3, 0)}, "a sample must hold"),
        ({"index": torch.tensor([0, 3])}, r"index must be in -1..2, got 3 for sample 1"),
        ({"index": torch.tensor([-2])}, "index must be in"),
        ({"index": torch.tensor([0.0])}, "index must be a contiguous int64"),
        ({"sample_ids": torch.tensor([0, 1, 2])}, "sample_ids must be a contiguous int64"),
        ({"rng": torch.zeros(3, dtype=torch.int64)}, "rng must be"),
        ({"visits": torch.zeros(3)}, r"visits must be a contiguous int32 tensor \(3,\)"),
        ({"visits": torch.zeros(2).int()}, "visits must be a contiguous int32"),
        ({"t": -1}, "t must be"),
        ({"value_range": (1.0, 1.0)}, "value_range must be"),
        ({"reinit_prob": math.nan}, "reinit_prob must be"),
        ({"augmentation": [1.0]}, "augmentation must hold 19 values"),
        ({"t": 2**32}, "t must be"),
        ({"value_range": (0.0, 1e300)}, "value_range must be"),
        *(
            ({"augmentation": [*MOVES[:i], v, *MOVES[i + 1 :]]}, f"augmentation's {name} must be")
            for i, name in enumerate(MOVE_NAMES)
            for v in (math.nan, math.inf, -math.inf, -1e3, 1e300)
        ),
        ({"augmentation": [*MOVES[:2], 0.0, *MOVES[3:]]}, "augmentation's ratio must be"),
        ({"augmentation": [*MOVES[:15], 3.5, *MOVES[16:]]}, "kernel_size must be a whole number"),
        ({"data": torch.zeros(3, 2), "augmentation": [*TEN, 0, 0.1, 2, 1.0]}, "needs images"),
        ({"augmentation": [*TEN, 4, 0.1, 2, 1.0]}, "kernel_size must be"),
        ({"augmentation": [*TEN, 17, 0.1, 2, 1.0]}, "kernel_size must be"),
    ],
)
def test_wrong_arguments(change, match, device):
    index, rng = torch.tensor([0, 1]), ChainRNG(1).state(device)
    arguments = {"data": IMAGES, "index": index, "rng": rng, **change}
    arguments = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()
    }
    if device == "cuda" and match.startswith("index must be in"):
        pytest.skip("seen on a device by NaN")
    with pytest.raises(RuntimeError, match=match):
        ops.replay_gather(**arguments)


def test_a_crop_that_no_ratio_fits_has_a_pixel_at_least(device):
    """A ratio of 0.001 in an image of 8 x 8: a column of it, in the middle."""
    image = torch.rand(1, 3, 8, 8).to(device)
    moves = [1.0, 1.0, 1e-3, 1e-3, 0.0, *(1.0,) * 6, *(0.0,) * 4, 0.0, 1.0, 1.0, 0.0]
    rng, index = ChainRNG(1).state(device), torch.tensor([0], device=device)
    x, _ = ops.replay_gather(image, index, rng, augmentation=moves)
    assert torch.equal(x, image[..., 3:4].expand_as(image))


def test_counts_that_are_full_stay_so(device):
    visits = torch.tensor([2**31 - 1, 4], dtype=torch.int32, device=device)
    index = torch.tensor([0, 1], device=device)
    rng, data = ChainRNG(1).state(device), torch.zeros(2, 3, device=device)
    ops.replay_gather(data, index, rng, visits=visits)
    assert visits.tolist() == [2**31 - 1, 5]


def test_opcheck_and_compile():
    data, index = stored((3, 8, 8), torch.uint8), torch.randint(0, STORED, (5,))
    parameters = Augmentation.preset("cifar10").parameters
    arguments = (data, index, ChainRNG(1).state(), 0, None, 0.0, 1.0, True, 0.1, 0, parameters)
    for visits in (None, torch.zeros(STORED, dtype=torch.int32)):
        torch.library.opcheck(torch.ops.fastebm.replay_gather.default, (*arguments, visits))

    def f(data, index, rng):
        return ops.replay_gather(data, index, rng, augmentation=parameters)[0] * 2

    compiled = torch.compile(f, fullgraph=True)
    assert torch.equal(compiled(*arguments[:3]), f(*arguments[:3]))
