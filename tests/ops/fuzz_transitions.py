"""Arguments that fit the operators of transitions for any energy, for fuzz.py."""

import math

from fuzz_values import DTYPES, SHAPES, box, floats, stream


def without_tag(r, n):
    return {k: v for k, v in stream(r, n).items() if k != "tag"}


def underdamped(r):
    n, shape, dtype = r.randrange(5), r.choice(SHAPES), r.choice(DTYPES)
    wide, d = "double" if dtype == "double" else "float", math.prod(shape)
    names = ("kick", "drift", "decay", "noise_std")
    numbers = {name: str(r.choice([0, 0.1, 1])) for name in names}
    tables = {f"{name}s": r.choice(["None", f"{floats(r, n)}.abs().{wide}()"]) for name in names}
    faces = {"lo": r.choice(["None", "-0.5"]), "hi": r.choice(["None", "0.5"])}
    corners = {"los": "None", "his": "None"}
    if r.random() < 0.5:
        corners = {f"{name}s": value for name, value in box(r, d).items()}
        corners = {k: v if v == "None" else f"{v}.{wide}()" for k, v in corners.items()}
        faces = {"lo": "None", "hi": "None"}
    state = {name: f"{floats(r, n, *shape)}.{dtype}()" for name in ("x", "v", "grad")}
    return {**state, **numbers, **tables, **without_tag(r, n), **faces, **corners}


def discrete(r):
    n, d, k = r.randrange(30), r.choice([1, 3, 7, 64, 400]), r.choice([0, 0, 2, 3, 70])
    shape = (n, d, k) if k else (n, d)
    x = f"whole({r.randrange(99)}, 0, 2, {', '.join(map(str, shape))}).float()"
    if k:
        chosen = f"whole({r.randrange(99)}, 0, {k}, {n}, {d})"
        x = f"torch.nn.functional.one_hot({chosen}, {k}).float()"
    states = {name: floats(r, *shape) for name in ("grad", "grad_y")}
    vectors = {name: floats(r, n) for name in ("energy", "log_q", "acceptance", "e_y")}
    site = f"whole({r.randrange(99)}, 0, {math.prod(shape[1:])}, {n})"
    own = r.choice(["None", f"{floats(r, n)}.abs()"])
    flags = {name: str(r.random() < 0.7) for name in ("accept", "propose")}
    return {
        **{"x": x, "y": x, "site": site, "temperature": "0.7", "temperatures": own},
        **{**states, **vectors, **without_tag(r, n), **flags, "n_categories": str(k)},
    }


def swap(r):
    n, chains, shape, dtype = r.randrange(1, 6), r.randrange(9), r.choice(SHAPES), r.choice(DTYPES)
    wide, v = r.choice(["float", "double"]), f"{floats(r, n, chains, *shape)}.{dtype}()"
    state = {name: f"{floats(r, n, chains, *shape)}.{dtype}()" for name in ("x", "grad")}
    return {
        **{**state, "velocity": r.choice(["None", v]), **without_tag(r, chains)},
        **{"energy": f"{floats(r, n, chains)}.{wide}()", "swaps": floats(r, n - 1, chains)},
        **{
            "temperatures": f"{floats(r, n)}.abs().double().add(0.1)",
            "parity": str(r.randrange(2)),
        },
    }


TRANSITIONS = {
    "underdamped_step_": underdamped,
    "gwg_step_": discrete,
    "replica_swap_": swap,
}
