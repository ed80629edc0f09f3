"""CUDA graphs: recording what a function launches, and getting over a recording that failed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from fastebm.energy import uncached_casts

Body = Callable[[], None]
_streams: dict[torch.device, torch.cuda.Stream] = {}
_pools: dict[torch.device, tuple] = {}  # shared: graphs of a device are replayed one at a time
_depth = 0  # of warm-ups and captures going on


def is_active() -> bool:
    """Whether a warm-up or a capture is going on, so that nothing inside should start another."""
    return _depth > 0


def warm_up(body: Body, device: torch.device, may_wait: bool = False) -> None:
    """Run ``body`` on the stream that graphs of ``device`` are captured on: there libraries choose
    their algorithms and take their workspaces.

    Args:
        may_wait: False: a wait for the device is an error, as no graph can hold one.

    Raises:
        RuntimeError: ``body`` waits for the device.
    """
    with _side_stream(device):
        mode = torch.cuda.get_sync_debug_mode()
        try:
            torch.cuda.set_sync_debug_mode(mode if may_wait else "error")
            body()
        finally:
            torch.cuda.set_sync_debug_mode(mode)


def capture(body: Body, device: torch.device, share_memory: bool = True) -> Body:
    """What ``body`` launches, as one CUDA graph; nothing of it runs yet.

    Threads that load data or watch collectives may go on meanwhile. After a failure the device is
    as before.

    Args:
        share_memory: tensors that ``body`` makes lie in a pool that other graphs share, so what is
            to last must be written into tensors from before. False: they last to the next replay.

    Returns:
        The function that replays it, on the current stream.

    Raises:
        Exception: whatever ``body`` or CUDA raised.
    """
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    torch.cuda.synchronize(device)
    try:
        with _side_stream(device), _settings():
            _record(graph, body, _pool(device) if share_memory else None)
    except BaseException:
        _recover(device)
        raise
    return graph.replay


def forget_pools() -> None:
    """Start new pools: the memory of the old ones goes with their last graph."""
    _pools.clear()


def _record(graph: torch.cuda.CUDAGraph, body: Body, pool: tuple | None) -> None:
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        body()
    except BaseException:
        with suppress(RuntimeError):  # the end of a broken capture is another error
            graph.capture_end()
        raise
    graph.capture_end()


def _recover(device: torch.device) -> None:
    """A capture that broke leaves torch's generator in the middle of it; a whole one ends that."""
    with suppress(RuntimeError), _side_stream(device):
        x = torch.zeros(1, device=device)
        _record(torch.cuda.CUDAGraph(), lambda: x.add_(1), None)
    with suppress(RuntimeError):
        torch.cuda.synchronize(device)


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """The device's stream for graphs, in order with the current one; restored also after errors."""
    global _depth
    with torch.cuda.device(device):
        stream = _streams.get(device)
        if stream is None:
            stream = _streams[device] = torch.cuda.Stream(device)
        current = torch.cuda.current_stream(device)
        stream.wait_stream(current)
        _depth += 1
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            _depth -= 1
            with suppress(RuntimeError):
                current.wait_stream(stream)


@contextmanager
def _settings() -> Iterator[None]:
    """No cast weights kept from inside a capture, no stream of an older autograd graph in it."""
    override = getattr(torch.autograd.graph, "set_override_stale_capture_stream", None)  # 2.13
    with uncached_casts():
        if override is None:
            yield
            return
        try:
            override(True)
            yield
        finally:
            override(False)


def _pool(device: torch.device) -> tuple:
    if device not in _pools:
        _pools[device] = torch.cuda.graph_pool_handle()
    return _pools[device]
