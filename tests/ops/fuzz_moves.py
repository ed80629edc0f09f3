"""Arguments of transitions on any energy that fit, for the fuzz of the operators."""

import math

from fuzz_values import SHAPES, box, floats, stream


def scales_of(r, dtype, n, *names):
    """Coefficients of a step on any energy, numbers and tables."""
    number = {name: r.choice(["0.1", "1.0"]) for name in names}
    table = f"{floats(r, n)}.abs().{dtype}()"
    return number | {f"{name}s": r.choice(["None", table]) for name in names}


def any_box(r, dtype, n, d):
    corners = box(r, d) if r.random() < 0.7 else {"lo": floats(r, n, d), "hi": floats(r, n, d)}
    return {k: v if v == "None" else f"{v}.{dtype}()" for k, v in corners.items()}


def rows_of(r, *names):
    """Any chains: which arguments are like x, of names whose first is x."""
    n, shape, dtype = r.randrange(5), r.choice(SHAPES), r.choice(["float", "double"])
    samples = {name: f"{floats(r, n, *shape)}.{dtype}()" for name in names}
    return n, math.prod(shape), dtype, samples


def metropolis(r):
    n, d, dtype, samples = rows_of(r, "x", "grad", "y", "grad_y")
    decides, values = r.random() < 0.8, f"{floats(r, n)}.{dtype}()"
    if not decides:
        samples["grad_y"] = "None"
    sizes = scales_of(r, dtype, n, "step_size", "noise_std", "next_step_size", "next_noise_std")
    return {
        **{**samples, "energy": values, "e_y": values if decides else "None", **sizes},
        **{"acceptance": floats(r, 2, n), "propose": str(r.random() < 0.7 or not decides)},
        **{"log_factor": r.choice(["None", values]) if decides else "None"},
        **{**stream(r, n), **any_box(r, dtype, n, d)},
    }


def hamiltonian(r):
    n, d, dtype, samples = rows_of(r, "x", "grad", "y", "v", "grad_y")
    values, phase = f"{floats(r, n)}.{dtype}()", r.randrange(3)
    if phase == 0:
        samples["grad_y"] = "None"
    sizes = scales_of(r, dtype, n, "step_size", "temperature", "next_step_size", "next_temperature")
    return {
        **{**samples, "energy": values, "kinetic": values, "acceptance": floats(r, n), **sizes},
        **{"divergent": f"whole(0, 0, 9, {n}).int()", "e_y": values if phase == 2 else "None"},
        **{"begin": str(phase == 0 or r.random() < 0.5), "jitter": r.choice(["0.0", "0.3"])},
        **{**stream(r, n), **any_box(r, dtype, n, d)},
    }
