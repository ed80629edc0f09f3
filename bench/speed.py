"""docs/speed.md, from the results files: no figure in it is typed by hand."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import predictions
import sass
import suite

ROOT = Path(__file__).resolve().parent.parent
RESULTS, CHARTS = ROOT / "bench" / "results", ROOT / "docs" / "charts"
PAGE = ROOT / "docs" / "speed.md"
OURS = "fastebm"


def result_files() -> list[Path]:
    """Those of the devices, the CPU's first."""
    files = [RESULTS / "cpu.json", RESULTS / "cuda.json"]
    return [path for path in files if path.exists()]


def page() -> str:
    """The whole of it, from bench/results."""
    found = {path.stem: suite.load(path) for path in result_files()}
    counts = suite.load(sass.RESULTS) if sass.RESULTS.exists() else {}
    held = [suite.load(path) for path in sorted(RESULTS.glob("cpu_*.json"))]
    return text(found.get("cpu", {}), found.get("cuda", {}), counts, held)


def text(
    cpu: suite.Results,
    cuda: suite.Results,
    counts: dict | None = None,
    held: Sequence[suite.Results] = (),
) -> str:
    """Markdown of the results of a CPU and of a GPU, of counted instructions, and of a CPU held to
    fewer of them; what is not recorded is named."""
    blocks = [
        "<!-- `make readme` writes this page -->",
        "# Speed",
        "Where fastebm is faster than what one writes in torch, by how much, and where it is not."
        " Times are medians; rivals take turns in one process. The limit is what a plain copy or a"
        " large matrix product reaches on the same machine, measured beside them. The figures are"
        " in `bench/results/*.json`; `make bench` measures anew, and `fastebm bench --quick"
        " --compare OLD.json` is a first look. The step is what fastebm speeds up first: where the"
        " network is all of a chain's time, as in large convolutional energies, no step can show.",
        "## On a CPU",
        *measured(cpu, "cpu"),
        *at_levels([results["neighbor"] for results in held if "neighbor" in results]),
    ]
    missing = [f"`{name}`" for name in PARTS if name not in cpu]
    if missing:
        blocks.append(
            f"Not recorded on a quiet machine yet: {', '.join(missing)}"
            " (`python -m bench --only NAME`)."
        )
    blocks.append("## On a GPU")
    if cuda:
        blocks += [
            "Measured by `bench/gpu.sh`, beside what was predicted. An eager loop takes its host's"
            " time, here that of a virtual machine that needs about 25 us for an operator with its"
            " gradient: ratios to eager loops say as much about it as about the code, those to"
            " CUDA graphs do not. Tests and sanitisers: `bench/results/cuda_tests.log`; each kernel"
            " under Nsight Compute, with cold caches: `bench/results/cuda_ncu.txt`. Changed since,"
            " and predicted anew: searches from 512 elements on other than of uint8, chains of 4096"
            " to 8191 samples with layers of 65 to 128.",
        ]
    else:
        blocks.append(
            "**Nothing is measured yet**: the tests have run on a GPU, the benches have not. These"
            " are predictions, from counted bytes and operations; `bench/gpu.sh OUT_DIR` measures"
            " them:"
        )
    blocks += [table_of(predictions.HEADER, predictions.table(cuda)), *measured(cuda, "cuda")]
    blocks += counted(counts) if counts else []
    return "\n\n".join(wrapped(block) for block in blocks) + "\n"


def measured(results: suite.Results, device: str) -> list[str]:
    """A part for each bench, with its chart."""
    blocks = []
    for name, (title, write, chart) in PARTS.items():
        if name in results:
            blocks += [f"### {title}", *write(results[name]["rows"], provenance(results[name]))]
            if left_out := results[name].get("left_out"):
                blocks.append(f"There was no time for: {'; '.join(left_out)}.")
            blocks.append(f"![{title}]({CHARTS.name}/{chart}_{device}.png)")
    return blocks


def counted(counts: dict) -> list[str]:
    """What bench/sass.py found."""
    facts = next(iter((counts.get("now") or counts["before"]).values()))
    before = {entry["commit"][:7] for entry in counts.get("before", {}).values()}
    beside = f', "before" at commit {" and ".join(sorted(before))}' if before else ""
    return [
        "### Instructions, counted",
        f"Counted, not measured: what a thread issues for each element, pair or pass, in the code"
        f" that nvcc {facts['nvcc']} makes for {facts['arch']} (`python bench/sass.py`{beside})."
        " Fewer are faster only where issuing them is what takes the time:",
        table_of(sass.HEADER[:-1], [line[:-1] for line in sass.table(counts)]),
    ]


