"""One way to time things, for every script in bench/.

Rivals are timed in turns, round after round in one process, in a new order each round: what
disturbs the machine disturbs all of them, and their ratio is taken within rounds. A CPU call is
repeated until a millisecond has passed and read on the wall clock, caches as the calls leave them;
a CUDA call is read by events after the L2 cache has been flushed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
MIN_SAMPLE = 1e-3  # seconds of wall clock behind one CPU reading
MIN_ROUNDS, MAX_ROUNDS = 5, 500


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, one reading a round."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, high = self.quartiles
        return (high - low) / self.median

    def times_faster_than(self, other: Timing) -> float:
        """Median over the rounds of the other's time over this one's, in the same round."""
        return statistics.median(o / s for o, s in zip(other.seconds, self.seconds, strict=True))


def warm_up(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Calls until `seconds` have passed, at least twice; returns seconds a call (the host's)."""
    calls, start = 0, time.perf_counter()
    while calls < 2 or time.perf_counter() - start < seconds:
        call()
        calls += 1
        if calls == 1:  # the first call may compile
            synchronize(device)
            start = time.perf_counter()
    synchronize(device)
    return (time.perf_counter() - start) / (calls - 1)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def only_available(
    calls: Mapping[str, Callable[[], object]], required: Sequence[str]
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Splits off the rivals that are not installed or that fail, with the reason; one of the
    required ones may not fail."""
    available, reasons = {}, {}
    for name, call in calls.items():
        try:
            call()
            available[name] = call
        except Exception as error:
            if name in required:
                raise
            reasons[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return available, reasons


def compare(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    seconds: float,
) -> dict[str, Timing]:
    """Times rivals in turns.

    Args:
        calls: name to a function of no arguments that queues or does the work.
        device: where the work is done; decides the clock.
        seconds: length of the warm-up of each, and of the measurement of all of them together.

    Returns:
        name to Timing, with the same number of rounds for each.
    """
    each = {name: warm_up(call, device, seconds / 2 / len(calls)) for name, call in calls.items()}
    if device.type == "cuda":
        return _compare_cuda(calls, device, _rounds(sum(each.values()), seconds))
    repeats = {name: max(1, round(MIN_SAMPLE / t)) for name, t in each.items()}
    rounds = _rounds(sum(each[name] * repeats[name] for name in calls), seconds)
    readings: dict[str, list[float]] = {name: [] for name in calls}
    for name in _turns(calls, rounds):
        call, n = calls[name], repeats[name]
        start = time.perf_counter()
        for _ in range(n):
            call()
        readings[name].append((time.perf_counter() - start) / n)
    return {name: Timing(values) for name, values in readings.items()}


def _compare_cuda(calls, device: torch.device, rounds: int) -> dict[str, Timing]:
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(4 * l2_bytes, dtype=torch.int8, device=device)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in calls}
    for name in _turns(calls, rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()  # also keeps the GPU busy while the host queues the call
        start.record()
        calls[name]()
        end.record()
        events[name].append((start, end))
    synchronize(device)
    return {
        name: Timing([start.elapsed_time(end) * 1e-3 for start, end in pairs])
        for name, pairs in events.items()
    }


def _rounds(seconds_a_round: float, seconds: float) -> int:
    return min(MAX_ROUNDS, max(MIN_ROUNDS, round(seconds / seconds_a_round)))


def _turns(calls: Mapping[str, object], rounds: int):
    order, shuffler = list(calls), random.Random(0)
    for _ in range(rounds):
        shuffler.shuffle(order)
        yield from order


def peak_extra_memory(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call holds at its worst beyond what is held before it and what it left behind
    when it was called last: of resident memory on a CPU (Linux, glibc; to about 0.3 MB), of torch's
    allocator on CUDA."""
    call()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that is still resident would hide new use
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _resident("VmRSS")
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def copy_bandwidth(n_bytes: int, device: torch.device, seconds: float) -> float:
    """Bytes per second, read plus written, of copying a tensor of `n_bytes`."""
    source = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = compare({"copy": lambda: target.copy_(source)}, device, seconds=seconds)["copy"]
    return 2 * n_bytes / timing.median


def environment(device: torch.device) -> dict[str, Any]:
    """Where and when a result was measured."""
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short=12", "HEAD") or "none",
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "device": device_name(device),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "load_average": [round(v, 2) for v in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastebm": metadata.version("fastebm"),
    }
    if device.type == "cuda":
        facts["cuda"] = torch.version.cuda
        facts["driver"] = _output(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
    return facts


def warn_if_busy(threads: int) -> None:
    """Says so where fewer CPUs are idle than threads are about to be timed."""
    busy, cpus = _busy_cpus(), os.cpu_count() or 1
    if busy + threads > cpus + 0.5:
        print(f"WARNING: others keep {busy:.1f} of {cpus} CPUs busy; {threads} thread(s) need more")


def _busy_cpus(seconds: float = 1.0) -> float:
    """CPUs in use while this process sleeps; 0 where the system does not say."""
    try:
        before = _cpu_ticks()
        time.sleep(seconds)
        after = _cpu_ticks()
    except OSError:
        return 0.0
    return (after - before) / os.sysconf("SC_CLK_TCK") / seconds


def _cpu_ticks() -> int:
    fields = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return sum(fields[:3]) + sum(fields[5:8])  # all but idle and waiting for input and output


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    return _output("git", "-C", str(ROOT), *arguments)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The command line that every bench script has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the results here")
    parser.add_argument("--quick", action="store_true", help="fewer cases, shorter measurements")
    arguments = parser.parse_args()
    if arguments.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    return arguments


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * w for w in widths], *rows]:
        first, *others = (cell.rjust(w) for cell, w in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(first)), *others]), flush=True)
    print(flush=True)


def write_results(path: Path | None, facts: Mapping[str, Any], rows: Sequence[Mapping]) -> None:
    """Writes {"environment", "load_average_after", "rows"} as JSON; nothing where path is None."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    after = [round(v, 2) for v in os.getloadavg()]
    result = {"environment": dict(facts), "load_average_after": after, "rows": list(rows)}
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"results: {path}")
