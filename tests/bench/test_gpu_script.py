"""bench/gpu.sh without a GPU, on programs that do nothing, in a tree with next to nothing: whatever
fails or is missing, it leaves one results file and one log with a summary."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHES = ["langevin", "chain", "neighbor", "icd_step", "gibbs", "replay"]
SANITIZERS = ["memcheck", "racecheck", "initcheck"]
UNTIMED = ["tests", "scores", *SANITIZERS]
MODULES = ["torch", "numpy", "pytest", "rich", "scikit_build_core", "pybind11", "ninja", "xdist"]
USABLE = "usable: a stub"
TORCH = """
__version__ = "2.11.0"
class cuda:
    is_available = staticmethod(lambda: True)
    get_device_name = staticmethod(lambda: "NVIDIA Stub")
    get_device_capability = staticmethod(lambda: (9, 0))
"""
# Stands for every program and writes down how it was called. Code of `python -c` is run, with the
# modules above and no others; pip installs a fastebm that says it is usable; a bench adds a word to
# the results; ncu writes its report. Fails where $BROKEN is found in its name and arguments, waits
# where $HANGS is.
STUB = f"""#!{sys.executable} -S
import json, os, pathlib, re, sys, time
arguments = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
with open(os.environ["CALLS"], "a") as calls:
    names = ("PYTHONPATH", "FASTEBM_COMMIT", "PYTORCH_NO_CUDA_MEMORY_CACHING",
             "TORCHINDUCTOR_COMPILE_THREADS", "FASTEBM_CUDA_ARCHS", "PYTHONSAFEPATH")
    known = {{name: os.environ[name] for name in names if name in os.environ}}
    print(json.dumps([arguments, known]), file=calls)
if os.environ["HANGS"] and re.search(os.environ["HANGS"], arguments):
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit("interrupted")
if os.environ["BROKEN"] and re.search(os.environ["BROKEN"], arguments):
    sys.exit("broken on purpose")
if sys.argv[1:2] == ["-c"]:
    os.execv(sys.executable, [sys.executable, "-S", *sys.argv[1:]])
if sys.argv[1:4] == ["-m", "pip", "install"]:
    wheel = "--target" in sys.argv
    site = sys.argv[sys.argv.index("--target") + 1] if wheel else os.environ["PYTHONPATH"]
    module = pathlib.Path(site, "fastebm", "info.py")
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text("gpu_status = lambda: " + repr(os.environ["WHEEL" if wheel else "BUILT"]))
if sys.argv[1:2] == ["bench"]:
    name, path = sys.argv[sys.argv.index("--only") + 1], sys.argv[sys.argv.index("--out") + 1]
    path = pathlib.Path(path)
    results = json.loads(path.read_text()) if path.exists() else {{}}
    results[name] = "quick" if "--quick" in sys.argv else "full"
    path.write_text(json.dumps(results, indent=1))
    print("not run: " + name + ": the last case")
    if os.environ["BROKEN"] == name + " after a case":
        sys.exit("broken on purpose")
if "-o" in sys.argv:
    pathlib.Path(sys.argv[sys.argv.index("-o") + 1] + ".ncu-rep").touch()
    if os.environ["BROKEN"] == "ncu after a kernel":
        sys.exit("broken on purpose")
