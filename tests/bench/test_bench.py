"""The benches' runner: results files, comparison, predictions, charts, README. Nothing is timed."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import charts
import compare
import levels
import machine
import predictions
import pytest
import speed
import suite
import timing
import torch

from fastebm.app import cli

ROOT = Path(__file__).resolve().parents[2]
CPU = suite.Options(torch.device("cpu"))


def load_main():
    spec = importlib.util.spec_from_file_location("bench_main", ROOT / "bench" / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


main = load_main()


def row(variant, seconds, case="a case", **more):
    limit = {"limit": "copy", "limit_seconds": 1.0}
    return {"case": case, "variant": variant, "threads": 1, "seconds": seconds, **limit, **more}


def entry(*rows):
    facts = {"date": "2026-11-24T00:00:00+00:00", "commit": "abc", "uncommitted_changes": False}
    facts |= {"device": "a CPU", "cpu": "a CPU", "torch": "2.13.0", "load_average": [0.0]}
    return {"environment": facts, "load_average_after": [0.0], "rows": list(rows)}


def test_a_bench_takes_the_place_of_its_former_results_only(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "environment", lambda device: {"device": str(device)})
    path = tmp_path / "new" / "cpu.json"
    for name, seconds in (("one", 1.0), ("two", 2.0), ("one", 3.0)):
        suite.measure(name, lambda options, s=seconds: [[row("x", s)]], CPU, path)
    results = suite.load(path)
    assert {name: e["rows"][0]["seconds"] for name, e in results.items()} == {
        "one": 3.0,
        "two": 2.0,
    }
    environment = {"device": "cpu", "quick": False, **levels.facts()}
    assert results["one"]["environment"] == environment


def test_results_of_a_case_are_kept_whatever_becomes_of_the_next(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "environment", lambda device: {"device": str(device)})
    now = iter(range(100))
    monkeypatch.setattr(suite.time, "monotonic", lambda: next(now))
    path, begun = tmp_path / "cuda.json", []

    def bench(options, breaks_at=None):
        for case in options.in_time(["a", "b", "c", "d"]):
            begun.append(case)
            if case == breaks_at:
                raise RuntimeError("out of order")
            yield [row("fastebm", 1.0, case)]

    limited = suite.Options(CPU.device, deadline=2.5)  # the clock ticks once a look
    suite.measure("late", bench, limited, path)
    assert begun == ["a", "b", "c"] and limited.left_out == []
    late = suite.load(path)["late"]
    assert [r["case"] for r in late["rows"]] == begun and late["left_out"] == ["d"]
    assert "not run: late: d" in capsys.readouterr().out
    limited = suite.Options(CPU.device, deadline=100.0)
    with pytest.raises(RuntimeError):
        suite.measure("broken", lambda o: bench(o, "c"), limited, path)
    broken = suite.load(path)["broken"]
    assert [r["case"] for r in broken["rows"]] == ["a", "b"] and broken["left_out"] == ["c", "d"]
    assert "not run: broken: c\nnot run: broken: d" in capsys.readouterr().out
    with pytest.raises(RuntimeError):  # without a limit former results stay
        suite.measure("late", lambda o: bench(o, "b"), CPU, path)
    assert suite.load(path)["late"] == late
    suite.measure("late", bench, suite.Options(CPU.device, deadline=0.0), path)
    assert suite.load(path)["late"] == late  # nor do no results replace some


def test_a_broken_bench_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def broken(options):
        raise RuntimeError("out of order")

    monkeypatch.setattr(machine, "environment", lambda device: entry()["environment"])
    whole = SimpleNamespace(run=lambda options: [[row("fastebm", 2.0)]])
    monkeypatch.setitem(sys.modules, "broken", SimpleNamespace(run=broken))
    monkeypatch.setitem(sys.modules, "whole", whole)
    path = tmp_path / "cpu.json"
    assert main.run(["broken", "whole"], CPU, path, None) == 1
    assert suite.load(path).keys() == {"whole"} and (tmp_path / "whole_cpu.png").exists()
    assert "out of order" in capsys.readouterr().out
    assert main.run(["whole"], CPU, path, {"whole": entry(row("fastebm", 1.0))}) == 0
    assert "0.50x" in capsys.readouterr().out  # slower than before, and still no failure


def test_ratios_are_of_rows_measured_in_both():
    absent = {"case": "b", "variant": "y", "unavailable": "no"}
    old = {"one": entry(row("x", 3.0, "a"), row("x", 5.0, "b"), absent)}
    new = {"one": entry(row("x", 2.0, "a"), row("y", 5.0, "b")), "two": entry(row("x", 1.0, "a"))}
    (ratio,) = compare.ratios(old, new)
    assert ratio == ("one", "a", "x", 3.0, 2.0) and ratio.faster == 1.5


def test_options_are_checked(capsys):
    for arguments, message in (
        (["--only", "nothing"], "invalid choice"),
        (["--threads", "0"], "must be at least 1, got 0"),
        (["--compare", "nowhere.json"], "there is no file nowhere.json"),
        (["--device", "cuda"], "sees no CUDA device"),
    ):
        if arguments[-1] == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(SystemExit):
            main.main(arguments)
        assert message in capsys.readouterr().err


def test_thread_counts():
    quick = suite.Options(CPU.device, quick=True)
    assert CPU.threads_or(1, 2) == (1, 2) and quick.threads_or(1, 2) == (1,)
    assert suite.Options(CPU.device, quick=True, threads=(4,)).threads_or(1, 2) == (4,)


def test_every_bench_is_run_here_and_on_a_gpu():
    scripts = [p.stem for p in (ROOT / "bench").glob("*.py") if "\ndef run(" in p.read_text()]
    assert sorted(scripts) == sorted({*main.BENCHES, *main.BY_NAME_ONLY, "__main__"})
    (names,) = re.findall(r"^benches=\((.*?)\)", (ROOT / "bench" / "gpu.sh").read_text(), re.M)
    assert sorted(names.split()) == sorted(main.BENCHES)
    assert {*speed.PARTS} == {*main.BENCHES}


@pytest.mark.parametrize("name", main.BENCHES + main.BY_NAME_ONLY)
def test_benches_can_be_imported(name):
    assert importlib.import_module(name).run.__doc__


def test_commit_of_a_copy_without_its_history(monkeypatch):
    assert machine.source()[0] not in ("", "none")
    monkeypatch.setattr(machine, "_git", lambda *_: "")
    monkeypatch.delenv("FASTEBM_COMMIT", raising=False)
    assert machine.source() == ("none", False)
    for told, found in (("0123456789abcdef", False), ("0123456789ab-dirty", True)):
        monkeypatch.setenv("FASTEBM_COMMIT", told)
        assert machine.source() == ("0123456789ab", found)


def test_predictions_stay_predictions_until_measured():
    assert {line[-1] for line in predictions.table({})} == {predictions.NOT_MEASURED}
    steps = [row("fastebm", s, dtype="float32", limit_seconds=0.9) for s in (2.0, 1.0)]
    steps[0]["limit_seconds"] = 0.5  # a smaller case
    size = {"n": 128, "m": 1000, "d": 3072, "mode": "forward"}
    search = row("fastebm", 18e-6, **size, dtype="float32")
    bytes_first = row("fastebm", 9e-6, **size, dtype="uint8")
    results = {"langevin": entry(*steps), "neighbor": entry(bytes_first, search)}
    for bench in results.values():
        bench["environment"]["device"] = "NVIDIA H200"
    found = [line for line in predictions.table(results) if line[-1] != predictions.NOT_MEASURED]
    assert [line[1:] for line in found] == [
        ["H100 >= 92 %; H200 >= 90 %", "90% (NVIDIA H200)"],
        ["H100 18 to 23 us", "18 us (NVIDIA H200)"],
    ]


@pytest.mark.parametrize("quick", [False, True])
def test_a_gpu_measures_what_is_predicted(monkeypatch, quick):
    cases = {}
    on_gpu = suite.Options(torch.device("cuda"), quick, (torch.get_num_threads(),))
    monkeypatch.setattr(machine, "warning_if_busy", lambda threads: None)
    monkeypatch.setattr(timing, "matmul_rate", lambda *_: 1.0)
    monkeypatch.setattr(importlib.import_module("neighbor_icd"), "measure", lambda *_: [])
    monkeypatch.setattr(importlib.import_module("neighbor_icd"), "print_case", lambda rows: None)
    for name in ("langevin", "chain", "neighbor"):
        bench, seen = importlib.import_module(name), cases.setdefault(name, [])
        for silent in ("print_case", "print_targets"):
            monkeypatch.setattr(bench, silent, lambda *_: None)
        measure = lambda *args, seen=seen, **_: seen.append(args[:2]) or []  # noqa: E731
        monkeypatch.setattr(bench, "measure", measure)
        list(bench.run(on_gpu))
    for dtype in (torch.float32, torch.bfloat16):
        assert ((10000, 10000), dtype) in cases["langevin"]
    assert any(case.name.startswith("MLP") for case, _ in cases["chain"])
    claims = " ".join(p.claim for p in predictions.PREDICTIONS if p.bench == "neighbor")
    found = re.findall(r"= (\d+), (\d+), (\d+)(, uint8)?", claims)
    sizes = {(*map(int, size), kind[2:] or "float32") for *size, kind in found}
    assert len(sizes) == 4 and sizes <= {size for size, _ in cases["neighbor"]}


def test_speedup_is_over_the_cases_that_have_both():
    pairs = [("a", 1.0, "1"), ("b", 6.0, "1"), ("a", 1.0, "2"), ("b", 9.0, "2"), ("a", 1.0, "3")]
    rows = [row(*pair, energy="MLP 2-128-128-1") for pair in pairs]
    rows += [row(name, 1.0, "4", energy="ConvEnergy") for name in "ab"]
    measured = predictions.mlp_speedup("a", over="b")
    assert measured(rows) == "6x to 9x"
    assert measured(rows[4:]) is None


def test_charts_show_every_row_over_its_limit(tmp_path):
    parts = {"phases": {"gradient": 1.5, "all else": 0.5}}
    rows = [
        row("fastebm", 2.0, "a", **parts), row("torch", 30.0, "a"),
        row("fastebm", 5.0, "b"), row("torch", 2.0, "b", **parts),
        row("alone", 1.0, "b", yardstick=True), {"case": "b", "variant": "x", "unavailable": "no"},
    ]  # fmt: skip
    (axis,) = charts.over_limit("langevin", rows).axes
    points = {c.get_label(): c.get_offsets().tolist() for c in axis.collections}
    assert points == {"fastebm": [[2.0, 0], [5.0, 1]], "torch": [[30.0, 0], [2.0, 1]]}
    assert axis.get_xscale() == "log" and axis.lines[0].get_xdata()[0] == 1.0
    (bars,) = charts.phases("langevin", rows).axes
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([0.75, 0.3, 0.25, 0.1])
    written = charts.draw({"langevin": entry(*rows)}, tmp_path, "cpu")
    assert [p.name for p in written] == ["langevin_cpu.png", "langevin_phases_cpu.png"]
    assert all(p.read_bytes()[1:4] == b"PNG" for p in written)
    assert charts.over_limit("langevin", rows[-1:]) is None


def test_speed_page_takes_every_figure_from_the_rows():
    parts = {"phases": {"energy and gradient": 0.9, "all else": 0.1}, "fastebm_faster": 1.25}
    facts = {"energy": "ConvEnergy", "shape": [128, 1, 28, 28]} | parts
    images = "ConvEnergy, 128 x 1 x 28 x 28, 1 thread"
    ways = {"best_way": "fastebm, compile", "best_way_faster": 3.5}
    points = {"energy": "Gaussian", "shape": [9, 2]} | parts | ways
    phases = {"chain": 0.3, "last step": 0.1, "entropy": 0.1, "forward": 0.2}
    phases |= {"backward": 0.1, "optimiser": 0.1, "draw": 0.1}
    step = {"fastebm_faster": 1.5, "phases": phases, "limit_seconds": 0.4}
    cpu = {
        "chain": entry(
            row("fastebm", 0.0008, images, **facts), row("eager, in place", 1.0, images, **facts),
            *(row(name, seconds, "Gaussian, 9 x 2, 1 thread", **points)
              for name, seconds in (("fastebm", 0.0008), ("fastebm, compile", 0.0002),
                                    ("eager, in place", 1.0)))
        ),
        "icd_step": entry(
            *(row(name, 1.0, "MLP, K = 20, 1 thread", **step)
              for name in ("fastebm", "torch, batched", "torch, one by one"))
        ),
        "gibbs": entry(
            row("fastebm", 0.002, "draw", fastebm_faster=1.0),
            row("rand < sigmoid", 0.006, "draw", fastebm_faster=3.0),
        ),
        "replay": entry(row("fastebm", 0.001, **step), row("Pillow", 1.0, fastebm_faster=40.0)),
    }  # fmt: skip
    text = speed.text(cpu, {})
    assert "| ConvEnergy, 128 x 1 x 28 x 28 | 800 | 1.25x | - | - | - | - | 10.0% |" in text
    assert "| Gaussian, 9 x 2 | 800 | 1.25x | - | - | - | - | 10.0% |" in text
    assert "| Gaussian, 9 x 2, compile | 200 | 3.5x | - | - | - | - | 10.0% |" in text
    assert "share of the step: 10.0% in ConvEnergy." in " ".join(text.split())
    assert "| MLP, K = 20, 1 thread | 1000 | 1.50x | 1.50x | 70% | 20% | 40% |" in text
    assert "| draw | 2000 | 3.0x | - | - | - |" in text
    assert "| a case | 1 | - | - | - | 40.0x |" in text
    assert "Not recorded on a quiet machine yet: `langevin`, `neighbor`" in " ".join(text.split())
    assert "**Nothing is measured yet**" in text
    facts = {"dtype": "float32", "shape": [10, 100], "fastebm_faster": 4.0, "limit_seconds": 1e-6}
    steps = [row("fastebm", 2e-6, **facts), row("eager, in place", 8e-6, **facts)]
    measured = entry(*steps)
    measured["environment"]["device"] = "NVIDIA H100"
    measured["left_out"] = ["another case"]
    on_gpu = [row(r["variant"], r["seconds"], r["case"], **points | {"host_seconds": 0.0005})
              for r in cpu["chain"]["rows"] if "Gaussian" in r["case"]]  # fmt: skip
    gpu = speed.text({}, {"langevin": measured, "chain": entry(*on_gpu)})
    assert "| energy, chains | fastebm, us | host, us | over eager, in place |" in gpu
    assert "| Gaussian, 9 x 2 | 800 | 500 | 1.25x | - |" in gpu
    assert "| Gaussian, 9 x 2, compile | 200 | 500 | 3.5x | - |" in gpu
    assert "Times are the device's" in gpu and "Times are the device's" not in text
    assert "| H100 >= 92 %; H200 >= 90 % | 50% (" in gpu and "Nothing is measured" not in gpu
    assert "There was no time for: another case." in gpu
    assert "| 10 x 100 | 1 | 2 | 8 | - | 4.0x | 50% |" in gpu and "langevin_cuda.png" in gpu


def test_rivals_are_timed_in_turns_and_compared_within_rounds():
    slow, fast = timing.Timing([2.0, 8.0, 6.0]), timing.Timing([1.0, 2.0, 2.0])
    assert fast.times_faster_than(slow) == 3.0 and fast.median == 2.0
    with pytest.raises(ZeroDivisionError):
        timing.only_available({"ours": lambda: 1 / 0}, ["ours"])
    available, reasons = timing.only_available({"ours": int, "other": lambda: 1 / 0}, ["ours"])
    assert available == {"ours": int} and reasons["other"].startswith("ZeroDivisionError")
    timings = timing.compare({"a": int, "b": float}, CPU.device, seconds=0.01)
    assert len(timings["a"].seconds) == len(timings["b"].seconds) >= timing.MIN_ROUNDS


def test_a_devices_time_is_read_without_the_hosts(monkeypatch):
    """On a clock of its own, which the host and a device of one queue share."""
    now, free, log = 0.0, 0.0, []  # the host's time; when the device has done all that is queued

    def on_host(seconds):
        nonlocal now
        now += seconds

    def on_device(name, seconds):
        nonlocal free
        log.append(name)
        free = max(now, free) + seconds

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            on_device("event", 0.0)
            self.at = free

        def elapsed_time(self, end):
            return (end.at - self.at) * 1e3

    def synchronize(*_):
        nonlocal now
        log.clear()
        now = max(now, free)

    def call(host, device):
        on_host(host)  # first, so that none of it can overlap with its own work
        on_device("call", device)

    cycle = 1 / 2e9
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda n: on_device("sleep", n * cycle))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    properties = SimpleNamespace(L2_cache_size=1 << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch, "zeros", lambda n, device: torch.empty(n))
    monkeypatch.setattr(torch.Tensor, "sum", lambda _: on_device("flush", 75e-6))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    calls = {"small": lambda: call(180e-6, 8e-6), "large": lambda: call(20e-6, 3e-3)}
    order = []
    monkeypatch.setattr(timing, "synchronize", lambda d: (order.append([*log]), synchronize()))
    found = timing.compare(calls, torch.device("cuda"), seconds=0.05)
    assert found["small"].seconds == pytest.approx([8e-6] * len(found["small"].seconds))
    assert found["large"].median == pytest.approx(3e-3)
    assert found["small"].host == pytest.approx(180e-6)
    assert found["small"].row(4)["host_seconds"] == pytest.approx(45e-6)
    turn = ["flush", "sleep", "event", "call", "event"]
    assert order[-1] == turn * (len(order[-1]) // 5) and len(order[-1]) >= 10 * timing.MIN_ROUNDS
    assert "host_seconds" not in timing.Timing([1.0, 2.0]).row()
    assert timing.Timing([1.0]).row() == {"seconds": 1.0, "spread": None, "rounds": 1}


def test_host_times_are_printed_beside_a_devices(capsys):
    suite.print_host_times([row("a", 1e-5, host_seconds=2e-4), row("b", 1.0)])
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "a case" in text]
    assert line.split() == ["a", "case,", "a", "200", "10", "host"]
    suite.print_host_times([row("b", 1.0)])
    assert capsys.readouterr().out == ""


def test_flops_of_a_matrix_product():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert timing.flops(lambda: a @ b) == 2 * 3 * 5 * 7


@torch.no_grad()
def test_chains_of_all_libraries_follow_one_law():
    chain = importlib.import_module("chain")
    case = chain.Case("Gaussian", chain.Gaussian, (200, 50), 5)
    calls = chain.chains(case, CPU.device, compiled=False)
    calls, _ = timing.only_available(calls, (chain.FUSED, chain.BEST_EAGER))
    chain.check(calls)
    with pytest.raises(RuntimeError, match="wrong: moment 2 is"):
        chain.check(calls | {"wrong": lambda: 0.5 * calls[chain.FUSED]()})


def test_the_command_runs_the_benches_of_a_checkout_and_says_where_they_are(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    commands = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        cli.subprocess, "run", lambda c: commands.append(c) or SimpleNamespace(returncode=3)
    )
    result = CliRunner().invoke(cli.app, ["bench", "--only", "langevin", "--help"])
    assert result.exit_code == 3
    assert commands == [[sys.executable, ROOT / "bench", "--only", "langevin", "--help"]]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        cli, "__file__", str(tmp_path / "site-packages" / "fastebm" / "app" / "cli.py")
    )
    result = CliRunner().invoke(cli.app, ["bench", "--quick"])
    assert result.exit_code == 2
    assert "run this in a checkout" in result.output and result.output.count("\n") == 1
