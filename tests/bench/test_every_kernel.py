"""What compute-sanitizer is shown on a GPU leaves out no kernel: here on the emulated device."""

import importlib
import re
from pathlib import Path

import every_kernel
import pytest
from conftest import HAS_SIMT
from fake_cuda import Devices, fake_cuda

CSRC = Path(__file__).resolve().parents[2] / "csrc"


@pytest.mark.skipif(not HAS_SIMT, reason="built without FASTEBM_SIMT=ON")
def test_every_kernel_is_launched(monkeypatch):
    simt = importlib.import_module("fastebm._simt")
    text = "".join(path.read_text() for path in CSRC.rglob("*cuda.*"))
    kernels = set(re.findall(r"__global__\s+void\s+(?:__launch_bounds__\(.*\)\s+)?(\w+)\(", text))
    assert len(kernels) == text.count("__global__") > 10
    simt.launched()
    with fake_cuda(monkeypatch):
        every_kernel.main()
    assert simt.launched() == kernels
    assert simt.launched() == set() and Devices.calls > 100
