"""Fuzz of the operators, for sanitisers (make asan): each is called with arguments that fit, and
with some of them changed. It must give a result, or a RuntimeError that does not name a source
file. After a crash the call that it was is printed; `python tests/ops/fuzz.py CALL` repeats it.

FASTEBM_FUZZ_BUILD names the folder of the libraries to test, build/dev or build/asan.
"""

import importlib.util
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fuzz_values
import torch
from fuzz_moves import hamiltonian, metropolis
from fuzz_values import BOUNDS, DTYPES, SHAPES, box, floats, stream

for name in ("_C", "_simt"):
    (path,) = Path(os.environ["FASTEBM_FUZZ_BUILD"]).glob(f"{name}.*.so")
    spec = importlib.util.spec_from_file_location(f"fastebm.{name}", path)
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
BUILT = sys.modules["fastebm._C"]
SIMD = BUILT.simd_levels()
normal, whole = fuzz_values.normal, fuzz_values.whole  # in the text of calls


# Arguments that fit, one function an operator: argument -> expression, or list of them.
def coefficients(r, dtype, n):
    table = f"{floats(r, n)}.abs().{dtype}()"
    return {
        "step_size": str(r.choice([0, 0.1])),
        "noise_std": str(r.choice([0, 0.1])),
        "step_sizes": r.choice(["None", table]),
        "noise_stds": r.choice(["None", table]),
        **{name: str(r.choice(BOUNDS)) for name in ("grad_clip", "grad_norm_clip", "hi")},
        "displacement_clip": str(r.choice(BOUNDS)),
        "lo": str(r.choice([None, -0.5])),
    }


def step(r, in_place):
    n, shape, dtype = r.randrange(5), r.choice(SHAPES), r.choice(DTYPES)
    x, grad = (f"{floats(r, n, *shape)}.{dtype}()" for _ in range(2))
    table = "double" if dtype == "double" else "float"
    grad = r.choice([grad, "None"]) if in_place else grad
    return {"x": x, "grad": grad, **coefficients(r, table, n), **stream(r, n)}


def step_backward(r):
    n, d = r.randrange(1, 5), r.randrange(1, 70)
    table = r.choice(["None", f"{floats(r, n)}.abs()"])
    mask = f"whole({r.randrange(99)}, 0, 256, {n}, {(d + 3) // 4}).byte()"
    return {"grad_out": floats(r, n, d), "mask": mask, "step_size": "0.1", "step_sizes": table}


def bernoulli(r):
    n = r.randrange(5)
    logits = f"{floats(r, n, *r.choice(SHAPES))}.{r.choice(DTYPES)}()"
    return {"logits": logits, **stream(r, n), "beta": "0.7", "bytes": str(r.random() < 0.5)}


def choice(r):
    size = r.choice([1, 5, 127, 128, 5000, 2**40])
    slots = f"whole({r.randrange(99)}, -2, {size + 2}, {r.randrange(20)})"
    n, rng = r.randrange(min(size, 40) + 1), stream(r, 1)["rng"]
    return {
        **{"rng": rng, "size": str(size), "n": str(n), "slots": r.choice(["None", slots])},
        "t": str(r.choice([0, 5])),
    }


def strata(r):
    size = r.choice([1, 5, 5000, 2**40])
    total = r.randrange(min(size, 400) + 1)
    first = r.randrange(total + 1)
    n, rng = r.randrange(total - first + 1), stream(r, 1)["rng"]
    rows = {"n": str(n), "first": str(first), "total": str(total)}
    return {"rng": rng, "size": str(size), **rows}


def references(r, m, shape):
    bytes_ = f"whole({r.randrange(99)}, 0, 256, {m}, {', '.join(map(str, shape))}).byte()"
    return r.choice([floats(r, m, *shape), f"{floats(r, m, *shape)}.half()", bytes_])


