"""Log-likelihood of data under a trained model, with its interval: `fastebm likelihood`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastebm.ais import AISEstimate, ais, reverse_ais
from fastebm.bases import BernoulliBase, GaussianBase, UniformBase
from fastebm.data import need
from fastebm.evaluation import total_energy
from fastebm.helmholtz import HelmholtzMachine
from fastebm.likelihood import MAX_UNITS, log_partition, pseudo_likelihood

BASES = ("fitted", "uniform")
BATCH = 1000


@dataclass(frozen=True)
class Settings:
    """How log Z is found.

    Attributes:
        betas, n_chains, confidence, seed: of annealed importance sampling; see `fastebm.ais`.
        n_importance: samples of a Helmholtz machine's hidden units for each datum.
        base: of an energy that is no RBM: "fitted", a Gaussian, or "uniform" in the data's box.
        exact: enumerate the states where that can be done.
    """

    betas: str | int = "sm2008"
    n_chains: int = 100
    confidence: float = 0.95
    n_importance: int = 100
    base: str = "fitted"
    exact: bool = True
    seed: int = 0


def measure(
    model: Callable[..., Tensor],
    sets: dict[str, Tensor],
    box: tuple[float, float],
    settings: Settings,
    model_samples: Tensor | None = None,
) -> dict:
    """Mean log-likelihood of each set, and what it rests on.

    Args:
        model: an RBM, a GaussianRBM, a HelmholtzMachine, or any energy.
        sets: name -> (N, *event); the one called "train" is what the base is fitted to. Binary
            models take 0 and 1.
        box: (lo, hi) of every element, for the uniform base.
        model_samples: (B, *event) of the model, for reverse annealing; None: none is done.

    Returns:
        "method", "log_likelihood": name -> nats, "interval": name -> (low, high) or None where it
        is exact; with AIS "log_z", "ess", "n_chains", "acceptance"; "reverse", the same of reverse
        annealing; "pseudo_likelihood" of an RBM.

    Raises:
        ValueError: data that the model does not take, or an option that makes no sense.
    """
    if isinstance(model, HelmholtzMachine):
        return _importance(model, sets, settings)
    layers = model.binary_layers() if hasattr(model, "binary_layers") else []
    binary = hasattr(model, "flip_energies")
    if layers:
        for x in sets.values():
            model.check_data(x)
    scores = {name: -total_energy(model, x).mean().item() for name, x in sets.items()}
    result: dict = {}
    if settings.exact and layers and min(n for n, _ in layers) <= MAX_UNITS:
        with torch.no_grad():
            log_z = log_partition(model).item()
        result |= {"method": "enumeration", "log_z": log_z}
        result["log_likelihood"] = {name: score - log_z for name, score in scores.items()}
        result["interval"] = dict.fromkeys(scores)
    else:
        base = _base(binary, sets["train"], box, settings.base)
        common = {"confidence": settings.confidence, "seed": settings.seed}
        found = ais(model, base, settings.betas, n_chains=settings.n_chains, **common)
        result |= {"method": "annealed importance sampling", **_summary(found)}
        result["log_likelihood"] = {name: s - found.log_z for name, s in scores.items()}
        low, high = found.interval
        result["interval"] = {name: (s - high, s - low) for name, s in scores.items()}
        if model_samples is not None:
            reverse = reverse_ais(model, base, model_samples, settings.betas, **common)
            result["reverse"] = _summary(reverse)
    if binary:
        result["pseudo_likelihood"] = {
            name: torch.cat([pseudo_likelihood(model, part) for part in x.split(BATCH)])
            .mean()
            .item()
            for name, x in sets.items()
            if name != "train"
        }
    return result


def _base(binary: bool, train: Tensor, box: tuple[float, float], name: str):
    if binary:
        return BernoulliBase.fit(train.flatten(1))
    if name == "fitted":
        return GaussianBase.fit(train)
    return UniformBase.box(*box, tuple(train.shape[1:]))


def _summary(found: AISEstimate) -> dict:
    return {
        "log_z": found.log_z,
        "log_z_interval": found.interval,
        "ess": found.ess,
        "n_chains": found.n_chains,
        "acceptance": float(found.acceptance.mean()),
    }


def _importance(model: HelmholtzMachine, sets: dict[str, Tensor], settings: Settings) -> dict:
    """Importance-weighted bound: log-likelihoods from below, with the interval of the mean over the
    noise of the hidden units only, which is small; so None."""
    n = settings.n_importance

    def mean(estimate, x: Tensor, k: int) -> float:
        parts = [estimate(part, k, settings.seed + i) for i, part in enumerate(x.split(BATCH))]
        return torch.cat(parts).mean().item()

    return {
        "method": f"importance sampling, {n} samples of q(h | v), a lower bound",
        "log_likelihood": {k: mean(model.log_likelihood, x, n) for k, x in sets.items()},
        "bound": {k: mean(model.log_likelihood_bound, x, 1) for k, x in sets.items()},
        "interval": dict.fromkeys(sets),
    }


def table(result: dict):
    """A rich table of `measure`'s result."""
    view = need("rich.table").Table(title=f"log-likelihood in nats, by {result['method']}")
    for name in ("data", "log-likelihood", "interval"):
        view.add_column(name, justify="left" if name == "data" else "right")
    for name, value in result["log_likelihood"].items():
        interval = result["interval"][name]
        text = "" if interval is None else f"{interval[0]:.2f} .. {interval[1]:.2f}"
        view.add_row(name, f"{value:.2f}", text)
    for kind in ("pseudo_likelihood", "bound"):
        for name, value in result.get(kind, {}).items():
            view.add_row(f"{name}, {kind.replace('_', '-')}", f"{value:.2f}", "")
    return view


def notes(result: dict) -> list[str]:
    """What is to be known about log Z, a line each."""
    lines = []
    for way, found in (("log Z", result), ("log Z in reverse", result.get("reverse", {}))):
        if "log_z" in found:
            text = f"{way} = {found['log_z']:.2f}"
            if "ess" in found:
                low, high = found["log_z_interval"]
                text += (
                    f", {low:.2f} .. {high:.2f}; effective sample size {found['ess']:.1f} of"
                    f" {found['n_chains']}; acceptance {found['acceptance']:.0%}"
                )
            lines.append(text)
    if "ess" in result and result["ess"] < result["n_chains"] / 4:
        lines.append(
            "the effective sample size is small: log Z is likely to be too low and the"
            " log-likelihood too high; take more --betas"
        )
    return lines


def run(
    model: Callable[..., Tensor],
    sets: dict[str, Tensor],
    box: tuple[float, float],
    settings: Settings,
    path: Path,
    console=None,
    model_samples: Tensor | None = None,
) -> dict:
    """`measure`, written to `path` as JSON and printed."""
    start = time.perf_counter()
    result = measure(model, sets, box, settings, model_samples)
    result["n"] = {name: len(x) for name, x in sets.items()}
    result["seconds"] = time.perf_counter() - start
    path.write_text(json.dumps(result, indent=2) + "\n")
    if console is not None:
        console.print(table(result))
        for line in notes(result):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return result
