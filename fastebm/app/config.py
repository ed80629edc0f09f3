"""What decides a training run, checked before anything is computed."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import numbers
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args, get_type_hints

import torch

from fastebm.app.arrays import LARGEST
from fastebm.app.data import Dataset
from fastebm.app.stored import brief
from fastebm.samplers.scale import data_scale

LOSSES = ("cd", "pcd", "icd", "mle", "wake-sleep")
SCHEDULES = ("constant", "cosine")
NETWORKS = ("mlp", "conv", "resnet")  # sampled by Langevin dynamics
MACHINES = ("rbm", "gaussian-rbm", "helmholtz")  # with conditional laws to draw from
ENERGIES = NETWORKS + MACHINES
_LOSSES_OF = dict.fromkeys(NETWORKS, ("cd", "pcd", "icd", "mle"))
_LOSSES_OF |= dict.fromkeys(("rbm", "gaussian-rbm"), ("cd", "pcd", "mle"))
_LOSSES_OF["helmholtz"] = ("wake-sleep",)
# What only networks and their chains have, and what it is for a machine.
_OF_NETWORKS = {"step_size": None, "noise_std": None, "noise_first": False, "augmentation": None}
_OF_NETWORKS |= {"precision": "float32", "scales": 1, "adjusted": False, "adaptive": False}
_OF_NETWORKS |= {"jumps": None, "standardized": False, "trust_region": 0.0, "auto_batch": False}
INITIAL_STEP, LARGEST_STEP = 0.1, 0.5  # of an adaptive step, in units of the data's variance
PRECISIONS = ("float32", "bfloat16")
ON_DIVERGENCE = ("stop", "step", "lr")
MOST = 2**31  # whole numbers are smaller, the seed excepted
WIDEST = 2**20
_TYPES = {int: (numbers.Integral, "a whole number"), float: (numbers.Real, "a finite number")}
_TYPES |= {str: (str, "text"), bool: (bool, "True or False")}


class ConfigError(ValueError):
    """A run that cannot start or go on as asked; the message is one line."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. None: chosen from the data by `resolve`.

    Attributes:
        data, samples, dim: see `fastebm.app.data.load`.
        loss: "cd" (chains start at the data), "pcd" (from the buffer), "icd" (from the buffer, or
            from the data when buffer_size = 0) or "mle" (from noise: take many k_steps). An RBM
            takes all but "icd", "helmholtz" takes "wake-sleep" and nothing else does.
        steps, epochs: iterations; epochs, when given, decides instead.
        lr_schedule: "constant", or "cosine" down to zero over `steps`.
        max_grad_norm: bound on the norm of the parameters' gradient; 0: none.
        step_size, noise_std: of Langevin. noise_std None with vector data: sqrt(2 step_size), the
            temperature 1.
        noise_first: noise, then the gradient there, as the authors of ICD do.
        adjusted: chains accepted or refused by Metropolis' rule; the temperature is 1.
        adaptive: the step size finds itself, from `step_size` on (None, standardized: 0.1).
        jumps: of the `k_steps`, jumps between modes; of adjusted chains from the buffer. None: a
            fifth of them where those are, else none.
        standardized: chains, steps and network in units of each coordinate's standard deviation;
            vectors only.
        trust_region: bound on the change of the model in a step, in nats; 0: none. It decides about
            the learning rate from `lr` on, up to `max_lr` (None: any); `lr_schedule` is its.
        auto_batch: `batch_size` chains, and 1, 2, 4 or 8 times as many samples, as the gradient's
            noise asks for.
        energy: "mlp", "conv" or "resnet", of `fastebm.energies` but for the first; "rbm" or
            "gaussian-rbm", whose chains are Gibbs steps; or "helmholtz". "rbm" and "helmholtz" see
            the data as bits, drawn anew at each visit.
        scales: how many networks, each at half the resolution of the one before, energies summed;
            "conv" and "resnet" only.
        hidden: width of the two hidden layers of "mlp" and "helmholtz", of the one of an RBM, or of
            the first layer of the others.
        augmentation: preset of `fastebm.Augmentation`, applied to chains drawn from the buffer.
        ema: decay of the average of the weights that samples and evaluation use; 0: the weights.
        precision: "bfloat16": the energy's layers under autocast; chains stay float32.
        on_divergence: what the guard lowers when it goes back to a snapshot: "step" size or "lr";
            "stop": end the run. A machine has no step size, and "step" is "lr" for it.
        max_rollbacks: of the guard; then the run ends.
    """

    data: str = "digits"
    samples: int | None = None
    dim: int | None = None
    loss: str = "icd"
    steps: int = 2000
    epochs: int | None = None
    batch_size: int = 128
    lr: float = 1e-3
    lr_schedule: str = "cosine"
    max_grad_norm: float = 5.0
    k_steps: int = 20
    step_size: float | None = None
    noise_std: float | None = None
    kl_weight: float = 1.0
    entropy_weight: float = 0.3
    n_entropy_refs: int | None = None
    energy_reg_weight: float = 0.0
    buffer_size: int = 2000
    reinit_prob: float = 0.05
    noise_first: bool = False
    adjusted: bool = False
    adaptive: bool = False
    jumps: int | None = None
    standardized: bool = False
    trust_region: float = 0.0
    max_lr: float | None = None
    auto_batch: bool = False
    energy: str = "mlp"
    scales: int = 1
    hidden: int = 64
    augmentation: str | None = None
    adam_beta1: float = 0.0
    adam_beta2: float = 0.999
    ema: float = 0.0
    precision: str = "float32"
    on_divergence: str = "step"
    max_rollbacks: int = 8
    seed: int = 0

    def __post_init__(self):
        def expect(ok: bool, name: str, wanted: str):
            if not ok:
                raise ConfigError(f"{name} must be {wanted}, got {brief(getattr(self, name))}")

        for name, hint in get_type_hints(TrainConfig).items():
            kind, *optional = get_args(hint) or (hint,)
            value, (accepted, wanted) = getattr(self, name), _TYPES[kind]
            if optional and value is None:
                continue
            ok = isinstance(value, accepted) and isinstance(value, bool) == (kind is bool)
            if ok and isinstance(value, int):
                ok = kind is not float or abs(value) <= sys.float_info.max
            elif ok and kind is float:
                ok = math.isfinite(value)
            expect(ok, name, wanted)
            if kind is int and name != "seed":
                expect(value < MOST, name, "below 2^31")
            object.__setattr__(self, name, kind(value))  # NumPy's become Python's
        for name, known in {
            "loss": LOSSES,
            "lr_schedule": SCHEDULES,
            "energy": ENERGIES,
            "precision": PRECISIONS,
            "on_divergence": ON_DIVERGENCE,
        }.items():
            expect(getattr(self, name) in known, name, f"one of {', '.join(known)}")
        known = _LOSSES_OF[self.energy]
        expect(self.loss in known, "loss", f"{' or '.join(known)} with energy={self.energy!r}")
        for name, value in _OF_NETWORKS.items() if self.energy in MACHINES else ():
            expect(getattr(self, name) == value, name, f"left alone with energy={self.energy!r}")
        for name in ("steps", "batch_size", "k_steps"):
            expect(getattr(self, name) >= 1, name, "at least 1")
        expect(1 <= self.hidden <= WIDEST, "hidden", "between 1 and 2^20")
        expect(1 <= self.scales <= 16, "scales", "between 1 and 16")
        expect(self.scales == 1 or self.energy != "mlp", "scales", "1 with energy mlp")
        expect(self.epochs is None or self.epochs >= 1, "epochs", "at least 1")
        expect(self.lr > 0, "lr", "a positive number")
        for name in ("ema", "adam_beta1", "adam_beta2"):
            expect(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        expect(self.max_rollbacks >= 0, "max_rollbacks", "at least 0")
        expect(0 <= self.reinit_prob <= 1, "reinit_prob", "between 0 and 1")
        expect(self.n_entropy_refs is None or self.n_entropy_refs >= 2, "n_entropy_refs", ">= 2")
        for name in ("energy_reg_weight", "max_grad_norm", "buffer_size", "trust_region"):
            expect(getattr(self, name) >= 0, name, "at least 0")
        noise, step = self.noise_std, self.step_size
        expect(noise is None or 0 <= noise <= LARGEST, "noise_std", f"between 0 and {LARGEST:g}")
        expect(step is None or 0 < step <= LARGEST, "step_size", f"above 0, at most {LARGEST:g}")
        if self.loss == "pcd" or (self.loss == "icd" and self.buffer_size != 0):
            enough = self.buffer_size >= self.batch_size
            expect(enough, "buffer_size", f">= batch_size={self.batch_size}")
        self._check_adaptation(expect)
        expect(0 <= self.seed < 2**63, "seed", "between 0 and 2^63 - 1")

    def _check_adaptation(self, expect: Callable[[bool, str, str], None]) -> None:
        """What adjusted chains, jumps and the rest need of each other."""
        most = self.k_steps if self.loss != "icd" else self.k_steps - 1
        expect(0 <= (self.jumps or 0) <= most, "jumps", f"in 0..{most}, of the k_steps")
        expect(self.adjusted or not self.jumps, "jumps", "0 without adjusted")
        expect(self.uses_buffer or not self.jumps, "jumps", "0 without a buffer")
        expect(self.max_lr is None or self.max_lr > 0, "max_lr", "a positive number")
        for name in ("noise_std", "noise_first") if self.adjusted else ():
            expect(getattr(self, name) in (None, False), name, "left alone with adjusted chains")
        in_parts = self.loss == "pcd" or not self.auto_batch
        expect(in_parts, "auto_batch", "False with any loss but pcd")
        plain = self.adjusted and self.precision == "float32" or not self.standardized
        expect(plain, "standardized", "False unless chains are adjusted, in float32")

    @property
    def uses_buffer(self) -> bool:
        return self.loss in ("pcd", "icd") and self.buffer_size > 0

    def resolve(self, dataset: Dataset) -> TrainConfig:
        """Fill in what depends on the data: number of steps, step size and noise.

        Vectors: temperature 1 at a fifth of the variance of the tightest scale (half of it is the
        most any energy can follow). Pictures: a large step and little noise, 0.25 and 0.005 of a
        unit box. Machines: neither.
        """
        if self.auto_batch:  # then it is the number of chains, for which data need not suffice
            self = replace(self, batch_size=min(self.batch_size, len(dataset.train)))
        if self.jumps is None and self.energy in NETWORKS:
            may_jump = self.adjusted and self.uses_buffer and not dataset.is_image
            self = replace(self, jumps=self.k_steps // 5 if may_jump else 0)
        if dataset.is_image and (self.standardized or self.jumps):
            name = "standardized" if self.standardized else "jumps"
            raise ConfigError(f"{name} is for vectors, the samples are {dataset.event_shape}")
        if self.batch_size > len(dataset.train):
            raise ConfigError(
                f"batch_size={self.batch_size}, but there are {len(dataset.train)} samples"
            )
        steps = self.steps
        if self.epochs is not None:
            steps = self.epochs * (len(dataset.train) // self.batch_size)
        lr_or_stop = "lr" if self.on_divergence == "step" else self.on_divergence
        if self.energy in MACHINES:
            return replace(self, steps=steps, epochs=None, on_divergence=lr_or_stop)
        width = dataset.clamp[1] - dataset.clamp[0]
        step, noise = self.step_size, self.noise_std
        if self.adaptive:
            self = replace(self, on_divergence=lr_or_stop)
            step = INITIAL_STEP if step is None and self.standardized else step
        if step is None and dataset.is_image:
            step = 0.25 * width**2
        elif step is None:
            try:
                x = dataset.train
                x = x / x.std(0).clamp(min=1e-30) if self.standardized else x
                step = float(f"{data_scale(x) / 5:.2g}")
            except ValueError as error:
                raise ConfigError(f"give a step size: none can be guessed, as {error}") from None
        if noise is None and not (self.adjusted or self.adaptive):  # else it follows the step
            noise = 0.005 * width if dataset.is_image else math.sqrt(2 * step)
        return replace(self, steps=steps, epochs=None, step_size=step, noise_std=noise)


@functools.cache
def versions() -> dict[str, str]:
    """What a result depends on besides its configuration."""
    try:
        own = importlib.metadata.version("fastebm")
    except importlib.metadata.PackageNotFoundError:
        own = "unknown"
    try:
        call = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
        commit = call.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = "none"
    return {
        "fastebm": own,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "git": commit,
    }
