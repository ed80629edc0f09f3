"""Checkpoints of runs: read, and gone on from exactly."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fastebm.app.config import ConfigError, TrainConfig
from fastebm.app.data import DataError, Dataset, MissingExtra, load
from fastebm.app.networks import build_energy
from fastebm.app.states import check_form, check_head
from fastebm.app.stored import brief, first_line, load_tensors
from fastebm.app.training import Trainer

# Settings that the first checkpoints do not have.
LATER = {"scales", "adjusted", "adaptive", "jumps", "standardized", "trust_region", "max_lr"}
LATER |= {"auto_batch", "adam_beta1"}


def read_checkpoint(path: Path) -> dict:
    """The state saved by `Trainer.save`; ConfigError when it is not one."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        state = load_tensors(path)
    except Exception as error:  # torch.load raises whatever its unpickler met
        raise ConfigError(f"{path}: cannot be read as a checkpoint ({first_line(error)})") from None
    try:
        check_head(state)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return state


def restore(
    path: Path,
    steps: int | None = None,
    device: str | torch.device = "cpu",
    dataset: Dataset | None = None,
    model: nn.Module | None = None,
) -> Trainer:
    """A trainer that goes on where the checkpoint stopped, bit for bit on the CPU.

    Sizes are compared with what the file holds before anything of that size is made.

    Args:
        path: a checkpoint.
        steps: new total number of iterations; None: that of the checkpoint.
        device: where to go on.
        dataset, model: needed again when the run was given its own.

    Raises:
        ConfigError: no checkpoint, damaged, or of another run than its settings say.
        DataError: the data of the run cannot be read.
    """
    state = read_checkpoint(path)
    try:
        config = _config(state["config"])
        dataset = dataset or load(config.data, config.samples, config.dim, config.seed)
        _check_sizes(state, config, dataset, model)
        config = config if steps is None else replace(config, steps=steps)
        trainer = Trainer(config, dataset, model, device)
        trainer.load_state_dict(state)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (DataError, MissingExtra, OSError):
        raise
    except Exception as error:  # a module's own way to refuse a state, torch's of a damaged one
        raise ConfigError(f"{path}: does not fit the run ({first_line(error)})") from error
    return trainer


def _config(settings: dict) -> TrainConfig:
    known = {f.name for f in fields(TrainConfig)}
    for name in sorted(known - settings.keys() - LATER):
        raise ConfigError(f"the settings lack {name}")
    for name in settings.keys() - known:
        raise ConfigError(f"the settings have an unknown {brief(name)}")
    return TrainConfig(**settings)


def _check_sizes(
    state: dict, config: TrainConfig, dataset: Dataset, model: nn.Module | None
) -> None:
    """ConfigError unless network and buffer are as large in the state as the settings say."""
    resolved = config.resolve(dataset)
    for name in (f.name for f in fields(config)):
        value, expected = getattr(config, name), getattr(resolved, name)
        if value != expected and name in state["config"]:
            raise ConfigError(f"{name}={value!r} in the settings, this data makes it {expected!r}")
    if model is None:
        with torch.device("meta"):  # shapes alone
            shapes = build_energy(config, dataset.train, None).state_dict()
        check_form(state["model"], shapes, "model")
    if config.uses_buffer:
        size = (config.buffer_size, *dataset.event_shape)
        chains = (state["buffer"] or {}).get("data")
        dtype = chains.dtype if isinstance(chains, Tensor) else None
        check_form(chains, torch.empty(size, dtype=dtype, device="meta"), "buffer.data")
