"""Checkpoints of runs: read, and gone on from exactly."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import nn

from fastebm.app.config import ConfigError, TrainConfig
from fastebm.app.data import Dataset, first_line, load_tensors
from fastebm.app.training import Trainer


def read_checkpoint(path: Path) -> dict:
    """The state saved by `Trainer.save`; ConfigError when it is not one."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        state = load_tensors(path)
        missing = {"config", "model", "optimizer", "iteration"} - set(state)
    except Exception as error:  # torch.load raises whatever its unpickler met
        raise ConfigError(f"{path}: cannot be read as a checkpoint ({first_line(error)})") from None
    if missing:
        raise ConfigError(f"{path}: not a fastebm checkpoint, {', '.join(sorted(missing))} missing")
    return state


def restore(
    path: Path,
    steps: int | None = None,
    device: str | torch.device = "cpu",
    dataset: Dataset | None = None,
    model: nn.Module | None = None,
) -> Trainer:
    """A trainer that goes on where the checkpoint stopped, bit for bit on the CPU.

    Args:
        path: a checkpoint.
        steps: new total number of iterations; None: that of the checkpoint.
        device: where to go on.
        dataset, model: needed again when the run was given its own.
    """
    state = read_checkpoint(path)
    known = {f.name for f in fields(TrainConfig)}
    config = TrainConfig(**{k: v for k, v in state["config"].items() if k in known})
    if steps is not None:
        config = replace(config, steps=steps)
    trainer = Trainer(config, dataset, model, device)
    try:
        trainer.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        raise ConfigError(
            f"{path}: does not fit the model ({str(error).splitlines()[0]})"
        ) from None
    return trainer
