"""Out-of-distribution detection by the energy: AUROC and FPR95 on whole sets, with intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastebm.app import files, processes
from fastebm.app.arrays import read_arrays
from fastebm.app.config import ConfigError
from fastebm.app.data import NAMES, DataError, Dataset, load, need
from fastebm.app.evaluation import total_energy
from fastebm.app.plotting import histograms
from fastebm.app.training import Trainer

DERIVED = ("noise", "constant", "shuffled", "pairs")
BATCH = 2000


def derived_set(name: str, inside: Tensor, data: Dataset, seed: int = 0) -> Tensor:
    """A set made from the in-distribution samples, of the same shape and number.

    "noise": uniform in the box; "constant": every element of a sample the same, uniform in the box;
    "shuffled": the elements of each sample in an order of its own (the pixels, channels together);
    "pairs": the mean of a sample and another one. Where the data was uint8 it has the same 256
    values: otherwise its finer values alone could tell it from the data.
    """
    g = torch.Generator().manual_seed(seed)
    n, lo, hi = len(inside), *data.clamp
    if name == "noise":
        x = lo + (hi - lo) * torch.rand(inside.shape, generator=g)
    elif name == "constant":
        one = lo + (hi - lo) * torch.rand((n, *(1,) * (inside.dim() - 1)), generator=g)
        x = one.expand_as(inside)
    elif name == "shuffled":
        flat = inside.flatten(2) if data.is_image else inside.unsqueeze(1)
        order = torch.rand((n, flat.shape[2]), generator=g).argsort(1)
        x = flat.gather(2, order.unsqueeze(1).expand_as(flat)).reshape(inside.shape)
    else:
        shift = 1 + torch.randint(n - 1, (n,), generator=g)  # never itself
        x = (inside + inside[(torch.arange(n) + shift) % n]) / 2
    if data.bin_width:
        x = ((x / data.bin_width).floor().clamp(0, 255) + 0.5) * data.bin_width
    return x.contiguous()


def read_set(name: str, data: Dataset) -> Tensor:
    """The held-out samples of a file or of a named set (all of a file that has no `x_test`),
    prepared as the training data was.

    Raises:
        DataError: another shape, uint8 where the training data was not or the reverse, or pictures
            with values outside the box of the training data.
    """
    if name in NAMES:
        other = load(name)
        x, bin_width = other.test, other.bin_width
    else:
        arrays = read_arrays(Path(name))
        x = arrays.x if arrays.test is None else arrays.test
        bin_width = arrays.bin_width
    if tuple(x.shape[1:]) != data.event_shape:
        raise DataError(f"{name}: samples are {tuple(x.shape[1:])}, the model's {data.event_shape}")
    if bin_width != data.bin_width:
        kinds = ["uint8" if width else "not uint8" for width in (bin_width, data.bin_width)]
        raise DataError(f"{name} is {kinds[0]}, the training data {kinds[1]}: prepare both alike")
    lo, hi = data.clamp
    if data.is_image and not (lo <= x.min() and x.max() <= hi):
        raise DataError(
            f"{name}: values from {x.min():g} to {x.max():g}, the training data's are in [{lo:g},"
            f" {hi:g}]: prepare both alike"
        )
    return x


def energies(trainer: Trainer, x: Tensor) -> np.ndarray:
    """Energies (n,) float64 of the model that samples, in eval mode, scales summed."""

    def of(part: Tensor) -> Tensor:
        return total_energy(trainer.eval_model, part)

    parts = [processes.numbered(p.to(trainer.device), of) for p in x.split(BATCH)]
    e = torch.cat(parts).cpu().numpy()
    if not np.isfinite(e).all():
        raise ConfigError(f"{int((~np.isfinite(e)).sum())} of {len(e)} energies are not finite")
    return e


def detection(inside: np.ndarray, outside: np.ndarray, n_boot: int = 200, seed: int = 0) -> dict:
    """How well low energy tells `inside` from `outside`.

    Returns:
        auroc, P(E(outside) > E(inside)); fpr95, the share of `outside` below the energy that 95 %
        of `inside` are below; and auroc_95, fpr95_95, percentile intervals of `n_boot` resamples of
        both sets (the model's own spread over training seeds is not in them).
    """
    metrics = need("sklearn.metrics")

    def scores(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        truth = np.repeat([1, 0], [len(a), len(b)])
        low = -np.concatenate([a, b])
        fpr, tpr, _ = metrics.roc_curve(truth, low)
        return metrics.roc_auc_score(truth, low), fpr[np.argmax(tpr >= 0.95)]

    rng = np.random.default_rng(seed)
    boot = [
        scores(*(v[rng.integers(len(v), size=len(v))] for v in (inside, outside)))
        for _ in range(n_boot)
    ]
    low, high = np.percentile(boot, [2.5, 97.5], axis=0)
    auroc, fpr95 = scores(inside, outside)
    return {
        "auroc": float(auroc),
        "auroc_95": [float(low[0]), float(high[0])],
        "fpr95": float(fpr95),
        "fpr95_95": [float(low[1]), float(high[1])],
    }


def run(
    trainer: Trainer,
    inside: str | None,
    outside: list[str],
    directory: Path,
    n_boot: int = 200,
    seed: int = 0,
    console=None,
) -> dict:
    """Scores of each set against `inside`; writes ood.json and ood.png, prints a table.

    Args:
        inside: as `read_set`; None, or the run's own data: its test part.
        outside: files, named sets, or names of `DERIVED`.
        directory: made if absent.
    """
    data = trainer.dataset
    own = inside in (None, trainer.config.data)
    x = data.test if own else read_set(inside, data)
    sets = {
        name: derived_set(name, x, data, seed) if name in DERIVED else read_set(name, data)
        for name in outside
    }
    processes.on_rank_zero(lambda: _check(directory))
    e_in = energies(trainer, x)
    e_out = {name: energies(trainer, other) for name, other in sets.items()}
    label = Path(inside or trainer.config.data).stem

    def measure() -> dict:
        result = _scores(label, e_in, e_out, n_boot, seed)
        _write(directory, result, label, e_in, e_out)
        if console is not None:
            console.print(_table(result))
        return result

    return processes.on_rank_zero(measure)


def _check(directory: Path) -> None:
    """OSError unless the results can be written there; makes the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("ood.json", "ood.png"):
        files.check(directory / name)


def _scores(
    label: str, e_in: np.ndarray, e_out: dict[str, np.ndarray], n_boot: int, seed: int
) -> dict:
    found = {name: detection(e_in, e, n_boot, seed) for name, e in e_out.items()}
    return {
        "inside": label,
        "n_inside": len(e_in),
        "energy_inside": [float(e_in.mean()), float(e_in.std())],
        "sets": {
            name: {"n": len(e), "energy": [float(e.mean()), float(e.std())], **found[name]}
            for name, e in e_out.items()
        },
    }


def _write(
    directory: Path, result: dict, label: str, e_in: np.ndarray, e_out: dict[str, np.ndarray]
) -> None:
    files.write_json(directory / "ood.json", result)
    curves = {f"inside: {label}": e_in} | {
        f"AUROC {result['sets'][name]['auroc']:.3f}: {Path(name).stem}": e
        for name, e in e_out.items()
    }
    files.write_figure(directory / "ood.png", histograms.energy_histograms(curves))


def _table(result: dict):
    table = need("rich.table").Table()
    heads = (f"{result['inside']} against", "samples", "AUROC [95 %]", "FPR95 [95 %]")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left")
    for name, row in result["sets"].items():
        cells = []
        for key in ("auroc", "fpr95"):
            low, high = row[f"{key}_95"]
            cells.append(f"{row[key]:.3f} [{low:.3f}, {high:.3f}]")
        table.add_row(Path(name).stem, str(row["n"]), *cells)
    return table
