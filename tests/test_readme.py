"""The README's examples run as they stand, one after another, and its commands exist."""

import re
from pathlib import Path

import readme
import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_examples_run_and_the_first_trains_towards_the_data():
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(code, scope)
    mean = scope["samples"].mean(0)
    assert scope["samples"].shape == (1000, 2)
    assert (mean - torch.tensor([1.0, -1.0])).abs().max() < 0.7  # untrained: (0, 0) and wide
    assert scope["samples"].std(0).max() < 1.2


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make ([\w-]+)", README, re.M))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_speeds_are_those_of_the_results():
    assert README.count(readme.BEGIN) == README.count(readme.END) == 1
    written = README.split(readme.BEGIN)[1].split(readme.END)[0]
    assert written == readme.section(), "make readme"
