"""Held-out log-likelihood of tables that scikit-learn ships, for `bench/auto.py`.

Four fifths of the rows are trained on, standardised by their own mean and deviation; the fifth that
is left is scored, in nats a row. Of an energy log Z is estimated by annealed importance sampling
from a Gaussian. Out of the box of its chains an energy goes on as it is at the nearest face, plus a
Gaussian's fall of deviation EDGE: a density of all space, of no more mass in the box than the
chains' own, so what is reported is no more than theirs. A log Z that is too low would flatter: the
interval and the effective sample size are kept.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from auto_rivals import BOX
from auto_runs import Run
from sklearn import datasets
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn

from fastebm.app.data import Dataset
from fastebm.app.evaluation import total_energy
from fastebm.likelihood.ais import ais
from fastebm.likelihood.bases import GaussianBase
from fastebm.samplers.scale import data_scale

TABLES = {
    "breast cancer": datasets.load_breast_cancer,
    "wine": datasets.load_wine,
    "diabetes": datasets.load_diabetes,
}
EDGE = 0.1
BETAS, CHAINS = 4000, 100
FIGURES = ("train_nats", "test_nats", "ess", "log_z_interval")


def load(name: str, seed: int) -> Dataset:
    x = torch.from_numpy(TABLES[name]().data)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    n_test = len(x) // 5
    train, test = x[n_test:], x[:n_test]
    mean, std = train.mean(0), train.std(0)
    train, test = ((v - mean) / std for v in (train, test))
    half = BOX * train.abs().max().item()
    return Dataset(name, train.float(), test.float().clamp(-half, half), (-half, half))


def variances(data: Dataset) -> Tensor:
    """What steps are in units of: there is no known tightest part, but the library guesses one."""
    return torch.full(data.event_shape, data_scale(data.train))


class Everywhere(nn.Module):
    """An energy of a box as one of all space."""

    def __init__(self, model: nn.Module, half: float) -> None:
        super().__init__()
        self.model, self.half = model, half

    def forward(self, x: Tensor) -> Tensor:
        inside = x.clamp(-self.half, self.half)
        return self.model(inside) + (x - inside).square().sum(1) / (2 * EDGE**2)


def score(data: Dataset, run: Run, n_betas: int = BETAS) -> dict:
    """Log-likelihood of both parts under what was trained."""
    model = Everywhere(run.trainer.eval_model, run.trainer.dataset.clamp[1])
    base = GaussianBase.fit(data.train)
    found = ais(model, base, n_betas, n_chains=CHAINS, seed=1)
    low, high = found.interval
    e = {name: total_energy(model, getattr(data, name)) for name in ("train", "test")}
    scores = {f"{name}_nats": -v.mean().item() - found.log_z for name, v in e.items()}
    return scores | {"log_z_interval": [low, high], "ess": found.ess, "chains": CHAINS}


def classic(data: Dataset) -> dict[str, dict[str, float]]:
    """The same of what one would take else."""
    train, test = data.train.double(), data.test.double()
    mean, cov = train.mean(0), torch.cov(train.T)
    gaussian = torch.distributions.MultivariateNormal(mean, cov)
    mixtures = [
        GaussianMixture(n, covariance_type=kind, n_init=3, random_state=0).fit(train)
        for kind in ("full", "tied", "diag", "spherical")
        for n in range(1, 11)
        if n == 1 or kind != "full" or n * cov.numel() / 2 < train.numel()
    ]
    mixture = min(mixtures, key=lambda m: m.bic(train.numpy()))
    widths = {"bandwidth": np.geomspace(0.05, 3.0, 30)}
    kernels = GridSearchCV(KernelDensity(), widths, cv=5).fit(train.numpy()).best_estimator_
    found = {
        "Gaussian": [gaussian.log_prob(v).mean().item() for v in (train, test)],
        "mixture": [float(mixture.score(v.numpy())) for v in (train, test)],
        "kernels": [float(kernels.score_samples(v.numpy()).mean()) for v in (train, test)],
    }
    found = {k: {"train_nats": v[0], "test_nats": v[1]} for k, v in found.items()}
    found["mixture"] |= {"components": mixture.n_components, "kind": mixture.covariance_type}
    found["kernels"] |= {"bandwidth": float(kernels.bandwidth)}
    if not all(math.isfinite(v["test_nats"]) for v in found.values()):
        raise FloatingPointError(f"{data.name}: {found}")
    return found
