"""What commands print: any name as it is; and options that make no sense, in one line."""

import io
import itertools

import numpy as np
import pytest
import torch
from rich.table import Table
from test_cli import QUICK, call

from fastebm.app import cli_eval, terminal
from fastebm.app.plotting.histograms import energy_histograms


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Checkpoints of the ring and of three machines of tiny pictures."""
    folder = tmp_path_factory.mktemp("terminal")
    np.save(folder / "bits.npy", (np.random.RandomState(0).rand(60, 1, 2, 2) < 0.5).astype("f4"))
    short = ["--batch-size", 10, "--steps", 1, "--hidden", 2, "--no-tensorboard", "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastebm.app.report.write", lambda *_: None)
        assert call("train", "ring", *QUICK, "--out", folder / "ring").exit_code == 0
        for energy, loss in (("rbm", "cd"), ("gaussian-rbm", "cd"), ("helmholtz", "wake-sleep")):
            result = call("train", folder / "bits.npy", "--energy", energy, "--loss", loss, *short,
                          "--out", folder / energy)  # fmt: skip
            assert result.exit_code == 0, result.output
    return {p.name: p / "checkpoint.pt" for p in folder.iterdir() if p.is_dir()}


def test_nothing_printed_is_markup():
    name = "[/b] [red]x[/red] :smile: \x1b[31m \udcff"
    out = io.StringIO()
    console = terminal.PlainConsole(file=out, width=200)
    table = Table(name, title=name, caption=name)
    table.add_row(name)
    console.print(name + "\n", table, soft_wrap=True)
    assert out.getvalue().count(r"[/b] [red]x[/red] :smile: \x1b[31m \udcff") == 5


@pytest.mark.parametrize("name", ["[/b]", "[red]x", ":x:", "new\nline", "\x1b[31m", "a\udcff"])
def test_names_of_files_are_shown_as_they_are(runs, tmp_path, name):
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    result = call("train", tmp_path / f"{name}.npy")
    assert result.stderr == f"error: {tmp_path}/{shown}.npy: no such file\n"
    out = tmp_path / f"{name}.npz"
    out.parent.mkdir(exist_ok=True)
    result = call("sample", runs["ring"], "--n", 2, "--steps", 1, "--out", out)
    assert result.exit_code == 0, result.output
    where = str(out).replace(name, name if name == "new\nline" else shown)
    assert where in result.output


def test_a_run_on_a_file_with_markup_in_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("fastebm.app.report.write", lambda *_: None)
    path, out = tmp_path / "[/b].npy", tmp_path / "[red]x"
    path.parent.mkdir()  # "[", so that the tag is across a slash
    np.save(path, np.random.RandomState(0).randn(100, 2))
    result = call("train", path, *QUICK[2:], "--out", out)
    assert result.exit_code == 0, result.output
    shown = result.output.replace("\n", "")
    assert f"{path}: 80 samples" in shown and f"checkpoint: {out}/checkpoint.pt" in shown


def test_sets_with_names_that_matplotlib_or_rich_would_read(runs, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        cli_eval.ood_detection.files, "write_figure", lambda p, f: figures.append(f)
    )
    names = ["$x^", "_low", "[red]r"]
    for name in names:
        np.save(tmp_path / f"{name}.npy", np.random.RandomState(0).rand(50, 2))
    sets = itertools.chain(*(("--out", tmp_path / f"{name}.npy") for name in names))
    result = call("ood", "--checkpoint", runs["ring"], *sets, "--bootstrap", 2, "--dir", tmp_path)
    assert result.exit_code == 0 and all(name in result.output for name in names), result.output
    texts = figures[0].axes[0].get_legend().get_texts()
    assert [t.get_text().rpartition(": ")[2] for t in texts] == ["ring", *names]


def test_a_legend_shows_dollars():
    figure = energy_histograms({r"$\nothing$": np.arange(9.0)})
    figure.savefig(io.BytesIO())  # as mathematics this could not be drawn
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == r"$\nothing$"


ONE_LINE = {
    "sample": {
        "n": [-1, 0, 10**22], "steps": [-1, 0, 10**22], "rounds": [-1, 10**22],
        "steps-per-round": [-1, 0, 10**22], "seed": [-1, 2**63], "device": ["meta", "abacus"],
        "out": ["x.csv", "no/x.npz", ""], "png": ["x.nope", "x", "no/x.png"],
        "augment": ["no", "digits"],
    },
    "evaluate": {
        "n": [-1, 0, 9, 5001, 10**22], "long-steps": [-1, 0, 10**22], "seed": [-1, 2**63],
        "features": ["no", "classifier"], "out": ["no/x.json", "."], "device": ["meta"],
        "chains": [-1, 5001, 10**22], "draws": [-1, 0, 9, 10**22],
    },
    "ood": {
        "bootstrap": [-1, 0, 1, 10**22], "seed": [-1, 2**63], "in": ["no", ""], "out": ["no", ""],
        "device": ["meta"],
    },
    "likelihood": {
        "betas": ["-1", "0", "1.5", "x", 10**22, "9" * 5000, "²"], "n-chains": [-1, 0, 1, 10**22],
        "confidence": [-1, 0, 1, "nan", "inf", 1e300], "n-importance": [-1, 0, 10**22],
        "base": ["no", ""], "reverse": [-1, 1, 10**22], "samples": [-1, 0, 10**22],
        "seed": [-1, 2**63], "data": ["no", ""], "out": ["no/x.json", "."], "device": ["meta"],
    },
}  # fmt: skip
CASES = [(c, o, v) for c, options in ONE_LINE.items() for o, vs in options.items() for v in vs]


@pytest.mark.parametrize("command", ONE_LINE)
def test_options_out_of_range(runs, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    needed = {"ood": ["--out", "noise"], "sample": ["--out", "x.npz"]}.get(command, [])
    for name, value in ((o, v) for c, o, v in CASES if c == command):
        for kind in runs if name in ("reverse", "betas") else ["ring"]:
            option = [] if command in ("sample", "evaluate") else ["--checkpoint"]
            more = needed if name not in ("out", "png") else []
            result = call(command, *option, runs[kind], *more, f"--{name}={value}")
            case = f"{kind} {name}={value}: {result.output} {result.exception!r}"
            assert result.exit_code == 2 and isinstance(result.exception, SystemExit), case
            assert len(result.stderr.splitlines()) == 1, case
            assert result.stderr.startswith("error: "), case
    assert list(tmp_path.iterdir()) == []


def test_every_kind_of_device(monkeypatch):
    kinds = torch.randn(1).device.type, "meta", "mps", "xla", "hpu", "xpu", "cpu:99", "cuda:99", ""
    for kind in kinds:
        try:
            device = terminal.usable_device(kind)
        except terminal.ConfigError as error:
            assert f"device {kind!r} cannot be used" in str(error) and "\n" not in str(error)
            assert kind != "cpu"
        else:
            assert torch.zeros(2, device=device).sum().item() == 0


NO_MEMORY = {
    "numpy's": MemoryError("Unable to allocate 9 TiB"),
    "torch's": RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: no memory"),
}


@pytest.mark.parametrize("whose", NO_MEMORY)
def test_no_memory_is_one_line(runs, tmp_path, monkeypatch, whose):
    def fail(*_):
        raise NO_MEMORY[whose]

    monkeypatch.setattr(cli_eval, "generate", fail)
    result = call("sample", runs["ring"], "--out", tmp_path / "x.npz")
    assert result.exit_code == 2 and result.stderr.startswith("error: not enough memory: ")
    assert len(result.stderr.splitlines()) == 1
