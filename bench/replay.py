"""The replay transition against batched torch, kornia, and Pillow image by image.

228 samples (128 chains and 100 references, as the authors draw them) of a uint8 buffer: gathered,
dequantised and augmented, cifar10's transition at 32 x 32, celeba's (with blur) at 128 x 128.
Rivals draw their own random parameters by the same law, but for what is said here:
  torch, batched   crop and flip by grid_sample on a grid for each sample, colours on the whole
                   batch, blur by grouped convolution of the half that is blurred; the four parts of
                   the jitter come in one random order for the batch, which saves it work
  torch.compile    the same, its colours compiled, always in the same order: each is a compilation
  kornia           its random transforms for single samples of a batch, where it is installed
  Pillow           what the authors ran: one image after another in 8 bits, dequantised after
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator

import suite
import timing
import torch
from torch import Tensor
from torch.nn import functional as F

from fastebm import Augmentation, ChainRNG, ops

BATCH, STORED = 228, 512
FUSED, BATCHED, PILLOW = "fastebm", "torch, batched", "Pillow"
CASES = {"cifar10": (3, 32, 32), "celeba": (3, 128, 128)}
TARGETS = {BATCHED: 3.0, PILLOW: 20.0}  # one thread
BYTES = 5  # a stored byte in, a float32 out, for each element
GRAY = (0.2989, 0.587, 0.114)


def crops(a: Augmentation, n: int, height: int, width: int, device) -> Tensor:
    """(n, 4) top, left, height, width; ten attempts for each sample at once, as torchvision's."""
    area = height * width * torch.empty(n, 10, device=device).uniform_(*a.scale)
    ratio = torch.empty(n, 10, device=device).uniform_(*map(math.log, a.ratio)).exp()
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.float().argmax(1, keepdim=True)
    w, h = (
        torch.where(fits.any(1), v.gather(1, first)[:, 0], s) for v, s in ((w, width), (h, height))
    )
    top = ((height - h + 1) * torch.rand(n, device=device)).floor()
    left = ((width - w + 1) * torch.rand(n, device=device)).floor()
    return torch.stack([top, left, h, w], 1)


