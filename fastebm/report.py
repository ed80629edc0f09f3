"""What `fastebm train` leaves beside the checkpoint: figures, evaluation.json, a table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastebm import evaluation, plotting, quality
from fastebm.data import Dataset, need
from fastebm.fit import METRICS, read_metrics
from fastebm.training import Trainer

MAX_SAMPLES = 1000
CHAIN_STEPS = 500


def samples_figure(data: Dataset, x: Tensor, title: str):
    """Samples beside real ones: pictures, or a scatter plot of the first two coordinates."""
    if data.is_image:
        lo, hi = data.clamp
        panels = {"data": data.test[: len(x)], title: x}
        return plotting.image_panels({k: (v[:144] - lo) / (hi - lo) for k, v in panels.items()}, 12)
    if data.event_shape == (1,):
        return plotting.histograms({"data": data.test[:, 0].numpy(), title: x[:, 0].numpy()})
    pair = {"data": data.test[: len(x), :2].numpy(), title: x[:, :2].numpy()}
    return plotting.scatter_panels(pair, data.clamp)


def _energies(trainer: Trainer) -> dict:
    """Energies of data, and of chains from noise as long as the training's and longer."""
    data, n = trainer.dataset, MAX_SAMPLES
    k = trainer.config.k_steps
    sets = {
        "test": data.test[:n],
        "train": data.train[:n],
        f"{k}-step chains": trainer.sample(n, k, seed=1),
        f"{CHAIN_STEPS}-step chains": trainer.sample(n, CHAIN_STEPS, seed=1),
    }
    e = {
        name: evaluation.total_energy(trainer.eval_model, x.to(trainer.device)).cpu().numpy()
        for name, x in sets.items()
    }
    return {name: v[np.isfinite(v)] for name, v in e.items() if np.isfinite(v).any()}


def _nearest(trainer: Trainer):
    """Samples and the training picture nearest to each: copies would be seen."""
    data = trainer.dataset
    lo, hi = data.clamp
    x = trainer.sample(72, CHAIN_STEPS, seed=1).cpu()
    nearest = data.train[torch.cdist(x.flatten(1), data.train.flatten(1)).argmin(1)]
    panels = {"samples": x, "nearest training pictures": nearest}
    return plotting.image_panels({k: (v - lo) / (hi - lo) for k, v in panels.items()}, 9)


def write(trainer: Trainer, out: Path, console=None) -> None:
    """Write figures and evaluation.json into the directory of the run; print the table."""
    data, label = trainer.dataset, trainer.config.loss
    result = quality.evaluate(trainer, MAX_SAMPLES, CHAIN_STEPS)
    records = read_metrics(out / METRICS)
    steps = [r["step"] for r in records]
    log = {name: [r.get(name) for r in records] for name in records[-1] if name != "note"}
    figures = {
        "training": plotting.training_curves(steps, log),
        "energies": plotting.energy_histograms(_energies(trainer)),
        "samples": samples_figure(
            data, trainer.sample(min(144, len(data.test)) if data.is_image else 1000,
                                 CHAIN_STEPS, seed=1).cpu(),
            f"{label}: {CHAIN_STEPS}-step chains from noise",
        ),
    }  # fmt: skip
    if result["density"]:
        side = 200
        points, _ = evaluation.grid(data.clamp, side)
        exact = data.log_prob(points).reshape(side, side).numpy()
        log_q = evaluation.grid_log_density(trainer.eval_model, data.clamp, side, trainer.device)
        learned = {f"{label}, KL {result['density']['kl']:.3g}": log_q.reshape(side, side).numpy()}
        figures["energy"] = plotting.energy_landscapes(
            data.train.numpy(), exact, learned, data.clamp
        )
    if data.is_image:
        figures["nearest"] = _nearest(trainer)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png")
    (out / "evaluation.json").write_text(json.dumps(quality.finite(result), indent=2) + "\n")

    if console is None:
        return
    console.print(quality.table(result))
    few = max(1, len(records) // 10)
    console.print("\nTerms of the loss, before their weights:")
    view = need("rich.table").Table()
    for name in ("term", "first tenth", "last tenth"):
        view.add_column(name, justify="left" if name == "term" else "right")
    for name in plotting.TERMS:
        if name in log and any(log[name]):
            first, last = (plotting.numbers(part) for part in (log[name][:few], log[name][-few:]))
            view.add_row(name, f"{first.mean():.4g}", f"{last.mean():.4g}")
    console.print(view)
