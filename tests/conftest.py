"""Devices that a test of an operator runs on: the CPU, the emulated CUDA device, a GPU."""

import contextlib
import importlib
import importlib.util
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from fake_cuda import fake_cuda

from fastebm import _C
from fastebm.ops import (
    bernoulli,
    choice,
    discrete,
    hamiltonian,
    langevin,
    library,
    metropolis,
    neighbor,
    replay,
    tempering,
    underdamped,
)
from fastebm.ops.mlp import adjusted, chain

os.environ.setdefault("MPLBACKEND", "Agg")
# One thread, here and in processes that tests start: small tensors wait longer for a second one
# than they take, the more so with a worker of pytest on each core. A test of threads sets its own.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# The emulated kernels are those beside fastebm, or of the folder FASTEBM_REQUIRE_SIMT; where that
# is "any", there must be some.
WANTED_SIMT = os.environ.get("FASTEBM_REQUIRE_SIMT", "")
if WANTED_SIMT not in ("", "any"):
    (path,) = Path(WANTED_SIMT).glob("_simt*.so")
    spec = importlib.util.spec_from_file_location("fastebm._simt", path)
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
HAS_SIMT = importlib.util.find_spec("fastebm._simt") is not None

# Every instruction set of this CPU, the plainest first; and with those for products of bytes.
PRODUCT_LEVELS = _C.simd_levels()
SIMD_LEVELS = [level for level in ("scalar", "avx2", "avx512") if level in PRODUCT_LEVELS]
FAKE_CUDA = os.environ.get("FASTEBM_FAKE_CUDA") == "1"  # GPU tests run on an emulated device
HAS_GPU = FAKE_CUDA or (bool(_C.cuda_archs) and torch.cuda.is_available())
DEVICES = [
    "cpu",
    pytest.param(
        "simt",
        marks=pytest.mark.skipif(not HAS_SIMT, reason="built without FASTEBM_SIMT=ON"),
    ),
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")]
    ),
]

if HAS_SIMT:
    importlib.import_module("fastebm._simt")
    steps = langevin, metropolis, hamiltonian, underdamped, discrete, tempering, chain, adjusted
    for wrappers in (*steps, replay, bernoulli, choice, neighbor):
        wrappers.register_operators("fastebm_simt")


def pytest_configure(config):
    if WANTED_SIMT and not HAS_SIMT:
        raise pytest.UsageError("fastebm was built without FASTEBM_SIMT=ON")


def pytest_report_header(config):
    simt = sys.modules["fastebm._simt"].__file__ if HAS_SIMT else None
    return f"fastebm: {_C.__file__}, {_C.simd()}, simt {simt}, gpu {HAS_GPU}"


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """The torch device of the tensors; with "simt", ops calls the emulated CUDA kernels."""
    if request.param == "simt":
        monkeypatch.setattr(library, "op", torch.ops.fastebm_simt)
        return "cpu"
    return request.param


@pytest.fixture(autouse=True)
def cuda(request, monkeypatch):
    """Of a test marked gpu: the device, where it is emulated."""
    emulated = FAKE_CUDA and request.node.get_closest_marker("gpu")
    with fake_cuda(monkeypatch) if emulated else contextlib.nullcontext():
        yield


def pytest_report_teststatus(report):
    """Tests without the GPU that they need: one number at the end, not a line for each."""
    if report.skipped and "no CUDA device" in str(report.longrepr):
        return "not run, need a GPU", "", "NO GPU"


@pytest.fixture
def alone(monkeypatch):
    """No other threads of Python, such as those that torch.compile leaves: chains freeze
    parameters."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)


@pytest.fixture
def set_threads():
    """Chooses the number of torch's threads, for one test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture
def set_simd():
    """Chooses the CPU's instruction set, for one test."""
    yield _C.set_simd
    _C.set_simd(_C.detected_simd())


@pytest.fixture
def bytes_in_any_size():
    """Neighbours among as few and as small samples as tests have are found by products of bytes,
    too, where a search that is to be fast would not."""
    _C.search_bytes_in_any_size(True)
    yield
    _C.search_bytes_in_any_size(False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
