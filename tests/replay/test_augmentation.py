"""Augmentation: each transform against torchvision's definition, the law of its random parameters,
presets, and the errors."""

import math

import pytest
import torch
from conftest import SIMD_LEVELS

from fastebm import Augmentation, ChainRNG
from fastebm.ops import reference

EVERYTHING = {
    "scale": (0.1, 1.0),
    "hflip_p": 0.5,
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.4,
    "jitter_p": 0.8,
    "grayscale_p": 0.3,
    "kernel_size": 5,
    "blur_p": 0.5,
}
GRAY = {k: v for k, v in EVERYTHING.items() if k not in ("saturation", "hue", "grayscale_p")}
SHAPE = (3, 20, 27)
N = 100
# Hue is a sum up to 12, rounded a few times to 2^-21, times the chroma; other steps round values up
# to 1 to 2^-24. Brightness, contrast and saturation can then amplify by 1.8, 1.8 and 2 * 1.8 - 1.
TOLERANCE = 2e-5


def images(shape=SHAPE, n=N, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(n, *shape)


def expected(augmentation, x, rng):
    rows = []
    for i, image in enumerate(x.double()):
        sample = rng.first_sample(0) + i
        drawn = reference.augmentation_of(
            augmentation.parameters, rng.seed, rng.t, sample, image.shape
        )
        rows.append(reference.augment(image, drawn, augmentation.value_range))
    return torch.stack(rows)


def check(augmentation, x, rng, device="cpu", tolerance=TOLERANCE):
    got = augmentation(x.to(device), seed=ChainRNG(rng.seed, rng.t, rng.sample_offset))
    assert got.dtype == x.dtype and got.device.type == device
    error = (got.cpu().double() - expected(augmentation, x, rng)).abs().max().item()
    lo, hi = augmentation.value_range
    assert error < tolerance * (hi - lo), error
    return got


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (0.08, 1.0)},
        {"scale": (0.01, 0.05), "ratio": (0.2, 5.0)},
        {"hflip_p": 0.5},
        {"brightness": 0.8},
        {"contrast": 0.8},
        {"saturation": 0.8},
        {"saturation": (3.0, 4.0)},
        {"hue": 0.5},
        {"hue": (0.1, 0.2)},
        {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.4},
        {"grayscale_p": 0.5},
        {"kernel_size": 5},
        {"kernel_size": 11, "sigma": 0.4},
        {"kernel_size": 1},
        EVERYTHING,
    ],
    ids=lambda options: ",".join(options),
)
def test_transforms_are_torchvisions(options, device):
    check(Augmentation(**options), images(), ChainRNG(11, 3, 40), device)


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 9, 40), (3, 32, 32), (3, 130, 3), (3, 8, 8)])
def test_shapes(shape, device):
    options = EVERYTHING if shape[0] == 3 else GRAY
    options = options | ({"kernel_size": 3} if min(shape[1:]) < 5 else {})
    check(Augmentation(**options), images(shape, 40), ChainRNG(5), device)


def test_any_number_of_channels_can_be_cropped(device):
    augmentation = Augmentation(scale=(0.1, 1.0), hflip_p=0.5, kernel_size=3)
    check(augmentation, images((5, 12, 10), 20), ChainRNG(5), device)


def test_large_images_take_the_path_through_device_memory(device):
    check(Augmentation(**EVERYTHING), images((3, 98, 99), 4), ChainRNG(6), device)


def test_colours_are_those_of_the_value_range(device):
    augmentation = Augmentation(**EVERYTHING, value_range=(-1.0, 1.0))
    got = check(augmentation, images(low=-1.5, high=1.5), ChainRNG(7), device)
    assert got.min() < -0.9
    # Without colours the values may be any.
    crop = Augmentation(scale=(0.1, 1.0), kernel_size=3)
    assert check(crop, images(low=3, high=9), ChainRNG(7), device, 1e-4).min() > 3


def test_hue_of_gray_and_of_corners_of_the_cube(device):
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3)
    x = corners.T.reshape(1, 3, 27, 1).expand(30, 3, 27, 2).contiguous()
    check(Augmentation(hue=0.5), x, ChainRNG(1), device)


def test_antialiasing_changes_nothing_when_enlarging():
    x = torch.rand(SHAPE, dtype=torch.float64)
    for crop in ((0, 0, 20, 27), (3, 5, 7, 9), (19, 26, 1, 1), (2, 0, 18, 5)):
        plain, smooth = (reference.resized_crop(x, *crop, antialias=a) for a in (False, True))
        torch.testing.assert_close(plain, smooth, rtol=0, atol=1e-12)


