"""bench/gpu.sh without a GPU, on programs that do nothing: whatever fails, it leaves one results
file and one log with a summary."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHES = ["langevin", "chain", "neighbor", "icd_step", "gibbs", "replay"]
UNTIMED = ["tests", "scores", "memcheck", "racecheck"]
# Stands for every program: a bench adds a word to the results. Fails where $BROKEN is found in its
# arguments.
STUB = f"""#!{sys.executable}
import json, os, pathlib, re, sys
arguments = " ".join(sys.argv[1:])
if os.environ["BROKEN"] and re.search(os.environ["BROKEN"], arguments):
    sys.exit("broken on purpose")
if sys.argv[1:3] == ["-m", "bench"]:
    path = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
    results = json.loads(path.read_text()) if path.exists() else {{}}
    results[sys.argv[sys.argv.index("--only") + 1]] = "quick" if "--quick" in sys.argv else "full"
    path.write_text(json.dumps(results))
print("ran", arguments[:50])
"""


@pytest.fixture
def run(tmp_path):
    folder, out = tmp_path / "bin", tmp_path / "out"
    folder.mkdir()
    for name in ("python", "nvcc", "nvidia-smi", "compute-sanitizer"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)

    def call(broken=""):
        """Exit status, results, and name of a part -> its verdict, in the order they ended."""
        environment = os.environ | {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHON": "python",
            "BROKEN": broken,
            "FASTEBM_CUDA_ARCHS": "90",
        }
        status = subprocess.run(
            ["bash", ROOT / "bench" / "gpu.sh", out], env=environment, capture_output=True
        ).returncode
        assert sorted(p.name for p in out.iterdir()) == ["cuda.json", "cuda.log"]
        summary = (out / "cuda.log").read_text().split("===== summary")[1]
        parts = re.findall(r"^(\S+) +\d+s  ([\w ,]+?)(?: \(|$)", summary, re.M)
        return status, json.loads((out / "cuda.json").read_text()), {b: a for a, b in parts}

    return call


def test_parts(run):
    status, results, parts = run()
    assert results == dict.fromkeys(BENCHES, "full")
    names = list(parts)
    assert names[:2] == ["tools", "build"] and sorted(names[2:6]) == sorted(UNTIMED)
    assert names[6:] == [f"bench {name}" for name in BENCHES]
    # The program of the scores is not there, as the compiler was none.
    assert status == 1 and {n for n, v in parts.items() if v != "ok"} == {"scores"}


@pytest.mark.parametrize("broken", ["sees no CUDA", "pip install"])
def test_without_a_build_there_is_nothing_to_run(run, broken):
    status, results, parts = run(broken)
    assert status == 1 and results == {} and list(parts.values())[-1] == "FAILED"


def test_what_fails_stops_nothing(run):
    status, results, parts = run("^-m pytest")
    assert status == 2 and parts["tests"] == "FAILED" and len(results) == len(BENCHES)
    status, results, parts = run("--only chain .*json$")
    assert status == 2 and parts["bench chain"] == "FAILED" and parts["bench chain, quick"] == "ok"
    assert results == dict.fromkeys(BENCHES, "full") | {"chain": "quick"}
    status, results, parts = run("--only chain")
    assert status == 3 and parts["bench chain"] == parts["bench chain, quick"] == "FAILED"
    assert results.keys() == {*BENCHES} - {"chain"}
