"""Runs the benches: `python -m bench`, or `python -m bench readme`.

run      (default) all benches of speed, or those of --only: tables here, figures into a results
         file as JSON, charts beside it
readme   docs/speed.md, its charts and the README's headlines from bench/results, without measuring
         anything

Results go to bench/results/<cpu or cuda>.json and their charts to docs/charts, those of --simd to
bench/results/cpu_<level>.json, those of --quick to runs/bench. A bench takes the
place of its former results and leaves those of others. Figures never make a run fail; a bench that
breaks does, after the others.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
# As for a script in this folder. The checkout itself is no place to find fastebm in: there it has
# no compiled module.
sys.path[:] = [str(HERE), *(p for p in sys.path if Path(p).resolve() not in (HERE, HERE.parent))]

import compare  # noqa: E402
import predictions  # noqa: E402
import readme  # noqa: E402
import speed  # noqa: E402
import suite  # noqa: E402

BENCHES = ("langevin", "chain", "neighbor", "replay", "gibbs", "icd_step")
# What training gives; digits takes a quarter of an hour, auto more than one.
BY_NAME_ONLY = (
    *("digits", "rbm_digits", "adjusted_step", "auto", "processes", "samplers", "captured"),
)


def parser_of_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", nargs="?", choices=("run", "readme"), default="run")
    names = BENCHES + BY_NAME_ONLY
    parser.add_argument("--only", choices=names, action="append", metavar="NAME",
                        help=f"may be repeated; one of {', '.join(names)}")  # fmt: skip
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="print ratios to these")
    suite.add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of_arguments()
    arguments = parser.parse_args(argv)
    if arguments.action == "readme":
        for path in speed.result_files():
            draw_charts(suite.load(path), path)
        draw_headline()
        speed.PAGE.write_text(speed.page())
        readme.rewrite()
        return 0
    options = suite.options_of(parser, arguments)
    if arguments.compare and not arguments.compare.is_file():
        parser.error(f"--compare: there is no file {arguments.compare}")
    old = suite.load(arguments.compare) if arguments.compare else None
    folder = HERE.parent / "runs" / "bench" if options.quick else speed.RESULTS
    name = f"cpu_{arguments.simd}" if arguments.simd else options.device.type
    path = arguments.out or folder / f"{name}.json"
    return run(arguments.only or BENCHES, options, path, old)


def run(names: Sequence[str], options: suite.Options, path: Path, old: suite.Results | None) -> int:
    """Runs benches one after another; returns the exit status."""
    broken = []
    for name in names:
        suite.console.rule(f"[bold]{name}")
        try:
            suite.measure(name, importlib.import_module(name).run, options, path)
        except Exception:
            suite.console.print_exception()
            broken.append(name)
    results = suite.load(path) if path.exists() else {}
    measured = {name: results[name] for name in names if name in results and name not in broken}
    suite.console.rule()
    draw_charts(measured, path)
    on_gpu = options.device.type == "cuda"
    title = "Predictions for a GPU" + ("" if on_gpu else ": PREDICTED, nothing of it measured")
    table = predictions.table(measured if on_gpu else {})
    suite.print_table(title, predictions.HEADER, table)
    if old is not None:
        compare.print_comparison(old, measured)
    if broken:
        suite.console.print(f"broken: {', '.join(broken)}")
    return 1 if broken else 0


def draw_charts(results: suite.Results, path: Path) -> None:
    """Beside the file that the results are in; of those that are kept, where docs/speed.md is."""
    try:
        import charts
    except ModuleNotFoundError as missing:
        suite.console.print(f"no charts: {missing.name} is missing")
        return
    folder = speed.CHARTS if path.parent == speed.RESULTS else path.parent
    for chart in charts.draw(results, folder, path.stem):
        suite.console.print(f"chart: {chart}", soft_wrap=True)


def draw_headline() -> None:
    """The README's chart."""
    import charts

    charts.headline(suite.load(speed.RESULTS / "cpu.json")).savefig(readme.CHART)


if __name__ == "__main__":
    sys.exit(main())