# What makes of normal samples such as a grid of bytes fits, and does not: heavy tails,
# whole numbers, far from the origin, overflow, NaN.
LAWS = ["", "", ".pow(9)", ".tan()", ".round()", ".add(1e6)", ".mul(1e-38)"]
LAWS += [".exp().pow(40)", ".log()"]
GRIDS = [(0.5, -1.0), (0.5, -1.0), (-1 / 128, 1.0), (1e-3, 1e4), (0.0, 0.5), (1e36, 3e38)]


def search(r):
    n, m, shape = r.randrange(70), r.randrange(2, 150), r.choice([*SHAPES, (2100,)])
    x, y = floats(r, n, *shape) + r.choice(LAWS), references(r, m, shape)
    if "normal" in y:
        y = y.replace(")", ")" + r.choice(LAWS), 1)
    skip = r.choice(["None", f"whole({r.randrange(99)}, -1, {m}, {n})"])
    scale, offset = r.choice(GRIDS)
    numbers = {"k": r.choice([1, 1, 2, 16]), "y_scale": scale, "y_offset": offset, "eps": 0.1}
    return {"x": x, "y": y, "skip": skip, **{name: str(v) for name, v in numbers.items()}}


def search_backward(r):
    n, k, shape = r.randrange(1, 9), r.choice([1, 3]), r.choice(SHAPES)
    pair = (n,) if k == 1 else (n, k)
    tensors = {"x": floats(r, n, *shape), "winners": references(r, n * k, shape)}
    return {"grad": floats(r, *pair), **tensors, "distance": f"{floats(r, *pair)}.abs()"} | {
        "y_scale": "0.5",
        "y_offset": "-1.0",
    }


def gather(r):
    n, stored = r.randrange(20), r.randrange(1, 30)
    shape = (r.choice([1, 2, 3]), r.randrange(3, 20), r.randrange(3, 20))
    size = r.choice([0, 1, 3, 5])
    moves = [0.1, 1, 0.7, 1.4, 0.5, 0.2, 1.8, 0.2, 1.8, 0.2, 1.8, -0.4, 0.4, 0.8, 0.2, size, 0.1, 2]
    data = {"float": floats(r, stored, *shape), "byte": references(r, stored, shape)}
    return {
        "data": data[kind] + f".{kind}()" if (kind := r.choice([*data])) == "float" else data[kind],
        "index": f"whole({r.randrange(99)}, -1, {stored}, {n})",
        **stream(r, n),
        **{"lo": "-1.0", "hi": "1.0", "dither": "True", "reinit_prob": "0.2"},
        "init": str(r.randrange(3)),
        "augmentation": r.choice([[], [str(v) for v in (*moves, 0.5)]]),
        "visits": r.choice(["None", f"whole(0, 0, 9, {stored}).int()"]),
    }


def network(r, d, n, n_data=None):
    """For n samples of d elements, and so many of data."""
    widths = [d, *(r.choice([1, 7, 16, 33]) for _ in range(r.randrange(1, 5))), 1]
    layers = list(zip(widths[1:], widths[:-1], strict=True))
    base = r.choice([("None", "None"), (f"{floats(r, d)}.abs()", r.choice(["None", floats(r, d)]))])
    rows = {"row_bias": floats(r, n, widths[1]), "data_row_bias": floats(r, n_data or 1, widths[1])}
    return {
        "weights": [floats(r, *layer) for layer in layers],
        "biases": [r.choice(["None", floats(r, out)]) for out, _ in layers],
        **{"activation": str(r.randrange(8)), "beta": "1.0", "threshold": "20.0"},
        **dict(zip(("base_precision", "base_mean"), base, strict=True)),
        **r.choice([rows, dict.fromkeys(rows, "None")]),
    }


def tables(r, steps, n):
    table = f"{floats(r, r.choice([1, steps]), r.choice([1, n]))}.abs()"
    return {name: r.choice(["None", table]) for name in ("step_sizes", "noise_stds")}


