"""The README's table and chart of headline figures, from the results files as docs/speed.md is."""

from __future__ import annotations

import speed
import suite

README = speed.ROOT / "README.md"
CHART = speed.CHARTS / "headline_cpu.png"
BEGIN, END = "<!-- speed: `make readme` writes this -->\n", "<!-- end of speed -->\n"
# Bench, case less its threads, in words. Some where fastebm is far ahead, and some where it cannot
# be.
HEADLINES = (
    ("langevin", "float32, 1000 x 1000", "one Langevin step, 1000 x 1000"),
    ("chain", "MLP 2-128-128-1, 128 x 2", "step of a chain, MLP 2-128-128-1, 128 chains"),
    ("chain", "Gaussian, 65536 x 2", "step of a chain, Gaussian energy, 65536 x 2"),
    ("chain", "ConvEnergy, 128 x 1 x 28 x 28", "step of a chain, ConvEnergy, 128 x 1 x 28 x 28"),
    ("icd_step", "2-D MLP, B = 128, K = 20", "training step of ICD, 2-D MLP, B = 128, K = 20"),
    ("icd_step", "ConvEnergy 28x28, B = 128, K = 20", "the same, ConvEnergy 28x28"),
    ("neighbor", "1024, 10000, 2, forward", "nearest of 10,000 in 2-D, for 1024"),
    ("neighbor", "1024, 10000, 784, forward", "nearest of 10,000 in 784-D, for 1024"),
    ("neighbor", "128, 10000, 3072 uint8, forward", "nearest of 10,000 uint8 images, for 128"),
    ("gibbs", "step, 4096 x 784 x 500", "Gibbs step of an RBM, 4096 x 784 x 500"),
    ("replay", "cifar10, 228 x 3 x 32 x 32", "228 replayed CIFAR-10 images, augmented"),
)
OF = {  # bench -> what of it is in the table
    "langevin": "the step",
    "chain": "chains",
    "icd_step": "training steps",
    "neighbor": "nearest neighbours",
    "gibbs": "Gibbs steps",
    "replay": "replay",
}
# Ways that are no default, by their names in a bench.
NAMES = {
    "fastebm, compile": "`compile=True`",
    "fastebm, graph": "as a CUDA graph",
    "fastebm, bfloat16": '`precision="bf16"`',
}


def rewrite() -> None:
    """Puts the headlines of the present results into the README."""
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + headlines() + END + rest.split(END)[1])


def headlines() -> str:
    """All between the two marks."""
    cuda = speed.RESULTS / "cuda.json"
    blocks = [text(suite.load(speed.RESULTS / "cpu.json")), chart()]
    if cuda.exists():
        blocks.insert(1, gpu_text(suite.load(cuda)))
    return "\n\n".join(speed.wrapped(block) for part in blocks for block in part) + "\n"


def text(cpu: suite.Results) -> list[str]:
    """Markdown of the results of a CPU."""
    header = ["", "threads", "fastebm", "best rival", "times as fast"]
    return [
        f"Milliseconds, medians; {origin(cpu)}. The rival is the best of those measured:",
        speed.table_of(header, table(cpu)),
    ]


def gpu_text(cuda: suite.Results) -> list[str]:
    """Markdown of the results of a GPU; threads mean nothing there."""
    header = ["", "fastebm", "best rival", "times as fast"]
    lines = [line[:1] + line[2:] for line in table(cuda)]
    loop = "what a loop of such calls takes, the longer of the host's time and the device's"
    return [f"On a GPU ({origin(cuda)}), {loop}:", speed.table_of(header, lines)]


def chart() -> list[str]:
    return [
        "Every case of every bench on the CPU, one point each:",
        f"![How many times as fast as the best rival]({CHART.relative_to(speed.ROOT)})",
    ]


def origin(results: suite.Results) -> str:
    """What measured them, and when; by benches, where that was not all one machine."""
    benches = dict.fromkeys(name for name, *_ in HEADLINES if name in results)
    machines: dict[str, list[str]] = {}
    for bench in benches:
        fact = results[bench]["environment"]
        machines.setdefault(f"{fact['device']}, torch {fact['torch']}", []).append(bench)
    parts = []
    for machine, names in machines.items():
        days = sorted({results[name]["environment"]["date"][:10] for name in names})
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        of = f"{', '.join(OF[name] for name in names)}: " * (len(machines) > 1)
        parts.append(f"{of}{machine}, {when}")
    return "; ".join(parts)


def table(results: suite.Results) -> list[list[str]]:
    """A line for each headline that was measured, with the most threads it was measured with, and
    one for the way of fastebm that is faster than the default, where there is one."""
    lines = []
    for bench, case, words in HEADLINES:
        rows = results.get(bench, {}).get("rows", [])
        rows = [r for r in rows if r["case"].rsplit(", ", 1)[0] == case and "seconds" in r]
        rows = [r | {"seconds": max(r["seconds"], r.get("host_seconds", 0.0))} for r in rows]
        if not rows:
            continue
        threads = max(row["threads"] for row in rows)
        of_case = [row for row in rows if row["threads"] == threads]
        best = suite.best_rival(of_case)
        rival = f"{speed.number(best['seconds'], 1e3)}, {best.get('family', best['variant'])}"
        (ours,) = (row for row in of_case if row["variant"] == speed.OURS)
        faster = of_way(best, ours)
        seconds = speed.number(ours["seconds"], 1e3)
        lines.append([words, str(threads), seconds, rival, faster])
        ways = [row for row in of_case if row["variant"].startswith(f"{speed.OURS}, ")]
        way = min(ways, key=lambda row: row["seconds"], default=ours)
        if way["seconds"] < 0.95 * ours["seconds"]:
            name = f"the same, {NAMES.get(way['variant'], way['variant'])}"
            seconds, faster = speed.number(way["seconds"], 1e3), of_way(best, way)
            lines.append([name, str(threads), seconds, rival, faster])
    return lines


def of_way(rival: dict, way: dict) -> str:
    """How many times as fast as the rival a way is: in the same rounds, where a bench says so of
    all that a call takes."""
    if "host_seconds" not in rival:
        keys = {rival.get("best_way"): "best_way_faster", speed.OURS: "fastebm_faster"}
        if key := keys.get(way["variant"]):
            return speed.times_as_fast(rival, key)
    return speed.times_as_fast({"faster": rival["seconds"] / way["seconds"]}, "faster")
