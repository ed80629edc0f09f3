"""The rivals of bench/icd_step.py: one training step each, in phases for a clock."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import timing
import torch
from torch import Tensor, nn

from fastebm import GraphedTrainStep, ImprovedContrastiveDivergence, LangevinDynamics, ReplayBuffer

SIGMA, RESTART, N_REFS, CLIP, ENTROPY, EPS = 0.005, 0.05, 100, 5.0, 0.3, 1e-3
OURS, SCRIPT, BATCHED = "fastebm", "torch, one by one", "torch, batched"
GRAPH, ALL_REFERENCES = "fastebm, graph", "fastebm, all references"


class Autocast(nn.Module):
    """An energy whose layers compute in another type, and which is a float32 again."""

    def __init__(self, energy: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.energy, self.dtype = energy, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            return self.energy(x).float()


@dataclass(frozen=True)
class Case:
    """Shapes of a comparison; pictures are stored as uint8."""

    name: str
    network: Callable[[tuple[int, ...]], nn.Module]
    shape: tuple[int, ...]
    batch: int
    k_steps: int
    step_size: float
    in_a_row: int = 1  # steps of a rival's turn, as a training run makes them
    target: float | None = None  # how many times as fast as "one by one", on a CPU
    capacity: int = 10_000
    dtype: torch.dtype = torch.float32  # that layers compute in

    @property
    def pictures(self) -> bool:
        return len(self.shape) == 3

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        energy = self.network(self.shape)
        return energy if self.dtype == torch.float32 else Autocast(energy, self.dtype)


class Clock:
    """Seconds of each phase, without those of the phases inside it. It waits for the device at both
    ends of a phase, so on CUDA it is off until somebody turns it on."""

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = defaultdict(float)
        self.on = device.type == "cpu"
        self._device, self._inner = device, [0.0]

    @contextmanager
    def __call__(self, phase: str):
        if not self.on:
            yield
            return
        timing.synchronize(self._device)
        start = time.perf_counter()
        self._inner.append(0.0)
        yield
        timing.synchronize(self._device)
        whole = time.perf_counter() - start
        self.seconds[phase] += whole - self._inner.pop()
        self._inner[-1] += whole

    def wrap(self, owner: object, name: str, phase: str) -> None:
        """Count every call of `owner.name`."""
        call = getattr(owner, name)

        def timed(*args, **kwargs):
            with self(phase):
                return call(*args, **kwargs)

        setattr(owner, name, timed)


class Step:
    """What all rivals do alike: data, network, optimiser, backward."""

    def __init__(self, case: Case, device: torch.device):
        self.case, self.device, self.clock = case, device, Clock(device)
        self.model = case.model().to(device)
        self.optimizer = torch.optim.Adam(
            *(self.model.parameters(), 1e-4, (0.0, 0.999)),
            fused=True,
            capturable=device.type == "cuda",
        )
        self.x = torch.rand((case.batch, *case.shape), device=device)

    def loss(self) -> Tensor:
        raise NotImplementedError

    def __call__(self) -> None:
        loss = self.loss()
        self.optimizer.zero_grad()
        with self.clock("backward"):
            loss.backward()
        with self.clock("optimiser"):
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()


class Fastebm(Step):
    """The package as one writes a loop with it."""

    def __init__(
        self,
        case: Case,
        device: torch.device,
        n_refs: int | None = N_REFS,
        on_nonfinite: str = "raise",
    ):
        super().__init__(case, device)
        options = {"noise_std": SIGMA, "noise_first": True, "clamp": (0.0, 1.0)}
        sampler = LangevinDynamics(self.model, case.step_size, **options)
        dtype = torch.uint8 if case.pictures else torch.float32
        buffer = ReplayBuffer(case.capacity, case.shape, RESTART, dtype=dtype, device=device)
        self.criterion = ImprovedContrastiveDivergence(
            *(self.model, sampler, buffer, case.k_steps),
            entropy_weight=ENTROPY,
            n_entropy_refs=n_refs,
            energy_reg_weight=0.1,
            on_nonfinite=on_nonfinite,
        )
        sampler.step_size_checked = True
        parts = [
            (buffer, "sample", "draw"),
            (buffer, "references", "entropy"),
            (buffer, "push", "push"),
        ]
        if case.pictures:  # a perceptron's chain and loss are one operator
            parts += [(sampler, "sample", "chain"), (sampler, "last_step", "last step")]
            parts += [(self.criterion, "_entropy", "entropy")]
        for part in parts:
            self.clock.wrap(*part)

    def loss(self) -> Tensor:
        with self.clock("forward"):
            return self.criterion(self.x).loss


class Graphed(Fastebm):
    """The same as one CUDA graph, which has no phases: its clock stays off."""

    def __init__(self, case: Case, device: torch.device):
        super().__init__(case, device, on_nonfinite="count")
        self.step = GraphedTrainStep(self.criterion, self.optimizer, max_grad_norm=CLIP)

    def __call__(self) -> None:
        self.step(self.x)


class Script(Step):
    """The structure of the authors' script."""

    def __init__(self, case: Case, device: torch.device):
        super().__init__(case, device)
        self.stored: list[np.ndarray] = []
        self.added = 0
        self.fill(torch.rand((case.capacity, *case.shape), device=device))

    def fill(self, x: Tensor) -> None:
        self.push(x)

    def push(self, x: Tensor) -> None:
        """Reservoir sampling, one sample at a time."""
        rows = x.cpu().numpy()
        if self.case.pictures:
            rows = np.clip(rows * 256, 0, 255).astype(np.uint8)
        for row in rows:
            if len(self.stored) < self.case.capacity:
                self.stored.append(row.copy())
            else:
                slot = random.randrange(self.added)
                if slot < len(self.stored):
                    self.stored[slot] = row.copy()
            self.added += 1

    def draw(self, n: int) -> Tensor:
        rows = []
        for _ in range(n):
            row = self.stored[random.randrange(len(self.stored))]
            if self.case.pictures:
                row = row / 256 + np.random.uniform(0, 1 / 256, row.shape)
            rows.append(row)
        return torch.from_numpy(np.stack(rows).astype(np.float32)).to(self.device)

    def start(self) -> Tensor:
        x = self.draw(len(self.x))
        fresh = torch.rand(len(x), device=self.device) < RESTART
        return torch.where(fresh.view(-1, *(1,) * (x.dim() - 1)), torch.rand_like(x), x)

    def gradient(self, x: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(self.model(x).sum(), x, create_graph=create_graph)
        return x, grad

    def chain(self, x: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
        """The chain after `n_steps`, and its noised point before the last gradient."""
        noised = x
        for _ in range(n_steps):
            noised = x + SIGMA * torch.randn_like(x)
            noised, grad = self.gradient(noised)
            x = (noised - self.case.step_size * grad).clamp(0, 1).detach()
        return x, noised

    def entropy(self, x: Tensor) -> Tensor:
        references = self.draw(N_REFS).flatten(1)
        difference = x.flatten(1)[:, None] - references[None]
        return (difference.norm(dim=2).amin(1) + EPS).log().mean()

    def energies(self, x_neg: Tensor, x_kl: Tensor) -> Tensor:
        e_pos, e_neg = self.model(self.x), self.model(x_neg)
        self.model.requires_grad_(False)
        kl = self.model(x_kl).mean()
        self.model.requires_grad_(True)
        penalty = e_pos.square().mean() + e_neg.square().mean()
        return e_pos.mean() - e_neg.mean() + 0.1 * penalty + kl

    def loss(self) -> Tensor:
        with self.clock("draw"):
            x = self.start()
        with self.clock("chain"):
            x_neg, noised = self.chain(x, self.case.k_steps)
        with self.clock("last step"):
            noised, grad = self.gradient(noised, create_graph=True)
            x_kl = (noised.detach() - self.case.step_size * grad).clamp(0, 1)
        return self.terms(x_neg, x_kl)

    def terms(self, x_neg: Tensor, x_kl: Tensor) -> Tensor:
        with self.clock("forward"):
            loss = self.energies(x_neg, x_kl)
        with self.clock("push"):
            self.push(x_neg)
        with self.clock("entropy"):
            return loss - ENTROPY * self.entropy(x_kl)


class Batched(Script):
    """Plain PyTorch at its best: no Python loop over samples, nothing computed twice."""

    def fill(self, x: Tensor) -> None:
        self.data = (256 * x).to(torch.uint8) if self.case.pictures else x

    def push(self, x: Tensor) -> None:
        self.data[self.slots] = (256 * x).clamp(0, 255).to(torch.uint8) if self.case.pictures else x

    def draw(self, n: int) -> Tensor:
        slots = torch.randperm(len(self.data), device=self.device)[:n]
        if n == len(self.x):
            self.slots = slots
        x = self.data[slots]
        return (x + torch.rand(x.shape, device=self.device)) / 256 if self.case.pictures else x

    def loss(self) -> Tensor:
        with self.clock("draw"):
            x = self.start()
        self.model.requires_grad_(False)
        with self.clock("chain"):
            x, _ = self.chain(x, self.case.k_steps - 1)
        self.model.requires_grad_(True)
        with self.clock("last step"):
            noised, grad = self.gradient(x + SIGMA * torch.randn_like(x), create_graph=True)
            x_kl = (noised.detach() - self.case.step_size * grad).clamp(0, 1)
        return self.terms(x_kl.detach(), x_kl)

    def entropy(self, x: Tensor) -> Tensor:
        references = self.draw(N_REFS).flatten(1)
        with torch.no_grad():
            nearest = torch.cdist(x.flatten(1), references).argmin(1)
        difference = x.flatten(1) - references[nearest]
        return (difference.norm(dim=1) + EPS).log().mean()


def rivals(case: Case, device: torch.device) -> dict[str, Step]:
    """By name; as a graph only on CUDA."""
    steps: dict[str, Callable[..., Step]] = {OURS: Fastebm, SCRIPT: Script, BATCHED: Batched}
    if case.shape == (64,):
        steps[ALL_REFERENCES] = partial(Fastebm, n_refs=None)
    if device.type == "cuda":
        steps[GRAPH] = Graphed
    return {name: make(case, device) for name, make in steps.items()}
