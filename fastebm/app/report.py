"""What `fastebm train` leaves beside the checkpoint: figures, evaluation.json, a table."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastebm.app import evaluation, files, processes, quality
from fastebm.app.config import MACHINES
from fastebm.app.data import Dataset, need
from fastebm.app.fit import METRICS, read_metrics
from fastebm.app.plotting import curves, histograms, images, planes
from fastebm.app.training import Trainer

EVALUATION = "evaluation.json"
MAX_SAMPLES = 1000
CHAIN_STEPS = 500
CHAINS, CHAIN_TIMES = 8, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # of a machine's figure
MAX_PICTURES, PICTURE_STEPS = 300, 200  # networks of pictures take minutes for more on a CPU


def samples_figure(data: Dataset, x: Tensor, title: str):
    """Samples beside real ones: pictures, or a scatter plot of the first two coordinates."""
    if data.is_image:
        lo, hi = data.clamp
        panels = {"data": data.test[: len(x)], title: x}
        return images.image_panels({k: (v[:144] - lo) / (hi - lo) for k, v in panels.items()}, 12)
    if data.event_shape == (1,):
        return histograms.histograms({"data": data.test[:, 0].numpy(), title: x[:, 0].numpy()})
    pair = {"data": data.test[: len(x), :2].numpy(), title: x[:, :2].numpy()}
    return planes.scatter_panels(pair, data.clamp)


def _energies(trainer: Trainer, sets: dict[str, Tensor]) -> dict:
    """Finite energies of test data and of the sets, the training data among them."""
    found = {}
    test = trainer.as_seen(trainer.dataset.test[:MAX_SAMPLES])
    for name, x in ({"test": test} | sets).items():
        e = evaluation.total_energy(trainer.eval_model, x.to(trainer.device)).cpu().numpy()
        if np.isfinite(e).any():
            found["train" if name == quality.FLOOR else name] = e[np.isfinite(e)]
    return found


def _nearest(data: Dataset, x: Tensor):
    """Samples and the training picture nearest to each: copies would be seen."""
    lo, hi = data.clamp
    nearest = data.train[torch.cdist(x.flatten(1), data.train.flatten(1)).argmin(1)]
    panels = {"samples": x, "nearest training pictures": nearest}
    return images.image_panels({k: (v - lo) / (hi - lo) for k, v in panels.items()}, 9)


def _machine(trainer: Trainer) -> dict:
    """Filters of a machine of pictures, and some of its Gibbs chains."""
    data, model = trainer.dataset, trainer.eval_model
    if trainer.config.energy == "helmholtz":
        weights = model.generative[0].weight.T
        return {"filters": images.filters(weights.numpy(force=True), data.event_shape)}
    x, at, path = trainer.noise(CHAINS, 1), 0, []
    for until in CHAIN_TIMES:
        x = trainer.eval_sampler.sample(x, until - at, seed=until)
        path.append(x.cpu())
        at = until
    chains = images.chains(torch.stack(path, 1), list(CHAIN_TIMES), data.clamp)
    weights = model.W.numpy(force=True)
    return {"filters": images.filters(weights, data.event_shape), "chains": chains}


def is_written(trainer: Trainer, out: Path) -> bool:
    """Whether `write` has been here since the trainer's last step."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return json.loads((out / EVALUATION).read_bytes())["step"] == trainer.iteration
    return False


def write(trainer: Trainer, out: Path, console=None) -> None:
    """Write figures and evaluation.json into the directory of the run; print the table. Where the
    directory has no record of the training, there is no figure of it. Of several ranks all draw
    samples, and rank 0 does the rest."""
    is_image = trainer.dataset.is_image
    n, steps = (MAX_PICTURES, PICTURE_STEPS) if is_image else (MAX_SAMPLES, CHAIN_STEPS)
    sets = quality.sample_sets(trainer, n, steps)
    processes.on_rank_zero(lambda: _write(trainer, out, sets, steps, console))


def _write(trainer: Trainer, out: Path, sets: dict[str, Tensor], steps: int, console) -> None:
    data, label = trainer.dataset, trainer.config.loss
    long = sets[f"long ({steps} steps)"]
    result = quality.evaluate(trainer, sets)
    records = read_metrics(out / METRICS)
    names = [name for name in records[-1] if name != "note"] if records else []
    log = {name: [r.get(name) for r in records] for name in names}
    title = f"{label}: {steps}-step chains from noise"
    figures = {
        "energies": histograms.energy_histograms(_energies(trainer, sets)),
        "samples": samples_figure(data, long[:144] if data.is_image else long, title),
    }
    if records:
        figures["training"] = curves.training_curves(log["step"], log)
    if result["density"]:
        side = 200
        points, _ = evaluation.grid(data.clamp, side)
        exact = data.log_prob(points).reshape(side, side).numpy()
        log_q = evaluation.grid_log_density(trainer.eval_model, data.clamp, side, trainer.device)
        learned = {f"{label}, KL {result['density']['kl']:.3g}": log_q.reshape(side, side).numpy()}
        figures["energy"] = planes.energy_landscapes(data.train.numpy(), exact, learned, data.clamp)
    if data.is_image:
        figures["nearest"] = _nearest(data, long[:72])
        if trainer.config.energy in MACHINES:
            figures |= _machine(trainer)
    for name, figure in figures.items():
        files.write_figure(out / f"{name}.png", figure)
    # the last one: where it is, everything is
    files.write_json(out / EVALUATION, {"step": trainer.iteration} | result)
    if console is None:
        return
    console.print(quality.table(result))
    few = max(1, len(records) // 10)
    console.print("\nTerms of the loss, before their weights:")
    view = need("rich.table").Table()
    for name in ("term", "first tenth", "last tenth"):
        view.add_column(name, justify="left" if name == "term" else "right")
    for name in curves.TERMS:
        if name in log and any(log[name]):
            first, last = (curves.numbers(part) for part in (log[name][:few], log[name][-few:]))
            view.add_row(name, f"{first.mean():.4g}", f"{last.mean():.4g}")
    console.print(view)