def provenance(entry: dict) -> str:
    facts = entry["environment"]
    threads = sorted({row["threads"] for row in entry["rows"]})
    on = facts["device"]
    if on == facts["cpu"]:
        on = f"{on}, {' and '.join(map(str, threads))} thread{'s' * (threads != [1])}"
    quick = ", a quick look" if facts.get("quick") else ""
    return f"{on}; torch {facts['torch']}; {facts['date'][:10]}, commit {facts['commit']}{quick}"


def langevin(rows: suite.Rows, where: str) -> list[str]:
    table = []
    of_type = [row for row in rows if row["dtype"] == "float32"]
    for of_case in cases_of(sorted(of_type, key=lambda r: (math.prod(r["shape"]), r["threads"]))):
        row, eager = of_case[OURS], of_case["eager, in place"]
        n = math.prod(row["shape"])
        compiled = of_case.get("torch.compile", {})
        table.append([
            " x ".join(map(str, row["shape"])),
            "-" if row["case"].endswith("CUDA") else str(row["threads"]),
            *(number(r.get("seconds"), 1e9 / n) for r in (row, eager, compiled)),
            times_as_fast(eager),
            f"{row['limit_seconds'] / row['seconds']:.0%}",
        ])  # fmt: skip
    header = ["chains", "threads", "fastebm", "best eager, in place", "default torch.compile",
              "fastebm against eager", "of a copy's bandwidth"]  # fmt: skip
    return [
        f"ns per element, float32 ({where}):",
        table_of(header, table),
        "Small chains stay in the cache, where the noise is what takes time. The step gains least"
        " on chains of a few elements, whose noise comes in blocks of four, and on tiny batches,"
        " where the call itself counts.",
    ]


def chain(rows: suite.Rows, where: str) -> list[str]:
    rivals = ["eager, in place", "eager, naive", "torch.compile", "torchebm", "ebmkit"]
    on_cuda = ["reduce-overhead", "eager, as a graph", "fastebm, graph", "fastebm, bfloat16"]
    rivals += [name for name in on_cuda if any(row["variant"] == name for row in rows)]
    timed = ["seconds", "host_seconds"][: 1 + any("host_seconds" in row for row in rows)]
    times = lambda row: [number(row.get(key), 1e6) for key in timed]  # noqa: E731
    counts = {row["threads"] for row in rows}
    table, shares = [], {}
    for of_case in cases_of(row for row in rows if row["threads"] == max(counts)):
        row, loop = of_case[OURS], of_case["eager, in place"]
        share = f"{loop['phases']['all else'] / loop['seconds']:.1%}"
        name = row["case"].rsplit(",", 1)[0]
        cells = [times_as_fast(of_case.get(rival)) for rival in rivals]
        table.append([name, *times(row), *cells, share])
        best = row.get("best_way", OURS)
        if best != OURS:
            cells = [times_as_fast(of_case.get(rival), "best_way_faster") for rival in rivals]
            name = f"{name}, {best.removeprefix(f'{OURS}, ')}"
            table.append([name, *times(of_case[best]), *cells, share])
        if len(row["shape"]) == 4:
            shares[row["energy"]] = share
    header = ["energy, chains", "fastebm, us", *["host, us"] * (len(timed) - 1)]
    header += [*(f"over {r}" for r in rivals), "share of the step"]
    parts = [
        f"us a step{f', here with {max(counts)} threads' * (len(counts) > 1)} ({where}). The share"
        " of the step is what the best loop in plain torch spends beside the network's energy and"
        " gradient:",
        table_of(header, table),
    ]
    if len(timed) > 1:
        parts.append(
            'Times are the device\'s. "host" is what a step keeps the host busy beside it: where'
            " that is the longer, chains one after another take that long."
        )
    if any(row.get("best_way", OURS) != OURS for row in rows):
        parts.append("A line of its own with compile is of `LangevinDynamics(compile=True)`.")
    if shares:
        of_energies = ", ".join(f"{share} in {name}" for name, share in shares.items())
        parts.append(
            "**Where fusing does not help:** in convolutional energies the network is everything."
            f" A fused step can save no more than the share of the step: {of_energies}."
        )
    return parts


