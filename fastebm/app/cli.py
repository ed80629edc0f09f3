"""The command line. Exit codes: 2 user error (one line on stderr), 1 lost run, 128 + the number of
the signal that ended it (Ctrl-C: 130)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.table import Table
except ModuleNotFoundError as missing:
    print(f'{missing.name} is needed here: pip install "fastebm[app]"', file=sys.stderr)
    raise SystemExit(2) from None

from fastebm.app import fit
from fastebm.app.cli_eval import evaluate, likelihood, ood, sample
from fastebm.app.cli_train import train
from fastebm.app.config import ConfigError
from fastebm.app.terminal import console, one_line_errors, rank_zero_alone

app = typer.Typer(
    help="Energy-based models with fused Langevin steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (train, sample, ood, evaluate, likelihood):
    app.command()(command)


@app.command()
def info() -> None:
    """Print versions, instruction sets, and whether a GPU can be used and why not."""
    from fastebm.info import build_info

    rank_zero_alone()
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
        from fastebm.app.demo import run_demo

        rank_zero_alone()
        with fit.hold(out, resume=True):
            run_demo(out, quick, console)


# The bench reads its own arguments, --help too.
@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Run the benchmarks (python -m bench), from a checkout of the sources."""
    with one_line_errors():
        rank_zero_alone()
        run = subprocess.run([sys.executable, bench_folder(), *context.args])
        raise typer.Exit(run.returncode)


def bench_folder() -> Path:
    """bench/ of the checkout that the package or the working directory is in; no wheel has it."""
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        ours = root / "csrc" / "langevin" / "langevin.h"
        if ours.is_file() and (root / "bench" / "__main__.py").is_file():
            return root / "bench"
    raise ConfigError("benches are not installed: run this in a checkout of fastebm's sources")


def main() -> None:
    """Entry point of `fastebm`."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal has no letters for
    app()
