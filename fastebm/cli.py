"""The command line. Exit codes: 2 user error (one line on stderr), 1 lost run, 130 Ctrl-C."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from fastebm import fit, report, training
from fastebm.config import ConfigError, TrainConfig
from fastebm.data import DataError, MissingExtra, first_line
from fastebm.training import Trainer

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError as missing:
    print(f'{missing.name} is needed here: pip install "fastebm[app]"', file=sys.stderr)
    raise SystemExit(2) from None

app = typer.Typer(
    help="Energy-based models with fused Langevin steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True, soft_wrap=True, highlight=False)
DEFAULT = TrainConfig()


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What the user can put right becomes one line and exit code 2."""
    try:
        yield
    except (ConfigError, DataError, MissingExtra, OSError) as error:
        errors.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        errors.print("interrupted")
        raise typer.Exit(130) from None


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {first_line(error)}") from None
    return device


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="digits, gaussian, ring, 25gaussians, rings, moons, or a .npz, .npy, .pt file."
        ),
    ] = None,
    loss: Annotated[str, typer.Option(help="cd, pcd or icd.")] = DEFAULT.loss,
    seed: int = DEFAULT.seed,
    steps: Annotated[int | None, typer.Option(help="Iterations [default: 2000].")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of --steps.")] = None,
    samples: Annotated[int | None, typer.Option(help="Training samples [default: all].")] = None,
    dim: Annotated[int | None, typer.Option(help="Dimension of gaussian [default: 2].")] = None,
    batch_size: int = DEFAULT.batch_size,
    lr: Annotated[float, typer.Option(help="Of Adam.")] = DEFAULT.lr,
    lr_schedule: Annotated[str, typer.Option(help="constant or cosine.")] = DEFAULT.lr_schedule,
    max_grad_norm: Annotated[float, typer.Option(help="0: no bound.")] = DEFAULT.max_grad_norm,
    k_steps: Annotated[int, typer.Option(help="Langevin steps of a chain.")] = DEFAULT.k_steps,
    step_size: Annotated[float | None, typer.Option(help="[default: from the data]")] = None,
    noise_std: Annotated[
        float | None, typer.Option(help="[default: sqrt(2 step); pictures: 0.005 of the box]")
    ] = None,
    kl_weight: float = DEFAULT.kl_weight,
    entropy_weight: float = DEFAULT.entropy_weight,
    n_entropy_refs: Annotated[
        int, typer.Option(help="Stored chains the entropy term looks at.")
    ] = DEFAULT.n_entropy_refs,
    energy_reg_weight: Annotated[
        float, typer.Option(help="L2 penalty on energies.")
    ] = DEFAULT.energy_reg_weight,
    buffer_size: Annotated[
        int, typer.Option(help="Stored chains; 0: icd starts at the data.")
    ] = DEFAULT.buffer_size,
    reinit_prob: Annotated[float, typer.Option(help="Share of restarts.")] = DEFAULT.reinit_prob,
    hidden: Annotated[int, typer.Option(help="Width of the two layers.")] = DEFAULT.hidden,
    out: Annotated[
        Path | None, typer.Option(help="Directory [default: runs/DATA-LOSS-SEED].")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Checkpoint to go on from, with its settings.")
    ] = None,
    device: str = "cpu",
    log_every: int = 10,
    checkpoint_every: int = 500,
    tensorboard: Annotated[
        bool | None, typer.Option(help="Event files [default: if installed].")
    ] = None,
) -> None:
    """Train an energy on DATA. Ctrl-C saves a checkpoint."""
    with one_line_errors():
        if log_every < 1 or checkpoint_every < 1:
            raise ConfigError("log_every and checkpoint_every must be at least 1")
        if resume is not None:
            _only_resumable(context)
            trainer = training.restore(resume, steps, _device(device))
            if trainer.iteration >= trainer.config.steps:
                raise ConfigError(
                    f"{resume} is at step {trainer.iteration}, the last one: give more --steps"
                )
            out = out or resume.parent
        elif data is None:
            raise ConfigError("name the DATA to train on, or a checkpoint to --resume")
        elif steps is not None and epochs is not None:
            raise ConfigError("give --steps or --epochs, not both")
        else:
            given = {f.name: context.params[f.name] for f in fields(TrainConfig)}
            given["steps"] = DEFAULT.steps if steps is None else steps
            trainer = Trainer(TrainConfig(**given), device=_device(device))
        c = trainer.config
        out = out or _free(Path("runs") / f"{Path(c.data).stem}-{c.loss}-{c.seed}")
        fit.prepare(out, resume=resume is not None)
        if tensorboard is None:
            tensorboard = fit.tensorboard_installed()
        console.print(_headline(trainer), highlight=False)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            outcome = fit.fit(
                trainer,
                out,
                tensorboard=tensorboard,
                log_every=log_every,
                checkpoint_every=checkpoint_every,
                console=console,
            )
        if outcome.status == "diverged":
            errors.print(outcome.message, style="red", markup=False)
            raise typer.Exit(1)
        console.print(outcome.message, highlight=False, markup=False, soft_wrap=True)
        if outcome.status == "interrupted":
            raise typer.Exit(130)
        report.write(trainer, out, console)


