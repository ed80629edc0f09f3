"""Layers: data goes down and nothing below knows what is above it (docs: architecture)."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each module of the library and what it may import from fastebm; the application may use it all.
LIBRARY = {
    "rng": set(),
    "ops": {"rng"},
    "bernoulli": {"ops", "rng"},
    "info": {"_C"},
    "reference": {"rng"},
    "energy": set(),
    "compiled": {"energy"},
    "waits": set(),
    "snapshot": set(),
    "capture": {"energy", "waits"},
    "graph": {"capture", "snapshot"},
    "chain": {"ops", "rng", "energy", "compiled", "capture", "graph", "snapshot"},
    "plain_mlp": {"_C"},
    "mlp_chain": {"ops", "rng", "chain", "plain_mlp"},
    "mlp_gradient": {"ops", "plain_mlp"},
    "scale": set(),
    "settings": {"ops"},
    "augmentation": {"ops", "rng"},
    "samplers": {
        "ops",
        "rng",
        "energy",
        "chain",
        "mlp_chain",
        "plain_mlp",
        "scale",
        "settings",
        "augmentation",
    },
    "gibbs": {"rng", "energy", "samplers"},
    "choice": {"ops"},
    "buffer": {"ops", "rng", "augmentation", "choice"},
    "faiss_search": set(),
    "neighbor_ops": {"ops"},
    "neighbor": {"neighbor_ops", "faiss_search"},
    "entropy": {"neighbor", "neighbor_ops"},
    "nonfinite": set(),
    "loss_terms": set(),
    "mlp_loss": {"ops", "rng", "samplers", "plain_mlp", "mlp_chain", "mlp_gradient"},
    "losses": {
        "energy",
        "samplers",
        "gibbs",
        "buffer",
        "entropy",
        "nonfinite",
        "rng",
        "scale",
        "plain_mlp",
        "loss_terms",
        "mlp_loss",
    },
    "train_step": {"losses", "capture", "graph", "rng", "snapshot", "waits"},
    "likelihood": {"energy"},
    "bases": {"ops", "rng"},
    "annealing": {"ops", "bernoulli", "rng", "energy", "bases"},
    "ais": {"rng", "annealing", "bases"},
    "maximum_likelihood": {"energy", "likelihood", "losses", "nonfinite", "ops", "rng", "samplers"},
    "helmholtz": {"bernoulli", "rng"},
    "wake_sleep": {"energy", "helmholtz", "losses", "nonfinite", "rng"},
}
# Energies are leaves: nothing in the library imports them, and among themselves they go down.
ENERGIES = {
    "layers": set(),
    "compose": set(),
    "mlp": {"layers", "compose"},
    "conv": {"layers", "compose"},
    "resnet": {"layers", "compose"},
    "multiscale": {"layers", "compose"},
    "rbm": {"layers", "compose"},
}
DRAWS = {"rbm"}  # energies with conditional laws of their own to draw from: these use operators
APPLICATION = {p.stem for p in (ROOT / "fastebm").glob("*.py")} - LIBRARY.keys() - {"__init__"}
SUBJECTS = {p.stem.removesuffix("_ops") for p in (ROOT / "csrc").glob("*_ops.cpp")}
HEAVY = {"typer", "rich", "matplotlib", "sklearn", "tensorboard", "prdc", "scipy"}
EXTRAS = {"faiss_search": {"faiss"}}  # which module of the library may import which, when called

# What the modules of bench/ import from each other; the benches themselves use the first three.
BENCH = {
    "timing": set(),
    "machine": set(),
    "suite": {"machine"},
    "compare": {"suite"},
    "charts": {"suite"},
    "predictions": {"suite"},
    "sass_path": set(),
    "sass": {"suite", "machine", "sass_path"},
    "speed": {"suite", "predictions", "sass"},
    "readme": {"suite", "speed"},
    "__main__": {"suite", "compare", "charts", "predictions", "speed", "readme"},
}

CPU = {"<subject>.h", "<parts>", "philox.h", "simd.h", "scalar.h", "<simd>"}
CUDA = {"<subject>.h", "<parts>", "philox.h", "device.h", "scalar.h", "simd_one.h"}
CUDA |= {"element_blocks_cuda.h"}  # of any subject whose kernels work on blocks of four elements
KERNEL_LAYERS = {
    r"(scalar|simt_shared|simt_types|scratch)\.h": set(),
    r"philox\.h": {"scalar.h"},
    r"\w*simd\w*\.h": set(),  # bodies, included once for each instruction set
    r"simt\.h": {"simt_shared.h", "simt_types.h"},
    r"simt_tensor\.h": {"simt.h"},
    r"device\.h": {"simt_tensor.h"},
    r"ops\.h": {"scalar.h"},
    r"langevin_check\.h": {"langevin.h", "ops.h"},  # options that steps and chains share
    r"mlp_check\.h": {"mlp.h", "ops.h"},  # networks that all operators on perceptrons share
    r"langevin_ops\.cpp": {"langevin_check.h", "block_run.h"},
    r"mlp_chain_ops\.cpp": {"langevin_check.h", "mlp_chain_run.h"},
    r"block_run\.h": {"ops.h"},
    r"gibbs_ops\.cpp": {"<subject>.h", "block_run.h"},
    r"mlp_chain_run\.h": {"mlp_chain.h", "mlp_check.h", "scratch.h"},
    r"mlp_gradient_run\.h": {"mlp_gradient.h", "ops.h", "scratch.h"},
    r"neighbor_ops\.h": {"ops.h"},
    r"mlp_gradient_ops\.cpp": {"mlp_gradient_run.h", "mlp_check.h"},
    r"mlp_loss_ops\.cpp": {  # made of other subjects' parts
        *("langevin_check.h", "block_run.h", "mlp_chain_run.h", "mlp_gradient_run.h"),
        "neighbor_ops.h",
    },
    r"mlp_chain\.h": {"langevin.h", "mlp.h"},
    r"mlp_gradient\.h": {"mlp.h"},
    r"mlp_\w+_cpu\.cpp": CPU | {"mlp_activation_simd.h", "mlp_products_simd.h"},
    r"mlp_activation_cuda\.h": CUDA | {"mlp.h", "mlp_activation_simd.h"},
    r"mlp_chain_\w+_cuda\.h": CUDA | {"mlp_activation_cuda.h"},
    r"neighbor_ops\.cpp": {"neighbor_log_distance.h", "neighbor_ops.h", "scratch.h"},
    r"\w+_ops\.cpp": {"<subject>.h", "ops.h"},
    r"device_cuda\.cu": {"device.h"},
    r"\w+_cpu\.cpp": CPU,
    r"\w+_cuda\.(cu|h)": CUDA,
    r"bindings\.cpp": {"simt.h", "simd.h", "philox.h"},
    r"simt_kernels\.cpp": {"<any cuda>"},
    r"\w+\.h": {"philox.h", "scalar.h", "<subject>.h", "<parts>"},
}


def imports(path, top_level_only=False):
    """Dotted names that a module imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}: relative import")


