"""The bench of a training step: rows and table of a GPU, where a graph is beside it; on a CPU what
cannot be run there is a row that says so."""

import icd_step
import icd_step_rivals
import pytest
import speed
import suite
import timing
import torch
from icd_step_rivals import BATCHED, GRAPH, OURS, SCRIPT

CPU = torch.device("cpu")
CASE = icd_step.Case("tiny", icd_step.perceptron, (2,), 8, 2, 0.01, in_a_row=2, capacity=120)


@pytest.fixture
def once(monkeypatch):
    """Every turn is taken once, and takes a second."""

    def compare(calls, device, *, seconds):
        for call in calls.values():
            call()
        return dict.fromkeys(calls, timing.Timing([1.0, 1.0]))

    monkeypatch.setattr(timing, "compare", compare)


def test_a_rival_that_fails_is_a_row_with_the_reason(monkeypatch, once, capsys):
    class Graphed(icd_step_rivals.Fastebm):
        calls = 0

        def __call__(self):
            Graphed.calls += 1
            if Graphed.calls == 4:  # when it would be captured
                raise RuntimeError("no CUDA graph here\nand a long story")

    rivals = icd_step.rivals
    monkeypatch.setattr(icd_step, "rivals", lambda *on: rivals(*on) | {GRAPH: Graphed(*on)})
    *rows, graph = icd_step.measure(CASE, CPU, 1, 0.1, 1e9)
    assert graph["variant"] == GRAPH and "seconds" not in graph
    assert graph["unavailable"] == "RuntimeError: no CUDA graph here"
    assert [row["variant"] for row in rows] == [OURS, SCRIPT, BATCHED]
    for row in rows:
        assert row["seconds"] == 0.5 and sum(row["phases"].values()) == pytest.approx(0.5)
        assert row["phases"].keys() == {*icd_step.PHASES}
    icd_step.print_case([*rows, graph])
    icd_step.print_targets([*rows, graph])
    out = capsys.readouterr().out
    assert f"not measured: {GRAPH}" in out and "ms a step" in out
    monkeypatch.setattr(icd_step_rivals.Fastebm, "loss", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # fastebm itself may not
        icd_step.measure(CASE, CPU, 1, 0.1, 1e9)


def test_the_clock_leaves_inner_phases_out_and_waits_only_when_on(monkeypatch):
    now = iter(range(100))
    waits = []
    monkeypatch.setattr(icd_step_rivals.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(timing, "synchronize", waits.append)
    clock = icd_step_rivals.Clock(torch.device("cuda"))
    with clock("forward"):
        pass
    assert not clock.seconds and not waits
    clock.on = True
    with clock("forward"), clock("entropy"):
        pass
    assert clock.seconds == {"forward": 2.0, "entropy": 1.0} and len(waits) == 4


def test_layers_compute_in_the_type_of_the_case():
    case = icd_step.replace(CASE, dtype=torch.bfloat16)
    x, seen = torch.rand(3, 2), []
    model = case.model()
    model.energy[0].register_forward_hook(lambda layer, given, out: seen.append(out.dtype))
    assert model(x).dtype == torch.float32 and seen == [torch.bfloat16]
    torch.testing.assert_close(model(x), CASE.model()(x), atol=0.02, rtol=0.05)


def test_table_with_a_graph_and_without_phases():
    phases = dict.fromkeys(icd_step.PHASES, 0.0) | {"chain": 0.003, "backward": 0.001}

    def row(case, variant, seconds, **more):
        facts = {"threads": 1, "limit": "products", "limit_seconds": 0.002, "fastebm_faster": 3.0}
        return {"case": case, "variant": variant, "seconds": seconds, **facts, **more}

    rows = [
        row("a", OURS, 0.004, phases=phases),
        row("a", GRAPH, 0.0025),
        row("a", BATCHED, 0.012),
        row("b", OURS, 0.008),
        {"case": "b", "variant": GRAPH, "unavailable": "no"},
        {"case": "b", "variant": BATCHED, "unavailable": "no"},
    ]
    text = "\n".join(speed.icd_step(rows, "an H200"))
    assert "|  | fastebm, ms | as a graph, ms | over batched torch |" in text
    assert "| a | 4 | 2.5 | 3.0x | - | 75% | 25% | 50% |" in text
    assert "| b | 8 | - | - | - | - | - | 25% |" in text
    on_cpu = "\n".join(speed.icd_step([r for r in rows if r["variant"] != GRAPH], "a CPU"))
    assert "graph" not in on_cpu.lower() and "| a | 4 | 3.0x | - | 75% | 25% | 50% |" in on_cpu
    assert suite.best_rival(rows[:3])["variant"] == BATCHED


def test_the_limit_is_of_the_products_that_layers_make(monkeypatch):
    rates, cases = [], []
    monkeypatch.setattr(suite.machine, "warning_if_busy", lambda threads: None)
    monkeypatch.setattr(timing, "matmul_rate", lambda *how: rates.append(how[2:]) or len(rates))
    monkeypatch.setattr(icd_step, "measure", lambda case, *how: cases.append((case, how[-1])) or [])
    monkeypatch.setattr(icd_step, "print_case", lambda rows: None)
    threads = (torch.get_num_threads(),)
    assert list(icd_step.run(suite.Options(torch.device("cuda"), threads=threads))) == [[]] * 5
    perceptrons, images, bfloat16 = (torch.float32, False), (torch.float32, True), torch.bfloat16
    assert rates == [perceptrons, images, (bfloat16, True)]
    assert [(case.dtype, rates[rate - 1]) for case, rate in cases[1:4]] == [
        *((torch.float32, images), (bfloat16, (bfloat16, True)), (torch.float32, images))
    ]


@pytest.mark.parametrize("tf32", [False, True])
def test_a_rate_with_tf32_leaves_torch_as_it_was(monkeypatch, tf32):
    options = torch.backends.cuda.matmul
    before, during = options.fp32_precision, []

    def compare(calls, device, *, seconds):
        during.append(options.fp32_precision)
        return {"mm": timing.Timing([0.5])}

    monkeypatch.setattr(timing, "compare", compare)
    assert timing.matmul_rate(CPU, 0.1, tf32=tf32) == 2 * 1024**3 / 0.5
    assert during == ["tf32" if tf32 else before] and options.fp32_precision == before