print("ran", arguments[:50])
"""


@pytest.fixture
def tree(tmp_path):
    """A checkout without .git, and a wheel of it."""
    tree = tmp_path / "tree"
    for name in ("csrc/a.cu", "fastebm/a.py", "CMakeLists.txt", "pyproject.toml"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "bench").mkdir()
    for name in ("gpu.sh", "sources.sh"):
        shutil.copy(ROOT / "bench" / name, tree / "bench")
    wheel = tree / "dist" / "gpu"
    wheel.mkdir(parents=True)
    (wheel / "fastebm-1-cp312-cp312-linux_x86_64.whl").touch()
    sources = subprocess.run([tree / "bench" / "sources.sh"], capture_output=True, check=True)
    (wheel / "sources").write_bytes(sources.stdout)
    (wheel / "commit").write_text("c0ffee\n")
    return tree


@pytest.fixture
def run(tmp_path, tree):
    folder, modules, out = tmp_path / "bin", tmp_path / "modules", tmp_path / "out"
    folder.mkdir()
    modules.mkdir()
    for name in MODULES:
        (modules / f"{name}.py").write_text(TORCH if name == "torch" else "")
    for name in ("python", "nvcc", "nvidia-smi", "compute-sanitizer", "ncu"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    for name in (  # and nothing else of this machine
        *("bash", "env", "timeout", "tee", "cat", "date", "grep", "sort", "xargs", "find", "tail"),
        *("sha256sum", "cut", "mktemp", "rm", "cp", "mkdir", "dirname", "uptime"),
    ):
        if program := shutil.which(name):
            (folder / name).symlink_to(program)

    def call(*phase, broken="", hangs="", without=(), wheel=USABLE, built=USABLE, commit=None):
        """Exit status, results, and name of a part -> its verdict, in the order they ended."""
        for name in without:
            for path in (folder / name, modules / f"{name}.py"):
                path.unlink(missing_ok=True)
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = {
            **{"PATH": str(folder), "PYTHONPATH": str(modules), "PYTHON": "python"},
            "CUDA_HOME": str(tmp_path / "cuda"),
            **{
                "BROKEN": broken,
                "HANGS": hangs,
                "WHEEL": wheel,
                "BUILT": built,
                "CALLS": str(calls),
            },
            **({"FASTEBM_COMMIT": commit} if commit else {}),
        }
        call.status = subprocess.run(
            ["bash", tree / "bench" / "gpu.sh", out, *phase], env=environment, capture_output=True
        ).returncode
        kept = ["cuda.json", "cuda.log", *(["ncu.csv", "ncu.txt"] if "profile" in phase else [])]
        assert {*kept[:2]} <= {p.name for p in out.iterdir()} <= {*kept}
        call.out = out
        call.log = (out / "cuda.log").read_text()
        call.calls = [json.loads(line) for line in calls.read_text().splitlines()]
        call.summary = call.log.split("===== summary")[1]
        parts = re.findall(r"^(\S+) +\d+s  ([\w ,]+?)(?: \(|:|$)", call.summary, re.M)
        return call.status, json.loads((out / "cuda.json").read_text()), {b: a for a, b in parts}

    return call


def called(run, words):
    """The environments of the calls with these words."""
    return [environment for arguments, environment in run.calls if re.search(words, arguments)]


def commits(run):
    return {environment["FASTEBM_COMMIT"] for environment in called(run, "^python bench")}


def test_parts(run):
    status, results, parts = run()
    assert results == dict.fromkeys(BENCHES, "full")
    names = list(parts)
    assert names[:2] == ["tools", "wheel"] and sorted(names[2:7]) == sorted(UNTIMED)
    assert names[7:] == [f"bench {name}" for name in BENCHES]  # and no profile
    # The program of the scores is not there, as the compiler was none.
    assert status == 1 and {n for n, v in parts.items() if v != "ok"} == {"scores"}
    for name in BENCHES:
        assert f"not run: {name}: the last case" in run.summary


def test_a_phase_can_be_asked_for_alone(run):
    status, results, parts = run("tests")
    assert status == 1 and results == {} and parts.pop("benches") == "skipped"
    assert sorted(parts) == sorted(["tools", "wheel", *UNTIMED])
    status, results, parts = run("benches")
    assert status == 0 and results.keys() == {*BENCHES}
    assert parts.pop("tests, scores, sanitisers") == "skipped"
    assert list(parts) == ["tools", "wheel", *(f"bench {name}" for name in BENCHES)]
    for wrong in (["everything"], ["tests", "benches"]):
        script = [ROOT / "bench" / "gpu.sh", "nowhere", *wrong]
        assert subprocess.run(script, capture_output=True).returncode == 2
    assert not Path("nowhere").exists()


def test_how_the_tools_are_run(run):
    run("tests")
    (tests,) = called(run, "python -m pytest -v -m gpu .*--continue-on-collection.* -n 8 tests$")
    assert tests["TORCHINDUCTOR_COMPILE_THREADS"] == "2"
    for tool in SANITIZERS:
        words = f"^compute-sanitizer --tool {tool} --report-api-errors no --error-exitcode 1 python"
        (environment,) = called(run, words + " bench/every_kernel.py$")
        assert environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert (ROOT / "bench" / "every_kernel.py").exists()


def test_profile(run):
    for broken, verdicts in (
        ("^ncu .*--seconds", ("FAILED", None)),
        ("ncu after a kernel", ("FAILED", "ok")),  # of what there is
        ("--import", ("ok", "FAILED")),
        ("--table", ("ok", "FAILED")),
    ):
        status, results, parts = run("profile", broken=broken)
        assert (parts["profile"], parts.get("table")) == verdicts
        assert results == {} and status == verdicts.count("FAILED")
    status, results, parts = run("profile")
    assert status == 0 and results == {} and list(parts.values()).count("skipped") == 2
    assert list(parts)[-2:] == ["profile", "table"]
    sections = "(--section=[A-Z]\\w+ ){7}"
    (ncu,) = called(run, f"^ncu .*--kernel-name regex:fastebm {sections}-o .*/kernels python bench")
    assert "PYTHONSAFEPATH" not in ncu and (ROOT / "bench" / "profile_kernels.py").exists()
    (table,) = called(run, "^python bench/profile_kernels.py --table$")
    assert "PYTHONSAFEPATH" not in table
    assert (run.out / "ncu.csv").read_text().startswith("ran ncu --import ")
    assert (run.out / "ncu.txt").read_text() == "ran python bench/profile_kernels.py --table\n"
    status, _, parts = run("profile", without=["ncu"])
    assert status == 0 and parts["profile"] == "skipped"


def test_a_wheel_of_this_tree_is_used(run, tree):
    _, _, parts = run("benches")
    assert parts["wheel"] == "ok" and "build" not in parts
    assert all("/site:" in e["PYTHONPATH"] for e in called(run, "^python bench"))
    assert {e["FASTEBM_COMMIT"] for e in called(run, "^python bench")} == {
        "c0ffee"
    }  # nobody said another
    run("benches", commit="1234567-dirty")
    assert commits(run) == {"1234567-dirty"}


@pytest.mark.parametrize("how", ["other sources", "a new source", "none", "another Python", "old"])
def test_else_it_is_built(run, tree, how):
    if how == "other sources":
        (tree / "fastebm" / "a.py").write_text("changed")
    elif how == "a new source":
        (tree / "csrc" / "b.cu").touch()
    elif how == "none":
        shutil.rmtree(tree / "dist")
    unfit = {"another Python": {"broken": r"\.whl$"}, "old": {"wheel": "not usable: sm_100"}}
    status, results, parts = run("benches", **unfit.get(how, {}))
    assert parts["wheel"] == ("FAILED" if how in unfit else "skipped")
    assert parts["build"] == "ok" and results.keys() == {*BENCHES}
    assert status == (how in unfit)
    (environment,) = called(run, r"pip install .* -e \.$")
    assert environment["FASTEBM_CUDA_ARCHS"] == "90"
    if how not in unfit:
        assert commits(run) == {"none"}


@pytest.mark.parametrize("missing", ["nvcc", "ninja", "pybind11", "rich", "pytest", "torch"])
def test_what_is_missing_is_named(run, tree, missing):
    build_only = missing in ("nvcc", "ninja", "pybind11")
    if build_only:
        status, results, parts = run("benches", without=[missing])
        assert status == 0 and parts["wheel"] == "ok"  # which needs none of them
        shutil.rmtree(tree / "dist")
    status, results, parts = run("benches", without=[missing])
    assert status == 1 and results == {} and list(parts.values())[-1] == "FAILED"
    assert list(parts)[-1] == ("tools to build" if build_only else "tools")
    assert f"missing on this machine, carry it there: {missing}\n" in run.log


def test_programs_are_found_where_cuda_and_pip_put_them(run, tmp_path, tree):
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    (tmp_path / "bin" / "nvcc").rename(tmp_path / "cuda" / "bin" / "nvcc")
    (tmp_path / "modules" / "ninja.py").unlink()
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "ninja").symlink_to(tmp_path / "bin" / "python")
    words = "def get_path(name):\n    assert name == 'scripts'\n    return " + repr(str(scripts))
    (tmp_path / "modules" / "sysconfig.py").write_text(words)
    shutil.rmtree(tree / "dist")
    _, _, parts = run("tests")
    assert parts["tools to build"] == parts["build"] == "ok" and called(run, "^nvcc --version")


def test_what_is_not_there_is_skipped(run):
    status, _, parts = run("tests", without=["nvcc", "compute-sanitizer", "xdist"])
    assert status == 0 and parts["tests"] == "ok"
    assert {n for n, v in parts.items() if v == "skipped"} == {"scores", *SANITIZERS, "benches"}
    assert called(run, "-m pytest .*--durations=15 tests$")  # in one process


@pytest.mark.parametrize(
    "fault",
    [{"broken": "sees no CUDA"}, {"broken": "pip install .*-e"}, {"built": "not usable: no GPU"}],
    ids=str,
)
def test_without_a_build_there_is_nothing_to_run(run, tree, fault):
    shutil.rmtree(tree / "dist")
    status, results, parts = run(**fault)
    assert status == 1 and results == {} and list(parts.values())[-1] == "FAILED"


def test_what_fails_stops_nothing(run):
    status, results, parts = run(broken="-m pytest|--tool racecheck")
    assert status == 3 and results.keys() == {*BENCHES}
    assert parts["tests"] == parts["racecheck"] == "FAILED" and parts["memcheck"] == "ok"
    status, results, parts = run("benches", broken="--only chain .*json$")
    assert status == 1 and parts["bench chain"] == "FAILED" and parts["bench chain, quick"] == "ok"
    assert results == dict.fromkeys(BENCHES, "full") | {"chain": "quick"}
    status, results, parts = run("benches", broken="--only chain")
    assert status == 2 and parts["bench chain"] == parts["bench chain, quick"] == "FAILED"
    assert results.keys() == {*BENCHES} - {"chain"}
    status, results, parts = run("benches", broken="chain after a case")
    assert status == 1 and parts["bench chain"] == "FAILED" and "bench chain, quick" not in parts
    assert results == dict.fromkeys(BENCHES, "full")  # what it had is kept


def test_time_runs_out(run, tree):
    script = tree / "bench" / "gpu.sh"
    text = script.read_text()
    for full, short in (("start tests 230", "start tests 1"), ("SECONDS:-290", "SECONDS:-9")):
        assert text.count(full) == 1
        text = text.replace(full, short)
    script.write_text(text)
    status, results, parts = run(hangs="-m pytest")
    assert parts["tests"] == "TIMED-OUT" and "interrupted" in run.log  # it could still speak
    assert [parts[f"bench {name}"] for name in BENCHES] == ["NO-TIME"] * len(BENCHES)
    assert results == {} and status == 2 + len(BENCHES)
