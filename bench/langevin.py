"""The fused Langevin step against the same step in plain and in compiled torch.

x' = clamp(x - step * clip(grad) + sigma * n), in place, with fresh noise in every call. Rivals:
  eager, in place    normal_ into a kept buffer, then clamp_, add_, add_, clamp_: 44 B an element in
                     float32. The best eager form found: other orders of the five calls, and going
                     through the tensor piece by piece in the cache, are within 3 % or slower.
  eager, naive       a new tensor for every intermediate, as the formula is usually written
  torch.compile      of the whole step, default mode, updating x in place
  normal_ + compile  eager normal_ into a kept buffer, the rest compiled
"""

from __future__ import annotations

import os
from collections.abc import Callable

import timing
import torch

from fastebm import ops
from fastebm.rng import ChainRNG

STEP, SIGMA, CLIP, LO, HI = 0.01, 0.1, 1.0, 0.0, 1.0
FUSED, BEST_EAGER = "fastebm", "eager, in place"
COMPILED = "torch.compile"
SHAPES = [(4096, 2), (100, 100), (1000, 1000), (1000, 10000), (10000, 10000)]
TARGETS = {10**4: (3.0, 3.0), 10**6: (3.3, 6.0), 10**7: (3.3, 6.0)}  # at 1 and 2 threads
# design/langevin-step.md 1.1: what an H200's memory allows. Not a measurement.
PREDICTED_GPU = "H200 at 4.3 TB/s"
PREDICTED_GPU_BYTES_PER_S = 4.3e12


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

    return {
        FUSED: fused,
        BEST_EAGER: eager_in_place,
        "eager, naive": eager_naive,
        COMPILED: lambda: compiled(x3, grad3),
        "normal_ + compile": lambda: compiled_rest(x4, grad4, noise4.normal_()),
    }


def measure(shape, dtype, device: torch.device, threads: int, seconds: float) -> list[dict]:
    n = shape[0] * shape[1]
    torch.manual_seed(0)
    calls, reasons = timing.only_available(rivals(shape, dtype, device), (FUSED, BEST_EAGER))
    timings = timing.compare(calls, device, seconds=seconds)
    copy = timing.copy_bandwidth(n * dtype.itemsize, device, seconds / 5)
    case = {
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(shape),
        "n": n,
        "threads": threads,
        "copy_bytes_per_s": copy,
        "load_average": os.getloadavg()[0],
    }
    for name, reason in reasons.items():
        print(f"unavailable: {name}: {reason}")
    return [
        case
        | {
            "variant": name,
            "ns_per_element": t.median / n * 1e9,
            "fastest_ns_per_element": min(t.seconds) / n * 1e9,
            "spread": t.spread,
            "rounds": len(t.seconds),
            "times_faster_than_best_eager": t.times_faster_than(timings[BEST_EAGER]),
            "fused_times_faster": timings[FUSED].times_faster_than(t),
            "bytes_per_s": bytes_per_element(dtype) * n / t.median if name == FUSED else None,
        }
        for name, t in timings.items()
    ] + [case | {"variant": name, "unavailable": reason} for name, reason in reasons.items()]


def print_case(rows: list[dict]) -> None:
    case = rows[0]
    title = f"{case['dtype']}, {' x '.join(map(str, case['shape']))}"
    if case["device"] == "cpu":
        title += f", {case['threads']} thread(s), load average {case['load_average']:.1f}"
    print(title)
    table = []
    for row in rows:
        if "unavailable" in row:
            table.append([row["variant"], "unavailable", *[""] * 5])
            continue
        rate = row["bytes_per_s"]
        table.append(
            [
                row["variant"],
                f"{row['ns_per_element']:.4g}",
                f"{row['spread']:.0%}",
                f"{row['fastest_ns_per_element']:.4g}",
                f"{row['times_faster_than_best_eager']:.2f}x",
                f"{rate / 1e9:.1f}" if rate else "",
                f"{rate / row['copy_bytes_per_s']:.0%}" if rate else "",
            ]
        )
    copy, moved = case["copy_bytes_per_s"], bytes_per_element(getattr(torch, case["dtype"]))
    predicted = PREDICTED_GPU_BYTES_PER_S
    table += [
        ["copy, measured", "", "", "", "", f"{copy / 1e9:.1f}", "100%"],
        [
            f"PREDICTED limit, {PREDICTED_GPU}",
            f"{moved / predicted * 1e9:.4g}",
            *[""] * 3,
            f"{predicted / 1e9:.0f}",
            "",
        ],
    ]
    header = ["", "ns/element", "spread", "fastest", "vs best eager", "GB/s", "of copy"]
    timing.print_table(header, table)


def print_targets(rows: list[dict]) -> None:
    """What was to be reached (float32, CPU) and what was."""
    table = []
    for row in rows:
        if row["device"] != "cpu" or row["dtype"] != "float32" or row["n"] not in TARGETS:
            continue
        if "unavailable" in row:
            continue
        if row["variant"] == BEST_EAGER:
            wanted = TARGETS[row["n"]][row["threads"] - 1]
        elif row["variant"] == COMPILED:
            wanted = 20.0
        else:
            continue
        got = row["fused_times_faster"]
        claim = f"n = {row['n']:.0e}, {row['threads']} thread(s), over {row['variant']}"
        verdict = "met" if got >= wanted else "MISSED"
        table.append([claim, f"{wanted:.1f}x", f"{got:.2f}x", verdict])
    if table:
        timing.print_table(["target (fastebm, float32, CPU)", "wanted", "measured", ""], table)


def main() -> None:
    arguments = timing.parse_arguments(__doc__)
    device = arguments.device
    seconds = 4.0 if device.type == "cpu" and not arguments.quick else 1.0
    facts = timing.environment(device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    shapes = SHAPES if device.type == "cuda" else SHAPES[:-1]
    cases = [(s, torch.float32) for s in shapes] + [((1000, 1000), torch.bfloat16)]
    if device.type == "cuda":
        cases.append((SHAPES[-1], torch.bfloat16))
    if arguments.quick:
        cases = [((100, 100), torch.float32), ((1000, 1000), torch.float32)]
    rows = []
    with torch.no_grad():
        for threads in (1, 2) if device.type == "cpu" else (torch.get_num_threads(),):
            torch.set_num_threads(threads)
            timing.warn_if_busy(threads)
            for shape, dtype in cases:
                torch.compiler.reset()
                case = measure(shape, dtype, device, threads, seconds)
                print_case(case)
                rows += case
    print_targets(rows)
    timing.write_results(arguments.out, facts, rows)


if __name__ == "__main__":
    main()