def resize(a: Augmentation, x: Tensor) -> Tensor:
    n, _, height, width = x.shape
    top, left, h, w = crops(a, n, height, width, x.device).unbind(1)

    def axis(start, size, length):  # in pixels of the image, kept inside the crop
        at = (torch.arange(length, device=x.device) + 0.5) * (size / length)[:, None] - 0.5
        return start[:, None] + torch.minimum(at.clamp(min=0), size[:, None] - 1)

    ys, xs = axis(top, h, height), axis(left, w, width)
    flip = torch.rand(n, 1, device=x.device) < a.hflip_p
    xs = torch.where(flip, xs.flip(1), xs)
    grid = torch.empty(n, height, width, 2, device=x.device)
    grid[..., 0] = ((2 * xs + 1) / width - 1)[:, None, :]
    grid[..., 1] = ((2 * ys + 1) / height - 1)[:, :, None]
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def gray(x: Tensor) -> Tensor:
    r, g, b = x.unbind(1)
    return (r * GRAY[0] + g * GRAY[1] + b * GRAY[2])[:, None]


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    r, g, b = x.unbind(1)
    v, low = x.amax(1), x.amin(1)
    chroma = v - low
    divisor = chroma.clamp(min=1e-12)
    h = torch.where(v == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor)
    h = torch.where(v == r, (g - b) / divisor, h) + 6 * turn[:, 0]
    k = (h[:, None] + torch.tensor([5.0, 3.0, 1.0], device=x.device)[:, None, None]) % 6
    return v[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def change_color(x: Tensor, order: list[int], factors: list[Tensor], to_gray: Tensor) -> Tensor:
    for part in order:
        f = factors[part]
        if part == 0:
            x = (f * x).clamp(0, 1)
        elif part == 1:
            mean = gray(x).mean((1, 2, 3), keepdim=True)
            x = (mean + f * (x - mean)).clamp(0, 1)
        elif part == 2:
            other = gray(x)
            x = (other + f * (x - other)).clamp(0, 1)
        else:
            x = turn_hue(x, f)
    return torch.where(to_gray, gray(x), x)


def blur(a: Augmentation, x: Tensor) -> Tensor:
    chosen = (torch.rand(len(x), device=x.device) < a.blur_p).nonzero()[:, 0]
    size, channels = a.kernel_size, x.shape[1]
    sigma = torch.empty(len(chosen), 1, device=x.device).uniform_(*a.sigma)
    at = torch.arange(size, device=x.device) - size // 2
    weight = torch.softmax(-((at / sigma) ** 2) / 2, 1).repeat_interleave(channels, 0)[:, None]
    half = size // 2
    y = F.pad(x[chosen], (half,) * 4, mode="reflect").flatten(0, 1)[None]
    groups = y.shape[1]
    y = F.conv2d(F.conv2d(y, weight[:, :, None], groups=groups), weight[..., None], groups=groups)
    return x.index_copy(0, chosen, y[0].view(-1, *x.shape[1:]))


def batched(a: Augmentation, data: Tensor, index: Tensor, color: Callable) -> Tensor:
    x = data[index]
    x = (x + torch.rand(x.shape, device=x.device)) / 256
    x = resize(a, x)
    n, device = len(x), x.device
    jitter = torch.rand(n, 1, 1, 1, device=device) < a.jitter_p
    ranges = (a.brightness, a.contrast, a.saturation, a.hue)
    factors = [
        torch.where(jitter, torch.empty(n, 1, 1, 1, device=device).uniform_(*pair), neutral)
        for pair, neutral in zip(ranges, (1.0, 1.0, 1.0, 0.0), strict=True)
    ]
    order = random.sample(range(4), 4)
    x = color(x, order, factors, torch.rand(n, 1, 1, 1, device=device) < a.grayscale_p)
    return x if a.kernel_size is None else blur(a, x)


def pillow(a: Augmentation, data: Tensor, index: Tensor) -> Tensor:
    import numpy as np
    from PIL import Image, ImageEnhance, ImageFilter

    height, width = data.shape[-2:]
    arrays = []
    for image in data[index].permute(0, 2, 3, 1).contiguous().numpy():
        im = Image.fromarray(image)
        top, left, h, w = (int(v) for v in crops(a, 1, height, width, "cpu")[0])
        im = im.crop((left, top, left + w, top + h)).resize((width, height), Image.BILINEAR)
        if random.random() < a.hflip_p:
            im = im.transpose(Image.FLIP_LEFT_RIGHT)
        if random.random() < a.jitter_p:
            for part in random.sample(range(4), 4):
                if part == 3:
                    h, s, v = im.convert("HSV").split()
                    turn = int(255 * random.uniform(*a.hue)) % 256
                    h = Image.fromarray(np.asarray(h) + np.uint8(turn))
                    im = Image.merge("HSV", (h, s, v)).convert("RGB")
                    continue
                kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[part]
                im = kind(im).enhance(
                    random.uniform(*(a.brightness, a.contrast, a.saturation)[part])
                )
        if random.random() < a.grayscale_p:
            im = im.convert("L").convert("RGB")
        if a.kernel_size is not None and random.random() < a.blur_p:
            half = a.kernel_size // 2
            at = (torch.arange(-half, half + 1) / random.uniform(*a.sigma)).square().neg() / 2
            weight = torch.outer(at.exp(), at.exp()).flatten().tolist()
            im = im.filter(ImageFilter.Kernel((a.kernel_size, a.kernel_size), weight))
        arrays.append(torch.from_numpy(np.array(im)).permute(2, 0, 1))
    x = torch.stack(arrays)
    return (x + torch.rand(x.shape)) / 256


def kornia_pipeline(a: Augmentation, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    import kornia.augmentation as K

    jitter = [list(v) for v in (a.brightness, a.contrast, a.saturation, a.hue)]
    steps = [
        K.RandomResizedCrop(size, scale=a.scale, ratio=a.ratio, p=1.0, cropping_mode="resample"),
        K.RandomHorizontalFlip(p=a.hflip_p),
        K.ColorJitter(*(tuple(v) for v in jitter), p=a.jitter_p),
        K.RandomGrayscale(p=a.grayscale_p),
    ]
    if a.kernel_size is not None:
        kernel = (a.kernel_size, a.kernel_size)
        steps.append(K.RandomGaussianBlur(kernel, a.sigma, p=a.blur_p))
    return torch.nn.Sequential(*steps)


def rivals(a: Augmentation, shape, device: torch.device, quick: bool) -> dict[str, Callable]:
    data = torch.randint(0, 256, (STORED, *shape), dtype=torch.uint8)
    data = F.avg_pool2d(data.float(), 3, 1, 1).to(device, torch.uint8)  # a little smooth, as images
    state, t = ChainRNG(0).state(device), 0

    def index():
        return torch.randint(0, STORED, (BATCH,), device=device)

    def fused():
        nonlocal t
        t += 1
        return ops.replay_gather(data, index(), state, t=t, augmentation=a.parameters)[0]

    compiled = torch.compile(change_color, dynamic=False)

    def compiled_color(x, order, factors, to_gray):
        return compiled(x, [0, 1, 2, 3], factors, to_gray)

    calls = {
        FUSED: fused,
        BATCHED: lambda: batched(a, data, index(), change_color),
    }

    def kornia_call():
        nonlocal pipeline
        pipeline = pipeline or kornia_pipeline(a, shape[1:])
        x = data[index()]
        return pipeline((x + torch.rand(x.shape, device=device)) / 256)

    pipeline = None
    if not quick:
        calls["torch.compile"] = lambda: batched(a, data, index(), compiled_color)
        calls["kornia"] = kornia_call
    if device.type == "cpu":
        calls[PILLOW] = lambda: pillow(a, data, index())
    return calls


def law(batch: Tensor) -> Tensor:
    """Mean, deviation of a pixel, in an image and over channels."""
    return torch.stack([
        batch.mean(), batch.std(), batch.std((2, 3)).mean(), batch.std(1).mean()
    ])  # fmt: skip


def check(calls: dict[str, Callable]) -> None:
    """Rivals must make images of the same law, over 40 batches: one order of colours for a whole
    batch makes batches of theirs differ by several percent."""
    ours, theirs = (
        torch.stack([law(calls[name]()) for _ in range(40)]).mean(0) for name in (FUSED, BATCHED)
    )
    if ((ours - theirs).abs() > 0.05 * theirs).any():
        raise RuntimeError(f"the rivals differ in law: {ours.tolist()}, {theirs.tolist()}")


def measure(
    preset: str, device: torch.device, threads: int, seconds: float, quick: bool
) -> suite.Rows:
    """A row for each way to make a batch."""
    torch.manual_seed(0)
    random.seed(0)
    torch.compiler.reset()
    shape = CASES[preset]
    calls = rivals(Augmentation.preset(preset), shape, device, quick)
    calls, reasons = timing.only_available(calls, (FUSED, BATCHED))
    check(calls)
    timings = timing.compare(calls, device, seconds=seconds)
    elements = BATCH * math.prod(shape)
    copy = timing.copy_bandwidth(elements * BYTES // 2, device, seconds / 10)
    size = " x ".join(map(str, (BATCH, *shape)))
    case = {
        "case": f"{preset}, {size}, {suite.threads_text(device, threads)}",
        "preset": preset,
        "shape": [BATCH, *shape],
        "threads": threads,
        "limit": "copy",
        "limit_seconds": BYTES * elements / copy,
    }
    return [
        case
        | {
            "variant": name,
            **t.row(),
            "fastest_seconds": min(t.seconds),
            "fastebm_faster": timings[FUSED].times_faster_than(t),
        }
        for name, t in timings.items()
    ] + suite.unavailable_rows(case, reasons)


def print_case(rows: suite.Rows) -> None:
    table = [
        [
            row["variant"],
            f"{row['seconds'] * 1e3:.3g}",
            f"{row['spread']:.0%}",
            f"{row['fastest_seconds'] * 1e3:.3g}",
            f"{row['fastebm_faster']:.1f}x",
        ]
        for row in rows
        if "seconds" in row
    ]
    table.append(["limit: copy", f"{rows[0]['limit_seconds'] * 1e3:.3g}", "", "", ""])
    header = ["", "ms/batch", "spread", "fastest", "fastebm faster by"]
    suite.print_table(rows[0]["case"], header, table)


def print_targets(rows: suite.Rows) -> None:
    """What was to be reached (CPU, one thread) and what was."""
    claims = []
    for row in rows:
        wanted = TARGETS.get(row["variant"])
        if row["threads"] == 1 and wanted and "seconds" in row:
            got = row["fastebm_faster"]
            claim = f"{row['case']}, over {row['variant']}"
            claims.append((claim, f"{wanted:.0f}x", f"{got:.1f}x", got >= wanted))
    suite.print_targets("fastebm's transition on a CPU", claims)


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """Measures and prints every case."""
    device, quick = options.device, options.quick
    warnings.filterwarnings("ignore", module="kornia")
    seconds = 2.0 if quick or device.type == "cuda" else 15.0
    rows = []
    with torch.no_grad():
        for threads in options.each_thread_count(1, 2):
            for preset in options.in_time(CASES):
                case = measure(preset, device, threads, seconds, quick)
                print_case(case)
                rows += case
                yield case
    if device.type == "cpu":
        print_targets(rows)


if __name__ == "__main__":
    suite.script("replay", __doc__, run)
