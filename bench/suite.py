"""What all benches have in common: options, tables, and a place in the results file.

A bench is a script whose ``run(options)`` yields the rows of one case after another. A row is a
dict that goes to JSON as it is:
  case, variant      what was run, in words, and who ran it; together they name the row
  seconds            median of one call, or of a step of it; where there is none:
  unavailable        why
  host_seconds       what one takes the host, where a device does the work
  limit, limit_seconds  what no implementation can beat here (the measured bandwidth of a copy or
                     rate of a matrix product), by name, and the time it allows
  phases             seconds of each part of a call, by name, where that is known
and whatever else is worth keeping. A results file has for each bench its environment, its rows, and
the cases that there was no time for.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import levels
import machine
import torch

try:
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError:
    raise SystemExit('rich is needed here: pip install ".[bench]"') from None

Rows = list[dict[str, Any]]
Results = dict[str, dict[str, Any]]  # name of the bench -> environment, load_average_after, rows
Case = TypeVar("Case")

console = Console(highlight=False)
if not console.is_terminal:  # a log: its lines may be as long as the tables are wide
    console.width = 200


@dataclass(frozen=True)
class Options:
    """How a bench is run.

    Attributes:
        device: where.
        quick: fewer cases, shorter measurements.
        threads: numbers of threads to measure with; None: the bench's own.
        deadline: of ``time.monotonic``, after which no case begins; the results of those that were
            measured are kept whatever becomes of the next.
        left_out: cases that did not begin, or were not finished.
    """

    device: torch.device
    quick: bool = False
    threads: tuple[int, ...] | None = None
    deadline: float | None = None
    left_out: list[str] = field(default_factory=list)

    def in_time(self, cases: Iterable[Case]) -> Iterator[Case]:
        """Those that can begin before the deadline."""
        left = list(cases)
        try:
            while left and (self.deadline is None or time.monotonic() < self.deadline):
                yield left[0]
                left.pop(0)
        finally:  # also where a case is interrupted
            self.left_out.extend(str(getattr(case, "name", case)) for case in left)

    def threads_or(self, *own: int) -> tuple[int, ...]:
        """Numbers of threads: those asked for, or the bench's own; on CUDA what torch has set."""
        if self.threads:
            return self.threads
        if self.device.type == "cuda":
            return (torch.get_num_threads(),)
        return own[:1] if self.quick else own

    def each_thread_count(self, *own: int):
        """Sets torch to one number of threads after the other."""
        for threads in self.threads_or(*own):
            torch.set_num_threads(threads)
            if warning := machine.warning_if_busy(threads):
                console.print(f"[bold yellow]WARNING: {warning}")
            yield threads


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every bench and the suite have."""
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, nargs="+", metavar="N", help="CPU threads to try")
    parser.add_argument("--simd", choices=[*levels.LEVELS], metavar="LEVEL", help="as on a CPU of"
                        f" that level, rivals too: {', '.join(levels.LEVELS)}")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="results go here")
    parser.add_argument("--quick", action="store_true", help="fewer cases, shorter measurements")
    parser.add_argument("--seconds", type=float, metavar="S", help="begin no case after that;"
                        " save the results after each")  # fmt: skip


def options_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Options:
    """The options, or the parser's error where they cannot be used here."""
    if arguments.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if arguments.threads and min(arguments.threads) < 1:
        parser.error(f"--threads: must be at least 1, got {min(arguments.threads)}")
    if arguments.simd:
        try:
            levels.hold_to(arguments.simd)
        except ValueError as error:
            parser.error(f"--simd: {error}")
    threads = tuple(arguments.threads) if arguments.threads else None
    deadline = None if arguments.seconds is None else time.monotonic() + arguments.seconds
    return Options(arguments.device, arguments.quick, threads, deadline)


def script(name: str, description: str, run: Callable[[Options], Iterable[Rows]]) -> None:
    """The command line of one bench."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    arguments = parser.parse_args()
    measure(name, run, options_of(parser, arguments), arguments.out)


def measure(
    name: str, run: Callable[[Options], Iterable[Rows]], options: Options, path: Path | None
) -> None:
    """Runs a bench and puts its results into the file; without one it only prints."""
    facts = machine.environment(options.device) | levels.facts() | {"quick": options.quick}
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    rows: Rows = []

    def keep() -> None:
        entry = {"environment": facts, "load_average_after": machine.load_average(), "rows": rows}
        if options.left_out:
            entry["left_out"] = list(options.left_out)
        if path is not None and rows:
            save(path, load(path) | {name: entry} if path.exists() else {name: entry})

    finished = False
    try:
        for of_case in run(options):
            rows += of_case
            print_host_times(of_case)
            if options.deadline is not None:
                keep()
        finished = True
    finally:
        if finished or options.deadline is not None:
            keep()
        for case in options.left_out:
            console.print(f"not run: {name}: {case}", markup=False, soft_wrap=True)
        options.left_out.clear()
    if path is not None and rows:
        console.print(f"results of {name}: {path}", soft_wrap=True)


def load(path: Path) -> Results:
    return json.loads(path.read_text())


def save(path: Path, results: Results) -> None:
    """At once: whoever is stopped here leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(path)


def best_rival(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The fastest row of a case that is no way of fastebm, no yardstick and exact."""
    own = ("fastebm", "eager gradient + step")
    rivals = [r for r in rows if not (r["variant"].startswith(own) or r.get("yardstick"))]
    rivals = [r for r in rivals if not r.get("inexact")]
    return min((r for r in rivals if "seconds" in r), key=lambda r: r["seconds"])


def threads_text(device: torch.device | str, threads: int) -> str:
    """As it stands at the end of a case."""
    if str(device).startswith("cuda"):
        return "CUDA"
    return f"{threads} thread" + "s" * (threads > 1)


def unavailable_rows(case: Mapping[str, Any], reasons: Mapping[str, str]) -> Rows:
    """Rows of the variants that could not be measured, which are printed as well."""
    for name, reason in reasons.items():
        console.print(f"not measured: {name}: {reason}", markup=False, soft_wrap=True)
    return [{**case, "variant": name, "unavailable": why} for name, why in reasons.items()]


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table under its title: the first column to the left, the others to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()


def print_host_times(rows: Rows) -> None:
    """What a device's calls take the host, which a run of small ones cannot beat."""
    table = [
        [
            f"{row['case']}, {row['variant']}",
            f"{row['host_seconds'] * 1e6:.4g}",
            f"{row['seconds'] * 1e6:.4g}",
            "host" if row["host_seconds"] > row["seconds"] else "device",
        ]
        for row in rows
        if "host_seconds" in row
    ]
    if table:
        print_table("The host's time", ["", "host, us", "device, us", "the longer"], table)


def print_targets(title: str, claims: Sequence[tuple[str, str, str, bool]]) -> None:
    """What was to be reached and what was: (claim, wanted, measured, met)."""
    verdicts = [(*claim[:3], "met" if claim[3] else "MISSED") for claim in claims]
    if verdicts:
        print_table(title, ["target", "wanted", "measured", ""], verdicts)
