"""Nearest neighbours as the operator promises them, to the bit: all pairs in float64, summed in its
one order of parts, nearest first, of equally near the lowest index."""

import numpy as np
import torch
from conftest import PRODUCT_LEVELS

from fastebm.ops import library
from fastebm.ops.neighbor import nearest_neighbor

PARTS = 32  # element i goes to partial sum i % 32


def values(y, y_scale=(1.0, 0.0)):
    """What references stand for: uint8 as float32, rounded after the product and after the sum."""
    if y.dtype != torch.uint8:
        return y
    scale, offset = torch.tensor(y_scale, dtype=torch.float32)
    return y.float() * scale + offset


def squares(x, y):
    """(n, m) squares of distances."""
    x, y = (v.unsqueeze(-1).flatten(1).double() for v in (x, y))
    rows = max(1, 2**13 // max(1, len(y)))  # of 2 MB of parts
    return torch.cat([_squares(part, y) for part in x.split(rows)])


def _squares(x, y):
    parts = torch.zeros(len(x), len(y), PARTS, dtype=torch.float64)
    for i in range(0, x.shape[1], PARTS):
        difference = x[:, None, i : i + PARTS] - y[:, i : i + PARTS]
        parts[..., : difference.shape[-1]] += difference * difference
    while parts.shape[-1] > 1:
        half = parts.shape[-1] // 2
        parts = parts[..., :half] + parts[..., half:]
    return parts[..., 0]


def nearest(square, k=1, skip=None):
    """Distance and index, (n, k), of all squares; NaN and -1 where there is none."""
    if skip is not None:
        chosen = skip >= 0
        square = square.clone()
        square[chosen, skip[chosen]] = torch.nan
    best, order = square.sort(dim=1, stable=True)  # NaN last
    best = torch.from_numpy(np.sqrt(best[:, :k].numpy()))  # torch's is off by a bit at times
    return best, order[:, :k].masked_fill(best.isnan(), -1)


def agree(x, y, expected, k=1, skip=None, device="cpu", **options):
    """The operator's result is the first k of those expected; returns it, (n, k)."""
    on = [None if v is None else v.to(device) for v in (x, y, skip)]
    distance, index = nearest_neighbor(*on[:2], skip=on[2], k=k, **options)
    assert distance.dtype == x.dtype and index.dtype == torch.int64
    assert distance.shape == index.shape == ((len(x),) if k == 1 else (len(x), k))
    distance, index = distance.cpu().reshape(len(x), k), index.cpu().reshape(len(x), k)
    search = torch.float64 if x.dtype == torch.float64 else torch.float32
    wanted = expected[0][:, :k].to(search).to(x.dtype)
    assert torch.equal(index, expected[1][:, :k])
    assert torch.equal(distance.isnan(), index < 0)
    assert torch.equal(distance[index >= 0], wanted[index >= 0])
    return distance, index


def check(x, y, k=1, skip=None, device="cpu", **options):
    """The operator's result is the exhaustive search's; returns it, (n, k)."""
    expected = nearest(squares(x, values(y, **options)), k, skip)
    return agree(x, y, expected, k, skip, device, **options)


def check_levels(set_simd, x, y, ks=(1, 5, 16), skip=None, device="cpu", square=None, **options):
    """That of every k on every level that products of integers have on this CPU, in turns with the
    skips and without; returns the squares of all pairs, where they are not given."""
    square = squares(x, values(y, **options)) if square is None else square
    expected = {s is None: nearest(square, max(ks), s) for s in (None, skip)}
    on_cpu = device == "cpu" and library.op is torch.ops.fastebm
    for turn, level in enumerate(PRODUCT_LEVELS if on_cpu else PRODUCT_LEVELS[:1]):
        set_simd(level)
        for k in ks:
            turn += 1
            s = skip if turn % 2 else None
            if k <= len(y) - (s is not None):
                agree(x, y, expected[s is None], k, s, device, **options)
    return square
