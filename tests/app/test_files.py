"""Files of the application: whole or as they were, never through a link; a folder for one run."""

import ast
import json
import math
import os
import resource
import stat
from pathlib import Path

import pytest
from test_training import SMALL

from fastebm.app import files, fit
from fastebm.app.training import Trainer

APP = Path(files.__file__).parent


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("failed"),
                                   KeyboardInterrupt()])  # fmt: skip
def test_a_file_is_the_old_one_or_the_whole_new_one(tmp_path, error):
    path = tmp_path / "x"
    files.write(path, lambda file: file.write(b"old"))

    def half(file):
        file.write(b"half")
        raise error

    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError
    with pytest.raises(kind) as raised:
        files.write(path, half)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["x"]
    if kind is OSError:
        assert str(raised.value) in (f"cannot write {path}: {text}" for text in
                                     ("No space left", "failed"))  # fmt: skip
    files.write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and names(tmp_path) == ["x"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_checkpoint_beyond_the_limit_of_a_file(tmp_path):
    path, trainer = tmp_path / "c.pt", Trainer(SMALL)
    trainer.save(path)
    old, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*c\.pt: .+") as raised:
            trainer.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == old and names(tmp_path) == ["c.pt"]


def test_no_link_is_followed(tmp_path, monkeypatch):
    victim, path = tmp_path / "victim", tmp_path / "x"
    victim.write_text("mine")
    path.symlink_to(victim)
    files.write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and not path.is_symlink()
    assert victim.read_text() == "mine"
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    (tmp_path / "x.00000000.part").symlink_to(victim)  # somebody who guessed the name
    with pytest.raises(OSError, match="File exists"):
        files.write(path, lambda file: file.write(b"newer"))
    assert victim.read_text() == "mine" and path.read_bytes() == b"new"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    files.check(path)
    files.write(path, lambda file: file.write(b"new"))
    assert os.read(reader, 10) == b"new" and stat.S_ISFIFO(path.stat().st_mode)
    os.close(reader)


def test_what_cannot_be_written_is_known_before(tmp_path):
    files.check(tmp_path / ("long" * 60))
    assert names(tmp_path) == []
    for path in (tmp_path / "no" / "x", tmp_path):
        with pytest.raises(OSError, match="cannot write"):
            files.check(path)


def test_json_has_null_for_what_is_not_finite(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": (1.5, math.nan), "b": [{"c": -math.inf}]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1.5, None], "b": [{"c": None}]}


def test_there_is_one_writer():
    """No module makes a file but through `files`; metrics are appended to."""
    ways = ("write_text", "write_bytes", "savefig", "save", "savez", "savez_compressed")
    for path in set(APP.rglob("*.py")) - {APP / "files.py"}:
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        through = [n for n in nodes if ast.unparse(n.func) == "files.write"]
        inside = {inner for n in through for inner in ast.walk(n)}
        for node in nodes:
            name = ast.unparse(node.func)
            if name.rpartition(".")[2] in ways and name != "trainer.save":
                assert node in inside, f"{path}: {ast.unparse(node)}"


def test_a_folder_is_held_by_one_run(tmp_path):
    second = fit.hold(tmp_path, resume=True)
    with fit.hold(tmp_path), pytest.raises(OSError, match="in use by another run"), second:
        pass
    part = tmp_path / f"{fit.CHECKPOINT}.0123abcd.part"  # of a run that was killed, its lock too
    part.touch()
    (tmp_path / "my.part").touch()
    (tmp_path / ".lock").touch()
    with fit.hold(tmp_path):
        assert names(tmp_path) == [".lock", "my.part"]
    assert names(tmp_path) == ["my.part"]


def test_a_lock_that_its_holder_removes_is_made_anew(tmp_path, monkeypatch):
    open_, lock = os.open, tmp_path / files.LOCK

    def slow(*arguments):
        found = open_(*arguments)
        if calls.append(found) or len(calls) == 1:
            lock.unlink()  # the other run ends between the two calls
        return found

    calls = []
    monkeypatch.setattr(files.os, "open", slow)
    with files.held(tmp_path):
        monkeypatch.undo()
        assert len(calls) == 2 and lock.exists()
        with pytest.raises(OSError, match="in use"), files.held(tmp_path):
            pass


def test_metrics_are_cut_beside_the_file(tmp_path, monkeypatch):
    path = tmp_path / fit.METRICS
    path.write_text('{"step": 1}\n{"step": 2}\n[3]\n')
    old = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            fit.MetricsLog(tmp_path, 1)
    assert path.read_bytes() == old and names(tmp_path) == [fit.METRICS]
    fit.MetricsLog(tmp_path, 1).close()
    assert path.read_text() == '{"step": 1}\n'
