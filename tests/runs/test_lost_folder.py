"""A run whose folder somebody removes, empties or takes over while it goes on ends at once, and takes nothing back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ortholora.errors import LostFolderError, UserError, file_error
from ortholora.runs.folder import CONFIG_FILE, RUN_FILE, check_kept
from ortholora.runs.lock import LOCK_FILE, Held, lock
from ortholora.runs.progress import Silent
from ortholora.runs.run import Run
from ortholora.runs.train import check_folder, ensure_record
from ortholora.runs.workspace import Workspace
from workspaces import ORTHO, TASKS


class Disturbed(Silent):
    """Does something to the folder after step 2, which is before a checkpoint, or when the run is finished."""

    def __init__(self, do: Callable[[], object], at_end: bool = False) -> None:
        self._do, self._at_end = do, at_end

    def step(self, done: int) -> None:
        if done == 2 and not self._at_end:
            self._do()

    def finish(self, label: str, metrics: dict[str, float]) -> None:
        if self._at_end:
            self._do()


def take_over(folder: Path) -> None:
    """Another command begins anew in the place of a folder that was removed."""
    shutil.rmtree(folder)
    folder.mkdir()
    for name in (RUN_FILE, CONFIG_FILE, LOCK_FILE):
        (folder / name).write_text("theirs", encoding="utf-8")


def empty(folder: Path) -> None:
    for name in (RUN_FILE, CONFIG_FILE):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("disturb", "at_end", "found", "left"),
    [
        (shutil.rmtree, False, "no such folder", None),
        (shutil.rmtree, True, "no such folder", None),
        (empty, False, f"no {RUN_FILE} and no {CONFIG_FILE}", {"checkpoints"}),
        (take_over, False, "another process has made", {RUN_FILE, CONFIG_FILE, LOCK_FILE}),
    ],
)
def test_a_folder_that_is_lost(
    space: Workspace, tmp_path: Path, disturb: Callable[[Path], None], at_end: bool, found: str, left: set[str] | None
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(LostFolderError) as caught:
        ensure_record(Run(ORTHO, TASKS, 0, folder), space, Disturbed(lambda: disturb(folder), at_end), None)
    assert found in caught.value.found
    if left is None:
        assert not folder.exists()
    else:
        assert {path.name for path in folder.iterdir()} == left
        assert not list(folder.glob("checkpoints/*"))


def test_a_lock_that_somebody_removed_is_no_loss(tmp_path: Path) -> None:
    for name in (RUN_FILE, CONFIG_FILE):
        (tmp_path / name).write_text("ours", encoding="utf-8")
    with lock(tmp_path) as held:
        check_kept(tmp_path, held)
        (tmp_path / LOCK_FILE).unlink()
        check_kept(tmp_path, held)
    check_kept(tmp_path, Held(tmp_path / LOCK_FILE, None))  # a file system without locks


def test_a_file_system_that_does_not_answer_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(path: Path, **_: object) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "stat", stale)
    check_kept(tmp_path, Held(tmp_path / LOCK_FILE, None))


def test_a_link_to_nowhere(space: Workspace, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    for folder in (tmp_path / "link", tmp_path / "link" / "run"):
        with pytest.raises(UserError, match="is a link to nowhere"):
            check_folder(Run(ORTHO, TASKS, 0, folder), space)
        with pytest.raises(FileExistsError) as caught:
            folder.mkdir(parents=True, exist_ok=True)
        assert "a symbolic link to nowhere, which does not exist" in str(file_error(caught.value))
    assert not (tmp_path / "nowhere").exists()
