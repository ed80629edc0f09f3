"""Expressions of arguments that operators share, for fuzz.py, which evaluates them."""

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


def coefficients(r, dtype, n):
    table = f"{floats(r, n)}.abs().{dtype}()"
    return {
        "step_size": str(r.choice([0, 0.1])),
        "noise_std": str(r.choice([0, 0.1])),
        "step_sizes": r.choice(["None", table]),
        "noise_stds": r.choice(["None", table]),
        **{name: str(r.choice(BOUNDS)) for name in ("grad_clip", "grad_norm_clip", "hi")},
        "lo": str(r.choice([None, -0.5])),
    }


def box(r, d):
    corner = f"{floats(r, d)}.abs().add(0.5)"
    return r.choice([{"lo": "None", "hi": "None"}, {"lo": f"{corner}.neg()", "hi": corner}])
