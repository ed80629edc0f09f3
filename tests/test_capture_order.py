"""The order of calls around a capture, on a torch.cuda that only notes them; the real one is tested
in test_capture.py."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from fastebm import capture as module
from fastebm.capture import capture, forget_pools, is_active, warm_up

DEVICE = torch.device("cpu")  # where the only real tensor is made


@pytest.fixture
def cuda(monkeypatch):
    """What is called on torch.cuda, in order; `fails` names calls that raise."""
    log, fails = [], set()
    state = SimpleNamespace(stream="main", device=None, sync="default", stale=[], pools=0)

    def note(name):
        log.append(name)
        if name in fails:
            raise RuntimeError(f"{name} failed")

    class Stream:
        def __init__(self, device=None):
            assert device == state.device  # on which it is made

        def wait_stream(self, other):
            note("wait")

    class Graph:
        def capture_begin(self, pool, capture_error_mode):
            assert state.stream != "main" and capture_error_mode == "thread_local"
            assert state.device == DEVICE
            note(f"begin {pool}")

        def capture_end(self):
            note("end")

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
    for name, value in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "stream": lambda s: entered("side", stream=s),
        "device": lambda d: entered("device", device=d),
        "current_stream": lambda d=None: main,
        "synchronize": lambda d=None: note("synchronize"),
        "graph_pool_handle": new_pool,
        "get_sync_debug_mode": lambda: state.sync,
        "set_sync_debug_mode": lambda m: setattr(state, "sync", m),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    override = "set_override_stale_capture_stream"  # torch >= 2.13
    if hasattr(torch.autograd.graph, override):
        monkeypatch.setattr(torch.autograd.graph, override, state.stale.append)
    else:
        state.stale = None
    return SimpleNamespace(log=log, fails=fails, state=state)


def test_a_capture(cuda):
    active = []
    replay = capture(lambda: active.append(is_active()), DEVICE)
    assert active == [True] and not is_active() and cuda.state.stream == "main"
    assert [c for c in cuda.log if c not in ("device", "wait")] == [
        *("synchronize", "side", "begin pool 1", "end")
    ]
    replay()
    assert cuda.log[-1] == "replay"
    capture(lambda: None, DEVICE, share_memory=False)
    assert "begin None" in cuda.log


def test_settings_of_a_capture_end_with_it(cuda):
    inside = []
    capture(
        lambda: inside.append((torch.is_autocast_cache_enabled(), str(cuda.state.stale))), DEVICE
    )
    # Cast weights would lie in the pool; nodes of older graphs would name another stream.
    assert inside == [(False, "None" if cuda.state.stale is None else "[True]")]
    assert torch.is_autocast_cache_enabled()
    assert cuda.state.stale in (None, [True, False])


def test_graphs_share_a_pool_until_it_is_forgotten(cuda):
    begun = lambda: [call for call in cuda.log if call.startswith("begin")]  # noqa: E731
    for _ in range(2):
        capture(lambda: None, DEVICE)
    assert begun() == ["begin pool 1"] * 2
    forget_pools()
    capture(lambda: None, DEVICE)
    assert begun()[2:] == ["begin pool 2"]


@pytest.mark.parametrize("end_fails", [False, True])
def test_a_capture_that_fails_is_ended_and_got_over(cuda, end_fails):
    def body():
        if end_fails:
            cuda.fails.add("end")
        raise ValueError("in the model")

    with pytest.raises(ValueError, match="in the model"):  # and not the error of its end
        capture(body, DEVICE)
    # Ended; then one whole capture, which puts torch's generator right; then a wait.
    calls = [c for c in cuda.log if c not in ("device", "wait", "side")]
    assert calls == ["synchronize", "begin pool 1", "end", "begin None", "end", "synchronize"]
    assert cuda.state.stream == "main" and not is_active()
    assert torch.is_autocast_cache_enabled()


def test_a_warm_up_forbids_waits_and_restores_the_mode(cuda):
    seen = []
    warm_up(lambda: seen.append((cuda.state.sync, cuda.state.stream != "main")), DEVICE)
    warm_up(lambda: seen.append(cuda.state.sync), DEVICE, may_wait=True)
    assert seen == [("error", True), "default"]
    with pytest.raises(ZeroDivisionError):
        warm_up(lambda: 1 / 0, DEVICE)
    assert cuda.state.sync == "default" and cuda.state.stream == "main" and not is_active()
