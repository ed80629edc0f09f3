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
    ("gibbs", "step, 4096 x 784 x 500", "Gibbs step of an RBM, 4096 x 784 x 500"),
    ("replay", "cifar10, 228 x 3 x 32 x 32", "228 replayed CIFAR-10 images, augmented"),
)


def rewrite() -> None:
    """Puts the headlines of the present results into the README."""
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + headlines() + END + rest.split(END)[1])


def headlines() -> str:
    """All between the two marks."""
    return text(suite.load(speed.RESULTS / "cpu.json"))


def text(cpu: suite.Results) -> str:
    """Markdown of the results of a CPU."""
    facts = [cpu[bench]["environment"] for bench in dict.fromkeys(name for name, *_ in HEADLINES)]
    dates = sorted(fact["date"][:10] for fact in facts)
    header = ["", "threads", "fastebm", "best rival", "times as fast"]
    blocks = [
        f"Milliseconds, medians; {facts[0]['device']}, torch {facts[0]['torch']}, {dates[0]} to"
        f" {dates[-1]}. The rival is the best of those measured:",
        speed.table_of(header, table(cpu)),
        "Every case of every bench, one point each:",
        f"![How many times as fast as the best rival]({CHART.relative_to(speed.ROOT)})",
    ]
    return "\n\n".join(map(speed.wrapped, blocks)) + "\n"


def table(cpu: suite.Results) -> list[list[str]]:
    """A line for each headline, with the most threads it was measured with, and one for the way of
    fastebm that is faster than the default, where there is one."""
    lines = []
    for bench, case, words in HEADLINES:
        rows = [r for r in cpu[bench]["rows"] if r["case"].rsplit(", ", 1)[0] == case]
        threads = max(row["threads"] for row in rows)
        of_case = [row for row in rows if row["threads"] == threads]
        best = suite.best_rival(of_case)
        rival = f"{speed.number(best['seconds'], 1e3)}, {best.get('family', best['variant'])}"
        ways = [(speed.OURS, "fastebm_faster")]
        if best.get("best_way", speed.OURS) != speed.OURS:
            ways.append((best["best_way"], "best_way_faster"))
        for way, key in ways:
            (ours,) = (row for row in of_case if row["variant"] == way)
            name = (
                words if way == speed.OURS else f"the same, `{way.removeprefix('fastebm, ')}=True`"
            )
            seconds = speed.number(ours["seconds"], 1e3)
            lines.append([name, str(threads), seconds, rival, speed.times_as_fast(best, key)])
    return lines