def fastebm_modules(path):
    known = {p.stem for p in (ROOT / "fastebm").glob("*.py")} | {"_C", "_simt", "energies"}
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "fastebm":
            yield next((p for p in parts[1:] if p in known), "__init__")


@pytest.mark.parametrize("module", LIBRARY)
def test_library_imports_only_what_is_below(module):
    path = ROOT / "fastebm" / f"{module}.py"
    above = set(fastebm_modules(path)) - LIBRARY[module]
    assert not above, f"{module} imports {above}"
    foreign = HEAVY | {"faiss", "pybind11"}
    others = {name.split(".")[0] for name in imports(path)} & foreign - EXTRAS.get(module, set())
    others |= {name.split(".")[0] for name in imports(path, True)} & foreign
    assert not others, f"the library uses torch and numpy only; {module} imports {others}"


def test_energies_are_leaves_of_the_library():
    folder = ROOT / "fastebm" / "energies"
    assert {p.stem for p in folder.glob("*.py")} == ENERGIES.keys() | {"__init__"}
    for module, below in ENERGIES.items():
        names = set(imports(folder / f"{module}.py"))
        own = {n.split(".")[2] for n in names if n.startswith("fastebm.energies.")}
        rest = {n for n in names if n.startswith("fastebm.") and n.split(".")[1] != "energies"}
        assert own <= below, f"{module} imports {own - below}"
        allowed = ("energy", "ops", "rng", "bernoulli") if module in DRAWS else ("energy",)
        assert {n.split(".")[1] for n in rest} <= set(allowed), f"{module} imports {rest}"
        assert not {n.split(".")[0] for n in names} & HEAVY


