"""The emulator of CUDA's thread model (csrc/simt), and csrc/launch on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# The emulator moves between stacks, which LeakSanitizer and fake stacks do not follow.
ENV = os.environ | {"ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0"}

pytestmark = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler: {CXX}")


def compile_selftest(directory: Path, extra: list[str]) -> Path:
    binary = directory / "selftest"
    source = ROOT / "tests" / "simt" / "selftest" / "main.cpp"
    done = subprocess.run(
        [CXX, *FLAGS, *extra, str(source), "-o", str(binary)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return binary


def assert_passes(binary: Path) -> None:
    done = subprocess.run([str(binary)], capture_output=True, text=True, env=ENV, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines) == 42 and all(line.startswith("ok ") for line in lines), done.stdout


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("simt_sanitized")
    probe = directory / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    command = [CXX, *SANITIZE, str(probe), "-o", str(directory / "probe")]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip(f"{CXX} has no AddressSanitizer")
    return compile_selftest(directory, SANITIZE)


def test_selftest(tmp_path):
    assert_passes(compile_selftest(tmp_path, []))


def test_selftest_under_address_sanitizer(sanitized):
    assert_passes(sanitized)


def test_address_sanitizer_sees_shared_memory_overrun(sanitized):
    done = subprocess.run([str(sanitized), "overrun"], capture_output=True, text=True, env=ENV)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr and "overrun_kernel" in done.stderr
