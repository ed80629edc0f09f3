"""Folders: data goes down, and nothing below knows what is above it."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What the files of a folder of fastebm/ may import from it, beside each other.
# What an energy is, and its state while chains run; the networks themselves are leaves.
ANY_ENERGY = ["energies.protocol", "energies.sampling_mode"]
EVERYWHERE = ["arguments", "caller", "modes"]  # checks, warnings, modes of torch
FASTEBM = {
    "arguments": [],
    "modes": [],
    "caller": [],
    "distributed": EVERYWHERE,
    "rng": ["arguments", "distributed.world"],
    "ops": ["rng"],
    "info": ["ops.library"],
    "energies": ["ops", "rng", *EVERYWHERE],
    "entropy": ["ops", *EVERYWHERE],
    "replay": ["ops", "rng", "distributed", *EVERYWHERE],
    "chains": ["ops", "rng", *ANY_ENERGY, *EVERYWHERE],
    "samplers": ["chains", "replay.augmentation", "energies.standardized", "ops", "rng"]
    + ["energies.rescaled"]
    + ["distributed"]
    + [*ANY_ENERGY, *EVERYWHERE],
    "diagnostics": ["arguments"],  # of any chains
    "likelihood": ["ops", "rng", *ANY_ENERGY, *EVERYWHERE],
    "losses": ["samplers", "chains", "likelihood", "replay", "entropy", "ops", "rng", *ANY_ENERGY]
    + ["energies.helmholtz", "energies.compose", "distributed", *EVERYWHERE],
    "sklearn": ["energies", "ops", "rng", *EVERYWHERE],
    "app": ["losses", "likelihood", "samplers", "replay", "energies", "distributed", "info", "rng"]
    + ["diagnostics"],
}
# What the files of a folder of csrc/ may include; bindings.cpp and simt_kernel.cpp.in know it all.
CSRC = {
    "simt": [],
    "launch": ["simt"],
    "simd": [],
    "random": ["launch", "simd"],
    "langevin": ["random", "launch", "simd"],
    "replay": ["random", "launch", "simd"],
    "gibbs": ["random", "launch", "simd"],
    "neighbor": ["random", "launch", "simd"],
    "metropolis": ["random", "launch", "simd"],
    "underdamped": ["langevin", "random", "launch", "simd"],
    "discrete": ["metropolis", "random", "launch", "simd"],
    "tempering": ["metropolis", "random", "launch", "simd"],
    "hamiltonian": ["random", "launch", "simd"],
    "mlp": ["langevin", "metropolis", "neighbor", "random", "launch", "simd"],
}
# What the files of bench/ import from each other; the benches themselves use the first four.
BENCH = {
    "timing": [],
    "levels": [],
    "machine": [],
    "suite": ["machine", "levels"],
    "compare": ["suite"],
    "charts": ["suite"],
    "predictions": ["suite"],
    "sass_path": [],
    "sass": ["suite", "machine", "sass_path"],
    "profile_kernels": ["neighbor"],
    "speed": ["suite", "predictions", "sass"],
    "readme": ["suite", "speed"],
    "auto_sets": [],
    "auto_runs": [],
    "auto_rivals": ["auto_runs"],
    "auto_product": ["auto_runs"],
    "auto_held_out": ["auto_rivals", "auto_runs"],
    "auto_cells": [f"auto_{part}" for part in ("sets", "runs", "rivals", "product", "held_out")],
    "auto_plan": [f"auto_{part}" for part in ("sets", "rivals", "held_out", "cells")],
    "auto": ["suite", *(f"auto_{part}" for part in ("sets", "held_out", "cells", "plan"))],
    "__main__": ["suite", "compare", "charts", "predictions", "speed", "readme"],
}
SOURCES = {".h", ".cpp", ".cu"}
EXTRAS = {"typer", "rich", "matplotlib", "sklearn", "tensorboard", "prdc", "scipy", "arviz_stats"}
SHELL = {"cli", "cli_train", "cli_eval", "terminal"}  # cli says what to install


def imports(path, top_level_only=False):
    """Dotted names that a module imports."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
    """Path of every module of the package but the roots, and its name below fastebm."""
    for path in sorted((ROOT / "fastebm").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "fastebm").with_suffix("").parts)
        if name not in ("__init__", "__main__"):
            yield path, name.removesuffix(".__init__")


def own(path):
    """What of the package a module imports: names below fastebm."""
    return {n.removeprefix("fastebm.") for n in imports(path) if n.startswith("fastebm.")}


