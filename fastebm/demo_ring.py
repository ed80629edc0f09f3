"""Demo, first part: a ring of 8 Gaussians at a step size where plain CD explodes.

A Gaussian of variance v can be the stationary law of the chain only if step_size <= v / 2, here
0.011. The demo runs at 0.02, with the same buffer, network, clip and budget for every method.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from fastebm import evaluation
from fastebm.data import load
from fastebm.energy import energy
from fastebm.fit import diverged
from fastebm.losses import NonFiniteError
from fastebm.rng import ChainRNG
from fastebm.training import TrainConfig, Trainer

METHODS = {
    "CD": {"loss": "pcd"},
    "CD + L2 0.01": {"loss": "pcd", "energy_reg_weight": 0.01},
    "CD + L2 0.1": {"loss": "pcd", "energy_reg_weight": 0.1},
    "ICD": {"loss": "icd"},
    "ICD + L2 0.1": {"loss": "icd", "energy_reg_weight": 0.1},
}
COMMON = {
    "data": "ring",
    "samples": 10_000,
    "batch_size": 128,
    "lr": 0.01,
    "lr_schedule": "cosine",
    "max_grad_norm": 5.0,
    "k_steps": 20,
    "step_size": 0.02,  # noise: temperature 1
    "buffer_size": 2000,
    "reinit_prob": 0.05,
    "kl_weight": 1.0,
    "entropy_weight": 0.3,
    "hidden": 64,
}
LOG_EVERY = 10
SNAPSHOT_CHAINS, SNAPSHOT_STEPS = 500, 200
LONG_CHAINS, LONG_STEPS = 1000, 1000
GRID = 200


def snapshot_steps(steps: int) -> list[int]:
    return sorted({max(1, round(steps * share)) for share in (0.05, 0.1, 0.2, 0.5, 1.0)})


def run(method: str, seed: int, steps: int, advance: Callable[[int], None]) -> dict:
    """Train one method with one seed and measure it; numbers and arrays for the report.

    The run is over at its first sign of divergence, and is then measured as it stands.
    """
    dataset = load(COMMON["data"], COMMON["samples"], seed=seed)
    config = TrainConfig(**COMMON, **METHODS[method], steps=steps, seed=seed)
    trainer = Trainer(config, dataset, on_nonfinite="warn")
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
        if trainer.iteration in wanted and reason is None:
            x = trainer.sample(SNAPSHOT_CHAINS, SNAPSHOT_STEPS, seed=1)
            snapshots.append((trainer.iteration, x.numpy()))
    seconds = time.perf_counter() - start
    advance(steps - trainer.iteration // LOG_EVERY * LOG_EVERY)
    snapshots += [(s, None) for s in wanted[len(snapshots) :]]
    return {
        "method": method,
        "seed": seed,
        "steps": trainer.iteration,
        "diverged": reason,
        "seconds": seconds,
        "log_steps": [s for s, _ in log],
        "log": {name: [v[name] for _, v in log] for name in log[0][1]} if log else {},
        "snapshots": snapshots,
        **measure(trainer),
    }


@torch.no_grad()
def measure(trainer: Trainer) -> dict:
    """Density on a grid, and modes and MMD^2 of long chains from noise and of training chains."""
    data = trainer.dataset
    points, area = evaluation.grid(data.clamp, GRID)
    log_q = evaluation.grid_log_density(trainer.model, data.clamp, GRID)
    result = evaluation.grid_divergences(log_q, data.log_prob(points), area)
    short = trainer.sample(LONG_CHAINS, trainer.config.k_steps, seed=2)
    trace_steps, trace, x = chain_trace(trainer, LONG_CHAINS, LONG_STEPS, seed=3)
    real = data.test[:LONG_CHAINS]
    for label, chains in (("long", x), ("short", short)):
        modes, share = evaluation.modes_found(chains, data.centres, data.std)
        result[f"modes_{label}"], result[f"on_mode_{label}"] = modes, share
        result[f"mmd2_{label}"] = evaluation.mmd2(chains, real)
    return result | {
        "log_density": log_q.float().reshape(GRID, GRID).numpy(),
        "trace_steps": trace_steps,
        "trace": trace,
    }


@torch.no_grad()
def chain_trace(trainer: Trainer, n: int, n_steps: int, seed: int):
    """Energies along chains from noise at log-spaced steps, less the mean energy of the data.

    Returns:
        steps (T,), energies (T, n) float32, and the chains after the last step.
    """
    marks = np.unique(np.geomspace(1, n_steps, 40).round().astype(int))
    level = energy(trainer.model, trainer.x[:2000]).mean()
    x, rng, done, trace = trainer.noise(n, seed), ChainRNG(seed), 0, []
    for mark in marks.tolist():
        x = trainer.sampler.sample(x, mark - done, seed=rng)
        trace.append((energy(trainer.model, x) - level).numpy())
        done = mark
    return marks, np.stack(trace), x
