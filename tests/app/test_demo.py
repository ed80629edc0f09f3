"""The demo runs through in its quick form, and its sentences follow the numbers."""

import json

import pytest

from fastebm.app.cli import app
from fastebm.app.demo_report import verdicts

GOOD = {"runs": 3, "diverged": 0, "diverged_at": [], "modes": 8, "on_mode": 0.9, "kl": 0.1,
        "mode_changes": 0.2}  # fmt: skip
DEAD = {"runs": 3, "diverged": 3, "diverged_at": [180, 190, 200], "modes": 0, "on_mode": 0.0,
        "kl": 2500.0, "mode_changes": 0.5}  # fmt: skip
LOST = GOOD | {"modes": 0, "on_mode": 0.01, "kl": 1.9}


def test_quick_demo_writes_everything(tmp_path):
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["demo", "--quick", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    for name in ("energy", "samples", "energy_gap", "loss_terms", "chain_energy"):
        assert (tmp_path / f"ring_{name}.png").stat().st_size > 10_000
    for name in ("samples", "training", "loss_terms"):
        assert (tmp_path / f"digits_{name}.png").stat().st_size > 10_000
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["ring"]["methods"]) == [
        "CD", "CD + L2 0.01", "CD + L2 0.1", "ICD", "ICD + L2 0.1", "auto",
    ]  # fmt: skip
    for row in metrics["ring"]["methods"].values():
        assert {"diverged", "modes", "on_mode", "kl", "mmd2", "seconds"} <= set(row)
    digits = metrics["digits"]["methods"]["ICD + L2 0.1"]
    assert digits["floor"]["precision"] > 0.9 and 0 <= digits["quality"]["recall"] <= 1
    assert "mean nothing" in result.output and "real digits" in result.output


def table(**rows):
    names = {"cd": "CD", "low": "CD + L2 0.01", "good": "CD + L2 0.1", "icd": "ICD"}
    names |= {"both": "ICD + L2 0.1", "auto": "auto"}
    rows = {"auto": GOOD | {"kl": 0.02}} | rows
    return {name: rows[k] for k, name in names.items()}


def test_sentences_of_the_expected_result():
    icd, both = GOOD | {"kl": 0.7, "mode_changes": 0.09}, GOOD | {"kl": 0.04}
    text = " ".join(verdicts(table(cd=DEAD, low=LOST, good=GOOD, icd=icd, both=both)))
    for part in ("explodes at this step size: 3 of 3", "well-tuned energy penalty also prevents",
                 "badly tuned", "ICD prevents it", "best density",
                 "auto has a density 2 times as near",
                 "disagree (KL 0.7), its chains change mode more rarely: 9%"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    "change, gone",
    [
        ({"cd": GOOD}, "explodes"),
        ({"cd": GOOD}, "prevents"),
        ({"cd": DEAD | {"diverged": 2, "diverged_at": [180, 200]}}, "explodes"),
        ({"good": LOST}, "well-tuned"),
        ({"low": GOOD}, "badly tuned"),
        ({"icd": DEAD}, "ICD prevents"),
        ({"icd": LOST}, "ICD prevents"),
        ({"both": GOOD | {"kl": 0.2}}, "best density"),
        ({"both": LOST | {"kl": 0.01}}, "best density"),
        ({"auto": GOOD | {"kl": 0.05}}, "auto has"),
        ({"auto": LOST | {"kl": 0.01}}, "auto has"),
        ({"icd": GOOD | {"kl": 0.2}}, "disagree"),
        ({"icd": GOOD | {"kl": 0.7, "mode_changes": 0.3}}, "change mode"),
    ],
)
def test_no_sentence_without_its_numbers(change, gone):
    rows = {"cd": DEAD, "low": LOST, "good": GOOD, "icd": GOOD | {"kl": 0.7, "mode_changes": 0.09},
            "both": GOOD | {"kl": 0.04}}  # fmt: skip
    assert gone in " ".join(verdicts(table(**rows)))
    assert gone not in " ".join(verdicts(table(**rows | change)))
