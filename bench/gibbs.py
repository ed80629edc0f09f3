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

from collections.abc import Callable

import suite
import timing
import torch
from torch import Tensor

from fastebm import RBM
from fastebm.bernoulli import bernoulli_sigmoid, bernoulli_sigmoid_
from fastebm.rng import HIDDEN, VISIBLE, ChainRNG

FUSED, IN_PLACE, BEST_EAGER = "fastebm", "fastebm, in place", "rand < sigmoid"
EAGER = (BEST_EAGER, "bernoulli, in place", "bernoulli, naive")
PRODUCTS = "products only"
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
        PRODUCTS: by(lambda a: a),
    }
    try:
        from fastebm.sklearn import to_sklearn
    except ImportError:
        return calls
    if device.type != "cpu":
        return calls
    estimator, array = to_sklearn(rbm, random_state=0), v.numpy()
    return calls | {"scikit-learn": lambda: estimator.gibbs(array)}


def measure(what: str, shape, device: torch.device, threads: int, seconds: float) -> suite.Rows:
    """A row for each way to draw or to step."""
    torch.manual_seed(0)
    torch.compiler.reset()
    batch, n_visible, n_hidden = shape
    calls = {"draw": draws, "step": steps}[what](shape, device)
    calls, reasons = timing.only_available(calls, (FUSED, BEST_EAGER))
    timings = timing.compare(calls, device, seconds=seconds)
    n = batch * (n_visible + n_hidden)
    if what == "draw":
        limit = {"limit": "copy"}
        limit["limit_seconds"] = 8 * n / timing.copy_bandwidth(4 * n, device, seconds / 5)
    else:
        limit = {"limit": "matrix product"}
        operations = 4 * batch * n_visible * n_hidden
        limit["limit_seconds"] = operations / timing.matmul_rate(device, seconds / 5)
    sizes = " x ".join(map(str, shape))
    case = {
        "case": f"{what}, {sizes}, {suite.threads_text(device, threads)}",
        "what": what,
        "shape": list(shape),
        "threads": threads,
        **limit,
    }
    return [
        case
        | {
            "variant": name,
            "yardstick": name == PRODUCTS,
            "seconds": t.median,
            "fastest_seconds": min(t.seconds),
            "spread": t.spread,
            "rounds": len(t.seconds),
            "fastebm_faster": timings[FUSED].times_faster_than(t),
        }
        for name, t in timings.items()
    ] + suite.unavailable_rows(case, reasons)


def print_case(rows: suite.Rows) -> None:
    batch, n_visible, n_hidden = rows[0]["shape"]
    n = batch * (n_visible + n_hidden)
    table = [
        [
            row["variant"],
            f"{row['seconds'] * 1e6:.4g}",
            f"{row['spread']:.0%}",
            f"{row['fastest_seconds'] * 1e6:.4g}",
            f"{row['seconds'] / n * 1e9:.3g}",
            f"{row['fastebm_faster']:.2f}x",
            f"{row['limit_seconds'] / row['seconds']:.0%}",
        ]
        for row in rows
        if "seconds" in row
    ]
    limit = rows[0]["limit_seconds"]
    table.append([f"limit: {rows[0]['limit']}", f"{limit * 1e6:.4g}", *[""] * 4, "100%"])
    header = ["", "us", "spread", "fastest", "ns/unit", "fastebm is", "of the limit"]
    suite.print_table(rows[0]["case"], header, table)


def print_targets(rows: suite.Rows) -> None:
    """What was to be reached on a CPU and what was: against the fastest eager draw of each case."""
    claims = []
    for case in dict.fromkeys(row["case"] for row in rows if row["what"] == "draw"):
        of_case = [row for row in rows if row["case"] == case and row["variant"] in EAGER]
        got = min(row["fastebm_faster"] for row in of_case if "seconds" in row)
        claims.append((case, f"{TARGET:.1f}x", f"{got:.2f}x", got >= TARGET))
    suite.print_targets("fastebm over the best eager draw, on a CPU", claims)


def run(options: suite.Options) -> suite.Rows:
    """Measures and prints every case."""
    device = options.device
    seconds = 4.0 if device.type == "cpu" and not options.quick else 1.0
    rows = []
    with torch.no_grad():
        for threads in options.each_thread_count(1, 2):
            for shape in SHAPES[1:] if options.quick else SHAPES:
                for what in ("draw", "step"):
                    of_case = measure(what, shape, device, threads, seconds)
                    print_case(of_case)
                    rows += of_case
    if device.type == "cpu":
        print_targets(rows)
    return rows


if __name__ == "__main__":
    suite.script("gibbs", __doc__, run)
