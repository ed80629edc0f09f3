"""Devices that a test of an operator runs on: the CPU, the emulated CUDA device, a GPU."""

import importlib
import importlib.util
import os

import pytest
import torch

from fastebm import _C, ops

os.environ.setdefault("MPLBACKEND", "Agg")

HAS_SIMT = importlib.util.find_spec("fastebm._simt") is not None
HAS_GPU = bool(_C.cuda_archs) and torch.cuda.is_available()
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
    ops.register_operators("fastebm_simt")


def pytest_collection_modifyitems(items):
    if os.environ.get("FASTEBM_REQUIRE_SIMT") and not HAS_SIMT:
        raise pytest.UsageError("FASTEBM_REQUIRE_SIMT is set, but fastebm._simt is not built")


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """The torch device of the tensors; with "simt", ops calls the emulated CUDA kernels."""
    if request.param == "simt":
        monkeypatch.setattr(ops, "_op", torch.ops.fastebm_simt)
        return "cpu"
    return request.param


@pytest.fixture
def scalar_cpu():
    """The CPU without AVX2, for one test."""
    _C.set_simd(False)
    yield
    _C.set_simd(True)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