# (3, 64, 64): 48 KB, which a block of CUDA does not have beside its static shared memory, unless it
# asks. (3, 98, 99): more than half of what a multiprocessor has.
@pytest.mark.parametrize(
    "shape", [SHAPE, (3, 32, 32), (1, 28, 28), (3, 64, 64), (3, 70, 80), (3, 98, 99)]
)
def test_same_bits_on_every_path(shape, set_simd, device):
    augmentation = Augmentation(**(EVERYTHING if shape[0] == 3 else GRAY))
    x = images(shape, 12)
    set_simd("scalar")
    plain = augmentation(x, seed=2)
    for level in SIMD_LEVELS:
        set_simd(level)
        assert torch.equal(augmentation(x.to(device), seed=2).cpu(), plain), level


def test_random_numbers_go_by_sample_and_step(device):
    augmentation = Augmentation(**EVERYTHING)
    x = images(n=7).to(device)
    whole = augmentation(x, seed=ChainRNG(3, 4, 100))
    for a, b in ((0, 3), (3, 4), (4, 7)):
        assert torch.equal(augmentation(x[a:b], seed=ChainRNG(3, 4, 100 + a)), whole[a:b])
    ids = torch.tensor([102, 100, 101], device=device)
    named = augmentation(x[[2, 0, 1]], seed=ChainRNG(3, 4), sample_ids=ids)
    assert torch.equal(named, whole[[2, 0, 1]])
    rng = ChainRNG(3, 4, 100)
    assert torch.equal(augmentation(x, seed=rng), whole) and rng.t == 5
    assert not torch.equal(augmentation(x, seed=rng), whole)


