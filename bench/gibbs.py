"""Block Gibbs sampling of an RBM: the draw of its units alone, and whole steps.

The draw is Bernoulli(sigmoid(logits)), of the B x H hidden and the B x V visible logits of a step.
Rivals:
  rand < sigmoid      uniform_ and sigmoid into kept buffers, then a comparison into a third
  bernoulli, in place sigmoid into a kept buffer, then torch.bernoulli into the same
  bernoulli, naive    torch.bernoulli(torch.sigmoid(logits))
  torch.compile       of rand < sigmoid, default mode
A step is h given v, then v given h: the same draws after the same two products, by torch and by
scikit-learn's BernoulliRBM.gibbs, whose weights are the same ones (with its checks of the input).
"""

from __future__ import annotations

import os
from collections.abc import Callable

import timing
import torch
from torch import Tensor

from fastebm import RBM
from fastebm.bernoulli import bernoulli_sigmoid, bernoulli_sigmoid_
from fastebm.rng import HIDDEN, VISIBLE, ChainRNG

FUSED, IN_PLACE, BEST_EAGER = "fastebm", "fastebm, in place", "rand < sigmoid"
SHAPES = [(4096, 784, 500), (128, 64, 64)]  # B, V, H
TARGET = 2.0  # times faster than the best eager draw, on a CPU


def draws(shape: tuple[int, int, int], device: torch.device) -> dict[str, Callable[[], object]]:
    """Every way to draw the units of one step, each on tensors of its own."""
    batch, n_visible, n_hidden = shape

    def layers() -> list[Tensor]:
        return [2 * torch.randn(batch, n, device=device) for n in (n_hidden, n_visible)]

    rng = ChainRNG(0).state(device)
    t = 0

    def fused(draw: Callable, logits: list[Tensor]):
        def call():
            nonlocal t
            t += 1
            for a, tag in zip(logits, (HIDDEN, VISIBLE), strict=True):
                draw(a, rng, t=t, tag=tag)

        return call

    def each(draw: Callable[[Tensor, Tensor, Tensor], object]):
        buffers = [(a, torch.empty_like(a), torch.empty_like(a)) for a in layers()]
        return lambda: [draw(*parts) for parts in buffers]

    def compare(a: Tensor, u: Tensor, x: Tensor):
        torch.sigmoid(a, out=x)
        torch.lt(u.uniform_(), x, out=x)

    def bernoulli_in_place(a: Tensor, p: Tensor, _):
        torch.bernoulli(torch.sigmoid(a, out=p), out=p)

    compiled = torch.compile(lambda a: (torch.rand_like(a) < a.sigmoid()).to(a.dtype))
    return {
        FUSED: fused(bernoulli_sigmoid, layers()),
        IN_PLACE: fused(bernoulli_sigmoid_, layers()),
        BEST_EAGER: each(compare),
        "bernoulli, in place": each(bernoulli_in_place),
        "bernoulli, naive": each(lambda a, *_: torch.bernoulli(torch.sigmoid(a))),
        "torch.compile": each(lambda a, *_: compiled(a)),
    }


def steps(shape: tuple[int, int, int], device: torch.device) -> dict[str, Callable[[], object]]:
    """Every way to take a Gibbs step, from the same v."""
    batch, n_visible, n_hidden = shape
    rbm = RBM(n_visible, n_hidden).to(device)
    v = torch.rand(batch, n_visible, device=device).round()
    W, b, c = (p.detach() for p in (rbm.W, rbm.b, rbm.c))
    rng = ChainRNG(0).state(device)
    t = 0

    def fused():
        nonlocal t
        t += 1
        rbm.gibbs_step(v, rng, t=t)

    def compare(a: Tensor) -> Tensor:
        return torch.lt(torch.rand_like(a), a.sigmoid_(), out=a)

    def by(draw: Callable[[Tensor], Tensor]):
        return lambda: draw(torch.addmm(b, draw(torch.addmm(c, v, W.T)), W))

    calls = {
        FUSED: fused,
        BEST_EAGER: by(compare),
        "bernoulli, in place": by(lambda a: torch.bernoulli(a.sigmoid_(), out=a)),
        "products only": by(lambda a: a),
    }
    try:
        from fastebm.sklearn import to_sklearn
    except ImportError:
        return calls
    if device.type != "cpu":
        return calls
    estimator, array = to_sklearn(rbm, random_state=0), v.numpy()
    return calls | {"scikit-learn": lambda: estimator.gibbs(array)}


