"""The runs of the demo: what each method is, its training, its measures. `demo.py` shows them.

Ring of 8 Gaussians: a Gaussian of variance v can be the stationary law of the chain only if
step_size <= v / 2, here 0.011. The demo runs at 0.02, where plain CD explodes, with the same
buffer, network, gradient clip and number of steps for every method; "auto" is told no step size.
Digits: scikit-learn's 8x8 pictures, in the usual regime of pictures: big steps, little noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastebm.app import evaluation
from fastebm.app.config import TrainConfig
from fastebm.app.data import first_line
from fastebm.app.guard import Limits
from fastebm.app.presets import PRESETS
from fastebm.app.training import Trainer
from fastebm.losses.nonfinite import NonFiniteError
from fastebm.rng import ChainRNG

RING_METHODS = {
    "CD": {"loss": "pcd"},
    "CD + L2 0.01": {"loss": "pcd", "energy_reg_weight": 0.01},
    "CD + L2 0.1": {"loss": "pcd", "energy_reg_weight": 0.1},
    "ICD": {"loss": "icd"},
    "ICD + L2 0.1": {"loss": "icd", "energy_reg_weight": 0.1},
    "auto": PRESETS["auto"] | {"step_size": None},
}
DIGITS_METHODS = {name: RING_METHODS[name] for name in ("CD + L2 0.1", "ICD + L2 0.1")}
COMMON = {
    "batch_size": 128,
    "lr_schedule": "cosine",
    "max_grad_norm": 5.0,
    "k_steps": 20,
    "buffer_size": 2000,
    "reinit_prob": 0.05,
    "kl_weight": 1.0,
    "entropy_weight": 0.3,
}
RING = COMMON | {
    "data": "ring",
    "samples": 10_000,
    "lr": 0.01,
    "step_size": 0.02,  # noise: temperature 1
    "hidden": 64,
}
DIGITS = COMMON | {
    "data": "digits",
    "lr": 1e-3,
    "step_size": 0.25,  # on [0, 1]; 1 on [-1, 1]
    "noise_std": 0.005,
    "hidden": 128,
}
LOST = Limits(gap=math.inf, grad_norm=math.inf, clamp=math.inf)  # by mean |E| alone
LOG_EVERY = 10
SNAPSHOT_CHAINS, SNAPSHOT_STEPS = 500, 200
LONG_CHAINS, LONG_STEPS = 1000, 1000
GRID = 200
SHOWN = 96  # digits in a sheet


def run(part: str, method: str, seed: int, steps: int, advance: Callable[[int], None]) -> dict:
    """Train one method of "ring" or "digits" with one seed; numbers and arrays for the report.

    The run is over at its first sign of divergence, and is then measured as it stands.
    """
    ring = part == "ring"
    settings = (RING | RING_METHODS[method]) if ring else (DIGITS | DIGITS_METHODS[method])
    trainer = Trainer(TrainConfig(**settings, steps=steps, seed=seed), on_nonfinite="warn")
    result = train(trainer, advance, SNAPSHOT_CHAINS if ring else SHOWN)
    result |= {"part": part, "method": method, "seed": seed}
    return result | (measure_ring(trainer) if ring else measure_digits(trainer))


def snapshot_steps(steps: int) -> list[int]:
    return sorted({max(1, round(steps * share)) for share in (0.05, 0.1, 0.2, 0.5, 1.0)})


def train(trainer: Trainer, advance: Callable[[int], None], n_shown: int) -> dict:
    """The training loop: logged terms, samples of chains from fixed noise, divergence, seconds."""
    steps = trainer.config.steps
    wanted, snapshots, log, reason = snapshot_steps(steps), [], [], None
    shown_at = 0.0  # seconds spent on snapshots, not part of the training
    start = time.perf_counter()
    while trainer.iteration < steps and reason is None:
        try:
            trainer.step()
        except NonFiniteError as error:
            reason = first_line(error)
            break
        if trainer.iteration % LOG_EVERY == 0:
            advance(LOG_EVERY)
            log.append((trainer.iteration, trainer.probe()))
            reason = LOST.broken(log[-1][1])
        if trainer.iteration in wanted and reason is None:
            pause = time.perf_counter()
            x = trainer.sample(n_shown, SNAPSHOT_STEPS, seed=1)
            snapshots.append((trainer.iteration, x.numpy()))
            shown_at += time.perf_counter() - pause
    seconds = time.perf_counter() - start - shown_at
    advance(steps - trainer.iteration // LOG_EVERY * LOG_EVERY)
    return {
        "steps": trainer.iteration,
        "diverged": reason,
        "seconds": seconds,
        "log_steps": [s for s, _ in log],
        "log": {name: [v[name] for _, v in log] for name in log[0][1]} if log else {},
        "snapshots": snapshots + [(s, None) for s in wanted[len(snapshots) :]],
    }


def measure_ring(trainer: Trainer) -> dict:
    """Density on a grid; modes and MMD^2 of long chains from noise and of chains as long as those
    of training; share of the long chains that change mode in further SNAPSHOT_STEPS steps."""
    data = trainer.dataset
    points, area = evaluation.grid(data.clamp, GRID)
    log_q = evaluation.grid_log_density(trainer.eval_model, data.clamp, GRID)
    result = evaluation.grid_divergences(log_q, data.log_prob(points), area)
    short = trainer.sample(LONG_CHAINS, trainer.config.k_steps, seed=2)
    trace_steps, trace, x = chain_trace(trainer, LONG_CHAINS, LONG_STEPS, seed=3)
    real = data.test[:LONG_CHAINS]
    for label, chains in (("long", x), ("short", short)):
        modes, share = evaluation.modes_found(chains, data.centres, data.std)
        result[f"modes_{label}"], result[f"on_mode_{label}"] = modes, share
        result[f"mmd2_{label}"] = evaluation.mmd2(chains, real)
    later = trainer.eval_sampler.sample(x, SNAPSHOT_STEPS, seed=4)
    before, after = (torch.cdist(c, data.centres).argmin(1) for c in (x, later))
    result["mode_changes"] = (before != after).double().mean().item()
    return result | {
        "log_density": log_q.float().reshape(GRID, GRID).numpy(),
        "trace_steps": trace_steps,
        "trace": trace,
    }


def chain_trace(trainer: Trainer, n: int, n_steps: int, seed: int):
    """Energies along chains from noise at log-spaced steps, less the mean energy of the data.

    Returns:
        steps (T,), energies (T, n), and the chains after the last step.
    """
    marks = np.unique(np.geomspace(1, n_steps, 40).round().astype(int))
    level = evaluation.total_energy(trainer.eval_model, trainer.x[:2000]).mean()
    x, rng, done, trace = trainer.noise(n, seed), ChainRNG(seed), 0, []
    for mark in marks.tolist():
        x = trainer.eval_sampler.sample(x, mark - done, seed=rng)
        trace.append((evaluation.total_energy(trainer.eval_model, x) - level).numpy())
        done = mark
    return marks, np.stack(trace), x


def measure_digits(trainer: Trainer) -> dict:
    """Precision and recall of chains from noise against the test digits, and the same for real
    training digits: the floor."""
    data = trainer.dataset
    real, n = data.test, len(data.test)
    x = trainer.sample(n, SNAPSHOT_STEPS, seed=2)
    other = data.train[:n]
    nearest = torch.cdist(x[:SHOWN].flatten(1), data.train.flatten(1)).argmin(1)
    return {
        "quality": evaluation.precision_recall(real, x),
        "floor": evaluation.precision_recall(real, other),
        "mmd2_long": evaluation.mmd2(x, real),
        "mmd2_floor": evaluation.mmd2(other, real),
        "samples": x[:SHOWN].numpy(),
        "nearest": data.train[nearest].numpy(),
        "real": real[:SHOWN].numpy(),
        "buffer": buffer_pictures(trainer, SHOWN),
    }


def buffer_pictures(trainer: Trainer, n: int) -> np.ndarray:
    """Every so-many-th stored chain of the buffer."""
    stored: Tensor = trainer.buffer.all()
    return stored[:: max(1, len(stored) // n)][:n].numpy()
