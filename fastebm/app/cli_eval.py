"""`fastebm sample`, `ood`, `evaluate` and `likelihood`: commands about a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from fastebm.app import checkpoints, files, processes, quality, report
from fastebm.app import log_likelihood as density
from fastebm.app import ood as ood_detection
from fastebm.app.config import ConfigError
from fastebm.app.generation import generate
from fastebm.app.terminal import (
    MANY,
    check_range,
    check_seed,
    console,
    one_line_errors,
    one_run,
    rank_zero_alone,
    usable_device,
)
from fastebm.diagnostics.convergence import MIN_DRAWS_OF_ESS

FIGURES = (".png", ".pdf", ".svg", ".jpg")  # formats of --png


def sample(
    checkpoint: Path,
    n: Annotated[int, typer.Option("--n", "-n", help="Chains.")] = 64,
    steps: Annotated[
        int, typer.Option(help="Langevin steps from uniform noise; after rounds, the refinement.")
    ] = 200,
    rounds: Annotated[
        int, typer.Option(help="Rounds of an augmentation and some Langevin steps before.")
    ] = 0,
    steps_per_round: Annotated[int, typer.Option(help="Langevin steps of a round.")] = 20,
    augment: Annotated[
        str | None,
        typer.Option(
            help="Preset of fastebm.Augmentation for the rounds, or none [default: of training]."
        ),
    ] = None,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="Array `x` as .npz.")] = None,
    png: Annotated[Path | None, typer.Option(help="Grid of pictures, or scatter plot.")] = None,
    device: str = "cpu",
) -> None:
    """Draw samples from a CHECKPOINT with the sampler it was trained with."""
    with one_line_errors(), one_run(device) as own_device:
        check_range("n", n, 1)
        check_range("steps", steps, 0 if rounds else 1)
        check_range("steps-per-round", steps_per_round, 1)
        check_range("rounds", rounds, 0, MANY // steps_per_round)
        if out is None and png is None:
            raise ConfigError("nothing to write: give --out x.npz, --png grid.png, or both")
        check_seed(seed)
        if out is not None and out.suffix != ".npz":
            raise ConfigError(f"--out must end in .npz, got {out}")
        if png is not None and png.suffix.lower() not in FIGURES:
            raise ConfigError(f"--png must end in one of {', '.join(FIGURES)}, got {png}")
        paths = [path for path in (out, png) if path is not None]
        processes.on_rank_zero(lambda: [files.check(path) for path in paths])
        trainer = checkpoints.restore(checkpoint, device=own_device)
        x = generate(trainer, n, steps, rounds, steps_per_round, augment, seed).cpu()
        if not x.isfinite().all():
            raise ConfigError(f"{int((~x.isfinite()).sum())} values of the samples are not finite")
        title = f"{rounds} x {steps_per_round} + {steps} steps" if rounds else f"{steps} steps"

        def write() -> None:
            if out is not None:
                files.write(out, lambda file: np.savez_compressed(file, x=x.numpy()))
            if png is not None:
                files.write_figure(png, report.samples_figure(trainer.dataset, x, title))

        processes.on_rank_zero(write)
        console.print(f"{n} samples: {', '.join(map(str, paths))}", soft_wrap=True)


def ood(
    checkpoint: Annotated[Path, typer.Option(help="Of a trained model.")],
    out: Annotated[
        list[str],
        typer.Option(
            help="Sets to tell apart, files or noise, constant, shuffled, pairs (made from --in);"
            " may be given again."
        ),
    ],
    inside: Annotated[
        str | None, typer.Option("--in", help="In-distribution set [default: the test data].")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="For ood.json and ood.png [default: CHECKPOINT's].")
    ] = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples for the intervals.")] = 200,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Out-of-distribution detection by the energy: AUROC and FPR95, whole test sets."""
    with one_line_errors(), one_run(device) as own_device:
        check_range("bootstrap", bootstrap, 2)
        check_seed(seed)
        trainer = checkpoints.restore(checkpoint, device=own_device)
        directory = directory or checkpoint.parent
        ood_detection.run(trainer, inside, out, directory, bootstrap, seed, console)
        console.print(f"{directory / 'ood.json'}, {directory / 'ood.png'}", soft_wrap=True)


