"""The fused Langevin step against the same step in plain and in compiled torch.

x' = clamp(x - step * clip(grad) + sigma * n), in place, with fresh noise in every call. Rivals:
  eager, in place    normal_ into a kept buffer, then clamp_, add_, add_, clamp_: 44 B an element in
                     float32. The best eager form found: other orders of the five calls, and going
                     through the tensor piece by piece in the cache, are within 3 % or slower.
  eager, naive       a new tensor for every intermediate, as the formula is usually written
  torch.compile      of the whole step, default mode, updating x in place
  normal_ + compile  eager normal_ into a kept buffer, the rest compiled; CPU only
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import suite
import timing
import torch

from fastebm import ops
from fastebm.rng import ChainRNG

STEP, SIGMA, CLIP, LO, HI = 0.01, 0.1, 1.0, 0.0, 1.0
FUSED, BEST_EAGER, COMPILED = "fastebm", "eager, in place", "torch.compile"
SHAPES = [(4096, 2), (100, 100), (1000, 1000), (1000, 10000), (10000, 10000)]
TARGETS = {10**4: (3.0, 3.0), 10**6: (3.3, 6.0), 10**7: (3.3, 6.0)}  # at 1 and 2 threads


def bytes_per_element(dtype: torch.dtype) -> int:
    """What a step in place must move: x in, grad in, x out."""
    return 3 * dtype.itemsize


def rivals(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> dict[str, Callable]:
    """Every way to take a step, each on tensors of its own."""

    def tensors():
        x = torch.rand(shape, device=device).to(dtype)
        return x, torch.randn(shape, device=device).to(dtype), torch.empty_like(x)

    x0, grad0, _ = tensors()
    rng = ChainRNG(0).state(device)
    t = 0

    def fused():
        nonlocal t
        t += 1
        ops.langevin_step_(x0, grad0, STEP, SIGMA, rng, t=t, grad_clip=CLIP, clamp=(LO, HI))

    x1, grad1, noise1 = tensors()

    def eager_in_place():
        noise1.normal_(0, SIGMA)
        grad1.clamp_(-CLIP, CLIP)
        x1.add_(grad1, alpha=-STEP).add_(noise1).clamp_(LO, HI)

    x2, grad2, _ = tensors()

    def eager_naive():
        nonlocal x2
        noise = SIGMA * torch.randn_like(x2)
        x2 = torch.clamp(x2 - STEP * torch.clamp(grad2, -CLIP, CLIP) + noise, LO, HI)

    def step(x, grad):
        noise = SIGMA * torch.randn_like(x)
        x.copy_((x - STEP * grad.clamp(-CLIP, CLIP) + noise).clamp(LO, HI))

    def step_with_noise(x, grad, noise):
        x.copy_((x - STEP * grad.clamp(-CLIP, CLIP) + SIGMA * noise).clamp(LO, HI))

    x3, grad3, _ = tensors()
    x4, grad4, noise4 = tensors()
    compiled = torch.compile(step, dynamic=False)
    compiled_rest = torch.compile(step_with_noise, dynamic=False)

    calls = {
        FUSED: fused,
        BEST_EAGER: eager_in_place,
        "eager, naive": eager_naive,
        COMPILED: lambda: compiled(x3, grad3),
    }
    if device.type == "cpu":
        calls["normal_ + compile"] = lambda: compiled_rest(x4, grad4, noise4.normal_())
    return calls


def measure(shape, dtype, device: torch.device, threads: int, seconds: float) -> suite.Rows:
    """A row for each way to take a step."""
    n = shape[0] * shape[1]
    torch.manual_seed(0)
    torch.compiler.reset()
    calls, reasons = timing.only_available(rivals(shape, dtype, device), (FUSED, BEST_EAGER))
    timings = timing.compare(calls, device, seconds=seconds)
    copy = timing.copy_bandwidth(n * dtype.itemsize, device, seconds / 5)
    name = str(dtype).removeprefix("torch.")
    case = {
        "case": f"{name}, {shape[0]} x {shape[1]}, {suite.threads_text(device, threads)}",
        "dtype": name,
        "shape": list(shape),
        "threads": threads,
        "limit": "copy",
        "limit_seconds": bytes_per_element(dtype) * n / copy,
        "copy_bytes_per_s": copy,
    }
    return [
        case
        | {
            "variant": variant,
            **t.row(),
            "fastest_seconds": min(t.seconds),
            "faster_than_best_eager": t.times_faster_than(timings[BEST_EAGER]),
            "fastebm_faster": timings[FUSED].times_faster_than(t),
        }
        for variant, t in timings.items()
    ] + suite.unavailable_rows(case, reasons)


def print_case(rows: suite.Rows) -> None:
    n = rows[0]["shape"][0] * rows[0]["shape"][1]
    table = [
        [
            row["variant"],
            f"{row['seconds'] / n * 1e9:.4g}",
            f"{row['spread']:.0%}",
            f"{row['fastest_seconds'] / n * 1e9:.4g}",
            f"{row['faster_than_best_eager']:.2f}x",
            f"{row['limit_seconds'] / row['seconds']:.0%}",
        ]
        for row in rows
        if "seconds" in row
    ]
    limit = rows[0]["limit_seconds"] / n * 1e9
    copy = f"limit: copy at {rows[0]['copy_bytes_per_s'] / 1e9:.1f} GB/s"
    table.append([copy, f"{limit:.4g}", "", "", "", "100%"])
    header = ["", "ns/element", "spread", "fastest", "vs best eager", "of the limit"]
    suite.print_table(rows[0]["case"], header, table)


def print_targets(rows: suite.Rows) -> None:
    """What was to be reached (float32, CPU) and what was."""
    claims = []
    for row in rows:
        targets = TARGETS.get(row["shape"][0] * row["shape"][1], ())
        if row["dtype"] != "float32" or row["threads"] > len(targets) or "seconds" not in row:
            continue
        wanted = {BEST_EAGER: targets[row["threads"] - 1], COMPILED: 20.0}.get(row["variant"])
        if wanted:
            got = row["fastebm_faster"]
            claim = f"{row['case']}, over {row['variant']}"
            claims.append((claim, f"{wanted:.1f}x", f"{got:.2f}x", got >= wanted))
    suite.print_targets("fastebm's step on a CPU", claims)


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """Measures and prints every case."""
    device = options.device
    seconds = 4.0 if device.type == "cpu" and not options.quick else 1.0
    shapes = SHAPES[:-1] if device.type == "cpu" else [SHAPES[0], *SHAPES[2:-1]]
    cases = [(s, torch.float32) for s in shapes] + [((1000, 1000), torch.bfloat16)]
    if device.type == "cuda":
        cases += [(SHAPES[-1], torch.float32), (SHAPES[-1], torch.bfloat16)]
    if options.quick:  # on a GPU those that predictions are of: smaller ones stay in its cache
        quick = [((100, 100), torch.float32), ((1000, 1000), torch.float32)]
        cases = cases[-2:] if device.type == "cuda" else quick
    rows = []
    with torch.no_grad():
        for threads in options.each_thread_count(1, 2):
            for shape, dtype in options.in_time(cases):
                of_case = measure(shape, dtype, device, threads, seconds)
                print_case(of_case)
                rows += of_case
                yield of_case
    if device.type == "cpu":
        print_targets(rows)


if __name__ == "__main__":
    suite.script("langevin", __doc__, run)