def neighbor(rows: suite.Rows, where: str) -> list[str]:
    modes = ("forward", "forward + backward")
    searches = [row for row in rows if "n" in row]
    table = []
    for case in dict.fromkeys(map(size_of, searches)):
        line = [case]
        for mode in modes:
            found = [r for r in searches if (size_of(r), r["mode"]) == (case, mode)]
            ours = next(r for r in found if r["variant"] == OURS)
            best = next(r for r in found if r.get("best_rival"))
            line += [
                number(ours["seconds"], 1e3),
                f"{number(best['seconds'], 1e3)}, {best['variant'].split(',')[0]}",
                times_as_fast(best),
            ]
            if mode == modes[0]:
                line.append(f"{ours['limit_seconds'] / ours['seconds']:.0%}")
        table.append(line)
    header = ["n, m, d", "forward", "best rival", "", "of float32 products", "fb", "best rival", ""]
    ours = [r for r in searches if r["variant"] == OURS]
    checked = [r for r in ours if "wrong" in r]
    wrong = sum(r["wrong"] + r["wrong_near"] for r in checked)
    error = max(max(r["error"], r["error_near"]) for r in checked)
    far = max(r["error_near"] for r in searches if r["variant"].startswith("torch.cdist")
              and "error_near" in r)  # fmt: skip
    parts = [
        f"ms ({where}). The rival is the best of broadcasting, cdist, blocked addmm, blocked"
        " differences, products of bfloat16 (among bytes, of int8 too) with a bound and float64 for"
        ' the rest, torch.compile, faiss and KeOps. "uint8": references as bytes, of which rivals'
        ' have copies of their own kind before the clock starts. "fb" is with the backward pass of'
        " the mean log distance, before which rivals search without a graph:",
        table_of(header, table),
        f"It takes at most {max(r['extra_bytes'] for r in ours) / 1e6:.1f} MB more;"
        f" wrong neighbours: {wrong}; distances are off by at most {error:.0e} of their size"
        f" (cdist's, on near duplicates, by up to {far:.2g} times their size). Where d is large it"
        " takes what its products of bytes take, so it gains as much as they are faster than"
        " float32's on a CPU.",
    ]
    shares = [r for r in rows if "entropy_share" in r]
    for case in dict.fromkeys(r["case"] for r in shares):
        share = {r["variant"]: r["entropy_share"] for r in shares if r["case"] == case}
        ((rival, before),) = [v for v in share.items() if v[1] and v[0] != OURS]
        parts.append(
            f"{case}: the entropy term takes {share[OURS]:.1%} of the time; by"
            f" {rival} {before:.0%}."
        )
    return parts


def at_levels(entries: Sequence[dict]) -> list[str]:
    """Searches on a CPU that is held to fewer instructions, forward."""
    if not entries:
        return []
    table: dict[str, list[str]] = {}
    for of_case in (case for entry in entries for case in cases_of(entry["rows"])):
        best = next((row for row in of_case.values() if row.get("best_rival")), None)
        if best and best["mode"] == "forward":
            line = table.setdefault(size_of(best), [])
            rival = f"{number(best['seconds'], 1e3)}, {best['variant'].split(',')[0]}"
            line += [number(of_case[OURS]["seconds"], 1e3), rival, times_as_fast(best)]
    names = [entry["environment"]["simd"] for entry in entries]
    wheres = "; ".join(f"{n}: {provenance(e)}" for n, e in zip(names, entries, strict=True))
    return [
        "### Nearest neighbours with fewer instructions",
        "ms, forward; the same CPU held to what others have, and torch, MKL, oneDNN, faiss and its"
        f" OpenBLAS with it, as far as their own settings reach ({wheres}):",
        table_of(
            ["n, m, d", *(cell for name in names for cell in (name, "best rival", ""))],
            [[case, *line] for case, line in table.items()],
        ),
    ]


def size_of(row: dict) -> str:
    """n, m, d of a search, and what the references are stored as."""
    size = ", ".join(str(row[k]) for k in ("n", "m", "d"))
    return size + " uint8" * (row["dtype"] == "uint8")


