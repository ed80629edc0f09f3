"""The benches' way on a GPU, every rival of it, on the emulated device and tiny cases: for
`make fake-cuda`. Nothing is timed, and graphs are not there."""

import importlib
from dataclasses import replace

import pytest
import suite
import timing
import torch
from conftest import FAKE_CUDA

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not FAKE_CUDA, reason="make fake-cuda")]

ABSENT = ("No module named", "graph=True: no CUDA graph", "torch.cuda.Stream requires CUDA",
          "Torch not compiled with CUDA enabled")  # fmt: skip
SMALL = {  # of each bench: what its cases are made of
    "langevin": {"SHAPES": [(64, 2), (10, 10), (20, 10), (20, 30), (30, 20)]},
    "neighbor": {"ON_CUDA": lambda case: case._replace(n=20, m=40)},
    "neighbor_icd": {"CASES": lambda case: replace(case, batch=8, k_steps=2, capacity=32)},
    "gibbs": {"SHAPES": [(16, 20, 10), (8, 6, 6)]},
    "replay": {"CASES": {"cifar10": (3, 16, 16), "celeba": (3, 20, 20)}, "BATCH": 12, "STORED": 16},
    "chain": {"ON_CUDA": lambda case: replace(case, shape=(2, *case.shape[1:]), n_steps=2)},
    "icd_step": {"ON_CUDA": lambda case: replace(
        case, shape=(3, 8, 8) if len(case.shape) == 3 else case.shape,
        batch=8, k_steps=2, capacity=120, in_a_row=1,
    )},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({*SMALL} - {"neighbor_icd"}))
def test_every_rival_runs_on_a_device(monkeypatch, name):
    for module, sizes in SMALL.items():
        bench = importlib.import_module(module)
        for what, value in sizes.items():
            small = [value(c) for c in getattr(bench, what)] if callable(value) else value
            monkeypatch.setattr(bench, what, small)
        if module in ("chain", "replay"):  # laws take more samples
            monkeypatch.setattr(bench, "check", lambda calls: None)

    def compare(calls, device, *, seconds):
        for call in calls.values():
            call()
        return dict.fromkeys(calls, timing.Timing([1e-3, 1.1e-3], 1e-4))

    monkeypatch.setattr(timing, "compare", compare)
    monkeypatch.setattr(timing, "matmul_rate", lambda *_: 1e12)
    monkeypatch.setattr(timing, "peak_extra_memory", lambda *_: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 30, 1 << 30))
    options = suite.Options(torch.device("cuda"), threads=(torch.get_num_threads(),))
    rows = [row for of_case in importlib.import_module(name).run(options) for row in of_case]
    assert sum("host_seconds" in row for row in rows) >= 4
    broken = {row["variant"]: row["unavailable"] for row in rows if "unavailable" in row}
    assert {k: v for k, v in broken.items() if not any(words in v for words in ABSENT)} == {}
