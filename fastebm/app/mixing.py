"""How well chains of a trained model mix: a few numbers of each state, and their diagnostics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastebm.app import files
from fastebm.app.data import need
from fastebm.app.training import Trainer
from fastebm.diagnostics import rank_plot, summary, trace_plot
from fastebm.rng import ChainRNG

FEW = 8  # coordinates, which are looked at one by one; of more it is their mean
BLOCK = 1 << 26  # elements of the states that are held at once
MIXED = 1.01  # the largest R-hat of chains that have: Vehtari et al. 2021
MEASURES = ("mean", "sd", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat")
_FORMATS = {"ess_bulk": "{:.0f}", "ess_tail": "{:.0f}", "r_hat": "{:.3f}"}


@dataclass(frozen=True)
class Chains:
    """Numbers of the states of chains.

    Attributes:
        trajectory: (n_chains, draws, len(names)), on the CPU.
        names: of the numbers.
        burn_in: steps before the first draw.
    """

    trajectory: Tensor
    names: tuple[str, ...]
    burn_in: int


def run_chains(
    trainer: Trainer, n_chains: int, draws: int, seed: int, population: Tensor | None
) -> Chains:
    """Energies and coordinates of chains of the evaluation's sampler from noise, which jump as in
    training; or energies and mean coordinates, where there are more than `FEW`. As many steps are
    dropped before as are drawn.

    Args:
        population: that of the trainer, which all ranks have to ask it for.
    """
    x, rng = trainer.noise(n_chains, seed), ChainRNG(seed)
    n = x[0].numel()

    def run(steps: int, **options):
        jumps = trainer.jumps(steps)
        more = {"jumps": jumps, "population": population} if jumps else {}
        return trainer.eval_sampler.sample(x, steps, seed=rng, **more, **options)

    x, parts = run(draws), []
    at_once = max(1, BLOCK // x.numel())
    for start in range(0, draws, at_once):
        steps = min(at_once, draws - start)
        states, found = run(steps, return_trajectory=True, return_diagnostics=True)
        x = states[:, -1].contiguous()
        values = states.flatten(2)
        values = values if n <= FEW else values.mean(2, keepdim=True)
        parts.append(torch.cat([found["energy"].T.unsqueeze(2), values], 2).cpu())
    mean = "mean pixel" if trainer.dataset.is_image else "mean coordinate"
    names = [f"x[{i}]" for i in range(n)] if n <= FEW else [mean]
    return Chains(torch.cat(parts, 1), ("energy", *names), draws)


def measure(chains: Chains) -> dict:
    """The worst R-hat and effective sample sizes, and under "numbers" all measures of each."""
    found = summary(chains.trajectory, names=chains.names)
    return {
        "n_chains": found.n_chains,
        "n_draws": found.n_draws,
        "burn_in": chains.burn_in,
        "max_r_hat": found.max_r_hat,
        "min_ess_bulk": found.min_ess_bulk,
        "min_ess_tail": found.min_ess_tail,
        "n_nonfinite": int(found.n_nonfinite.sum()),
        "numbers": {
            name: {measure: getattr(found, measure)[i].item() for measure in MEASURES}
            for i, name in enumerate(chains.names)
        },
    }


def show(result: dict, console) -> None:
    """Print a table of `measure`'s result, and a line where chains have not mixed."""
    title = f"{result['n_chains']} chains from noise: {result['n_draws']} draws of each"
    view = need("rich.table").Table(title=f"{title} after {result['burn_in']} steps")
    view.add_column("of a state")
    for measure in MEASURES:
        view.add_column(measure.replace("_", " "), justify="right")
    for name, values in result["numbers"].items():
        view.add_row(name, *(_FORMATS.get(m, "{:.3g}").format(v) for m, v in values.items()))
    console.print(view)
    line = None
    if result["n_nonfinite"]:
        line = f"{result['n_nonfinite']} numbers of the chains are not finite"
    elif result["max_r_hat"] > MIXED:
        line = f"not mixed: R-hat is above {MIXED}, averages depend on where the chains started"
    if line:
        console.print(line, highlight=False, soft_wrap=True)


def write_pictures(chains: Chains, path: Path) -> None:
    """Traces and, of several chains, ranks beside `path`; none beside a stream."""
    if files.is_stream(path):
        return
    plots = {"traces": trace_plot, "ranks": rank_plot} if len(chains.trajectory) > 1 else {
        "traces": trace_plot}  # fmt: skip
    n = min(4, len(chains.names))
    for name, plot in plots.items():
        figure = plot(chains.trajectory, range(n), names=chains.names)
        files.write_figure(path.with_name(f"{path.stem}_{name}.png"), figure)
