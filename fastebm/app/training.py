"""Training of an energy model, one step at a time."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from fastebm.app import files, processes
from fastebm.app.adaptation import Adaptation
from fastebm.app.config import MACHINES, ConfigError, TrainConfig, versions
from fastebm.app.data import Dataset, load
from fastebm.app.evaluation import total_energy
from fastebm.app.networks import build_energy, weight_average
from fastebm.app.run_samplers import build_sampler
from fastebm.app.states import check_head, check_state
from fastebm.distributed import alone, average_gradients, average_metrics, full_state_dict, world
from fastebm.distributed.collectives import all_rows
from fastebm.losses.contrastive import ContrastiveDivergence
from fastebm.losses.improved import ImprovedContrastiveDivergence
from fastebm.losses.maximum_likelihood import MaximumLikelihood
from fastebm.losses.persistent import PersistentContrastiveDivergence
from fastebm.losses.wake_sleep import WakeSleep
from fastebm.replay.augmentation import Augmentation
from fastebm.replay.buffer import ReplayBuffer
from fastebm.rng import ChainRNG


class Trainer:
    """One run: model, sampler, loss, optimiser, and the state to stop and go on exactly.

    In a process group of ``torch.distributed`` a run of all ranks, each of which has its part of
    the batches and of the buffer: the run that one process makes, up to the rounding of sums. All
    of them call the same methods in the same order, and decide the same.

    Args:
        config: the run; resolved against the data here.
        dataset: None: loaded from the configuration.
        model: your energy, (B, *event) -> (B,), (B, 1) or (B, S); None: that of the configuration.
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
        processes.check_parts(config)
        self.device = torch.device(device)
        self._range: tuple[Tensor, Tensor] | None = None
        self.x = self.dataset.train.to(self.device)
        self.takes_bits = config.energy in ("rbm", "helmholtz")
        start = self.as_seen(self.x, config.seed)
        if model is None:
            box = self.dataset.clamp if self.dataset.is_image else None
            model = build_energy(config, self.dataset.train, box)
            if config.energy in MACHINES:
                model.fit_visible(start.cpu())
        self.model = model.to(self.device)
        self.ema = weight_average(self.model, config.ema) if config.ema else None
        self.sampler = build_sampler(config, self.model, self.dataset.clamp)
        self.eval_sampler = build_sampler(config, self.eval_model, self.dataset.clamp)
        if config.adaptive:
            self.eval_sampler.step_size = self.sampler.step_size.follower()
        self.generator = torch.Generator().manual_seed(config.seed)
        self.buffer = None
        if config.uses_buffer:
            # Points near the data are drawn in turn: of all slots, of which a rank keeps some.
            with alone() if config.standardized else nullcontext():
                self.buffer = self._whole_buffer()
            self.buffer.join()
        self.loss = self._loss(on_nonfinite)
        betas = config.adam_beta1, config.adam_beta2
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.lr, betas=betas, fused=fused
        )
        step_size = getattr(self.sampler, "step_size", None)
        self.adaptation = Adaptation(config, self.optimizer, step_size)
        self.iteration = self.batches = 0  # a step takes one batch, or several
        self.step_factor = self.lr_factor = 1.0  # lowered by the divergence guard
        self.n_rollbacks = 0
        self.metrics: dict[str, Tensor | float] = {}
        self._order = (-1, torch.empty(0))  # epoch and its permutation
        self._fingerprint = self.dataset.fingerprint()
        self._data_clamp_share = float(self.dataset.clamp_share())

    def _whole_buffer(self) -> ReplayBuffer:
        c = self.config
        return ReplayBuffer(
            c.buffer_size,
            self.dataset.event_shape,
            reinit_prob=c.reinit_prob,
            init=self._restarts if c.standardized else "uniform",
            value_range=self.box,
            dtype=torch.uint8 if self._as_bytes else torch.float32,
            device=self.device,
            seed=c.seed,
            augmentation=self.augmentation(c.augmentation),
        )

    def augmentation(self, name: str | None) -> Augmentation | None:
        """A preset for the box of the data, or None for None.

        Raises:
            ConfigError: no such preset, or one that makes no sense for the samples' shape.
        """
        if name is None:
            return None
        try:
            found = Augmentation.preset(name, self.dataset.clamp)
            found.check_shape(self.dataset.event_shape)
        except ValueError as error:
            raise ConfigError(f"augmentation={name!r}: {error}") from None
        return found

    @property
    def eval_model(self) -> nn.Module:
        """The energy to sample from and to evaluate: the average of the weights, if one is kept."""
        return self.model if self.ema is None else self.ema.module

    @property
    def box(self) -> tuple[float, float]:
        """Where chains are noise: in the box of the data, bits in [0, 1]."""
        return (0.0, 1.0) if self.takes_bits else self.dataset.clamp

    @property
    def _as_bytes(self) -> bool:
        """Whether chains are stored as uint8, which dithers them: not the states of units."""
        return self.dataset.is_image and self.config.energy not in MACHINES

    def set_factors(self, step: float, lr: float) -> None:
        """Multiply the configured step size, at the same effective temperature, and learning
        rate."""
        if self.adaptation.trust_region is not None:  # which owns the rate
            for group in self.optimizer.param_groups:
                group["lr"] *= lr / self.lr_factor
        self.step_factor, self.lr_factor = step, lr
        if self.config.energy in MACHINES or self.config.adaptive:
            return
        for sampler in (self.sampler, self.eval_sampler):
            sampler.step_size = self.config.step_size * step
            if self.config.noise_std is not None:
                sampler.noise_std = self.config.noise_std * math.sqrt(step)

    def _loss(self, on_nonfinite: str) -> nn.Module:
        c, model = self.config, self.sampler.model
        if c.loss == "wake-sleep":
            return WakeSleep(model)
        common = {
            "k_steps": c.k_steps,
            "energy_reg_weight": c.energy_reg_weight,
            "on_nonfinite": on_nonfinite,
        }
        if c.loss == "cd":
            return ContrastiveDivergence(model, self.sampler, **common)
        if c.loss == "pcd":
            n_chains = c.batch_size // world().size if c.auto_batch else None
            common |= {"jumps": c.jumps or 0, "n_chains": n_chains}
            return PersistentContrastiveDivergence(model, self.sampler, self.buffer, **common)
        if c.loss == "mle":
            return MaximumLikelihood(model, self.sampler, value_range=self.box, **common)
        return ImprovedContrastiveDivergence(
            model,
            self.sampler,
            self.buffer,
            kl_weight=c.kl_weight,
            entropy_weight=c.entropy_weight,
            n_entropy_refs=c.n_entropy_refs,
            jumps=c.jumps or 0,
            **common,
        )

    @property
    def batches_per_epoch(self) -> int:
        return len(self.x) // self.config.batch_size

    def _batch(self) -> Tensor:
        """The data of this iteration, of all ranks; a function of the seed and the batches
        taken."""
        rule = self.adaptation.batch_rule
        parts = [self._rows(self.batches + i) for i in range(rule.multiple if rule else 1)]
        self.batches += len(parts)
        x = self.x[parts[0] if len(parts) == 1 else torch.cat(parts)]
        if self.takes_bits:
            return self.dataset.bits(x, self._batch_seed)
        if self.dataset.bin_width:  # uniform within its bin, off its ends, anew at each visit
            g = torch.Generator(self.device).manual_seed(self._batch_seed)
            noise = torch.rand(x.shape, generator=g, device=self.device) - 0.5
            x = x + 0.998 * self.dataset.bin_width * noise
        return x

    def _rows(self, batch: int) -> Tensor:
        """The rows of the n-th batch of the run."""
        epoch, index = divmod(batch, self.batches_per_epoch)
        if self._order[0] != epoch:
            g = torch.Generator().manual_seed(self.config.seed + 0x9E3779B9 * (epoch + 1))
            self._order = (epoch, torch.randperm(len(self.x), generator=g).to(self.device))
        size = self.config.batch_size
        return self._order[1][index * size : (index + 1) * size]

    def _restarts(self, n: int) -> Tensor:
        """Where n chains start anew, after those of the ranks before."""
        rank, size = world()
        return self._near_data(size * n, self.generator)[rank * n : (rank + 1) * n]

    def _near_data(self, n: int, generator: torch.Generator) -> Tensor:
        """Uniform points in 1.2 times the range of each coordinate of the data, but in its box."""
        if self._range is None:
            low, high = self.dataset.train.amin(0), self.dataset.train.amax(0)
            middle, half = (low + high) / 2, 0.6 * (high - low)
            box = self.dataset.clamp
            self._range = (middle - half).clamp(*box), (middle + half).clamp(*box)
        shape = (n, *self.dataset.event_shape)
        return torch.lerp(*self._range, torch.rand(shape, generator=generator))

    @property
    def _batch_seed(self) -> int:
        return (self.config.seed * 0x9E3779B1 + self.iteration) % 2**63

    @property
    def lr(self) -> float:
        if self.adaptation.trust_region is not None:
            return self.optimizer.param_groups[0]["lr"]
        return self.config.lr * self.lr_factor * self._share

    @property
    def _share(self) -> float:
        """What the schedule leaves of the learning rate."""
        if self.config.lr_schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(self.iteration / self.config.steps, 1.0)))

    def step(self) -> dict[str, Tensor | float]:
        """One iteration; returns the terms of the loss, each by its own name."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        x = processes.own_rows(self._batch(), self.config.batch_size)
        out = self.loss(x, generator=self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        average_gradients(self.model.parameters())
        bound = self.config.max_grad_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), bound)
        adapted = self.adaptation.step(self.model, x, out, self.iteration, self._share)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.iteration += 1
        kept = {k: v for k, v in self.metrics.items() if k == "kl_step"}  # till the next look
        self.metrics = {**kept, **out.metrics, "param_grad_norm": norm, **adapted}
        return self.metrics

    def probe(self) -> dict[str, float]:
        """The terms of the last step as numbers, mean |E| on data, the data's own share at the
        clamp, and the settings that the guard may have changed. Of all ranks, the same on each.
        Waits for the device."""
        with alone():  # the same data on all of them
            e = total_energy(self.model, self.x[:512]).abs().mean()
        return {
            **average_metrics({**self.metrics, "energy_abs": e}),
            "data_clamp_share": self._data_clamp_share,
            "effective_temperature": float(self.sampler.effective_temperature),
            **(
                {}
                if self.config.energy in MACHINES
                else {"step_size": float(self.sampler.step_size)}
            ),
            "lr": self.lr,
            "n_rollbacks": self.n_rollbacks,
            **({} if self.buffer is None else {"buffer_age": self._age()}),
        }

    def _age(self) -> float:
        visits = self.buffer.visits
        return float((all_rows(visits) if self.buffer.is_sharded else visits).median())

    def as_seen(self, x: Tensor, seed: int = 1) -> Tensor:
        """Samples as the model sees them: bits drawn of them, where it is a model of bits."""
        return self.dataset.bits(x, seed) if self.takes_bits else x

    def noise(self, n: int, seed: int) -> Tensor:
        """Uniform points, (n, *event): of the box, or of standard units near the data."""
        g = torch.Generator().manual_seed(seed)
        if self.config.standardized:
            return self._near_data(n, g).to(self.device)
        lo, hi = self.box
        return (lo + (hi - lo) * torch.rand((n, *self.dataset.event_shape), generator=g)).to(
            self.device
        )

    def jumps(self, n_steps: int) -> int:
        """How many of so many steps are jumps, as in training."""
        return n_steps * (self.config.jumps or 0) // self.config.k_steps

    def population(self) -> Tensor | None:
        """What chains jump by, of all ranks; None where they do not."""
        return self.buffer.all(of_ranks=True) if self.config.jumps else None

    def sample(self, n: int, n_steps: int, seed: int) -> Tensor:
        """Chains of the training sampler from `noise`, (n, *event), which jump as in training; of
        several ranks each runs its part, and has all of them."""
        jumps = self.jumps(n_steps)
        more = {"jumps": jumps, "population": self.population()} if jumps else {}

        def run(x: Tensor, first: int) -> Tensor:
            stream = ChainRNG(seed, sample_offset=first)
            return self.eval_sampler.sample(x, n_steps, seed=stream, **more)

        return processes.in_parts(self.noise(n, seed), run)

    def state_dict(self) -> dict:
        """All that the next steps depend on; of the buffer, the part of this rank."""
        return {
            "config": asdict(self.config),
            "versions": versions(),
            "data": self._fingerprint,
            "iteration": self.iteration,
            "guard": [self.step_factor, self.lr_factor, self.n_rollbacks],
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "buffer": None if self.buffer is None else self.buffer.state_dict(),
            "adaptation": self.adaptation.state_dict(),
            "batches": self.batches,
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),  # for layers that draw, such as dropout
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict` of this rank, or from what `save` wrote on any number.

        Raises:
            ConfigError: it is of other samples, or not what this run's would be: then nothing has
                been loaded.
        """
        check_head(state)
        if state["data"] != self._fingerprint:
            raise ConfigError(
                f"the samples of {self.config.data!r} are not those of the checkpoint"
            )
        own = self.state_dict()
        check_state(state, own, list(self.model.parameters()))
        if self.buffer is not None:  # first, as it may still refuse
            self.buffer.load_state_dict(state["buffer"])
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        # How Adam computes follows from the configuration and the device, not from a file.
        group = {**own["optimizer"]["param_groups"][0]}
        group["lr"] = state["optimizer"]["param_groups"][0]["lr"]
        moments = state["optimizer"]["state"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": [group]})
        self.adaptation.load_state_dict(state.get("adaptation"))
        self.batches = state.get("batches", state["iteration"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if self.device.type == "cuda":  # of as many devices as both machines have
            torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])
        self.iteration = state["iteration"]
        self.step_factor, self.lr_factor, self.n_rollbacks = state["guard"]
        self.set_factors(self.step_factor, self.lr_factor)

    def save(self, path: Path) -> None:
        """Write the state, with the whole buffer, so that the file is either the old one or the
        whole new one; rank 0 does, and all raise its errors."""
        state = self.state_dict()
        if self.buffer is not None:
            state["buffer"] = full_state_dict(self.buffer)
        processes.on_rank_zero(lambda: files.write(path, lambda file: torch.save(state, file)))
