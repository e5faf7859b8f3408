"""One way to write files: the older one or the newer one, whatever happens in between."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ortholora import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def folder_with(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "content").write_text(text)
    return path


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    def write(stream):
        stream.write(b"half of")
        raise error

    files.write_text(tmp_path / "a", "old")
    with pytest.raises(type(error)):
        files.replace_file(tmp_path / "a", write)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    assert getattr(error, "filename", str(tmp_path / "a")) == str(tmp_path / "a")  # which the system does not say


def test_a_piece_is_not_put_after_bytes_that_somebody_removed(tmp_path: Path) -> None:
    """The system would fill the gap with zeros."""
    path = tmp_path / "a"
    assert files.append_piece(path, 0, b"one") == 3
    path.write_bytes(b"one, and what a kill left")
    assert files.append_piece(path, 3, b"two") == 6
    assert path.read_bytes() == b"onetwo"
    path.unlink()
    with pytest.raises(OSError, match="0 bytes, of 6 that were written"):
        files.append_piece(path, 6, b"three")


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    started = subprocess.Popen([sys.executable, "-c", ""])
    started.wait()
    ours = f".a.{files._HERE}-"
    for name in (f"{ours}{started.pid}.tmp", f"{ours}{os.getppid()}.tmp", f".a.elsewhere-{started.pid}.tmp", ".b.tmp"):
        (tmp_path / name).write_text("half of")
    files.write_text(tmp_path / "a", "new")
    assert names(tmp_path) == sorted(["a", f"{ours}{os.getppid()}.tmp", f".a.elsewhere-{started.pid}.tmp", ".b.tmp"])


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("flush"), flush(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("name"), replace(*paths))[1])
    files.write_json(tmp_path / "a.json", {})
    assert done == ["flush", "name"]
    done.clear()
    with files.stage(tmp_path) as staged:
        folder_with(staged / "inner", "deep")
        (staged / "b").write_text("flat")
        files.publish_files(staged, tmp_path)
    assert done == ["flush"] * 4 + ["name"] * 2  # two files and two folders


def test_json_is_plain(tmp_path: Path) -> None:
    value = {1: np.float32(0.5), "b": np.array([1, 2]), "c": (math.nan, -math.inf), "d": Path("x"), "é": None}
    files.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"1": 0.5, "b": [1, 2], "c": [None, None], "d": "x", "é": None}
    assert "é" in text
    assert text.endswith("}\n")
    with pytest.raises(TypeError, match="set is not plain data"):
        files.write_json(tmp_path / "a.json", {"a": {1}})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text


def test_a_stage_is_gone_afterwards_and_starts_empty(tmp_path: Path) -> None:
    folder_with(tmp_path / files.STAGING, "left by a kill")
    found = []

    def fail(staged: Path) -> None:
        found.append(names(staged))
        (staged / "a").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), files.stage(tmp_path) as staged:
        fail(staged)
    assert found == [[]]
    assert names(tmp_path) == []


def test_a_folder_replaces_an_older_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with files.stage(tmp_path) as staged:
            files.publish_folder(folder_with(staged / "a", text), tmp_path / "a")
        assert names(tmp_path) == ["a"]
        assert (tmp_path / "a" / "content").read_text() == text


def test_a_folder_that_cannot_be_moved_leaves_the_older_one(tmp_path: Path) -> None:
    folder_with(tmp_path / "a", "old")
    with pytest.raises(FileNotFoundError):
        files.publish_folder(tmp_path / "missing", tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "content").read_text() == "old"


@pytest.mark.parametrize("newer", [False, True])
def test_what_a_crash_left_aside(tmp_path: Path, newer: bool) -> None:
    """Between the two renames the older folder comes back; after them it goes."""
    folder_with(tmp_path / "a.old", "old")
    if newer:
        folder_with(tmp_path / "a", "new")
    files.put_back(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "content").read_text() == ("new" if newer else "old")


def test_a_folder_goes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_with(tmp_path / "a", "old")
    monkeypatch.setattr(files.shutil, "rmtree", lambda *args, **kwargs: None)  # killed while it deletes
    files.remove_folder(tmp_path / "a")
    monkeypatch.undo()
    assert names(tmp_path) == [files.STAGING]
    with files.stage(tmp_path):
        pass
    assert names(tmp_path) == []


def test_it_needs_no_numpy_to_write_text() -> None:
    import subprocess
    import sys

    code = "import sys, ortholora.files; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("publish", [files.publish_files, files.publish_folder])
def test_what_is_published_can_be_read_by_whoever_may_read_its_folder(tmp_path: Path, publish) -> None:
    with files.stage(tmp_path) as staged:
        (staged / "own.safetensors").write_bytes(b"1")
        (staged / "own.safetensors").chmod(0o600)
        staged.chmod(0o755)
        target = tmp_path / "target"
        if publish is files.publish_files:
            target.mkdir()
        publish(staged, target)
    assert (target / "own.safetensors").stat().st_mode & 0o777 == 0o644
