"""CUDA graphs: recording what a function launches, getting over a recording that failed, and the
order in which graphs are used."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

import torch

from fastebm.chains.waits import NoWaits
from fastebm.energies.protocol import uncached_casts

Body = Callable[[], None]
_streams: dict[torch.device, torch.cuda.Stream] = {}
# A pool that graphs of a device share, as they are replayed one at a time, and a graph in it that
# does nothing: without any graph a pool could not be used again.
_pools: dict[torch.device, tuple[tuple, torch.cuda.CUDAGraph]] = {}
_failed: list[torch.cuda.CUDAGraph] = []  # torch's allocator may go on pointing to them
_last_use: dict[torch.device, torch.cuda.Event] = {}
_lock = threading.RLock()
_here = threading.local()  # .depth: of warm-ups and captures going on in this thread


def is_active() -> bool:
    """Whether a warm-up or a capture, ours or the caller's own, is going on in this thread, so that
    nothing inside should start another, or use tensors on the host."""
    if getattr(_here, "depth", 0):
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


@contextmanager
def ordered(device: torch.device) -> Iterator[None]:
    """Inside, graphs of ``device`` may be used: one thread at a time, and on the device after what
    used them last, on whatever stream that was, as they share memory and static tensors."""
    with _lock:
        stream = torch.cuda.current_stream(device)
        if device in _last_use:
            stream.wait_event(_last_use[device])
        else:
            _last_use[device] = torch.cuda.Event()
        try:
            yield
        finally:
            with suppress(RuntimeError):  # after an error of the device nothing can be recorded
                _last_use[device].record(stream)


def warm_up(body: Body, device: torch.device, may_wait: bool = False) -> None:
    """Run ``body`` on the stream that graphs of ``device`` are captured on: there libraries choose
    their algorithms.

    Args:
        may_wait: False: a wait for the device is an error, as no graph can hold one. What this
            does not find, the capture does.

    Raises:
        RuntimeError: ``body`` waits for the device.
    """
    with _side_stream(device), nullcontext() if may_wait else NoWaits(device):
        body()


def capture(body: Body, device: torch.device, share_memory: bool = True) -> Body:
    """What ``body`` launches, as one CUDA graph; nothing of it runs yet.

    Threads that load data or watch collectives may go on meanwhile. After a failure the device is
    as before, and graphs from before go on.

    Args:
        share_memory: tensors that ``body`` makes lie in a pool that other graphs share, so what is
            to last must be written into tensors from before. False: they last to the next replay.

    Returns:
        The function that replays it, on the current stream.

    Raises:
        Exception: whatever ``body`` or CUDA raised.
    """
    gc.collect()
    torch.cuda.synchronize(device)
    try:
        with _side_stream(device), _settings(), _own_workspaces():
            pool = _shared_pool(device) if share_memory else torch.cuda.graph_pool_handle()
            return _record(body, device, pool).replay
    except BaseException:
        _recover(device)
        raise


def forget_pools() -> None:
    """Start new pools: the memory of the old ones goes with their last graph."""
    for device in _pools:
        torch.cuda.synchronize(device)  # a graph may still run, on any stream
    _pools.clear()


def _record(body: Body, device: torch.device, pool: tuple) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    try:
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            body()
        except BaseException:
            with suppress(RuntimeError):  # the end of a broken capture is another error
                graph.capture_end()
            raise
        graph.capture_end()
    except BaseException:
        _failed.append(graph)
        with suppress(RuntimeError):  # torch 2.11 goes on allocating to the pool, for ever
            torch._C._cuda_endAllocateToPool(device.index, pool)
        raise
    return graph


def _recover(device: torch.device) -> None:
    """No capture goes into the pool of one that broke. It also leaves torch's generator in the
    middle of it; the whole one that a new pool starts with ends that."""
    _pools.pop(device, None)
    with suppress(RuntimeError), _side_stream(device):
        _shared_pool(device)
    with suppress(RuntimeError):
        torch.cuda.synchronize(device)


def _shared_pool(device: torch.device) -> tuple:
    if device not in _pools:
        pool, x = torch.cuda.graph_pool_handle(), torch.zeros(1, device=device)
        _pools[device] = pool, _record(lambda: x.add_(1), device, pool)
    return _pools[device][0]


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """The device's stream for graphs, in order with the current one; restored also after errors."""
    with _lock, torch.cuda.device(device):
        stream = _streams.get(device)
        if stream is None:
            stream = _streams[device] = torch.cuda.Stream(device)
        current = torch.cuda.current_stream(device)
        stream.wait_stream(current)
        _here.depth = getattr(_here, "depth", 0) + 1
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            _here.depth -= 1
            with suppress(RuntimeError):
                current.wait_stream(stream)


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """cuBLAS takes its workspaces anew, in a capture from the graph's pool, as torch.compile's
    graphs have it: those of before would be freed under the graph by whoever clears them, as
    torch.compile does."""
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


@contextmanager
def _settings() -> Iterator[None]:
    """No cast weights kept from inside a capture, no stream of an older autograd graph in it."""
    override = getattr(torch.autograd.graph, "set_override_stale_capture_stream", None)  # 2.13
    with uncached_casts():
        if override is None:
            yield
            return
        before = torch._C._override_stale_capture_stream()
        try:
            override(True)
            yield
        finally:
            override(before)