def test_threads_do_not_matter():
    augmentation, x, threads = Augmentation(**EVERYTHING), images(n=33), torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(augmentation(x, seed=1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_and_strides(dtype, device):
    augmentation = Augmentation(**EVERYTHING)
    x = images(n=5).to(device, dtype)
    wide = augmentation(x.float(), seed=1)
    assert torch.equal(augmentation(x, seed=1), wide.to(dtype))
    assert torch.equal(
        augmentation(x.to(memory_format=torch.channels_last), seed=1), wide.to(dtype)
    )
    assert augmentation(x[:0], seed=1).shape == x[:0].shape


def test_nothing_asked_for_nothing_done():
    x = images(n=3)
    for augmentation in (Augmentation(), Augmentation.preset("mnist"), Augmentation(hue=0.0)):
        assert augmentation.parameters == [] and torch.equal(augmentation(x), x)
    flip = Augmentation(hflip_p=1.0)
    assert torch.equal(flip(x), x.flip(-1)) and torch.equal(flip(flip(x)), x)
    assert torch.equal(Augmentation(scale=(1.0, 1.0), ratio=(27 / 20, 27 / 20))(x), x)


def test_nan_stays():
    x = images(n=64)
    x[:, 1, 10, 13] = math.nan
    jitter = Augmentation(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)
    for augmentation in (jitter, Augmentation(kernel_size=3), Augmentation(grayscale_p=1.0)):
        assert augmentation(x, seed=0).isnan().flatten(1).any(1).all()


def test_law_of_the_random_parameters():
    """From the parameters that the tests above hold the operator to."""
    n, parameters = 4000, Augmentation(**EVERYTHING | {"scale": (0.1, 0.4)}).parameters
    drawn = [reference.augmentation_of(parameters, 9, 0, i, (3, 400, 400)) for i in range(n)]
    uniform = 4 / math.sqrt(12 * n)  # four standard errors of a mean of uniform numbers in (0, 1)
    heights, widths = (torch.tensor([d["crop"][k] for d in drawn]).double() for k in (2, 3))
    area = heights * widths / 400**2
    assert area.min() > 0.095 and area.max() < 0.405
    assert abs((area.mean() - 0.1) / 0.3 - 0.5) < uniform + 0.005
    log_ratio = (widths / heights).log() / math.log(4 / 3)
    assert log_ratio.abs().max() < 1.05 and abs(log_ratio.mean() / 2) < uniform
    assert abs(log_ratio.var() - 1 / 3) < 4 / math.sqrt(n)
    top = torch.tensor([d["crop"][0] / (400 - d["crop"][2]) for d in drawn])
    assert abs(top.mean() - 0.5) < uniform
    jittered = [dict(d["colors"]) for d in drawn]
    shares = {
        "flip": ([d["flip"] for d in drawn], 0.5),
        "jitter": (["hue" in c for c in jittered], 0.8),
        "grayscale": (["grayscale" in c for c in jittered], 0.3),
        "blur": ([d["sigma"] is not None for d in drawn], 0.5),
    }
    for name, (hits, p) in shares.items():
        share = sum(hits) / n
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n), name
    for name, (lo, hi) in (
        ("brightness", (0.2, 1.8)),
        ("contrast", (0.2, 1.8)),
        ("hue", (-0.4, 0.4)),
    ):
        values = torch.tensor([c[name] for c in jittered if name in c])
        assert values.min() >= lo and values.max() <= hi
        assert abs((values.mean() - lo) / (hi - lo) - 0.5) < uniform * 1.2, name
    orders = [tuple(k for k in c if k != "grayscale") for c in jittered if "hue" in c]
    counts = torch.tensor([orders.count(o) for o in set(orders)]).double()
    mean = len(orders) / 24
    assert len(counts) == 24 and ((counts - mean) ** 2 / mean).sum() < 52.6  # 99.95 % of chi2(23)
    sigma = torch.tensor([d["sigma"] for d in drawn if d["sigma"] is not None])
    assert abs((sigma.mean() - 0.1) / 1.9 - 0.5) < uniform * 1.5


def test_presets():
    for name, shape in (("cifar10", (3, 32, 32)), ("celeba", (3, 16, 16)), ("stl", (3, 48, 48))):
        augmentation = Augmentation.preset(name)
        augmentation.check_shape(shape)
        check(augmentation, images(shape, 10), ChainRNG(1))
    cifar = Augmentation.preset("cifar10")
    assert cifar.scale == (0.08, 1.0) and cifar.hue == (-0.4, 0.4) and cifar.kernel_size is None
    assert Augmentation.preset("imagenet").kernel_size == 11
    digits = Augmentation.preset("digits")
    digits.check_shape((1, 8, 8))
    assert digits.hflip_p == 0 and digits.scale == (0.7, 1.0)
    with pytest.raises(ValueError, match="name must be one of cifar10, .*, got 'cifar'"):
        Augmentation.preset("cifar")


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"scale": (0.0, 1.0)}, ValueError, "scale must be"),
        ({"scale": (0.5, 0.1)}, ValueError, "scale must be"),
        ({"scale": (0.5, 1.1)}, ValueError, "scale must be"),
        ({"scale": 0.5}, TypeError, "scale must be a pair"),
        ({"ratio": (0.0, 1.0)}, ValueError, "ratio must be"),
        ({"ratio": (1.0, math.inf)}, ValueError, "ratio must be"),
        ({"hflip_p": 1.5}, ValueError, "hflip_p must be"),
        ({"brightness": -0.1}, ValueError, "brightness must be"),
        ({"contrast": (-1.0, 1.0)}, ValueError, "contrast must be"),
        ({"saturation": "much"}, TypeError, "saturation must be"),
        ({"hue": 0.6}, ValueError, "hue must be"),
        ({"hue": (-0.6, 0.0)}, ValueError, "hue must be"),
        ({"jitter_p": math.nan}, ValueError, "jitter_p must be"),
        ({"grayscale_p": "x"}, TypeError, "grayscale_p must be"),
        ({"kernel_size": 4}, ValueError, "kernel_size must be"),
        ({"kernel_size": 65}, ValueError, "kernel_size must be"),
        ({"sigma": 0.0}, ValueError, "sigma must be"),
        ({"sigma": (2.0, 1.0)}, ValueError, "sigma must be"),
        ({"blur_p": -1}, ValueError, "blur_p must be"),
        ({"value_range": (1.0, 1.0)}, ValueError, "value_range must be"),
    ],
)
def test_wrong_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        Augmentation(**arguments)


@pytest.mark.parametrize(
    "arguments, shape, match",
    [
        ({"scale": (0.1, 1.0)}, (2,), "scale needs images"),
        ({"hflip_p": 0.5}, (28, 28), "hflip_p needs images"),
        ({"brightness": 0.5}, (64,), "brightness needs images"),
        ({"saturation": 0.5}, (1, 8, 8), "saturation needs images of 3 channels"),
        ({"hue": 0.1}, (1, 8, 8), "hue needs images of 3 channels"),
        ({"grayscale_p": 0.1}, (1, 8, 8), "grayscale_p needs images of 3 channels"),
        ({"contrast": 0.1}, (4, 8, 8), "contrast needs images of 1 or 3 channels"),
        ({"kernel_size": 11}, (3, 5, 8), "kernel_size must be less than twice"),
    ],
)
def test_transforms_that_make_no_sense_for_the_shape(arguments, shape, match):
    augmentation = Augmentation(**arguments)
    with pytest.raises(ValueError, match=match):
        augmentation(torch.zeros(2, *shape))


def test_wrong_input():
    with pytest.raises(TypeError, match="x must be a floating-point tensor"):
        Augmentation(hflip_p=0.5)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
