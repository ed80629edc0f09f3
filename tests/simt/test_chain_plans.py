"""The plans of csrc/mlp/chain: every network that may be given has one that fits."""

import shutil
import subprocess

import pytest
from test_simt_shim import CXX, FLAGS, ROOT

pytestmark = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler: {CXX}")


def test_every_network_has_a_plan_that_fits(tmp_path):
    binary, source = tmp_path / "chain_plans", ROOT / "tests" / "simt" / "chain_plans.cpp"
    flags = [*FLAGS, "-Wno-unknown-pragmas", "-ffp-contract=off"]
    done = subprocess.run(
        [CXX, *flags, str(source), "-o", str(binary)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run([binary], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines) == 4 and all(line.startswith("ok ") for line in lines), done.stdout
