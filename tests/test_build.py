"""What was built: no torch C++ symbol, and clear words where something is missing."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastebm
from fastebm import _C, info

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm (binutils)")
def test_only_the_stable_interface_of_torch_is_used():
    """One undefined at:: or c10:: symbol would tie the build to one version of torch."""
    out = subprocess.run(
        ["nm", "-D", "--undefined-only", "-C", _C.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "aoti_torch_" in out
    assert "at::" not in out and "c10::" not in out


def test_build_info_says_what_there_is(monkeypatch):
    facts = fastebm.build_info()
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{fastebm.__version__}"' in project and facts["fastebm"] in project
    assert facts["cpu"].split(",")[0] in _C.simd_levels()
    assert facts["gpu"].startswith(("usable: ", "not usable: "))
    monkeypatch.setattr(info.extension, "cuda_archs", "")
    assert "without a CUDA compiler" in info.gpu_status()


def configure(tmp_path, python=sys.executable, path=None, **options):
    """CMake's configure step alone, as pip runs it; `path` replaces PATH."""
    import pybind11

    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    cmake, ninja = shutil.which("cmake", path=tools), shutil.which("ninja", path=tools)
    if not (cmake and ninja):
        pytest.skip("needs cmake and ninja")
    done = subprocess.run(
        [cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-S", ROOT, "-B", tmp_path]
        + [f"-DPython_EXECUTABLE={python}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        + [f"-D{name}={value}" for name, value in options.items()],
        capture_output=True,
        text=True,
        env={"PATH": path or os.environ["PATH"], "HOME": str(tmp_path)},
    )
    return done.returncode, " ".join(done.stderr.split())


needs_pybind11 = pytest.mark.skipif(
    importlib.util.find_spec("pybind11") is None, reason="needs pybind11"
)


@needs_pybind11
def test_no_compiler_is_one_sentence(tmp_path):
    code, text = configure(tmp_path / "build", path=str(tmp_path))
    assert code != 0 and "needs a C++17 compiler and found none" in text


@needs_pybind11
def test_cuda_wanted_but_absent_is_one_sentence(tmp_path):
    code, text = configure(tmp_path, FASTEBM_CUDA="ON", CMAKE_CUDA_COMPILER="NOTFOUND")
    assert code != 0 and "FASTEBM_CUDA=ON, but no CUDA compiler was found" in text


@needs_pybind11
def test_unknown_switch_is_one_sentence(tmp_path):
    code, text = configure(tmp_path, FASTEBM_CUDA="MAYBE")
    assert code != 0 and "FASTEBM_CUDA must be AUTO, ON or OFF, got 'MAYBE'" in text


@needs_pybind11
@pytest.mark.parametrize(
    "version, words", [("2.9.1", "needs torch >= 2.11 .* found 2.9.1"), (None, "install torch")]
)
def test_old_or_missing_torch_is_one_sentence(tmp_path, version, words):
    """A python of its own whose torch is a folder with a version and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True)
    python = tmp_path / "v" / "bin" / "python"
    if version:
        site = next((tmp_path / "v" / "lib").glob("python*")) / "site-packages" / "torch"
        site.mkdir()
        (site / "__init__.py").touch()
        (site / "version.py").write_text(f"__version__ = '{version}'\n")
    code, text = configure(tmp_path / "b", python)
    assert code != 0 and re.search(words, text)
