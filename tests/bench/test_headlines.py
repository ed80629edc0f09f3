"""The README's table and chart: the rows' own figures, against the best rival of each case."""

import charts
import readme
import suite


def row(case, variant, milliseconds, faster, **more):
    seconds = {"seconds": milliseconds / 1000, "fastebm_faster": faster}
    return {"case": case, "variant": variant, "threads": 1, **seconds, **more}


WAYS = {"best_way": "fastebm, compile", "best_way_faster": 6.0}
GAUSSIAN = [
    row("Gaussian, 9 x 2, 1 thread", "fastebm", 1, 1.0),
    row("Gaussian, 9 x 2, 1 thread", "eager gradient + step", 0.1, 0.1),
    row("Gaussian, 9 x 2, 1 thread", "fastebm, compile", 0.5, 0.5),
    row("Gaussian, 9 x 2, 1 thread", "step alone", 0.2, 0.2, yardstick=True),
    row("Gaussian, 9 x 2, 1 thread", "torch", 9, 9.0, **WAYS),
    row("Gaussian, 9 x 2, 1 thread", "best", 3, 3.0, **WAYS),
]
REPLAY = [row("images", "fastebm", 4, 1.0), row("images", "torch", 2, 0.5)]
FACTS = {"device": "a CPU", "torch": "2.13.0", "date": "2026-11-24T00:00:00+00:00"}
CPU = {
    "chain": {"environment": FACTS, "rows": GAUSSIAN},
    "replay": {"environment": FACTS | {"date": "2026-11-25T00:00:00+00:00"}, "rows": REPLAY},
}


def test_best_rival_is_no_way_of_fastebm_and_no_yardstick():
    assert suite.best_rival(GAUSSIAN)["variant"] == "best"


def test_chart_has_a_point_for_each_case_and_way():
    (axis,) = charts.headline(CPU).axes
    points = {c.get_label(): c.get_offsets().tolist() for c in axis.collections}
    assert points == {"fastebm": [[3.0, 0], [0.5, 1]], "fastebm, compile=True": [[6.0, 0]]}
    kinds = [label.get_text() for label in axis.get_yticklabels()]
    assert kinds == ["Step of a chain, Gaussian energy", "Replay with augmentation"]


def test_table_has_the_slower_cases_too(monkeypatch):
    monkeypatch.setitem(CPU["replay"], "environment", dict(CPU["replay"]["environment"]))
    chosen = (("chain", "Gaussian, 9 x 2", "a Gaussian"), ("replay", "images", "images"))
    monkeypatch.setattr(readme, "HEADLINES", chosen)
    text = "\n".join(readme.text(CPU)) + "\n"
    assert "| a Gaussian | 1 | 1 | 3, best | 3.0x |\n" in text
    assert "| the same, `compile=True` | 1 | 0.5 | 3, best | 6.0x |\n" in text
    assert "| images | 1 | 4 | 2, torch | 0.50x |\n" in text
    assert "; a CPU, torch 2.13.0, 2026-11-24 to 2026-11-25. The rival" in " ".join(text.split())
    CPU["replay"]["environment"]["device"] = "another"
    text = " ".join(readme.text(CPU)[0].split())
    assert "; chains: a CPU, torch 2.13.0, 2026-11-24; replay: another, torch 2.13.0" in text


def test_a_gpu_has_no_threads_and_its_faster_ways(monkeypatch):
    monkeypatch.setattr(readme, "HEADLINES", (("icd_step", "a step", "a step"), ("gone", "a", "b")))
    steps = [
        row("a step, CUDA", "fastebm", 4, 1.0),
        row("a step, CUDA", "fastebm, graph", 0.5, 0.125, host_seconds=1e-4),
        row("a step, CUDA", "torch, whose host is slow", 3, 0.75, host_seconds=9e-3),
        row("a step, CUDA", "torch", 6, 1.4, host_seconds=5e-3),
        {"case": "a step, CUDA", "variant": "broken", "threads": 1, "unavailable": "why"},
    ]
    text = "\n".join(readme.gpu_text({"icd_step": {"environment": FACTS, "rows": steps}})) + "\n"
    assert "| a step | 4 | 6, torch | 1.50x |\n" in text
    assert "| the same, as a CUDA graph | 0.5 | 6, torch | 12.0x |\n" in text