@pytest.mark.parametrize("folder", FASTEBM)
def test_modules_import_only_what_is_below(folder):
    allowed = [f"{name}." for name in (folder, *FASTEBM[folder])]
    allowed += ["_C."] if folder == "ops" else []
    found = [(path, name) for path, name in modules() if name.split(".")[0] == folder]
    assert found
    for path, name in found:
        above = {n for n in own(path) if not f"{n}.".startswith(tuple(allowed))}
        assert not above, f"{name} imports {above}"


def test_modules_have_no_circle_and_a_folder():
    known = {name: path for path, name in modules()}
    assert {name.split(".")[0] for name in known} == FASTEBM.keys()
    graph = {}
    for name, path in known.items():
        uses = {n if n in known else n.rpartition(".")[0] for n in own(path)}
        graph[name] = uses & known.keys() - {name}
    assert len(list(TopologicalSorter(graph).static_order())) == len(known)


def test_only_the_application_needs_extras_and_it_imports_them_when_called():
    for path, name in modules():
        folder, _, rest = name.partition(".")
        used = {n.split(".")[0] for n in imports(path, folder in ("app", "sklearn"))}
        allowed = {"typer", "rich"} if rest in SHELL else set()
        allowed |= {"sklearn"} if folder == "sklearn" else set()
        allowed |= {"faiss"} if name == "entropy.faiss_search" else set()
        foreign = used & (EXTRAS | {"faiss", "pybind11"}) - allowed
        assert not foreign, f"{name} imports {foreign}"
        assert name == "ops.library" or "fastebm._C" not in imports(path), name
        assert "ops.reference" not in " ".join(own(path)) or name.startswith("ops.reference"), name
    assert not any(name.startswith("app") for name in own(ROOT / "fastebm" / "__init__.py"))


def test_small_perceptrons_are_behind_one_door_of_the_chains_and_one_of_the_losses():
    doors = {"chains.mlp_chain", "losses.mlp_loss"}
    inside = ("ops.mlp.", "chains.plain_mlp.")
    for path, name in modules():
        if name not in doors and not f"{name}.".startswith(("ops.", *inside)):
            assert not any(n.startswith(inside) for n in own(path)), name
    users = {name for path, name in modules() if any(d in " ".join(own(path)) for d in doors)}
    assert users == {
        "samplers.langevin",
        "losses.contrastive",
        "losses.improved",
        "losses.mlp_loss",
    }


def includes(path):
    return re.findall(r'#include "([^"]+)"', path.read_text())


def test_sources_include_only_what_is_below():
    csrc = ROOT / "csrc"
    files = [p for p in csrc.rglob("*.*") if p.suffix in SOURCES]
    graph = {str(p.relative_to(csrc)): includes(p) for p in files}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)  # no circle
    reached = {}
    for name in TopologicalSorter(graph).static_order():
        reached[name] = {name}.union(*(reached[n] for n in graph[name]))
    folders = [name.split("/")[0] for name in graph if "/" in name]
    assert set(folders) == CSRC.keys() and all(folders.count(f) >= 3 for f in CSRC)
    for name, used in graph.items():
        text = (csrc / name).read_text()
        torch_in, pybind_in = "#include <torch" in text, "#include <pybind11" in text
        assert torch_in == (name == "launch/ops.h") and pybind_in == (name == "bindings.cpp"), name
        folder = name.split("/")[0]
        if folder not in CSRC:
            continue
        above = {n for n in used if n.split("/")[0] not in (folder, *CSRC[folder])}
        assert not above, f"{name} includes {above}"
        assert not any(n.endswith((".cpp", ".cu")) for n in used), name
        if re.search(r"cpu\.cpp|cuda\.\w+$", name):  # kernels: no torch; on a CPU no device
            assert "launch/ops.h" not in reached[name], name
            assert ("launch/device.h" in reached[name]) <= ("cuda." in name), name


def test_benches_import_only_what_is_below():
    names = {p.stem for p in (ROOT / "bench").glob("*.py")}
    for name in names:
        used = {n.split(".")[0] for n in imports(ROOT / "bench" / f"{name}.py")} & names
        parts = [n for n in names - BENCH.keys() if n.startswith(f"{name}_")]
        above = used - set(BENCH.get(name, ["timing", "levels", "machine", "suite", *parts]))
        assert not above, f"{name} imports {above}"


def test_no_file_is_two_rooms():
    for folder in ("fastebm", "csrc", "tests", "bench"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in SOURCES | {".py"}:
                assert len(path.read_text().splitlines()) <= 400, path