def chain(r):
    n, d, steps = r.randrange(1, 40), r.randrange(1, 20), r.randrange(4)
    outputs = {"energy": r.choice(["None", floats(r, n)]), "grad": r.choice(["None", f"x{n, d}"])}
    outputs["grad"] = outputs["grad"].replace(f"x{n, d}", floats(r, n, d))
    common = {**coefficients(r, "float", n), **tables(r, max(steps, 1), n), **stream(r, n)}
    common |= {"n_steps": str(steps), "noise_first": str(r.random() < 0.5), "bfloat16": "False"}
    return {"x": floats(r, n, d), **network(r, d, n), **common, **outputs, **box(r, d, "box_")}


def source(r, d, corners):
    """Which centres samples jump between, and how often to a uniform point."""
    share = "0.0" if corners["lo"] == "None" else r.choice(["0.0", "0.3", "1.0"])
    m = r.choice([2, 40])
    modes = {"centres": floats(r, m, d), "scales": f"{floats(r, m)}.abs().add(0.1)"}
    if share == "1.0" and r.random() < 0.5:
        modes = {"centres": "None", "scales": "None"}
    return {**modes, "uniform_share": share}


def jump(r):
    n, d = r.randrange(40), r.randrange(1, 20)
    corners = box(r, d)
    return {"x": floats(r, n, d), **stream(r, n), **corners, **source(r, d, corners)}


def adjusted(r):
    n, d, steps = r.randrange(1, 40), r.randrange(1, 20), r.randrange(4)
    corners, own = box(r, d), {"energy": floats(r, n), "grad": floats(r, n, d)}
    common = {**coefficients(r, "float", n), **tables(r, max(steps, 1), n), **stream(r, n)}
    common |= {"n_steps": str(steps), "noise_std": "0.1", "known": str(r.random() < 0.5)}
    common |= {"every": str(r.randrange(3)), "first": str(r.randrange(5))}
    own |= {"x": floats(r, n, d), "acceptance": floats(r, 2, n)}
    return {**own, **network(r, d, n), **common, **corners, **source(r, d, corners)}


def gradient(r):
    n, d = r.randrange(1, 70), r.randrange(1, 20)
    net, n_data = network(r, d, n), r.randrange(n + 1)
    count = sum(math.prod(eval(w).shape) + len(eval(w)) for w in net["weights"])
    return {
        **{"x": floats(r, n, d), **net, "n_data": str(n_data), "factor": "0.1"},
        **{"square_factor": r.choice(["0.0", "0.2"]), "v": r.choice(["None", floats(r, n, d)])},
        **{"sums": r.choice(["None", floats(r, count)]), "grad": floats(r, n - n_data, d)},
        "to_row_bias": floats(r, *eval(net["row_bias"]).shape)
        if net["row_bias"] != "None"
        else "None",
    }


def loss(r):
    n, shape, steps, m = r.randrange(1, 40), r.choice(SHAPES[:-1]), r.randrange(3), r.randrange(50)
    common = {**coefficients(r, "float", n), **tables(r, steps + 1, n), **stream(r, n)}
    common |= {"noise_first": str(r.random() < 0.5), "n_steps": str(steps)}
    own = r.choice(["None", f"whole({r.randrange(99)}, -1, {max(m, 1)}, {n})"])
    term = {"kl_weight": r.choice(["None", "1.0"]), "entropy_weight": r.choice(["0.0", "0.3"])}
    term |= {"references": r.choice(["None", references(r, m, shape)]), "own": own}
    term |= {"energy_reg_weight": "0.1", "entropy_eps": "0.1", "y_scale": "0.5", "y_offset": "-1.0"}
    points = {"x": floats(r, n, *shape), "start": floats(r, n, *shape)}
    return {**points, **network(r, math.prod(shape), n, n), **common, **term}


