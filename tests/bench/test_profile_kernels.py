"""What Nsight Compute is shown, on the emulated device, and the table of what it said."""

import csv
import importlib
import io
from types import SimpleNamespace

import neighbor
import profile_kernels
import pytest
import torch
from conftest import HAS_SIMT
from fake_cuda import fake_cuda

CHAIN, SLOTS = "chain 128 x 2, 10 steps, fp32", "slots"
LOG = f"""==PROF== Connected to process 471 (/usr/bin/python3.12)
{CHAIN}
==PROF== Profiling "void fastebm::<unnamed>::float_chain_kernel<(int)1, (int)1>(fastebm::...
{SLOTS}
==PROF== Profiling "fastebm::<unnamed>::choose_kernel(fastebm::ChoiceParams)": 0%....50%....
not run: bernoulli
==PROF== Disconnected from process 471
"""
STALLED = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
PAGE = [  # cut from what ncu of CUDA 13.0 wrote on an H200
    ("ID", "", "3", "47"),
    ("Kernel Name", "", "void unnamed>::float_chain_kernel<1, 1>(MlpChainParams, "
     "unnamed>::ChainPlan)", "unnamed>::choose_kernel(ChoiceParams)"),
    ("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed", "%", "0.058990", "0.120784"),
    ("gpu__time_duration.sum", "us", "45.024000", "2.944000"),
    ("l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed", "%", "23.035910",
     "0.006616"),
    ("launch__grid_size", "", "128", "48,829"),
    ("launch__registers_per_thread", "register/thread", "110", "22"),
    ("lts__t_sectors.avg.pct_of_peak_sustained_elapsed", "%", "0.601833", "0.578541"),
    ("sm__throughput.avg.pct_of_peak_sustained_elapsed", "%", "22.667323", "0.043600"),
    ("sm__warps_active.avg.per_cycle_active", "warp", "5.030081", "no data"),
    (STALLED.format("barrier"), "inst", "0.674248", "2.123209"),
    (STALLED.format("imc_miss"), "inst", "0.066235", "1.610315"),
    (STALLED.format("not_selected"), "inst", "2.840994", "0.006"),
    (STALLED.format("selected"), "inst", "1.000000", "1.000000"),
    (STALLED.format("short_scoreboard"), "inst", "0.742465", "0.5"),
    (STALLED.format("wait"), "inst", "1.719478", "2.895415"),
    ("smsp__issue_active.avg.pct_of_peak_sustained_active", "%", "24.641783", "10.998"),
]  # fmt: skip


def table(log):
    page = io.StringIO()
    csv.writer(page, quoting=csv.QUOTE_ALL).writerows(zip(*PAGE, strict=True))
    return list(profile_kernels.table([*log.splitlines(True), *page.getvalue().splitlines(True)]))


def test_table_of_a_page():
    header, chain, slots = table(LOG)
    assert header.split("  waits")[0].split() == [*" ".join(profile_kernels.COLUMNS).split()]
    numbers, waits, kernel, case = chain.replace("  wait", ";wait").split(";")
    shown = " ".join(numbers.split())
    assert shown == "45.024 24.642 0.05899 0.60183 23.036 22.667 128 110 5.0301"
    assert waits == "wait 1.7, short_scoreboard 0.74, barrier 0.67"
    assert kernel == " float_chain_kernel<1, 1>" and case == f" {CHAIN}"
    assert slots.split()[:2] == ["2.944", "10.998"] and slots.split()[6:9] == ["48829", "22", "nan"]
    assert slots.endswith("wait 2.9, barrier 2.1, imc_miss 1.6; choose_kernel; slots")


def test_cases_are_named_by_their_own_log_alone():
    assert [line.split("; ")[-1] for line in table("")[1:]] == ["", ""]
    assert [line.split("; ")[-1] for line in table(LOG + LOG)[1:]] == ["", ""]
    with pytest.raises(SystemExit, match="no raw page of a kernel"):
        list(profile_kernels.table(LOG.splitlines(True)))


@pytest.mark.skipif(not HAS_SIMT, reason="built without FASTEBM_SIMT=ON")
def test_every_case_runs(monkeypatch):
    small = {"STEP": (10, 12), "NORM_CLIP": (3, 20), "CHAINS": [(8, 2), (5, 40)]}
    small |= {"SEARCHES": [neighbor.Case(9, 40, 2), neighbor.Case(9, 40, 784, "uint8")]}
    small |= {"UNIFORM": [neighbor.Case(9, 40, 32, "uint8")], "UNITS": (9, 20)}
    small |= {"STORED": (20, 3, 8, 8), "BATCH": 6}
    for name, value in small.items():
        monkeypatch.setattr(profile_kernels, name, value)
    simt = importlib.import_module("fastebm._simt")
    simt.launched()
    log = []
    cudart = SimpleNamespace(
        cudaProfilerStart=lambda: log.append(set(simt.launched()) and "start"),
        cudaProfilerStop=lambda: log.append(simt.launched()),
    )
    with fake_cuda(monkeypatch):
        monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
        names = [name for name, _ in profile_kernels.calls()]
        profile_kernels.launch(seconds=60.0)
    assert len({*names}) == len(names) == 14
    shown = dict(zip(names, log[1::2], strict=True))
    assert log[::2] == ["start"] * len(names)  # and what warms up is not shown
    assert shown["nearest of 9, 40, 784 uint8"] > {"quantize_kernel", "byte_score_kernel"}
    assert shown["chain 8 x 2, 10 steps, bf16"] == {"tensor_chain_kernel"}
    assert shown["augment"] == {"augment_kernel"} and all(shown.values())


def test_nothing_is_launched_after_its_time(monkeypatch, capsys):
    monkeypatch.setattr(profile_kernels, "calls", lambda: iter([("late", lambda: 1 / 0)]))
    profile_kernels.launch(seconds=-1.0)
    assert capsys.readouterr().out == "not run: late\n"
