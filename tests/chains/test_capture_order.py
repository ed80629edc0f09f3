"""The order of calls around a capture, on a torch.cuda that only notes them; the real one is tested
in test_capture.py."""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from fastebm.chains import capture as module
from fastebm.chains.capture import capture, forget_pools, is_active, ordered, warm_up

DEVICE = torch.device("cpu")  # where the only real tensor is made


@pytest.fixture
def cuda(monkeypatch):
    """What is called on torch.cuda, in order; `fails` names calls that raise."""
    log, fails, used = [], set(), {}
    state = SimpleNamespace(stream="main", device=None, stale=[], pools=0, recording=set())

    def note(name):
        log.append(name)
        if name in fails:
            raise RuntimeError(f"{name} failed")

    class Stream:
        def __init__(self, device=None):
            assert device == state.device  # on which it is made

        def wait_stream(self, other):
            note("wait")

        def wait_event(self, event):
            note(f"wait for {event.recorded}")

    class Event:
        recorded = None

        def record(self, stream):
            self.recorded = [s for s in log if s.startswith("use")][-1]
            note(f"record {self.recorded}")

    class Graph:
        """As in torch 2.11: a broken capture's end does not end that its pool is recorded to, and a
        pool whose last graph is gone cannot be used again."""

        pool = None

        def capture_begin(self, pool, capture_error_mode):
            assert state.stream != "main" and capture_error_mode == "thread_local"
            assert state.device == DEVICE and pool is not None
            assert pool not in state.recording, "already recording to mempool_id"
            assert used.get(pool) != 0, "use_count > 0"
            used[pool] = used.get(pool, 0) + 1
            state.recording.add(pool)
            self.pool = pool
            note(f"begin {pool}")

        def capture_end(self):
            note("end")
            state.recording.discard(self.pool)

        def __del__(self):
            if self.pool is not None:
                used[self.pool] -= 1

        def replay(self):
            note("replay")

    @contextmanager
    def entered(name, **values):
        old = {key: getattr(state, key) for key in values}
        vars(state).update(values)
        note(name)
        try:
            yield
        finally:
            vars(state).update(old)

    def new_pool():
        state.pools += 1
        return f"pool {state.pools}"

    main = Stream()
    monkeypatch.setattr(module, "_streams", {})
    monkeypatch.setattr(module, "_pools", {})
    monkeypatch.setattr(module, "_failed", [])
    monkeypatch.setattr(module, "_last_use", {})
    for name, value in {
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "stream": lambda s: entered("side", stream=s),
        "device": lambda d: entered("device", device=d),
        "current_stream": lambda d=None: main,
        "synchronize": lambda d=None: note("synchronize"),
        "graph_pool_handle": new_pool,
        "set_sync_debug_mode": lambda m: pytest.fail("a mode of the whole process"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)

    def end_allocate(index, pool):
        if pool not in state.recording:
            raise RuntimeError("not recording")
        state.recording.discard(pool)

    clear = "_cuda_clearCublasWorkspaces"  # not in a torch without CUDA
    monkeypatch.setattr(torch._C, clear, lambda: note("clear"), raising=False)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_allocate)
    override = "set_override_stale_capture_stream"  # torch >= 2.13
    if hasattr(torch.autograd.graph, override):
        monkeypatch.setattr(torch.autograd.graph, override, state.stale.append)
        monkeypatch.setattr(torch._C, "_override_stale_capture_stream", lambda: "as before")
    else:
        state.stale = None
    return SimpleNamespace(log=log, fails=fails, state=state)


def calls(cuda):
    """Without entering and leaving."""
    return [c for c in cuda.log if c not in ("device", "wait", "side", "clear")]


def test_a_capture(cuda):
    active = []
    replay = capture(lambda: active.append(is_active()), DEVICE)
    assert active == [True] and not is_active() and cuda.state.stream == "main"
    # The pool's own graph, which keeps it; then the capture.
    assert calls(cuda) == ["synchronize", *("begin pool 1", "end") * 2]
    replay()
    assert cuda.log[-1] == "replay"
    capture(lambda: None, DEVICE, share_memory=False)
    assert calls(cuda)[-2:] == ["begin pool 2", "end"]  # by itself


@pytest.mark.parametrize("fails", [False, True])
def test_workspaces_of_a_capture_are_its_own(cuda, fails):
    """Those of before may be freed under a graph by others, those of inside lie in its pool."""
    capture(lambda: None, DEVICE)
    del cuda.log[:]
    if fails:
        cuda.fails.add("end")
        with pytest.raises(RuntimeError, match="end failed"):
            capture(lambda: None, DEVICE)
    else:
        capture(lambda: None, DEVICE)
    order = [c for c in cuda.log if c in ("begin pool 1", "end", "clear")]
    assert order[:4] == ["clear", "begin pool 1", "end", "clear"]


