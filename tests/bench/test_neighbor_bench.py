"""The bench of searches: rivals that claim to be exact are, those that are not do not count, and a
CPU held to fewer instructions. Nothing is timed."""

import os
import sys

import levels
import neighbor
import neighbor_rivals
import pytest
import speed
import suite
import timing
import torch

CPU = torch.device("cpu")
SMALL = [neighbor.Case(20, 300, 784), neighbor.Case(20, 300, 784, "uint8")]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.dtype)
def test_rivals_with_bounds_are_exact(case):
    x, y, stored, near = neighbor.data(case, CPU)
    saturates = levels.name() not in ("avx2_vnni", "avx512_vnni", "amx")  # oneDNN's int8
    far = 3 * torch.randn_like(x)  # off the grid of the bytes
    found = neighbor_rivals.rivals(y, stored, neighbor.Y_SCALE, len(x), 1, compiled=False)
    names = [name for name in found if "certified" in name]
    assert len(names) == (4 if stored is not None else 2)
    for name in names:
        for queries in (x, near, far, y[:9]):
            truth = neighbor_rivals.exact_nearest(queries, y)
            wrong, _ = neighbor.correctness(found[name], queries, y, truth.clamp(min=1e-9))
            assert wrong == 0 or saturates and name.startswith(neighbor_rivals.INT8), name


def test_bfloat16_is_trusted_no_further_than_it_goes():
    """References so alike that their rounding decides which scores lowest."""
    x = torch.randn(20, 784)
    y = torch.randn(784) + 3e-3 * torch.randn(300, 784)
    search = neighbor_rivals.then_pairs(neighbor_rivals.in_bfloat16(100))
    assert neighbor.correctness(search, x, y, neighbor_rivals.exact_nearest(x, y))[0] == 0


def test_a_rival_that_is_off_by_more_than_its_slack_is_caught():
    x, y, _, _ = neighbor.data(SMALL[0], CPU)
    certified = neighbor_rivals.in_bfloat16.__globals__["certified"]
    truth = neighbor_rivals.exact_nearest(x, y)
    squares = torch.cdist(x, y).square() + 50 * torch.rand(len(x), len(y))
    for slack, right in ((50.0, True), (0.0, False)):
        index = certified(x, y, [(0, squares, torch.full((len(x),), slack), False)])
        chosen = (x.double() - y[index].double()).norm(dim=1)
        assert bool((chosen.float() <= truth.float()).all()) == right


def test_a_rival_with_a_wrong_index_does_not_count(monkeypatch):
    """Where the search by int8 finds the farthest, fastest of all."""

    def rivals(*_):
        farthest = neighbor_rivals.then_pairs(lambda x, y: torch.cdist(x, y).argmax(1))
        return {neighbor_rivals.INT8: farthest, neighbor_rivals.CDIST: neighbor_rivals.cdist}

    def compare(calls, device, *, seconds):
        slow = {neighbor_rivals.INT8: 1.0, neighbor_rivals.CDIST: 2.0}
        return {name: timing.Timing([slow.get(name, 3.0)] * 2) for name in calls}

    monkeypatch.setattr(neighbor, "rivals", rivals)
    monkeypatch.setattr(timing, "compare", compare)
    rows = neighbor.measure(SMALL[1], CPU, 1, 0.1, 1e12, compiled=False)
    forward = {row["variant"]: row for row in rows if row["mode"] == neighbor.FORWARD}
    assert [n for n, row in forward.items() if row["inexact"]] == [neighbor_rivals.INT8]
    assert [n for n, row in forward.items() if row["best_rival"]] == [neighbor_rivals.CDIST]
    assert suite.best_rival(forward.values())["variant"] == neighbor_rivals.CDIST
    assert forward[neighbor.OURS]["wrong"] == forward[neighbor.OURS]["wrong_near"] == 0
    facts = dict.fromkeys(("device", "cpu", "date", "commit"), "a CPU") | {"torch": "2"}
    entry = {"environment": facts | {"simd": "avx2"}, "rows": rows}
    text = speed.text({}, {}, held=[{"neighbor": entry}])
    assert "| 20, 300, 784 uint8 | 3000 | 2000, torch.cdist + min | 0.67x |" in text


def test_a_bench_starts_once_more_at_the_level_asked_for(monkeypatch):
    started = []
    monkeypatch.delenv(levels.MARK, raising=False)
    monkeypatch.setattr(os, "execve", lambda *command: started.append(command))
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "bench", "--simd", "avx2"])
    monkeypatch.setattr(levels._C, "set_simd", lambda level: None)
    levels.hold_to("avx2")
    ((program, command, environment),) = started
    assert [program, *command[1:]] == [sys.executable, "-m", "bench", "--simd", "avx2"]
    assert environment["ONEDNN_MAX_CPU_ISA"] == environment["ATEN_CPU_CAPABILITY"].upper() == "AVX2"
    for name in (*levels.READ_AT_START, levels.MARK):
        monkeypatch.setenv(name, environment[name])
    levels.hold_to("avx2")
    assert len(started) == 1
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in levels.facts()["held"]
