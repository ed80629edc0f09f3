"""An RBM of the digits, scikit-learn's settings: exact pseudo-likelihood and time to fit.

1797 digits of 8 x 8, black where darker than half; 64 hidden units, learning rate 0.06, batches of
10, 10 epochs. The pseudo-likelihood is exact, over all 64 pixels of all digits, by one function for
all, and of other seeds too, as it varies with the seed. Rivals:
  scikit-learn           sklearn.neural_network.BernoulliRBM
  fastebm, no averages   fastebm.sklearn.BernoulliRBM(averaging=0): the same update, visible biases
                         that start at the data's logits
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator

import suite
import timing
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import BernoulliRBM as ScikitRBM

from fastebm.likelihood.exact import pseudo_likelihood
from fastebm.sklearn import BernoulliRBM, from_sklearn

FASTEBM, SCIKIT = "fastebm", "scikit-learn"
SETTINGS = {"n_components": 64, "learning_rate": 0.06, "batch_size": 10, "n_iter": 10}
FITS: dict[str, Callable] = {
    FASTEBM: lambda seed: BernoulliRBM(**SETTINGS, random_state=seed),
    "fastebm, no averages": lambda seed: BernoulliRBM(**SETTINGS, averaging=0, random_state=seed),
    SCIKIT: lambda seed: ScikitRBM(**SETTINGS, random_state=seed),
}


def measure(dtype: str, threads: int, n_seeds: int, seconds: float) -> suite.Rows:
    """A row for each way to fit."""
    x = (load_digits().data / 16 > 0.5).astype(dtype)

    def score(estimator) -> float:
        return pseudo_likelihood(from_sklearn(estimator), torch.from_numpy(x)).mean().item()

    scores = {name: [score(new(s).fit(x)) for s in range(n_seeds)] for name, new in FITS.items()}
    calls = {name: lambda new=new: new(0).fit(x) for name, new in FITS.items()}
    timings = timing.compare(calls, torch.device("cpu"), seconds=seconds)
    case = {"case": f"{dtype}, {suite.threads_text('cpu', threads)}", "threads": threads}
    return [
        case
        | {
            "variant": name,
            "pseudo_likelihood": scores[name],
            "seconds": t.median,
            "spread": t.spread,
            "fastest_seconds": min(t.seconds),
            "faster_than_scikit_learn": t.times_faster_than(timings[SCIKIT]),
        }
        for name, t in timings.items()
    ]


def print_case(rows: suite.Rows) -> None:
    seeds = len(rows[0]["pseudo_likelihood"])
    header = ["", "seed 0", f"mean of {seeds}", "worst", "seconds", "spread", "vs scikit-learn"]
    statistic = (lambda scores: scores[0], statistics.mean, min)
    table = [
        [
            row["variant"],
            *(f"{f(row['pseudo_likelihood']):.2f}" for f in statistic),
            f"{row['seconds']:.3f}",
            f"{row['spread']:.0%}",
            f"{row['faster_than_scikit_learn']:.2f}x",
        ]
        for row in rows
    ]
    suite.print_table(f"pseudo-likelihood and time, {rows[0]['case']}", header, table)


def print_targets(rows: suite.Rows) -> None:
    """At least scikit-learn's pseudo-likelihood in no more time, seed 0."""
    claims = []
    for case in dict.fromkeys(row["case"] for row in rows):
        found = {row["variant"]: row for row in rows if row["case"] == case}
        ours, theirs = (found[name]["pseudo_likelihood"][0] for name in (FASTEBM, SCIKIT))
        faster = found[FASTEBM]["faster_than_scikit_learn"]
        scores = (f"{theirs:.2f}", f"{ours:.2f}", ours >= theirs)
        claims.append((f"{case}: pseudo-likelihood", *scores))
        claims.append((f"{case}: speed", "1.0x", f"{faster:.2f}x", faster >= 1))
    suite.print_targets("fastebm against scikit-learn, seed 0", claims)


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """Measures and prints every case; on a CPU whatever the device."""
    n_seeds, seconds = (2, 2.0) if options.quick else (10, 20.0)
    rows = []
    on_cpu = dataclasses.replace(options, device=torch.device("cpu"))
    for threads in on_cpu.each_thread_count(1, 2):
        for dtype in options.in_time(("float32",) if options.quick else ("float64", "float32")):
            of_case = measure(dtype, threads, n_seeds, seconds)
            print_case(of_case)
            rows += of_case
            yield of_case
    print_targets(rows)


if __name__ == "__main__":
    suite.script("rbm_digits", __doc__, run)