def test_settings_of_a_capture_end_with_it(cuda):
    inside = []
    capture(
        lambda: inside.append((torch.is_autocast_cache_enabled(), str(cuda.state.stale))), DEVICE
    )
    # Cast weights would lie in the pool; nodes of older graphs would name another stream.
    assert inside == [(False, "None" if cuda.state.stale is None else "[True]")]
    assert torch.is_autocast_cache_enabled()
    assert cuda.state.stale in (None, [True, "as before"])


def test_graphs_share_a_pool_until_it_is_forgotten(cuda):
    begun = lambda: [call for call in cuda.log if call.startswith("begin")]  # noqa: E731
    for _ in range(3):
        capture(lambda: None, DEVICE)  # the graph is dropped at once: its pool must not die with it
    assert begun() == ["begin pool 1"] * 4
    forget_pools()
    capture(lambda: None, DEVICE)
    assert begun()[4:] == ["begin pool 2"] * 2


@pytest.mark.parametrize("share_memory", [True, False])
@pytest.mark.parametrize("end_fails", [False, True])
def test_a_capture_that_fails_is_ended_and_got_over(cuda, end_fails, share_memory):
    capture(lambda: None, DEVICE)
    done = len(calls(cuda))

    def body():
        if end_fails:
            cuda.fails.add("end")
        raise ValueError("in the model")

    with pytest.raises(ValueError, match="in the model"):  # and not the error of its end
        capture(body, DEVICE, share_memory)
    # Ended; then one whole capture into a new pool, which puts torch's generator right; a wait.
    pools = [f"begin pool {n}" for n in ((1, 2) if share_memory else (2, 3))]
    wanted = ["synchronize", pools[0], "end", pools[1], "end", "synchronize"]
    assert calls(cuda)[done:] == wanted
    assert not cuda.state.recording
    assert cuda.state.stream == "main" and not is_active()
    assert torch.is_autocast_cache_enabled()
    cuda.fails.clear()
    capture(lambda: None, DEVICE)
    capture(lambda: None, DEVICE, share_memory=False)  # as if nothing had been


def test_an_end_that_fails_by_itself(cuda):
    capture(lambda: None, DEVICE)
    cuda.fails.add("end")
    with pytest.raises(RuntimeError, match="end failed"):
        capture(lambda: None, DEVICE)
    cuda.fails.clear()
    assert not cuda.state.recording
    capture(lambda: None, DEVICE)


def test_a_warm_up_forbids_waits_to_its_own_thread(cuda):
    seen, other = [], []
    value = torch.ones(())

    def body():
        seen.append(cuda.state.stream != "main")
        thread = threading.Thread(target=lambda: other.append(value.item()))
        thread.start()
        thread.join()
        value.item()

    warm_up(body, DEVICE, may_wait=True)
    with pytest.raises(RuntimeError, match="_local_scalar_dense.* waits for the device"):
        warm_up(body, DEVICE)
    assert seen == [True, True] and other == [1.0, 1.0]
    with pytest.raises(ZeroDivisionError):
        warm_up(lambda: 1 / 0, DEVICE)
    assert cuda.state.stream == "main" and not is_active()
    value.item()


def test_a_use_waits_for_the_one_before_on_any_stream(cuda):
    for use in range(3):
        with ordered(DEVICE):
            cuda.log.append(f"use {use}")
    with pytest.raises(ZeroDivisionError), ordered(DEVICE):
        cuda.log.append("use 3")
        raise ZeroDivisionError
    assert [c for c in cuda.log if c not in ("device",)] == [
        *("use 0", "record use 0", "wait for use 0", "use 1", "record use 1"),
        *("wait for use 1", "use 2", "record use 2", "wait for use 2", "use 3", "record use 3"),
    ]


def test_threads_take_turns_and_captures_are_a_threads_own(cuda):
    inside, most, active = [], [], []

    def use():
        with ordered(DEVICE):
            inside.append(1)
            time.sleep(0.01)
            most.append(len(inside))
            cuda.log.append("use")
            inside.pop()

    threads = [threading.Thread(target=use) for _ in range(4)]

    def body():
        for thread in threads:
            thread.start()
        other = threading.Thread(target=lambda: active.append(is_active()))
        other.start()
        other.join()
        time.sleep(0.05)
        assert not most  # they wait for the end of the capture
        active.append(is_active())

    capture(body, DEVICE)
    for thread in threads:
        thread.join()
    assert most == [1] * 4 and active == [False, True]


def test_inside_a_capture_of_the_callers_own(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert is_active()