def means(r):
    m, d, n = r.randrange(1, 60), r.randrange(1, 20), r.randrange(20)
    chosen, k = f"whole({r.randrange(99)}, 0, {m}, {n})", r.randrange(1, min(m, 16) + 1)
    return {"y": floats(r, m, d) + r.choice(LAWS), "chosen": chosen, "k": str(k)}


def adjusted_loss(r):
    n, d, steps, times = r.randrange(1, 20), r.randrange(1, 20), r.randrange(2, 7), r.choice([1, 2])
    size, faces = (
        r.randrange(2, 60),
        r.choice([("None", "None"), ("-2.0", "None"), ("-2.0", "3.0")]),
    )
    step = {"step_size": "0.1", "noise_std": r.choice(["None", "0.3"]), "noise_scale": "1.0"}
    step |= {"temperature": "0.5", "log_step": r.choice(["None", "-1.0"]), "gain": "0.05"}
    step |= {"target_acceptance": "0.7", "largest": "0.0", "least": "-9.0"}
    step |= {"round": str(r.randrange(1, 4))}
    share = r.choice(["0.0", "0.1"]) if "None" not in faces else "0.0"
    jumps = {"n_jumps": str(r.randrange(steps + 1)), "population": floats(r, size, d)}
    jumps |= {"n_centres": str(min(size, 16)), "n_neighbors": str(min(size, 3))}
    units = {"mean": floats(r, d), "std": f"{floats(r, d)}.abs()"}
    points = {"x": floats(r, n * times, d), "start": floats(r, n, d), "n_steps": str(steps)}
    return {
        **{
            **points,
            **network(r, d, n, n * times),
            **step,
            **stream(r, n),
            **jumps,
            "uniform_share": share,
        },
        **{**r.choice([units, {"mean": "None", "std": "None"}]), "energy_reg_weight": "0.1"},
        **dict(zip(("lo", "hi"), faces, strict=True)),
    }


CALLS = {
    "langevin_step_": lambda r: step(r, True),
    "langevin_step": lambda r: step(r, False),
    "langevin_step_backward": step_backward,
    "bernoulli_sigmoid": bernoulli,
    "bernoulli_sigmoid_": bernoulli,
    "choose_slots": choice,
    "choose_strata": strata,
    "nearest_neighbor": search,
    "nn_log_distance": search,
    "nearest_neighbor_backward": search_backward,
    "neighbor_means": means,
    "replay_gather": gather,
    "mlp_chain_": chain,
    "mlp_adjusted_chain_": adjusted,
    "population_jump": jump,
    "metropolis_step_": metropolis,
    "hmc_step_": hamiltonian,
    "mlp_gradient": gradient,
    "mlp_contrastive_divergence": loss,
    "mlp_adjusted_contrastive_divergence": adjusted_loss,
}

# What an argument is changed to, by its type. A valid n_steps or n that is large takes for ever.
INTS = [-(2**63), -1, 0, 1, 2, 3, 16, 17, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**56]
FEW = [-(2**63), -1, 0, 1, 5, 2**40 + 1, 2**63 - 1]
NUMBERS = ["math.nan", "math.inf", "-math.inf", "-1.0", "0.0", "-0.0", "1.0", "7.0", "63.0"]
NUMBERS += ["1e-300", "1e-40", "1e38", "1e300", "-1e300", "0.5", "4294967295.0"]
VIEWS = ["[:0]", "[1:]", "[:, :1]", "[..., ::2]", ".flatten()", "[None]", "[0]"]
VIEWS += [".repeat_interleave(2, 0)", "[:1].expand(5, *(-1,) * 9)", ".contiguous().t()", ".sum()"]
VIEWS += [f".{dtype}()" for dtype in (*DTYPES, "byte", "int", "long", "bool", "cfloat")]
VIEWS += [".mul(math.nan)", ".mul(1e30)", ".neg()", ".add(2**40)", ".sub(1)", ".to('meta')"]
VIEWS += [".transpose(0, -1)", ".clone().requires_grad_()", ".to_sparse()", ".squeeze()"]
VIEWS += ["[..., :3]"]