def _show_warning(message, *_) -> None:
    errors.print(f"warning: {message}", style="yellow", markup=False)


def _only_resumable(context: typer.Context) -> None:
    """A resumed run keeps its settings: say so rather than ignore an option."""
    free = {"resume", "steps", "out", "device", "log_every", "checkpoint_every", "tensorboard"}
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in free and source is not None and source.name == "COMMANDLINE":
            raise ConfigError(
                f"{name} comes from the checkpoint; with --resume give only"
                f" {', '.join(sorted(free - {'resume'}))}"
            )


def _free(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that holds no run."""
    candidate, n = path, 1
    while (candidate / fit.CHECKPOINT).exists():
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate


def _headline(trainer: Trainer) -> str:
    c, n = trainer.config, len(trainer.x)
    shape = "x".join(map(str, trainer.dataset.event_shape))
    return (
        f"{c.data}: {n} samples of {shape}; {c.loss}, {c.steps} steps of {c.batch_size}"
        f" ({c.steps / trainer.batches_per_epoch:.1f} epochs), k = {c.k_steps},"
        f" step size {c.step_size:g}, noise {c.noise_std:.3g},"
        f" effective temperature {trainer.sampler.effective_temperature:.3g}"
    )


@app.command()
def sample(
    checkpoint: Path,
    n: Annotated[int, typer.Option(help="Chains.")] = 64,
    steps: Annotated[int, typer.Option(help="Langevin steps from uniform noise.")] = 200,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="Array `x` as .npz.")] = None,
    png: Annotated[Path | None, typer.Option(help="Grid of pictures, or scatter plot.")] = None,
    device: str = "cpu",
) -> None:
    """Draw samples from a CHECKPOINT with the sampler it was trained with."""
    with one_line_errors():
        if n < 1 or steps < 1:
            raise ConfigError(f"n and steps must be at least 1, got {n} and {steps}")
        if out is None and png is None:
            raise ConfigError("nothing to write: give --out x.npz, --png grid.png, or both")
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed must be between 0 and 2^63 - 1, got {seed}")
        if out is not None and out.suffix != ".npz":
            raise ConfigError(f"--out must end in .npz, got {out}")
        trainer = training.restore(checkpoint, device=_device(device))
        x = trainer.sample(n, steps, seed).cpu()
        if not x.isfinite().all():
            raise ConfigError(f"{int((~x.isfinite()).sum())} values of the samples are not finite")
        try:
            if out is not None:
                np.savez_compressed(out, x=x.numpy())
            if png is not None:
                report.samples_figure(trainer.dataset, x, f"{steps} steps").savefig(png)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot write: {error}") from None
        console.print(f"{n} samples: {', '.join(str(p) for p in (out, png) if p)}")


@app.command()
def info() -> None:
    """Print versions, instruction sets, and whether a GPU can be used and why not."""
    from fastebm.info import build_info

    table = Table(show_header=False, box=None)
    for name, value in build_info().items():
        table.add_row(name, str(value))
    console.print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory of the results.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A few steps, to see it work.")] = False,
) -> None:
    """Ring of 8 Gaussians, where plain CD explodes, and 8x8 digits, in about two minutes."""
    with one_line_errors():
        from fastebm.demo import run_demo

        fit.prepare(out, resume=True)
        run_demo(out, quick, console)


def main() -> None:
    """Entry point of `fastebm`."""
    app()