@pytest.mark.parametrize("module", sorted(APPLICATION))
def test_application_imports_its_extras_lazily(module):
    heavy = {n.split(".")[0] for n in imports(ROOT / "fastebm" / f"{module}.py", True)} & HEAVY
    if module in {"cli", "cli_train", "cli_eval", "terminal"}:  # cli says what to install
        heavy -= {"typer", "rich"}
    assert not heavy, f"{module} imports {heavy} when it is imported"


def test_nothing_in_the_package_uses_the_oracle():
    for path in (ROOT / "fastebm").rglob("*.py"):
        assert "reference" not in set(fastebm_modules(path)), path.name


def test_benches_use_only_what_is_below():
    modules = {p.stem for p in (ROOT / "bench").glob("*.py")}
    scripts = modules - BENCH.keys()
    for module in modules:
        own = set(imports(ROOT / "bench" / f"{module}.py"))
        used = {name.split(".")[0] for name in own} & modules
        parts = {s for s in scripts if s.startswith(f"{module}_")}
        allowed = BENCH.get(module, {"timing", "machine", "suite"} | parts)
        assert used <= allowed, f"{module} imports {used - allowed}"


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").iterdir()), ids=lambda p: p.name)
def test_sources_include_only_what_is_below(path):
    text = path.read_text()
    rule = next(v for k, v in KERNEL_LAYERS.items() if re.fullmatch(k, path.name))
    subject = next((s for s in SUBJECTS if f"{path.stem}_".startswith(f"{s}_")), path.stem)
    subjects = {p.stem.removesuffix("_cuda") for p in (ROOT / "csrc").glob("*_cuda.cu")}
    allowed = {f"{subject}.h" if r == "<subject>.h" else r for r in rule}
    if "<simd>" in rule:
        allowed |= {p.name for p in (ROOT / "csrc").glob("*simd_*.h")}
        allowed |= {"philox_simd.h", "exp_simd.h"}
    if "<parts>" in rule:
        allowed |= {p.name for p in (ROOT / "csrc").glob(f"{subject}_*.h")}
    if "<any cuda>" in rule:
        allowed |= {f"{s}_cuda.cu" for s in subjects} | {"device.h", "simt.h"}
    used = set(re.findall(r'#include "([^"]+)"', text))
    assert used <= allowed, f"{path.name} includes {used - allowed}"
    foreign = set(re.findall(r"#include <(torch|ATen|c10|pybind11)", text))
    assert foreign <= {"ops.h": {"torch"}, "bindings.cpp": {"pybind11"}}.get(path.name, set())


def test_no_file_is_two_rooms():
    for folder, kinds in {"fastebm": ("py",), "bench": ("py",), "csrc": ("h", "cpp", "cu")}.items():
        for kind in kinds:
            for path in (ROOT / folder).rglob(f"*.{kind}"):
                assert len(path.read_text().splitlines()) <= 400, path
