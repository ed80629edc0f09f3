"""Training of an energy model: one step at a time, and exact checkpoints."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fastebm.buffer import ReplayBuffer
from fastebm.config import ConfigError, TrainConfig, versions
from fastebm.data import Dataset, first_line, load, load_tensors
from fastebm.energies import MLPEnergy
from fastebm.evaluation import total_energy
from fastebm.losses import (
    ContrastiveDivergence,
    ImprovedContrastiveDivergence,
    PersistentContrastiveDivergence,
)
from fastebm.samplers import LangevinDynamics


def build_model(
    event_shape: tuple[int, ...], hidden: int, seed: int, box: tuple[float, float] | None = None
) -> MLPEnergy:
    """`MLPEnergy` with two hidden layers of width `hidden`, (B, *event) -> (B,).

    With `box` the first layer starts as if its input had been brought from the box to [-1, 1].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MLPEnergy(math.prod(event_shape), (hidden, hidden))
    if box is not None:
        lo, hi = box
        with torch.no_grad():  # W (2 (x - lo) / (hi - lo) - 1) + b
            first = model.net[0]
            first.bias -= first.weight.sum(1) * (hi + lo) / (hi - lo)
            first.weight *= 2 / (hi - lo)
    return model


class Trainer:
    """One run: model, sampler, loss, optimiser, and the state to stop and go on exactly.

    Args:
        config: the run; resolved against the data here.
        dataset: None: loaded from the configuration.
        model: your energy, (B, *event) -> (B,), (B, 1) or (B, S); None: `build_model`.
        device: where model, data and chains live.
        on_nonfinite: see the losses.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset | None = None,
        model: nn.Module | None = None,
        device: str | torch.device = "cpu",
        on_nonfinite: str = "raise",
    ):
        self.dataset = dataset or load(config.data, config.samples, config.dim, config.seed)
        self.config = config = config.resolve(self.dataset)
        self.device = torch.device(device)
        self.x = self.dataset.train.to(self.device)
        if model is None:
            box = self.dataset.clamp if self.dataset.is_image else None
            model = build_model(self.dataset.event_shape, config.hidden, config.seed, box)
        self.model = model.to(self.device)
        self.sampler = LangevinDynamics(
            self.model, config.step_size, noise_std=config.noise_std, clamp=self.dataset.clamp
        )
        self.buffer = None
        if config.uses_buffer:
            self.buffer = ReplayBuffer(
                config.buffer_size,
                self.dataset.event_shape,
                reinit_prob=config.reinit_prob,
                init="uniform",
                value_range=self.dataset.clamp,
                dtype=torch.uint8 if self.dataset.is_image else torch.float32,
                device=self.device,
                seed=config.seed,
            )
        self.loss = self._loss(on_nonfinite)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, betas=(0.0, 0.999))
        self.generator = torch.Generator().manual_seed(config.seed)
        self.iteration = 0
        self.metrics: dict[str, Tensor | float] = {}
        self._order = (-1, torch.empty(0))  # epoch and its permutation

    def _loss(self, on_nonfinite: str) -> nn.Module:
        c = self.config
        common = {
            "k_steps": c.k_steps,
            "energy_reg_weight": c.energy_reg_weight,
            "on_nonfinite": on_nonfinite,
        }
        if c.loss == "cd":
            return ContrastiveDivergence(self.model, self.sampler, **common)
        if c.loss == "pcd":
            return PersistentContrastiveDivergence(self.model, self.sampler, self.buffer, **common)
        return ImprovedContrastiveDivergence(
            self.model,
            self.sampler,
            self.buffer,
            kl_weight=c.kl_weight,
            entropy_weight=c.entropy_weight,
            n_entropy_refs=c.n_entropy_refs,
            **common,
        )

    @property
    def batches_per_epoch(self) -> int:
        return len(self.x) // self.config.batch_size

    def _batch(self) -> Tensor:
        """The batch of this iteration; a function of (seed, iteration), so nothing to restore."""
        epoch, index = divmod(self.iteration, self.batches_per_epoch)
        if self._order[0] != epoch:
            g = torch.Generator().manual_seed(self.config.seed + 0x9E3779B9 * (epoch + 1))
            self._order = (epoch, torch.randperm(len(self.x), generator=g).to(self.device))
        size = self.config.batch_size
        return self.x[self._order[1][index * size : (index + 1) * size]]

    @property
    def lr(self) -> float:
        c = self.config
        if c.lr_schedule == "constant":
            return c.lr
        return c.lr * 0.5 * (1 + math.cos(math.pi * min(self.iteration / c.steps, 1.0)))

    def step(self) -> dict[str, Tensor | float]:
        """One iteration; returns the terms of the loss, each by its own name."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        out = self.loss(self._batch(), generator=self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        bound = self.config.max_grad_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), bound)
        self.optimizer.step()
        self.iteration += 1
        self.metrics = {**out.metrics, "param_grad_norm": norm}
        return self.metrics

    def probe(self) -> dict[str, float]:
        """The terms of the last step as numbers, and mean |E| on data. Waits for the device."""
        e = total_energy(self.model, self.x[:512])
        values = {name: float(value) for name, value in self.metrics.items()}
        return {**values, "energy_abs": e.abs().mean().item(), "lr": self.lr}

    def noise(self, n: int, seed: int) -> Tensor:
        """Uniform points of the box, (n, *event)."""
        g = torch.Generator().manual_seed(seed)
        lo, hi = self.dataset.clamp
        return (lo + (hi - lo) * torch.rand((n, *self.dataset.event_shape), generator=g)).to(
            self.device
        )

    def sample(self, n: int, n_steps: int, seed: int) -> Tensor:
        """Chains of the training sampler from `noise`, (n, *event)."""
        return self.sampler.sample(self.noise(n, seed), n_steps, seed=seed)

    def state_dict(self) -> dict:
        """All that the next steps depend on."""
        return {
            "config": asdict(self.config),
            "versions": versions(),
            "data": self.dataset.fingerprint(),
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "buffer": None if self.buffer is None else self.buffer.state_dict(),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),  # for layers that draw, such as dropout
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }

    def load_state_dict(self, state: dict) -> None:
        if state["data"] != self.dataset.fingerprint():
            raise ConfigError(
                f"the samples of {self.config.data!r} are not those of the checkpoint"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.buffer is not None:
            self.buffer.load_state_dict(state["buffer"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] and self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.iteration = state["iteration"]

    def save(self, path: Path) -> None:
        """Write the state so that the file is either the old one or the whole new one."""
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            torch.save(self.state_dict(), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


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