def measure(what: str, shape, device: torch.device, threads: int, seconds: float) -> list[dict]:
    torch.manual_seed(0)
    calls = {"draw": draws, "step": steps}[what](shape, device)
    calls, reasons = timing.only_available(calls, (FUSED, BEST_EAGER))
    timings = timing.compare(calls, device, seconds=seconds)
    case = {
        "what": what,
        "device": device.type,
        "shape": list(shape),
        "n": shape[0] * (shape[1] + shape[2]),
        "threads": threads,
        "load_average": os.getloadavg()[0],
    }
    for name, reason in reasons.items():
        print(f"unavailable: {name}: {reason}")
    return [
        case
        | {
            "variant": name,
            "us": t.median * 1e6,
            "fastest_us": min(t.seconds) * 1e6,
            "spread": t.spread,
            "rounds": len(t.seconds),
            "fused_times_faster": timings[FUSED].times_faster_than(t),
        }
        for name, t in timings.items()
    ] + [case | {"variant": name, "unavailable": reason} for name, reason in reasons.items()]


def print_case(rows: list[dict]) -> None:
    case = rows[0]
    title = f"{case['what']}, B x V x H = {' x '.join(map(str, case['shape']))}"
    if case["device"] == "cpu":
        title += f", {case['threads']} thread(s), load average {case['load_average']:.1f}"
    print(title)
    table = []
    for row in rows:
        if "unavailable" in row:
            table.append([row["variant"], "unavailable", *[""] * 4])
            continue
        table.append(
            [
                row["variant"],
                f"{row['us']:.4g}",
                f"{row['spread']:.0%}",
                f"{row['fastest_us']:.4g}",
                f"{row['us'] * 1e3 / row['n']:.3g}",
                f"{row['fused_times_faster']:.2f}x",
            ]
        )
    header = ["", "us", "spread", "fastest", "ns/unit", "fastebm is"]
    timing.print_table(header, table)


def print_targets(rows: list[dict]) -> None:
    """What was to be reached on a CPU and what was: against the fastest eager draw of each case."""
    table = []
    eager = (BEST_EAGER, "bernoulli, in place", "bernoulli, naive")
    cases = sorted({(str(r["shape"]), r["threads"]) for r in rows if r["device"] == "cpu"})
    for shape, threads in cases:
        got = min(
            row["fused_times_faster"]
            for row in rows
            if row["what"] == "draw"
            and row["variant"] in eager
            and (str(row["shape"]), row["threads"]) == (shape, threads)
        )
        verdict = "met" if got >= TARGET else "MISSED"
        table.append([f"draw, {shape}, {threads} thread(s)", f"{TARGET}x", f"{got:.2f}x", verdict])
    if table:
        header = ["target (fastebm over the best eager draw, CPU)", "wanted", "measured", ""]
        timing.print_table(header, table)


def main() -> None:
    arguments = timing.parse_arguments(__doc__)
    device = arguments.device
    seconds = 4.0 if device.type == "cpu" and not arguments.quick else 1.0
    facts = timing.environment(device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    rows = []
    with torch.no_grad():
        for threads in (1, 2) if device.type == "cpu" else (torch.get_num_threads(),):
            torch.set_num_threads(threads)
            timing.warn_if_busy(threads)
            for shape in SHAPES[1:] if arguments.quick else SHAPES:
                for what in ("draw", "step"):
                    torch.compiler.reset()
                    case = measure(what, shape, device, threads, seconds)
                    print_case(case)
                    rows += case
    print_targets(rows)
    timing.write_results(arguments.out, facts, rows)


if __name__ == "__main__":
    main()
