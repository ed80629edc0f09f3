"""Block Gibbs sampling of an RBM: the draw of its units alone, and whole steps.

The draw is Bernoulli(sigmoid(logits)), of the B x H hidden and the B x V visible logits of a step.
Rivals:
  rand < sigmoid      uniform_ and sigmoid into kept buffers, then a comparison into a third
  bernoulli, in place sigmoid into a kept buffer, then torch.bernoulli into the same
  bernoulli, naive    torch.bernoulli(torch.sigmoid(logits))
  torch.compile       of rand < sigmoid, default mode
A step is h given v, then v given h: the same draws after the same two products, by torch and by
scikit-learn's BernoulliRBM.gibbs, whose weights are the same ones (with its checks of the input).
"products only" is no rival: the two products without a draw.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import suite
import timing
import torch
from torch import Tensor

from fastebm import RBM
from fastebm.ops.bernoulli import bernoulli_sigmoid, bernoulli_sigmoid_
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


def limit(what: str, shape, device: torch.device, rate: float, seconds: float) -> dict:
    """A draw reads its logits and writes its units once; a step cannot be faster than its two
    products."""
    batch, n_visible, n_hidden = shape
    units = batch * (n_visible + n_hidden)
    if what == "step":
        products = 4 * batch * n_visible * n_hidden
        return {"limit": "matrix products", "limit_seconds": products / rate}
    copy = timing.copy_bandwidth(4 * units, device, seconds / 10)
    return {"limit": "copy", "limit_seconds": 8 * units / copy}


def measure(
    what: str, shape, device: torch.device, threads: int, seconds: float, rate: float
) -> suite.Rows:
    """A row for each way; `rate`: floating-point operations a second of a matrix product."""
    torch.manual_seed(0)
    torch.compiler.reset()
    calls = {"draw": draws, "step": steps}[what](shape, device)
    calls, reasons = timing.only_available(calls, (FUSED, BEST_EAGER))
    timings = timing.compare(calls, device, seconds=seconds)
    size = " x ".join(map(str, shape))
    case = {
        "case": f"{what}, {size}, {suite.threads_text(device, threads)}",
        "what": what,
        "shape": list(shape),
        "threads": threads,
        **limit(what, shape, device, rate, seconds),
    }
    return [
        case
        | {
            "variant": name,
            **t.row(),
            "fastest_seconds": min(t.seconds),
            "fastebm_faster": timings[FUSED].times_faster_than(t),
            "yardstick": name == PRODUCTS,
        }
        for name, t in timings.items()
    ] + suite.unavailable_rows(case, reasons)


def print_case(rows: suite.Rows) -> None:
    batch, n_visible, n_hidden = rows[0]["shape"]
    units = batch * (n_visible + n_hidden)
    table = [
        [
            row["variant"],
            f"{row['seconds'] * 1e6:.4g}",
            f"{row['spread']:.0%}",
            f"{row['fastest_seconds'] * 1e6:.4g}",
            f"{row['seconds'] / units * 1e9:.3g}",
            f"{row['fastebm_faster']:.2f}x",
        ]
        for row in rows
        if "seconds" in row
    ]
    at = rows[0]["limit_seconds"]
    name = f"limit: {rows[0]['limit']}"
    table.append([name, f"{at * 1e6:.4g}", "", "", f"{at / units * 1e9:.3g}", ""])
    header = ["", "us", "spread", "fastest", "ns/unit", "fastebm is"]
    suite.print_table(f"{rows[0]['case']} (B x V x H)", header, table)


def print_targets(rows: suite.Rows) -> None:
    """What was to be reached on a CPU and what was: against the fastest eager draw of each case."""
    best: dict[str, float] = {}
    for row in rows:
        if row["what"] == "draw" and row["variant"] in EAGER and "seconds" in row:
            got = row["fastebm_faster"]
            best[row["case"]] = min(got, best.get(row["case"], got))
    suite.print_targets(
        "fastebm over the best eager draw on a CPU",
        [(case, f"{TARGET}x", f"{got:.2f}x", got >= TARGET) for case, got in best.items()],
    )


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """Measures and prints every case."""
    device, quick = options.device, options.quick
    seconds = 1.0 if quick or device.type == "cuda" else 4.0
    rows = []
    with torch.no_grad():
        for threads in options.each_thread_count(1, 2):
            rate = timing.matmul_rate(device, 0.5)
            shapes = SHAPES[1:] if quick else SHAPES
            for shape, what in options.in_time(itertools.product(shapes, ("draw", "step"))):
                of_case = measure(what, shape, device, threads, seconds, rate)
                print_case(of_case)
                rows += of_case
                yield of_case
    if device.type == "cpu":
        print_targets(rows)


if __name__ == "__main__":
    suite.script("gibbs", __doc__, run)
