"""Log-likelihood of data under a trained model, with its interval: `fastebm likelihood`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastebm.app import files
from fastebm.app.config import ConfigError
from fastebm.app.data import need
from fastebm.app.evaluation import total_energy
from fastebm.app.ood import read_set
from fastebm.app.training import Trainer
from fastebm.energies.helmholtz import HelmholtzMachine
from fastebm.likelihood.ais import AISEstimate, ais, reverse_ais
from fastebm.likelihood.bases import BernoulliBase, GaussianBase, UniformBase
from fastebm.likelihood.exact import MAX_UNITS, log_partition, pseudo_likelihood
from fastebm.rng import ChainRNG

BASES = ("fitted", "uniform")
BATCH = 1000
MAX_BETAS = 10**8
REVERSE_STEPS = 2000


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

    def __post_init__(self):
        if self.base not in BASES:
            raise ConfigError(f"base must be one of {', '.join(BASES)}, got {self.base!r}")


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
    scores = {name: -_mean(lambda v: total_energy(model, v), x) for name, x in sets.items()}
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
            name: _mean(lambda v: pseudo_likelihood(model, v), x)
            for name, x in sets.items()
            if name != "train"
        }
    return result


def _mean(score: Callable[[Tensor], Tensor], x: Tensor) -> float:
    return torch.cat([score(part) for part in x.split(BATCH)]).mean().item()


def _base(binary: bool, train: Tensor, box: tuple[float, float], name: str):
    if binary:
        return BernoulliBase.fit(train.flatten(1))
    if name == "fitted":
        return GaussianBase.fit(train)
    lo, hi = (torch.full_like(train[0], side) for side in box)
    return UniformBase(lo, hi)


def _summary(found: AISEstimate) -> dict:
    return {
        "log_z": found.log_z,
        "log_z_interval": found.interval,
        "ess": found.ess,
        "n_chains": found.n_chains,
        "acceptance": float(found.acceptance.mean()),
    }


def _importance(model: HelmholtzMachine, sets: dict[str, Tensor], settings: Settings) -> dict:
    n, rng = settings.n_importance, ChainRNG(settings.seed)
    return {
        "method": f"importance sampling, {n} samples of q(h | v): a lower bound",
        "log_likelihood": {
            k: _mean(lambda v: model.log_likelihood(v, n, rng), x) for k, x in sets.items()
        },
        "bound": {
            k: _mean(lambda v: model.log_likelihood_bound(v, 1, rng), x) for k, x in sets.items()
        },
        "interval": dict.fromkeys(sets),
    }


def table(result: dict):
    """A rich table of `measure`'s result."""
    view = need("rich.table").Table(title="nats a sample")
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
    """How it was found and what is to be known about log Z, a line each."""
    lines = [f"by {result['method']}"]
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


def parse_betas(text: str) -> str | int:
    """The value of --betas: a name or a number.

    Raises:
        ConfigError: neither.
    """
    if text == "sm2008":
        return text
    is_number = text.isascii() and text.isdigit() and len(text) < 20
    if not is_number or not 1 <= int(text) <= MAX_BETAS:
        raise ConfigError(f"betas must be sm2008 or a number from 1 to {MAX_BETAS}, got {text!r}")
    return int(text)


def is_binary(model: Callable[..., Tensor]) -> bool:
    """Whether the samples of the model are 0 and 1."""
    return isinstance(model, HelmholtzMachine) or hasattr(model, "flip_energies")


def run(
    trainer: Trainer,
    data: str | None,
    samples: int | None,
    reverse: int,
    settings: Settings,
    path: Path,
    console=None,
) -> dict:
    """`measure` of a trained model, written to `path` as JSON and printed.

    Args:
        data: a file or named set; None: the test data of the run. Binary models take it as bits,
            drawn once.
        samples: of each set; None: all.
        reverse: so many chains of REVERSE_STEPS steps are annealed back; 0: none.

    Raises:
        ConfigError: an option that makes no sense, or data the model does not take.
    """
    files.check(path)
    own, model = trainer.dataset, trainer.eval_model
    x = own.test if data in (None, trainer.config.data) else read_set(data, own)
    sets = {"train": own.train[:samples], "test" if data is None else Path(data).stem: x[:samples]}
    if is_binary(model):
        sets = {name: own.bits(v, settings.seed) for name, v in sets.items()}
    sets = {name: v.to(trainer.device) for name, v in sets.items()}
    start = time.perf_counter()
    try:
        back = trainer.sample(reverse, REVERSE_STEPS, settings.seed) if reverse else None
        result = measure(model, sets, own.clamp, settings, back)
    except (ValueError, FloatingPointError) as error:
        raise ConfigError(str(error)) from None
    result |= {
        "n": {name: len(v) for name, v in sets.items()},
        "seconds": time.perf_counter() - start,
    }
    files.write_json(path, result)
    if console is not None:
        console.print(table(result))
        for line in notes(result):
            console.print(line, highlight=False, soft_wrap=True)
    return result