def changed(r, kind, name, value):
    if isinstance(value, list):
        if r.random() < 0.3 or not value:
            return r.choice([value[:-1], value + value[:1], [*value, "None"], []])
        i = r.randrange(len(value))
        return [*value[:i], changed(r, kind, name, value[i]), *value[i + 1 :]]
    if "Tensor" in kind:
        if value == "None":
            value = floats(r, r.randrange(9), r.randrange(9))
        return "None" if "Optional" in kind and r.random() < 0.2 else value + r.choice(VIEWS)
    if "int" in kind:
        return str(r.choice(FEW if name in ("n_steps", "n") else INTS))
    return str(not eval(value)) if "bool" in kind else r.choice(NUMBERS)


def calls(seed):
    """One call after another, as text."""
    r = random.Random(seed)
    schemas = torch._C._jit_get_all_schemas()
    schemas = [s for s in schemas if s.name.startswith(("fastebm::", "fastebm_simt::"))]
    differ = {s.name.split("::")[1] for s in schemas} ^ CALLS.keys()
    assert not differ, f"without a generator of arguments, or without an operator: {differ}"
    schemas.sort(key=lambda s: s.name)
    schemas += 5 * [s for s in schemas if s.name.startswith("fastebm::")]  # the others take longer
    while True:
        schema = r.choice(schemas)
        space, operator = schema.name.split("::")
        fitting = CALLS[operator](r)
        arguments = {a.name: fitting[a.name] for a in schema.arguments}
        for a in r.sample(schema.arguments, r.choice([0, 1, 1, 2, 3])):
            arguments[a.name] = changed(r, str(a.type), a.name, arguments[a.name])
        text = ", ".join(
            f"{name}={v if isinstance(v, str) else '[' + ', '.join(v) + ']'}"
            for name, v in arguments.items()
        )
        yield f"torch.ops.{space}.{operator}({text})"


def run(call, r):
    """Whether it gave a result; None where its arguments could not be made."""
    operator, _, arguments = call.partition("(")
    try:
        arguments = eval(f"dict({arguments}")
    except Exception:
        return None
    BUILT.set_simd(r.choice(SIMD))
    torch.set_num_threads(r.choice([1, 3]))
    try:
        eval(operator)(**arguments)
    except NotImplementedError:  # torch's dispatcher: sparse, meta
        return False
    except RuntimeError as e:
        assert not any(f"{end}:" in str(e) for end in (".h", ".cpp")), e
        return False
    return True


def fuzz(seconds, seed, note):
    """Calls for so long; each stands in the file `note` while it runs."""
    end, r, counts = time.monotonic() + seconds, random.Random(seed), {}
    file = os.open(note, os.O_WRONLY)
    for call in calls(seed):
        if time.monotonic() > end:
            break
        os.pwrite(file, call.ljust(2**14).encode(), 0)  # a tenth of the time of a new file
        row = counts.setdefault(call.partition("(")[0], {True: 0, False: 0, None: 0})
        row[run(call, r)] += 1
    for operator, row in sorted(counts.items()):
        print(f"{operator}: {row[True]} results, {row[False]} refused, {row[None]} not made")
        assert row[True] and row[False], "each is to do both"


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(run(sys.argv[1], random.Random(0)))
    elif len(sys.argv) == 4:
        fuzz(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    else:
        seconds, seed = sys.argv[1:]
        with tempfile.NamedTemporaryFile("r") as note:
            command = ["timeout", str(60 + float(seconds)), sys.executable, __file__]
            code = subprocess.run([*command, seconds, seed, note.name]).returncode
            if code:
                sys.exit(f"ended with {code} in\n{note.read().strip()}")
