"""Instructions that the CUDA kernels issue, counted in what nvcc makes of them: no GPU is needed.

  python bench/sass.py                   all kernels, into bench/results/sass.json
  python bench/sass.py --only langevin   of the sources with that in their name; others stay
  python bench/sass.py --at fc500d7      as they were at that commit: kept as "before"

WAYS says what is counted in which kernel: see sass_path.py for what a way is. A count is of one
thread's instructions, hence of a warp's; memory and latency may still be what takes the time.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import machine
import sass_path
import suite
import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "sass.json"
FLAGS = "-std=c++17 -O3 --fmad=false --expt-relaxed-constexpr -Werror all-warnings"  # make kernels
HEADER = [
    "kernel",
    "instructions",
    "for each",
    "before",
    "registers",
    "spilled B",
    "shared B",
    "of them",
]
TELLING = ("HMMA", "IMMA", "MUFU", "F2F", "LDG", "STG", "LDS", "BRA", "CALL")  # opcodes shown


class Way(NamedTuple):
    """What is counted in the first kernel whose demangled name `kernel` matches."""

    label: str
    kernel: str
    unit: str = "pass"
    units: Callable[[list[sass_path.Instruction]], float] = lambda way: 1
    loop: str = ""  # what the loop contains; without one: from entry to exit
    through: str = "STG"
    avoid: str = sass_path.NOTHING

    def walk(self, code: sass_path.Code) -> list[sass_path.Instruction]:
        if self.loop:
            return sass_path.loop(code, self.loop, self.avoid)
        return sass_path.straight(code, self.through, self.avoid)


def stored(size: int) -> Callable[[list[sass_path.Instruction]], float]:
    """Units of `size` bytes that the way writes to global memory."""
    return lambda way: sum(i.bits / 8 for i in way if i.name == "STG") / size


def each(opcode: str, of: int = 1) -> Callable[[list[sass_path.Instruction]], float]:
    """A unit for each so many of these."""
    return lambda way: sum(i.name == opcode for i in way) / of


MASK, PLAIN = r"STG\.E\.U8", "true, true(, true)?>"
# Elements of a sample that is not stored, and what one thread of a sample writes down.
INITIAL = r"STG\.E\.64|MUFU\.RSQ"
WAYS = {
    "langevin_cuda.cu": (
        Way("step, float32", f"langevin_step_kernel<float, {PLAIN}", "element", stored(4),
            avoid=MASK),
        Way("step, bfloat16", f"langevin_step_kernel<Bfloat16, {PLAIN}", "element", stored(2),
            avoid=MASK),
        Way("step, float16", f"langevin_step_kernel<Float16, {PLAIN}", "element", stored(2),
            avoid=MASK),
        Way("step, float64", f"langevin_step_kernel<double, {PLAIN}", "element", stored(8),
            avoid=MASK),
        Way("step with a mask, float32", r"langevin_step_kernel<float, true, true(, false)?>",
            "element", stored(4.25)),
        Way("step with norm clip, float32", "langevin_step_norm_clip_kernel<float, true, true",
            "element", stored(4), avoid=MASK),
        Way("step's gradient, float32", "langevin_step_backward_kernel<float(, true)?>", "element",
            stored(8)),
    ),
    "gibbs_cuda.cu": (
        Way("Bernoulli, float32", "bernoulli_sigmoid_kernel<float, float, true", "element",
            stored(4)),
        Way("Bernoulli, bfloat16", "bernoulli_sigmoid_kernel<Bfloat16, Bfloat16, true",
            "element", stored(2)),
        Way("Bernoulli, float32 to bytes", "bernoulli_sigmoid_kernel<float, unsigned char, true",
            "element", stored(1)),
    ),
    "replay_cuda.cu": (
        Way("gather, uint8", "gather_kernel<unsigned char(, true)?>", "element", stored(4),
            through="I2F", avoid=INITIAL),
        Way("gather, float32", "gather_kernel<float(, true)?>", "element", stored(4),
            avoid=INITIAL + "|FMUL"),
        Way("augmentation, uint8, 3 channels", "augment_kernel<unsigned char, 3"),
    ),
    "random_choice_cuda.cu": (
        Way("distinct slots", "choose_kernel"),
        Way("slots, one a stratum", "choose_strata_kernel"),
    ),
    "metropolis_cuda.cu": (
        Way("jump between modes", "population_jump_kernel"),
    ),
    "underdamped_cuda.cu": (
        Way("underdamped step, float32", "underdamped_step_kernel<float, true, true", "element",
            stored(8)),
    ),
    "discrete_cuda.cu": (
        Way("Gibbs with gradients", "gwg_step_kernel<true", through="STG"),
    ),
    "tempering_cuda.cu": (
        Way("swap of replicas, float32", "replica_swap_kernel<float, true", "element",
            stored(24)),
    ),
    "metropolis_step_cuda.cu": (
        Way("transition on any energy, float32", "metropolis_step_kernel<float, true"),
    ),
    "hamiltonian_cuda.cu": (
        Way("leapfrog step, float32", "hmc_step_kernel<float, true"),
    ),
    "neighbor_cuda.cu": (
        Way("scores, d = 2, float32", "direct_score_kernel<float, 2>", "pair", each("FMNMX"),
            loop="FMNMX"),
        Way("scores by tensor cores",
            r"tensor_score_kernel<(true, 128|128, float, true(, false)?>)", "96 HMMA",
            each("HMMA", 96), loop="HMMA"),
        Way("scores by tensor cores, n <= 64",
            r"tensor_score_kernel<(true, 64|64, float, true(, false)?>)", "96 HMMA",
            each("HMMA", 96), loop="HMMA"),
        Way("scores of bfloat16 alone by tensor cores",
            "tensor_score_kernel<128, float, true, true>", "32 HMMA",
            each("HMMA", 32), loop="HMMA"),
        Way("scores of bytes by tensor cores", "byte_score_kernel<128, true", "IMMA", each("IMMA"),
            loop="IMMA"),
        Way("scores of bytes by tensor cores, n <= 64", "byte_score_kernel<64, true", "IMMA",
            each("IMMA"), loop="IMMA"),
        Way("selection, float32",
            r"select_kernel<float, float, (256, )?false(, (\(Grid\)0|false))?>"),
        Way("selection after bfloat16", r"select_kernel<float, float, false, \(Grid\)2>"),
        Way("selection, uint8",
            r"select_kernel<float, unsigned char, (256, )?false, (true|\(Grid\)1)"),
        Way("queries split (before: centred only)", r"split_kernel<float|center_kernel<float"),
        Way("queries on the grid of bytes", "quantize_kernel<float"),
        Way("search's gradient, float32", "gradient_kernel<float, float", "pass", loop="LDG"),
    ),
    "neighbor_log_distance_cuda.cu": (
        Way("entropy's gradient, float32", "pull_kernel<float, float", "element",
            stored(4), loop="STG"),
        Way("entropy's value, float32", "log_mean_kernel<float"),
    ),
    "neighbor_means_cuda.cu": (
        Way("samples whose neighbours are sought", "chosen_kernel"),
        Way("means of neighbours", "neighbor_means_kernel"),
    ),
    "mlp_chain_float_cuda.cu": (
        Way("chain, float32, inner products", "float_chain_kernel<4, 8", "FFMA", each("FFMA"),
            loop="FFMA"),
        Way("chain of 4096, float32, inner products", "float_chain_kernel<4, 4", "FFMA",
            each("FFMA"), loop="FFMA"),
        Way("chain of a large network, float32, inner products", "float_chain_kernel<2, 8, true",
            "FFMA", each("FFMA"), loop="FFMA"),
        Way("chain, weights of a large network packed", "pack_kernel<float"),
    ),
    "mlp_adjusted_cuda.cu": (
        Way("adjusted chain, inner products", "adjusted_chain_kernel<4, 8", "FFMA", each("FFMA"),
            loop="FFMA"),
    ),
    "mlp_chain_tensor_cuda.cu": (
        Way("chain, bfloat16, inner products", r"tensor_chain_kernel<(\(\w+\))?2, 2", "HMMA",
            each("HMMA"), loop="HMMA"),
        Way("chain of a large network, bfloat16, inner products", "tensor_chain_kernel<-1, 2",
            "HMMA", each("HMMA"), loop="HMMA"),
    ),
}  # fmt: skip


def missing_tools() -> list[str]:
    """Those that are neither on PATH nor in a package of NVIDIA or Triton, which PATH now has."""
    parts = ("nvidia/cu13/bin", "triton/backends/nvidia/bin")
    folders = [f"{path}/{part}" for path in sys.path if path for part in parts]
    os.environ["PATH"] = ":".join([os.environ["PATH"], *folders])
    return [name for name in ("nvcc", "cuobjdump", "nvdisasm") if not shutil.which(name)]


def compile_kernels(csrc: Path, source: Path, arch: str, to: Path) -> dict[str, dict[str, int]]:
    """Writes a cubin; mangled name of each kernel -> registers, spilled and shared bytes."""
    options = (*FLAGS.split(), f"-I{csrc}", f"-arch={arch}", "-Xptxas=-v", "-cubin")
    log = _output("nvcc", *options, str(source), "-o", str(to), errors=True)
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        numbers = {
            "registers": r"Used (\d+) registers",
            "spill_bytes": r"(\d+) bytes spill stores",
            "shared_bytes": r"(\d+) bytes smem",
        }
        matches = {key: re.search(pattern, part) for key, pattern in numbers.items()}
        found[part.split("'")[0]] = {key: int(m[1]) if m else 0 for key, m in matches.items()}
    return found


def short_name(mangled: str) -> str:
    """kernel<arguments> without name spaces."""
    name = _output("c++filt", mangled).strip()
    name = re.sub(r"\(anonymous namespace\)::|fastebm::|_GLOBAL__N__\w+::", "", name)
    return re.match(r"(?:void )?(\w+(?:<.*?>)?)\(", name)[1]


def name_of(csrc: Path, source: Path) -> str:
    """Of a source in WAYS and in the results."""
    return "_".join(source.relative_to(csrc).parts)


def count(csrc: Path, source: Path, arch: str) -> dict:
    """The entry of one source file."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        used = compile_kernels(csrc, source, arch, cubin)
        codes = sass_path.parse(_output("cuobjdump", "-sass", str(cubin)))
    names = {short_name(mangled): mangled for mangled in used}
    rows = []
    for way in WAYS.get(name_of(csrc, source), ()):
        name = next((n for n in sorted(names) if re.match(way.kernel, n)), None)
        path = way.walk(codes[names[name]]) if name else []
        if not path or not way.units(path):
            suite.console.print(f"{source.name}: no such way: {way.label}", style="yellow")
            continue
        rows.append({
            "label": way.label, "kernel": name, "unit": way.unit,
            "instructions": round(len(path) / way.units(path), 2), "on_the_way": len(path),
            **used[names[name]], "classes": dict(Counter(i.name for i in path).most_common()),
        })  # fmt: skip
    return {
        "kernels": len(used),
        "most_registers": max((u["registers"] for u in used.values()), default=0),
        "spilling": {short_name(n): u["spill_bytes"] for n, u in used.items() if u["spill_bytes"]},
        "rows": rows,
    }


