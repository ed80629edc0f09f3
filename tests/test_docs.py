"""README and docs: their examples run, their commands, paths and names exist, their figures are
those of the results. Whether the pages fit together is what `make docs` finds."""

import importlib
import re
import runpy
import shlex
import sys
import time
from inspect import ismodule
from pathlib import Path

import pytest
import readme
import speed
import torch
from typer.main import get_command
from typer.testing import CliRunner

import fastebm
import fastebm.sklearn
from fastebm.app import cli, cli_train

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
before = list(sys.path)  # the script takes the checkout out of it
BENCH = runpy.run_path(str(ROOT / "bench" / "__main__.py"), run_name="bench")
sys.path[:] = before


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    assert {kind for kind, _ in found} <= {"", "python"}
    return [block for kind, block in found if kind == language]


def examples(text: str) -> dict:
    """What a page's examples leave, run one after another."""
    torch.manual_seed(0)
    scope: dict = {}
    for code in blocks(text, "python"):
        exec(code, scope)
    if "destroy_process_group" in text:  # gloo's threads end first, see test_standardized.py
        time.sleep(0.1)
    return scope


def commands(text: str) -> list[str]:
    """Lines of the blocks without a language, less comments, and commands within sentences."""
    lines = [line.split("#")[0] for block in blocks(text, "") for line in block.splitlines()]
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    return [" ".join(line.split()) for line in lines + inline]


def all_commands(start: str) -> list:
    found = {c for text in TEXTS.values() for c in commands(text) if c.startswith(start)}
    assert found, start
    return sorted(found)


@pytest.mark.parametrize("page", [p for p in TEXTS if "```python" in TEXTS[p]][1:])
def test_examples_run(page):
    examples(TEXTS[page])


def test_code_is_marked_as_such_or_it_would_not_run():
    for page, text in TEXTS.items():
        assert [block for block in blocks(text, "") if "fastebm." in block] == [], page


def test_the_readmes_example_trains_towards_the_data():
    samples = examples(TEXTS["README.md"])["samples"]
    assert samples.shape == (1000, 2)
    off = samples.mean(0) - torch.tensor([1.0, -1.0])
    assert off.abs().max() < 0.7  # untrained: (0, 0), and wide
    assert samples.std(0).max() < 1.2


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {command.split()[1] for command in all_commands("make ")}
    assert {"demo", "test", "docs"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
    listed = set(re.findall(r"^\| `make ([\w-]+)`", TEXTS["docs/contributing.md"], re.M))
    inner = {"torch", "tools"}  # parts of the others
    assert listed == set(re.findall(r"^([\w-]+):(?!=)", makefile, re.M)) - inner


@pytest.mark.parametrize("command", all_commands("fastebm "))
def test_fastebm_takes_these_arguments(command):
    _, name, *arguments = shlex.split(command)
    if name == "bench":
        BENCH["parser_of_arguments"]().parse_args(arguments)
        return
    command = get_command(cli.app).commands[name]
    if not arguments:  # named, not called
        return
    context = command.make_context(name, arguments)
    if name == "train" and context.params["resume"] is None:
        cli_train._config(context)  # the values of the settings, too


def test_benches_have_these_names():
    for command in all_commands("python -m bench"):
        arguments = command.replace("NAME", BENCH["BENCHES"][0]).split()[3:]
        BENCH["parser_of_arguments"]().parse_args(arguments)


def test_the_first_command_to_try_runs():
    assert "fastebm info" in all_commands("fastebm ")
    result = CliRunner().invoke(cli.app, ["info"])
    assert result.exit_code == 0 and torch.__version__ in result.output


def test_extras_exist():
    project = (ROOT / "pyproject.toml").read_text()
    extras = set(re.findall(r'"(?:\.|fastebm)\[(\w+)\]"', " ".join(all_commands("pip install"))))
    assert "app" in extras
    for extra in extras:
        assert re.search(rf"^{extra} = \[", project, re.M), extra
    (packages,) = re.findall(r"^docs = \[(.*)\]", project, re.M)
    assert packages.split(", ") == re.findall(r'"mkdocs[^"]*"', (ROOT / "Makefile").read_text())


@pytest.mark.parametrize("page", TEXTS)
def test_what_a_page_names_is_there(page):
    text, folder = TEXTS[page], (ROOT / page).parent
    for path in re.findall(r"(?<![\w/.-])(?:csrc|fastebm|tests|bench|docs|\.ci)/[\w./*-]*\w", text):
        assert list(ROOT.glob(path)), path
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert list((ROOT / "tests").rglob(name)), name
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", text):
        assert (folder / link).exists(), link


def thing_named(name):
    """A module, or what one holds; of a function and a module of one name the function."""
    parent, _, last = name.rpartition(".")
    above = thing_named(parent) if parent else None
    return getattr(above, last) if hasattr(above, last) else importlib.import_module(name)


def test_every_public_name_is_in_the_reference():
    named = {name for text in TEXTS.values() for name in re.findall(r"^::: (\S+)", text, re.M)}
    there = [thing_named(name) for name in sorted(named)]
    documented = fastebm.diagnostics, fastebm.distributed, fastebm.energies, fastebm.sklearn
    for module in (fastebm, *documented):
        public = (getattr(module, name) for name in module.__all__)
        assert [thing for thing in public if not ismodule(thing) and thing not in there] == []
    for module in ("ais", "diagnostics", "distributed", "energies", "ops", "sklearn"):
        assert any(name.startswith(f"fastebm.{module}.") for name in named), module
    for name, thing in zip(sorted(named), there, strict=True):
        assert not re.search(r"^ +[\w, ]+: >", thing.__doc__ or "", re.M), f"{name}: a quotation"


def test_figures_are_those_of_the_results():
    assert speed.PAGE.read_text() == speed.page(), "make readme"
    text = TEXTS["README.md"]
    assert text.count(readme.BEGIN) == text.count(readme.END) == 1
    assert text.split(readme.BEGIN)[1].split(readme.END)[0] == readme.headlines(), "make readme"


def test_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 160
