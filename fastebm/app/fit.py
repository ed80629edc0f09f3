"""The training loop of the command line: progress, metrics files, checkpoints, signals."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from fastebm.app import files, processes, signals
from fastebm.app.config import ConfigError
from fastebm.app.data import MissingExtra, first_line, need
from fastebm.app.guard import DivergedError, DivergenceGuard
from fastebm.app.monitor import Monitor
from fastebm.app.training import Trainer
from fastebm.distributed import faults, world
from fastebm.distributed.collectives import all_rows, gather_integers, gather_objects
from fastebm.losses.nonfinite import NonFiniteError

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: status "done", "interrupted" or "diverged", a line about it, and the signal
    that interrupted it."""

    status: str
    message: str
    signum: int = 0


def progress_bar(console=None, disable: bool = False):
    """Bar with done/total, iterations a second, time used and time left, and a free text."""
    progress = need("rich.progress")

    class Rate(progress.ProgressColumn):
        def render(self, task):
            speed = task.finished_speed or task.speed
            return f"{speed:6.1f} it/s" if speed else "     - it/s"

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=disable,
    )


class MetricsLog:
    """One JSON object a line in `metrics.jsonl`, and the same numbers for TensorBoard.

    Each term of the loss has its own name; the total is not logged, because its value moves with
    the offset of the energy and cannot be compared between losses. Non-finite numbers become null.

    Args:
        out: directory of the run.
        iteration: records of later steps, left by a run killed after its checkpoint, are dropped.
        tensorboard: write event files to out/tensorboard.
    """

    def __init__(self, out: Path, iteration: int, tensorboard: bool = False):
        self._path, self._file, self._writer = out / METRICS, None, None
        self.cut(iteration)
        if tensorboard:
            writer = need("torch.utils.tensorboard").SummaryWriter
            self._writer = writer(out / "tensorboard", purge_step=iteration + 1)

    def cut(self, iteration: int) -> None:
        """Drop the records of later steps, after a roll-back too."""
        if self._file is not None:
            self._file.close()
        path = self._path
        kept = [r for r in read_metrics(path) if r["step"] <= iteration]
        text = "".join(json.dumps(r) + "\n" for r in kept)
        files.write(path, lambda file: file.write(text.encode()))
        self._file = path.open("a", buffering=1)

    def write(self, step: int, values: dict[str, float], note: str | None = None) -> None:
        """One record; `note`, text about what happened since the last one, goes to the file."""
        clean = {k: v if math.isfinite(v) else None for k, v in values.items()}
        text = {} if note is None else {"note": note}
        self._file.write(json.dumps({"step": step, **clean, **text}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics file, none where there is no file; from the first line on that is
    none, such as a last one cut short by a crash, the rest is left out."""
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
            record["step"] + 0
        except (ValueError, TypeError, KeyError):
            break
        records.append(record)
    return records


@contextmanager
def hold(out: Path, resume: bool = False) -> Iterator[None]:
    """Make the directory of a run and keep other processes out of it until the block ends.

    Raises:
        ConfigError: it holds a run already, and this one does not resume it.
        OSError: it cannot be written to, or another run is at work in it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write to {out}: {error.strerror}") from None
    with files.held(out):
        if not resume and (out / CHECKPOINT).exists():
            raise ConfigError(f"{out} already holds a run: choose another --out, or --resume it")
        for part in (*files.left(out / CHECKPOINT), *files.left(out / METRICS)):
            part.unlink()
        yield


def fit(
    trainer: Trainer,
    out: Path,
    *,
    tensorboard: bool = True,
    log_every: int = 10,
    checkpoint_every: int = 500,
    console=None,
    monitor: str = "lines",
) -> Outcome:
    """Train to the end of the configuration, into a directory that `hold` has made.

    The divergence guard looks at the run whenever it is logged. A run that it gives up stops and
    keeps its last good checkpoint. A signal (`fastebm.app.signals`) ends the run after the step it
    came in: a step cut in the middle would leave model, optimiser and buffer at different
    iterations. `monitor`: see `fastebm.app.monitor.Monitor`; the progress bar is there with "lines"
    only.

    Of several ranks, all of which call this, rank 0 writes and prints, and all end after the same
    step, whichever of them gets a signal.
    """
    c, speaks = trainer.config, world().rank == 0
    if not trainer.sampler.step_size_checked:
        with suppress(ValueError):  # points that coincide have no scale to compare with
            trainer.sampler.check_step_size(trainer.x)
    settings = {**trainer.state_dict()["config"], "device": str(trainer.device)}
    settings["effective_temperature"] = float(trainer.sampler.effective_temperature)
    settings["versions"] = trainer.state_dict()["versions"]
    log = _Log(out, settings, trainer.iteration, tensorboard)
    rates = _Rates(trainer.iteration)
    guard = DivergenceGuard(trainer, c.on_divergence, max_rollbacks=c.max_rollbacks)
    notes: list[str] = []

    def after_step(reason: str | None) -> str | None:
        """Log, look at the run, roll back, save; why the run is lost, if it is."""
        nonlocal notes
        bar.advance(task)
        if reason is None and _due(trainer, log_every):
            values = trainer.probe() | rates.of_ranks(trainer.iteration)
            with log.trying():
                log.file.write(trainer.iteration, values, "; ".join(notes) or None)
                name = "energy_gap" if "energy_gap" in values else "bound"
                bar.update(task, note=f"{name.removeprefix('energy_')} {values[name]:+.3f}")
                watch.show(values)
            reason = guard.check(values)
            notes = notes if reason else []
        if reason is not None:
            try:
                notes.append(guard.roll_back(reason))
            except DivergedError as error:
                return str(error)
            rates.restart(trainer.iteration)
            with log.trying():
                log.file.cut(trainer.iteration)
                bar.update(task, completed=trainer.iteration)
                if speaks:
                    say(bar.console, notes[-1])
        elif trainer.iteration % checkpoint_every == 0:
            with log.trying():
                trainer.save(out / CHECKPOINT)
        return None

    try:
        bar = progress_bar(console, disable=monitor != "lines" or not speaks)
        with bar, signals.stopping() as stop:
            watch = Monitor(trainer, bar.console, monitor if speaks else "quiet")
            task = bar.add_task(c.loss, total=c.steps, completed=trainer.iteration, note="")
            while True:
                signum, failed = _agreed(stop.signum, log.trouble)
                if signum or failed or trainer.iteration >= c.steps:
                    break
                reason = None
                try:
                    trainer.step()
                except NonFiniteError as error:
                    reason = first_line(error)
                lost = after_step(reason)
                if lost is not None:
                    return _lost(out, lost)
            with suppress(OSError) if failed else nullcontext():
                trainer.save(out / CHECKPOINT)
            if failed:
                raise OSError(next(text for text in gather_objects(log.trouble) if text))
    finally:
        log.file.close()
    if signum:
        where = f"stopped at step {trainer.iteration} of {c.steps}"
        return Outcome("interrupted", f"{where}; {how_to_go_on(out)}", signum)
    return Outcome("done", f"{c.steps} steps; checkpoint: {out / CHECKPOINT}")


class _Log:
    """The log of a run, which rank 0 has, and the first failure to write to it, to a checkpoint or
    to a terminal that is gone: the run ends by it as soon as all ranks know, after a last
    checkpoint."""

    def __init__(self, out: Path, settings: dict, iteration: int, tensorboard: bool):
        self.trouble, self.file = "", _NoLog()

        def begin() -> None:
            files.write_json(out / "config.json", settings)
            self.file = MetricsLog(out, iteration, tensorboard)

        processes.on_rank_zero(begin)

    @contextmanager
    def trying(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.trouble = self.trouble or str(error)


class _NoLog:
    """Of another rank."""

    def cut(self, iteration: int) -> None:
        pass

    def write(self, step: int, values: dict[str, float], note: str | None = None) -> None:
        pass

    def close(self) -> None:
        pass


class _Rates:
    """Steps a second that each rank would take if it never waited for another."""

    def __init__(self, iteration: int):
        self.restart(iteration)

    def restart(self, iteration: int) -> None:
        self._since = iteration, time.perf_counter() - faults.seconds_waited

    def of_ranks(self, iteration: int) -> dict[str, float]:
        """The least and the largest since the last call; nothing of one process."""
        if world().size == 1:
            return {}
        before, start = self._since
        self.restart(iteration)
        rate = (iteration - before) / max(self._since[1] - start, 1e-9)
        rates = all_rows(torch.tensor([rate], dtype=torch.float64))
        return {"it_per_s_min": rates.min().item(), "it_per_s_max": rates.max().item()}


def _agreed(signum: int, trouble: str) -> tuple[int, bool]:
    """Of all ranks: a signal that one of them has got, or 0, and whether one has trouble."""
    found = gather_integers([signum, bool(trouble)])
    return max(s for s, _ in found), any(f for _, f in found)


def how_to_go_on(out: Path) -> str:
    return f"go on with: fastebm train --resume {out / CHECKPOINT}"


def say(console, text: str) -> None:
    """One line, a warning, as it is."""
    console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _due(trainer: Trainer, every: int) -> bool:
    return trainer.iteration % every == 0 or trainer.iteration == trainer.config.steps


def _lost(out: Path, reason: str) -> Outcome:
    kept = out / CHECKPOINT
    where = f"last good checkpoint: {kept}" if kept.exists() else "no checkpoint was due before"
    return Outcome("diverged", f"{reason}; {where}")


def tensorboard_installed() -> bool:
    try:
        need("torch.utils.tensorboard")
    except (MissingExtra, ImportError):
        return False
    return True