def table(results: dict) -> list[list[str]]:
    """Rows under HEADER: of what is now, or else of what was."""
    before = {
        row["label"]: row for entry in results.get("before", {}).values() for row in entry["rows"]
    }
    lines = []
    for entry in (results.get("now") or results["before"]).values():
        for row in entry["rows"]:
            was = before.get(row["label"])
            telling = [f"{row['classes'][n]} {n}" for n in TELLING if n in row["classes"]]
            lines.append([
                row["label"], f"{row['instructions']:g}", row["unit"],
                f"{was['instructions']:g}" if was else "-", str(row["registers"]),
                str(row["spill_bytes"]), str(row["shared_bytes"]), ", ".join(telling),
            ])  # fmt: skip
    return lines


def unpack(commit: str, folder: Path) -> None:
    """csrc of that commit."""
    tar = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "csrc"], capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(tar.stdout)) as archive:
        archive.extractall(folder, filter="data")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="PART", help="of the source's name")
    parser.add_argument("--at", metavar="COMMIT", help='count that commit, as "before"')
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE.json")
    arguments = parser.parse_args()
    if missing := missing_tools():
        suite.console.print(f"nothing is counted; not found: {', '.join(missing)}")
        return 0
    facts = machine.environment(torch.device("cpu"))
    facts = {key: facts[key] for key in ("date", "commit", "uncommitted_changes")}
    if arguments.at:
        facts |= {"commit": arguments.at, "uncommitted_changes": False}
    nvcc = re.search(r" V([\d.]+)", _output("nvcc", "--version"))[1]
    facts |= {"arch": arguments.arch, "nvcc": nvcc}
    results = suite.load(arguments.out) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        csrc = ROOT / "csrc"
        if arguments.at:
            unpack(arguments.at, Path(folder))
            csrc = Path(folder) / "csrc"
        for source in sorted(csrc.rglob("*cuda.cu")):
            name = name_of(csrc, source)
            if arguments.only not in name:
                continue
            entry = facts | count(csrc, source, arguments.arch)
            results.setdefault("before" if arguments.at else "now", {})[name] = entry
            suite.save(arguments.out, results)
    suite.print_table(f"Instructions, {arguments.arch}", HEADER, table(results))
    return 0


def _output(*command: str, errors: bool = False) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stderr if errors else done.stdout


if __name__ == "__main__":
    sys.exit(main())
