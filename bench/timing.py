"""One way to time things, for every bench.

Rivals are timed in turns, round after round in one process, in a new order each round: what
disturbs the machine disturbs all of them, and their ratio is taken within rounds. A CPU call is
repeated until a millisecond has passed and read on the wall clock, caches as the calls leave them.

A CUDA call is read by events: the device's time, without the host's. Before each reading the device
reads more than its L2 cache holds (what is only read need not be written back during the call),
then sleeps for longer than the host takes to queue the call, so that the whole call waits for it.
What the host takes, on a free device, is kept beside it: small calls take as long as that. A call
that waits for the device inside, or queues more than the driver holds, cannot hide its host.
"""

from __future__ import annotations

import ctypes
import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

MIN_SAMPLE = 1e-3  # seconds of wall clock behind one CPU reading
MIN_ROUNDS, MAX_ROUNDS = 5, 500
MAX_SLEEP = 0.02  # seconds; a host that takes longer than half of it is what decides anyway


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, one reading a round; and, on CUDA, those that the host is busy with one,
    where that was measured."""

    seconds: list[float]
    host: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float | None:
        """Interquartile range over the median; of one reading None."""
        if len(self.seconds) < 2:
            return None
        low, high = self.quartiles
        return (high - low) / self.median

    def row(self, steps: int = 1) -> dict[str, Any]:
        """What a row of a bench says of it, of one of the steps that a call takes."""
        facts = {"seconds": self.median / steps, "spread": self.spread, "rounds": len(self.seconds)}
        return facts if self.host is None else facts | {"host_seconds": self.host / steps}

    def times_faster_than(self, other: Timing) -> float:
        """Median over the rounds of the other's time over this one's, in the same round."""
        return statistics.median(o / s for o, s in zip(other.seconds, self.seconds, strict=True))


def warm_up(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Calls until `seconds` have passed, at least twice; returns seconds a call. Each is waited
    for: a thousand long ones, queued meanwhile, would take a device long after that."""
    calls, start = 0, time.perf_counter()
    while calls < 2 or time.perf_counter() - start < seconds:
        call()
        synchronize(device)
        calls += 1
        if calls == 1:  # the first call may compile
            start = time.perf_counter()
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
        return _compare_cuda(calls, device, each, seconds)
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


def _compare_cuda(calls, device: torch.device, each, seconds: float) -> dict[str, Timing]:
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.zeros(l2_bytes, device=device)  # four times its bytes
    rate = _sleep_rate(device)
    host = {name: _host_seconds(call, device) for name, call in calls.items()}
    sleep = {name: min(MAX_SLEEP, 50e-6 + 2 * t) for name, t in host.items()}
    rounds = _rounds(sum(each[name] + sleep[name] for name in calls), seconds)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in calls}
    for name in _turns(calls, rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.sum()
        torch.cuda._sleep(int(sleep[name] * rate))
        start.record()
        calls[name]()
        end.record()
        events[name].append((start, end))
    synchronize(device)
    return {
        name: Timing([start.elapsed_time(end) * 1e-3 for start, end in pairs], host[name])
        for name, pairs in events.items()
    }


def _host_seconds(call: Callable[[], object], device: torch.device) -> float:
    """What a call takes the host, while the device is free."""
    readings = []
    for _ in range(MIN_ROUNDS):
        synchronize(device)
        start = time.perf_counter()
        call()
        readings.append(time.perf_counter() - start)
    synchronize(device)
    return statistics.median(readings)


def _sleep_rate(device: torch.device, cycles: int = 5_000_000) -> float:
    """Cycles a second of ``torch.cuda._sleep``."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(cycles)
    start.record()
    torch.cuda._sleep(cycles)
    end.record()
    synchronize(device)
    return cycles / (start.elapsed_time(end) * 1e-3)


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
    """Bytes per second, read plus written, of copying a tensor of `n_bytes`, at its fastest."""
    source = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = compare({"copy": lambda: target.copy_(source)}, device, seconds=seconds)["copy"]
    return 2 * n_bytes / min(timing.seconds)


def matmul_rate(
    device: torch.device, seconds: float, dtype: torch.dtype = torch.float32, tf32: bool = False
) -> float:
    """Floating-point operations per second of a large square product, at its fastest. `tf32`: as
    torch has it by default in convolutions of float32 on CUDA, and nowhere else."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out, options = torch.empty_like(a), torch.backends.cuda.matmul
    before = options.fp32_precision
    options.fp32_precision = "tf32" if tf32 else before
    try:
        timing = compare({"mm": lambda: torch.mm(a, b, out=out)}, device, seconds=seconds)["mm"]
    finally:
        options.fp32_precision = before
    return 2 * n**3 / min(timing.seconds)


def flops(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in a call. A module's input
    must not be a leaf that ``torch.autograd.grad`` is asked for: torch's counter fails on it."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