def evaluate(
    checkpoint: Path,
    n: Annotated[int, typer.Option("--n", "-n", help="Samples of each kind, at most 5000.")] = 1000,
    features: Annotated[
        str, typer.Option(help="Where distances are taken: pixels or classifier.")
    ] = "pixels",
    long_steps: Annotated[int, typer.Option(help="Langevin steps of the long run.")] = 1000,
    chains: Annotated[
        int,
        typer.Option(
            help="Chains from noise for R-hat, ESS and MCSE, of their energy and coordinates, or"
            " of the mean one where there are more than 8. 0: none."
        ),
    ] = 64,
    draws: Annotated[
        int, typer.Option(help="States of each of these chains, after as many steps.")
    ] = 1000,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON file [default: quality.json by CHECKPOINT]; pictures of the chains beside"
            " it, _traces.png and _ranks.png."
        ),
    ] = None,
    seed: int = 1,
    device: str = "cpu",
) -> None:
    """Quality of short-run, long-run and buffer samples, with real data against real data; how well
    chains mix."""
    with one_line_errors(), one_run(device) as own_device:
        check_range("n", n, 10, 5000)
        check_range("long-steps", long_steps, 1)
        check_range("chains", chains, 0, 5000)
        check_range("draws", draws, MIN_DRAWS_OF_ESS, 10**6)
        check_seed(seed)
        trainer = checkpoints.restore(checkpoint, device=own_device)
        path = out or checkpoint.parent / "quality.json"
        quality.run(trainer, n, long_steps, features, seed, path, console, chains, draws)
        console.print(str(path), soft_wrap=True)


def likelihood(
    checkpoint: Annotated[Path, typer.Option(help="Of a trained model.")],
    data: Annotated[
        str | None, typer.Option(help="Set to evaluate [default: the test data of the run].")
    ] = None,
    betas: Annotated[
        str, typer.Option(help="Of annealed importance sampling: sm2008, or a number of steps.")
    ] = "sm2008",
    n_chains: Annotated[int, typer.Option(help="Of annealed importance sampling.")] = 100,
    confidence: float = 0.95,
    n_importance: Annotated[
        int, typer.Option(help="Samples for each datum, of a Helmholtz machine.")
    ] = 100,
    base: Annotated[
        str, typer.Option(help="Where energies are annealed from: fitted (Gaussian) or uniform.")
    ] = "fitted",
    reverse: Annotated[
        int, typer.Option(help="Also anneal back, so many samples of long chains.")
    ] = 0,
    exact: Annotated[bool, typer.Option(help="Enumerate small machines.")] = True,
    samples: Annotated[int | None, typer.Option(help="Of each set [default: all].")] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file [default: likelihood.json by CHECKPOINT].")
    ] = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Log-likelihood of held-out data: log Z exactly where it can be, else with an interval."""
    with one_line_errors():
        rank_zero_alone()
        check_seed(seed)
        check_range("n-chains", n_chains, 2)
        check_range("n-importance", n_importance, 1)
        if not 0 < confidence < 1:
            raise ConfigError(f"confidence must be between 0 and 1, got {confidence}")
        if reverse:
            check_range("reverse", reverse, 2)
        if samples is not None:
            check_range("samples", samples, 1)
        settings = density.Settings(
            *(density.parse_betas(betas), n_chains, confidence, n_importance, base, exact, seed)
        )
        trainer = checkpoints.restore(checkpoint, device=usable_device(device))
        path = out or checkpoint.parent / "likelihood.json"
        density.run(trainer, data, samples, reverse, settings, path, console)
        console.print(str(path), soft_wrap=True)
