"""Where the time of one training step of improved contrastive divergence goes, phase by phase.

Rivals, on networks and data of the same shapes, with the same K, step, noise first, 100 references
and fused Adam:
  fastebm             ImprovedContrastiveDivergence with a ReplayBuffer; in the 64-D case also with
                      all stored samples as references
  torch, one by one   plain PyTorch in the structure of the authors' script: a Python list of stored
                      samples that is read and written one sample at a time (a reservoir), the last
                      step computed again with a graph, a forward of its own for the KL term, and
                      the distances of all pairs as one tensor of differences
  torch, batched      the same in the best plain PyTorch we know: a tensor as buffer, the last step
                      computed once, and the nearest neighbour found without a graph

The phases: draw (from the buffer, with restarts), chain (all steps but the last, or all where it is
computed again), last step, entropy (with fastebm also the KL term), forward (energies of data and
chains, and what is left of the loss; with fastebm on perceptrons everything from the chain to the
gradient in their parameters, which is one operator), backward, optimiser (with the clip of the
gradient), push. A phase is its share in all calls, times the median of a step. On CUDA, where a
phase must wait for the device, the shares are of steps after those that are timed. A turn is
several steps, as in training: the first of them finds the caches as another rival left them.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import suite
import timing
import torch
from torch import Tensor, nn

from fastebm import GraphedTrainStep, ImprovedContrastiveDivergence, LangevinDynamics, ReplayBuffer
from fastebm.energies import ConvEnergy, ResNetEnergy

SIGMA, RESTART, N_REFS, CLIP, ENTROPY, EPS = 0.005, 0.05, 100, 5.0, 0.3, 1e-3
PHASES = ("draw", "chain", "last step", "entropy", "forward", "backward", "optimiser", "push")
OURS, SCRIPT, BATCHED = "fastebm", "torch, one by one", "torch, batched"
GRAPH, ALL_REFERENCES = "fastebm, graph", "fastebm, all references"


class Autocast(nn.Module):
    """An energy whose layers compute in bfloat16."""

    def __init__(self, energy: nn.Module):
        super().__init__()
        self.energy = energy

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.energy(x).float()


@dataclass(frozen=True)
class Case:
    """Shapes of a comparison; pictures are stored as uint8."""

    name: str
    shape: tuple[int, ...]
    batch: int
    k_steps: int
    step_size: float
    in_a_row: int = 1  # steps of a rival's turn, as a training run makes them
    target: float | None = None  # how many times as fast as "one by one", on a CPU
    capacity: int = 10_000
    resnet: bool = False
    bfloat16: bool = False

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        if self.resnet:
            energy = ResNetEnergy(self.shape)
            return Autocast(energy) if self.bfloat16 else energy
        if len(self.shape) == 3:
            return ConvEnergy(self.shape)
        return nn.Sequential(
            nn.Linear(self.shape[0], 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(),
            nn.Linear(128, 1),
        )  # fmt: skip


CASES = [
    Case("2-D MLP, B = 128", (2,), 128, 20, 0.01, in_a_row=20, target=5.0),
    Case("64-D MLP, B = 1024", (64,), 1024, 20, 0.01, in_a_row=5, target=5.0),
    Case("ConvEnergy 28x28, B = 128", (1, 28, 28), 128, 20, 0.1),
]
RESNET = Case("ResNetEnergy 3x32x32, B = 128", (3, 32, 32), 128, 20, 0.1, resnet=True)
IN_BFLOAT16 = replace(RESNET, name=f"{RESNET.name}, bfloat16", bfloat16=True)
ON_CUDA = [*CASES, IN_BFLOAT16, RESNET]


class Clock:
    """Seconds of each phase, without those of the phases inside it."""

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
            self.model.parameters(),
            1e-4,
            (0.0, 0.999),
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
        dtype = torch.uint8 if len(case.shape) == 3 else torch.float32
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
        if len(case.shape) == 3:  # a perceptron's chain and loss are one operator
            parts += [(sampler, "sample", "chain"), (sampler, "last_step", "last step")]
            parts += [(self.criterion, "_entropy", "entropy")]
        for part in parts:
            self.clock.wrap(*part)

    def loss(self) -> Tensor:
        with self.clock("forward"):
            return self.criterion(self.x).loss


class Graphed(Fastebm):
    """As one CUDA graph: its clock is never read."""

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
        self.picture = len(case.shape) == 3
        self.fill(torch.rand((case.capacity, *case.shape), device=device))

    def fill(self, x: Tensor) -> None:
        self.push(x)

    def push(self, x: Tensor) -> None:
        """Reservoir sampling, one sample at a time."""
        rows = x.cpu().numpy()
        if self.picture:
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
            if self.picture:
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
        self.data = (256 * x).to(torch.uint8) if self.picture else x

    def push(self, x: Tensor) -> None:
        self.data[self.slots] = (256 * x).clamp(0, 255).to(torch.uint8) if self.picture else x

    def draw(self, n: int) -> Tensor:
        slots = torch.randperm(len(self.data), device=self.device)[:n]
        if n == len(self.x):
            self.slots = slots
        x = self.data[slots]
        return (x + torch.rand(x.shape, device=self.device)) / 256 if self.picture else x

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
    steps: dict[str, Callable] = {OURS: Fastebm, SCRIPT: Script, BATCHED: Batched}
    found = {name: make(case, device) for name, make in steps.items()}
    if case.shape == (64,):
        found[ALL_REFERENCES] = Fastebm(case, device, None)
    if device.type == "cuda":
        found[GRAPH] = Graphed(case, device)
    return found


def step_flops(case: Case, device: torch.device) -> int:
    """Floating-point operations of a step that computes nothing twice and no gradient that is not
    used: K gradients in x for the chain, the last with a graph, and one for the KL term; the
    energies of data and chains, and their gradient."""
    model = case.model().to(device)
    x = torch.rand((case.batch, *case.shape), device=device)

    def gradient(create_graph: bool) -> Tensor:
        point = x.clone().requires_grad_() + 0  # no leaf: see timing.flops
        return torch.autograd.grad(model(point).sum(), point, create_graph=create_graph)[0]

    with_graph = timing.flops(lambda: gradient(True).square().sum().backward())
    both = timing.flops(lambda: (model(x).mean() - model(x).mean()).backward())
    model.requires_grad_(False)
    return case.k_steps * timing.flops(lambda: gradient(False)) + with_graph + both


def measure(case: Case, device: torch.device, threads: int, seconds: float, rate: float) -> list:
    """A row for each rival; `rate`: floating-point operations a second of a matrix product."""
    steps = rivals(case, device)

    def turn(step: Step) -> None:
        for _ in range(case.in_a_row):
            step()

    turns = {name: partial(turn, step) for name, step in steps.items()}
    timings = timing.compare(turns, device, seconds=seconds)
    if device.type == "cuda":
        for name in turns.keys() - {GRAPH}:
            steps[name].clock.on = True
            turns[name]()
    facts = {
        "case": f"{case.name}, K = {case.k_steps}, {suite.threads_text(device, threads)}",
        "threads": threads,
        "limit": "matrix products",
        "limit_seconds": step_flops(case, device) / rate,
    }
    rows = []
    for name, timed in timings.items():
        row = facts | {
            "variant": name,
            **timed.row(case.in_a_row),
            "fastebm_faster": timings[OURS].times_faster_than(timed),
            "target": case.target if name == SCRIPT and device.type == "cpu" else None,
        }
        if seconds_in := steps[name].clock.seconds:
            whole, each = sum(seconds_in.values()), timed.median / case.in_a_row
            row["phases"] = {phase: each * seconds_in[phase] / whole for phase in PHASES}
        rows.append(row)
    return rows


def print_case(rows: suite.Rows) -> None:
    table = []
    for row in rows:
        phases = row.get("phases", {})
        cells = [f"{1e3 * row['seconds']:.2f}"]
        cells += [f"{1e3 * phases[name]:.2f}" if phases else "" for name in PHASES]
        table.append([row["variant"], *cells, f"{row['fastebm_faster']:.2f}x"])
    limit = f"limit: {rows[0]['limit']}"
    table.append([limit, f"{1e3 * rows[0]['limit_seconds']:.2f}", *[""] * len(PHASES), ""])
    suite.print_table(rows[0]["case"], ["ms a step", "all", *PHASES, "fastebm is"], table)


def print_targets(rows: suite.Rows) -> None:
    claims = [
        (f"{row['case']}, over {row['variant']}", f"{row['target']:.1f}x",
         f"{row['fastebm_faster']:.2f}x", row["fastebm_faster"] >= row["target"])
        for row in rows
        if row["target"]
    ]  # fmt: skip
    suite.print_targets("a training step of ICD on a CPU", claims)


def run(options: suite.Options) -> Iterator[suite.Rows]:
    """Measures and prints every case."""
    device, rows = options.device, []
    seconds = 2.0 if options.quick else 3.0 if device.type == "cuda" else 40.0
    for threads in options.each_thread_count(1, 2):
        rate = timing.matmul_rate(device, 0.5)
        for case in options.in_time(ON_CUDA if device.type == "cuda" else CASES):
            of_case = measure(case, device, threads, seconds, rate)
            print_case(of_case)
            rows += of_case
            yield of_case
    print_targets(rows)


if __name__ == "__main__":
    suite.script("icd_step", __doc__, run)
