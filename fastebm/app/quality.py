"""Sample quality of a trained model, always beside real data against real data: the floor."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from fastebm.app import evaluation, files, mixing, processes
from fastebm.app.data import Dataset, need
from fastebm.app.features import FeatureSpace
from fastebm.app.training import Trainer

FLOOR = "real"  # name of the column of training samples against test samples
MEANING = {
    "frechet": "Frechet distance",
    "kid": "kernel distance",
    "sliced_w": "sliced Wasserstein",
    "mmd2": "MMD^2 (Gaussian)",
    "class_entropy": "class entropy",
    "modes": "modes found",
    "on_mode": "share on a mode",
}


def sample_measures(
    x: Tensor, real: Tensor, data: Dataset, space: FeatureSpace
) -> dict[str, float]:
    """Measures of samples `x` (n, *event) against held-out samples `real`, equally many.

    Distances, precision and recall are taken in `space`; MMD^2 in the samples themselves. Samples
    that are not finite give infinite distances and no precision.
    """
    values = {"mmd2": evaluation.mmd2(x, real)}
    if x.isfinite().all():
        a, b = space(x), space(real)
        values["frechet"] = evaluation.frechet_distance(a, b)
        values["kid"] = evaluation.kernel_distance(a, b)
        values["sliced_w"] = evaluation.sliced_wasserstein(a, b)
        if len(x) > 10:
            values |= evaluation.precision_recall(b, a)
        if space.classifier is not None:
            classes = space.classes(x)
            values["class_entropy"] = evaluation.class_entropy(classes, space.classifier.n_classes)
    else:
        values |= dict.fromkeys(("frechet", "kid", "sliced_w"), math.inf)
    if data.n_modes:
        found = evaluation.modes_found(x, data.centres, data.std)
        values["modes"], values["on_mode"] = found
    return values


def density_measures(trainer: Trainer) -> dict[str, float]:
    """KL and TV to the law of 2-D data where it is known, else nothing."""
    data = trainer.dataset
    if data.centres is None or data.event_shape != (2,):
        return {}
    points, area = evaluation.grid(data.clamp)
    log_q = evaluation.grid_log_density(trainer.eval_model, data.clamp, device=trainer.device)
    return evaluation.grid_divergences(log_q, data.log_prob(points), area)


def buffer_samples(trainer: Trainer, n: int, seed: int) -> Tensor | None:
    """`n` stored chains, or None where there is no buffer or fewer are in it."""
    if trainer.buffer is None or len(trainer.buffer) < n:
        return None
    g = torch.Generator().manual_seed(seed)
    return trainer.buffer.all(of_ranks=True).cpu()[
        torch.randperm(len(trainer.buffer), generator=g)[:n]
    ]


def sample_sets(trainer: Trainer, n: int, long_steps: int, seed: int = 1) -> dict[str, Tensor]:
    """Short-run samples (the training's k steps from noise), long-run and buffer samples, and
    training samples under `FLOOR`: n of each, or as many as there are test samples."""
    data, k = trainer.dataset, trainer.config.k_steps
    n = min(n, len(data.test), len(data.train))
    sets = {
        f"short ({k} steps)": trainer.sample(n, k, seed),
        f"long ({long_steps} steps)": trainer.sample(n, long_steps, seed),
        "buffer": buffer_samples(trainer, n, seed),
        FLOOR: trainer.as_seen(data.train[:n]),
    }
    return {name: x.cpu() for name, x in sets.items() if x is not None}


def evaluate(
    trainer: Trainer, sets: dict[str, Tensor], features: str = "pixels", seed: int = 1
) -> dict:
    """Measures of `sample_sets` against as many test samples.

    Returns:
        n, features; "samples": name -> measures; "density".
    """
    data, n = trainer.dataset, len(sets[FLOOR])
    space = FeatureSpace(features, data)
    g = torch.Generator().manual_seed(seed)  # MNIST's test set is not in random order
    real = trainer.as_seen(data.test[torch.randperm(len(data.test), generator=g)[:n]])
    return {
        "n": n,
        "features": space.name,
        "samples": {name: sample_measures(x, real, data, space) for name, x in sets.items()},
        "density": density_measures(trainer),
    }


def table(result: dict):
    """A rich table of `evaluate`'s result: measures down, kinds of samples across."""
    title = f"{result['n']} samples of each kind against real ones; {result['features']}"
    view = need("rich.table").Table(title=title)
    view.add_column("measure")
    columns = result["samples"]
    for name in columns:
        view.add_column(name, justify="right")
    for measure in columns[FLOOR]:
        cells = (columns[c].get(measure, math.nan) for c in columns)
        view.add_row(MEANING.get(measure, measure), *(f"{v:.4g}" for v in cells))
    for measure, value in result["density"].items():
        view.add_row(f"{measure.upper()} of the density", f"{value:.4g}")
    return view


def run(
    trainer: Trainer,
    n: int,
    long_steps: int,
    features: str,
    seed: int,
    path: Path,
    console=None,
    n_chains: int = 0,
    draws: int = 1000,
) -> dict:
    """`evaluate` and, of `n_chains` chains, under "chains" what `mixing.measure` finds; written to
    `path` as JSON (null for what is not finite), with pictures of the chains, and printed."""
    processes.on_rank_zero(lambda: files.check(path))
    if n_chains and trainer.config.energy == "helmholtz":  # whose samples are independent
        n_chains = 0
    if n_chains:
        need("arviz_stats")
    sets = sample_sets(trainer, n, long_steps, seed)
    population = trainer.population() if n_chains else None

    def measure() -> dict:
        result = evaluate(trainer, sets, features, seed)
        if n_chains:
            chains = mixing.run_chains(trainer, n_chains, draws, seed, population)
            result["chains"] = mixing.measure(chains)
            mixing.write_pictures(chains, path)
        files.write_json(path, result)
        if console is not None:
            console.print(table(result))
            if n_chains:
                mixing.show(result["chains"], console)
        return result

    return processes.on_rank_zero(measure)
