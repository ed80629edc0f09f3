"""Demo, second part: scikit-learn's 8x8 digits from a replay buffer, big steps and little noise."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from fastebm import evaluation
from fastebm.data import load
from fastebm.demo_ring import LOG_EVERY, snapshot_steps
from fastebm.fit import diverged
from fastebm.losses import NonFiniteError
from fastebm.training import TrainConfig, Trainer

METHODS = {
    "CD + L2 0.1": {"loss": "pcd", "energy_reg_weight": 0.1},
    "ICD + L2 0.1": {"loss": "icd", "energy_reg_weight": 0.1},
}
COMMON = {
    "data": "digits",
    "batch_size": 128,
    "lr": 1e-3,
    "lr_schedule": "cosine",
    "k_steps": 20,
    "step_size": 0.25,  # on [0, 1]: 1 on [-1, 1]
    "noise_std": 0.005,
    "buffer_size": 2000,
    "reinit_prob": 0.05,
    "kl_weight": 1.0,
    "entropy_weight": 0.3,
    "hidden": 128,
}
CHAIN_STEPS = 200
SHOWN = 128


def run(method: str, seed: int, steps: int, advance: Callable[[int], None]) -> dict:
    """Train one method and measure fresh 200-step chains from noise against the test digits."""
    dataset = load("digits", seed=seed)
    trainer = Trainer(
        TrainConfig(**COMMON, **METHODS[method], steps=steps, seed=seed),
        dataset,
        on_nonfinite="warn",
    )
    wanted, snapshots, log, reason = snapshot_steps(steps), [], [], None
    start = time.perf_counter()
    while trainer.iteration < steps and reason is None:
        try:
            trainer.step()
        except NonFiniteError as error:
            reason = str(error).splitlines()[0]
            break
        if trainer.iteration % LOG_EVERY == 0:
            advance(LOG_EVERY)
            log.append((trainer.iteration, trainer.probe()))
            reason = diverged(log[-1][1])
        if trainer.iteration in wanted:
            snapshots.append((trainer.iteration, trainer.sample(32, CHAIN_STEPS, seed=1).numpy()))
    seconds = time.perf_counter() - start
    advance(steps - trainer.iteration // LOG_EVERY * LOG_EVERY)
