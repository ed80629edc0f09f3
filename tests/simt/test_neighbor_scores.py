"""The bounds on scores of csrc/neighbor/blocks_cuda.h, on the emulated device."""

import shutil
import subprocess

import pytest
from test_simt_shim import CXX, FLAGS, ROOT

pytestmark = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler: {CXX}")


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    binary = tmp_path_factory.mktemp("scores") / "neighbor_scores"
    source = ROOT / "tests" / "simt" / "neighbor_scores.cpp"
    flags = [*FLAGS, "-Wno-unknown-pragmas", "-ffp-contract=off"]
    done = subprocess.run(
        [CXX, *flags, str(source), "-o", str(binary)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return binary


@pytest.mark.parametrize("seed", range(4))
def test_every_score_is_within_its_bound(scores, seed):
    done = subprocess.run([scores, str(seed)], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines) == 58 and all(line.startswith("ok ") for line in lines), done.stdout