def icd_step(rows: suite.Rows, where: str) -> list[str]:
    cases = cases_of(rows)
    graphs = any("fastebm, graph" in of_case for of_case in cases)
    parts = (("chain", "last step", "entropy", "forward"), ("backward", "optimiser"))
    table = []
    for of_case in cases:
        row = of_case[OURS]
        phases = row.get("phases")
        seconds = [phases and sum(phases[name] for name in part) for part in parts]
        table.append([
            row["case"],
            number(row["seconds"], 1e3),
            *[number(of_case.get("fastebm, graph", {}).get("seconds"), 1e3)] * graphs,
            times_as_fast(of_case.get("torch, batched")),
            times_as_fast(of_case.get("torch, one by one")),
            *(percent(part, row["seconds"]) for part in (*seconds, row["limit_seconds"])),
        ])  # fmt: skip
    header = ["", "fastebm, ms", *["as a graph, ms"] * graphs, "over batched torch",
              "over the authors' structure", "of it chain and loss", "backward and optimiser",
              "of the limit"]  # fmt: skip
    blocks = [
        f"{where}; the limit is its products at the rate of a large one:",
        table_of(header, table),
        "With fastebm on perceptrons the chart's forward is all from the chain to the loss, on a"
        " CPU with the gradient in the parameters too: one operator.",
    ]
    if graphs:
        blocks.append(
            "As a graph: by `GraphedTrainStep`. The other columns are of eager steps. No rival is"
            " made a graph."
        )
    return blocks


def replay(rows: suite.Rows, where: str) -> list[str]:
    rivals = ["torch, batched", "torch.compile", "kornia", "Pillow"]
    table = []
    for of_case in cases_of(rows):
        row = of_case[OURS]
        cells = [times_as_fast(of_case.get(name)) for name in rivals]
        table.append([row["case"], number(row["seconds"], 1e3), *cells])
    header = ["", "fastebm, ms a batch", *(f"over {r}" for r in rivals)]
    return [f"{where}:", table_of(header, table)]


def gibbs(rows: suite.Rows, where: str) -> list[str]:
    rivals = ["rand < sigmoid", "bernoulli, in place", "torch.compile", "scikit-learn"]
    table = []
    for of_case in cases_of(rows):
        cells = [times_as_fast(of_case.get(name)) for name in rivals]
        row = of_case[OURS]
        table.append([row["case"], number(row["seconds"], 1e6), *cells])
    header = ["batch x visible x hidden", "fastebm, us", *(f"over {r}" for r in rivals)]
    return [f"The draws of a step alone, and whole steps ({where}):", table_of(header, table)]


PARTS = {  # bench -> title, what writes it, chart
    "langevin": ("One Langevin step", langevin, "langevin"),
    "chain": ("Whole chains, gradient and all", chain, "chain"),
    "neighbor": ("Nearest neighbours", neighbor, "neighbor"),
    "icd_step": ("A training step of ICD", icd_step, "icd_step_phases"),
    "gibbs": ("Gibbs sampling of an RBM", gibbs, "gibbs"),
    "replay": ("Replay with augmentation", replay, "replay"),
}


def cases_of(rows: Iterable[dict]) -> list[dict[str, dict]]:
    """For each case, variant -> its row, of those that were measured."""
    found: dict[str, dict[str, dict]] = {}
    for row in rows:
        if "seconds" in row:
            found.setdefault(row["case"], {})[row["variant"]] = row
    return list(found.values())


def number(value: float | None, unit: float) -> str:
    if value is None:
        return "-"
    return f"{value * unit:.3g}" if value * unit < 1000 else f"{value * unit:.0f}"


def percent(part: float | None, whole: float) -> str:
    return "-" if part is None else f"{part / whole:.0%}"


def times_as_fast(rival: dict | None, key: str = "fastebm_faster") -> str:
    """How many times as fast as the rival fastebm, or its way of ``key``, is."""
    if rival is None:
        return "-"
    faster = rival[key]
    return f"{faster:.2f}x" if faster < 2 else f"{faster:.1f}x"


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def wrapped(block: str) -> str:
    if block[0] in "|#!<":
        return block
    return textwrap.fill(block, 105, break_long_words=False, break_on_hyphens=False)
