"""What the fuzz of the operators makes arguments of: text of calls, and what is made of it."""

import torch


def normal(seed, *shape):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(seed, low, high, *shape):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


BOUNDS = [None, 0.1, 1e9]
SHAPES = [(1,), (7,), (3, 5), (64,), (3, 4, 4), (300,), (0,)]
DTYPES = ["float", "double", "half", "bfloat16"]


def stream(r, n):
    state = [r.choice([0, 2**62]), r.choice([0, 2**31]), r.choice([0, 2**40]), 0]
    return {
        "rng": f"torch.tensor({state})",
        "t": str(r.choice([0, 5])),
        "sample_ids": r.choice(["None", f"whole({r.randrange(99)}, 0, 2**56, {n})"]),
        "tag": "128",
    }


def floats(r, *shape):
    return f"normal({r.randrange(10**6)}, {', '.join(map(str, shape))})"


def box(r, d, name=""):
    corner = f"{floats(r, d)}.abs().add(0.5)"
    faces = r.choice([("None", "None"), (f"{corner}.neg()", corner)])
    return {f"{name}lo": faces[0], f"{name}hi": faces[1]}
