"""The rivals of `bench/auto.py`: contrastive divergence and ICD at a step that is chosen by hand.

Groups:
  DEMO    the demo's settings, learning rate 0.01
  FAIR    what the automatic rule has beside its chains, given to them too: data standardised per
          coordinate, Adam (0.9, 0.99), an average of the weights with decay 0.99 that warms up, and
          batches of 4 x 128. They get as many chains: four times the steps of chains that the rule
          takes, where samples at several times of 128 chains would have done.
  SMALL   FAIR with batches of 128, and so as many steps of chains as the rule
Their chains are clamped to the box of the data; of FAIR and SMALL, to BOX times its range.
"""

from __future__ import annotations

import torch
from auto_runs import Network, Run
from torch import Tensor

from fastebm.app.config import TrainConfig
from fastebm.app.data import Dataset
from fastebm.app.demo_runs import RING, RING_METHODS
from fastebm.app.evaluation import total_energy
from fastebm.app.training import Trainer

METHODS = {name: RING_METHODS[name] for name in ("CD", "CD + L2 0.1", "ICD", "ICD + L2 0.1")}
RATIOS = (0.05, 0.2, 0.45, 0.9, 2.5)  # step over the variance of the tightest part
DEMO, FAIR, SMALL = "demo", "fair", "fair, small batch"
RATES = {DEMO: (0.01,), FAIR: (0.03, 0.01)}
BATCHES = {FAIR: 4, SMALL: 1}  # of 128
BOX = 1.2


class Standard:
    """z = (x - mean) / std of the training samples, per coordinate."""

    def __init__(self, train: Tensor) -> None:
        self.mean, self.std = train.mean(0), train.std(0)

    def z(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def x(self, z: Tensor) -> Tensor:
        return z * self.std + self.mean


def build(
    data: Dataset,
    variances: Tensor,
    group: str,
    method: str,
    ratio: float,
    lr: float,
    seed: int,
    steps: int,
    network: Network,
) -> Run:
    """A rival on data whose tightest part has these variances (D,)."""
    settings = {k: v for k, v in RING.items() if k not in ("data", "samples", "hidden")}
    settings |= METHODS[method] | {"lr": lr, "k_steps": network.k_steps}
    model = network.model(data.train.shape[1], seed)
    run = {"steps": steps, "seed": seed, "step_size": ratio * variances.min().item()}
    if group == DEMO:
        trainer = Trainer(TrainConfig(**settings | run), data, model, on_nonfinite="warn")
        return Run(trainer, lambda x: total_energy(trainer.eval_model, x), {"own": trainer.sample})
    standard = Standard(data.train)
    z, test = standard.z(data.train), standard.z(data.test)
    half = BOX * z.abs().max().item()
    standardised = Dataset(data.name, z, test.clamp(-half, half), (-half, half))
    run["step_size"] = ratio * (variances / standard.std.square()).min().item()
    run["batch_size"] = min(BATCHES[group] * settings["batch_size"], len(z))
    settings |= {"ema": 0.99, "adam_beta2": 0.99}
    trainer = Trainer(TrainConfig(**settings | run), standardised, model, on_nonfinite="warn")
    of_adam = trainer.optimizer.param_groups[0]
    of_adam["betas"] = (0.9, of_adam["betas"][1])
    trainer.ema.multi_avg_fn = _average_with_warm_up

    def sample(n: int, n_steps: int, seed: int) -> Tensor:
        return standard.x(trainer.sample(n, n_steps, seed))

    return Run(
        trainer,
        lambda x: total_energy(trainer.eval_model, standard.z(x)),
        {"own": sample},
        lambda x: (standard.z(x).abs() <= half).all(1),
    )


def _average_with_warm_up(
    averages: list[Tensor], weights: list[Tensor], n_averaged: Tensor
) -> None:
    t = int(n_averaged)
    torch._foreach_lerp_(averages, weights, 1 - min(0.99, (1 + t) / (10 + t)))
