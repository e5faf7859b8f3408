"""A run's folder: whose it is, what is refused, and how a damaged file of it is mended without losing anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stopping import StopAt, weights

import workspaces
from ortholora.errors import UserError
from ortholora.runs.folder import CONFIG_FILE, RUN_FILE, check_claim, claim, data_base, disclaim, load_settings
from ortholora.runs.progress import Silent
from ortholora.runs.record import RESULT_FILE
from ortholora.runs.run import Run
from ortholora.runs.train import check_folder, ensure_record
from ortholora.runs.workspace import Workspace
from workspaces import JOINT, ORTHO, TASKS

#: What a crash, a full disk or a careless hand may leave of `run.json`.
DAMAGED: dict[str, Any] = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "no JSON": lambda text: "fingerprint: 1",
    "no object": lambda text: "[]",
    "no key": lambda text: "{}",
    "wrong type of the fingerprint": lambda text: json.dumps({**json.loads(text), "fingerprint": 5}),
    "wrong type of the jobs": lambda text: json.dumps({**json.loads(text), "jobs": True}),
    "wrong type of the folder": lambda text: json.dumps({**json.loads(text), "data_base": []}),
}


def spoil(path: Path, how: str) -> None:
    path.write_text(DAMAGED[how](path.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.mark.parametrize("how", list(DAMAGED))
def test_a_damaged_run_file_is_named_and_can_be_deleted(stopped: Run, space: Workspace, whole: Path, how: str) -> None:
    """The way out that the message gives keeps the checkpoint, and ends with the bytes of an undisturbed run."""
    path = stopped.folder / RUN_FILE
    before = json.loads(path.read_text(encoding="utf-8"))
    spoil(path, how)
    damaged = path.read_bytes()
    for check in (check_folder, check_claim, claim):
        with pytest.raises(UserError) as caught:
            check(stopped, space)
        assert caught.value.what == f"{path} is damaged"
        assert caught.value.todo.startswith(f"delete only {path}, and start the same")
        assert "settings" not in caught.value.found
    with pytest.raises(UserError, match="is damaged"):
        data_base(stopped.folder)
    assert path.read_bytes() == damaged
    path.unlink()
    progress = StopAt(99)
    ensure_record(stopped, space, progress, Path(before["data_base"]))
    assert progress.began == 3
    assert weights(stopped.folder) == weights(whole)
    assert json.loads(path.read_text(encoding="utf-8")) == before


def test_a_damaged_run_file_of_a_finished_run(whole: Path, space: Workspace, tmp_path: Path) -> None:
    run = Run(ORTHO, TASKS, 0, Path(shutil.copytree(whole, tmp_path / "run")))
    before = (run.folder / RUN_FILE).read_text(encoding="utf-8")
    spoil(run.folder / RUN_FILE, "truncated")
    with pytest.raises(UserError, match="is damaged"):
        check_folder(run, space)
    (run.folder / RUN_FILE).unlink()
    check_folder(run, space)
    ensure_record(run, space, Silent(), whole)
    assert (run.folder / RUN_FILE).read_text(encoding="utf-8") == before
    assert (run.folder / RESULT_FILE).read_bytes() == (whole / RESULT_FILE).read_bytes()


def test_a_damaged_run_file_with_nothing_to_lose_is_written_anew(space: Workspace, tmp_path: Path) -> None:
    run = Run(ORTHO, TASKS, 0, tmp_path)
    claim(run, space)
    before = (tmp_path / RUN_FILE).read_bytes()
    spoil(tmp_path / RUN_FILE, "truncated")
    check_folder(run, space)
    claim(run, space)
    assert (tmp_path / RUN_FILE).read_bytes() == before


def test_without_its_run_file_a_checkpoint_is_held_to_the_settings_beside_it(stopped: Run, space: Workspace) -> None:
    (stopped.folder / RUN_FILE).unlink()
    other = Run(JOINT, TASKS, 1, stopped.folder)
    with pytest.raises(UserError) as caught:
        claim(other, space)
    assert "seed = 0 there, 1 here" in caught.value.found
    assert not (stopped.folder / RUN_FILE).exists()


def test_both_files_damaged(stopped: Run, space: Workspace, whole: Path) -> None:
    """A loss of power that took what was written last, before files were flushed."""
    path = stopped.folder / CONFIG_FILE
    spoil(stopped.folder / RUN_FILE, "empty")
    path.write_text("tasks: [", encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        check_folder(stopped, space)
    (stopped.folder / RUN_FILE).unlink()
    with pytest.raises(UserError) as caught:
        check_folder(stopped, space)
    assert caught.value.what == f"{path} is damaged"
    assert caught.value.todo.startswith(f"delete only {path}")
    path.unlink()
    ensure_record(stopped, space, Silent(), None)
    assert weights(stopped.folder) == weights(whole)


def test_a_damaged_result_is_mended_from_the_last_checkpoint(whole: Path, space: Workspace, tmp_path: Path) -> None:
    run = Run(ORTHO, TASKS, 0, Path(shutil.copytree(whole, tmp_path / "run")))
    for name in ("predictions.npz", RESULT_FILE):
        (run.folder / name).write_bytes((run.folder / name).read_bytes()[:50])
        with pytest.raises(UserError) as caught:
            ensure_record(run, space, Silent(), None)
        assert str(run.folder / name) in caught.value.what
        assert caught.value.todo.startswith(f"delete only {run.folder / RESULT_FILE} ")
    (run.folder / RESULT_FILE).unlink()
    progress = StopAt(99)
    record = ensure_record(run, space, progress, None)
    assert progress.began == 6
    assert weights(run.folder) == weights(whole)
    assert record.metrics == json.loads((whole / RESULT_FILE).read_text(encoding="utf-8"))["metrics"]


def test_a_checkpoint_that_a_crash_left_aside_is_gone_on_from(stopped: Run, space: Workspace, whole: Path) -> None:
    (saved,) = stopped.checkpoints.iterdir()
    saved.rename(saved.with_name(saved.name + ".old"))
    with pytest.raises(UserError, match="holds a run with other settings"):
        claim(Run(JOINT, TASKS, 0, stopped.folder), space)
    progress = StopAt(99)
    ensure_record(stopped, space, progress, None)
    assert progress.began == 3
    assert weights(stopped.folder) == weights(whole)
    assert not list(stopped.folder.rglob("*.old"))


def test_other_settings_are_named_and_nobody_is_told_to_delete_a_checkpoint(stopped: Run, space: Workspace) -> None:
    other = workspaces.workspace(lora={"dropout": 0.1})
    for broken in (False, True):
        if broken:
            (stopped.folder / CONFIG_FILE).write_text("tasks: [", encoding="utf-8")
        with pytest.raises(UserError) as caught:
            claim(stopped, other)
        assert caught.value.what == f"{stopped.folder} holds a run with other settings or other data"
        assert ("lora.dropout = 0.2 there, 0.1 here" in caught.value.found) != broken
        assert "--out" in caught.value.todo
        assert "delete" not in caught.value.todo
    assert claim(stopped, space) == 1


def test_a_claim_keeps_the_most_jobs_of_any_sitting(space: Workspace, tmp_path: Path) -> None:
    run = Run(ORTHO, TASKS, 0, tmp_path)
    assert [claim(run, space, None, jobs) for jobs in (1, 3, 2)] == [1, 3, 3]
    assert json.loads((tmp_path / RUN_FILE).read_text(encoding="utf-8"))["jobs"] == 3


def test_a_check_writes_nothing_and_a_claim_can_be_taken_back(space: Workspace, tmp_path: Path) -> None:
    run = Run(ORTHO, TASKS, 0, tmp_path / "run")
    run.folder.mkdir()
    check_folder(run, space)
    assert not list(run.folder.iterdir())
    claim(run, space, tmp_path)
    assert set(json.loads((run.folder / RUN_FILE).read_text(encoding="utf-8"))) == {
        "fingerprint",
        "data_base",
        "config_lines",
    }
    assert data_base(run.folder) == tmp_path.resolve()
    disclaim(run.folder)
    assert not run.folder.exists()


def test_a_claim_with_work_stays(stopped: Run) -> None:
    disclaim(stopped.folder)
    assert (stopped.folder / RUN_FILE).is_file()


@pytest.mark.parametrize("name", ["adapter_config.json", "summary.json", "config.json"])
def test_files_of_somebody_else(space: Workspace, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name}, but no run.json"):
        check_folder(Run(ORTHO, TASKS, 0, tmp_path), space)


def test_a_file_is_no_folder(space: Workspace, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="is a file"):
        check_folder(Run(ORTHO, TASKS, 0, tmp_path / "run"), space)


def test_settings_that_are_cut_off_at_any_line_are_no_shorter_settings(tmp_path: Path) -> None:
    run = Run(ORTHO, TASKS, 0, tmp_path / "run", out=tmp_path)
    space = workspaces.workspace()
    claim(run, space)
    path = run.folder / CONFIG_FILE
    text = path.read_text(encoding="utf-8")
    assert load_settings(run.folder) == run.own_config(space.config)
    lines, shorter = text.splitlines(keepends=True), []
    for count in range(len(lines)):
        path.write_text("".join(lines[:count]), encoding="utf-8")
        with pytest.raises(UserError) as caught:
            load_settings(run.folder)
        if "its end is missing" in caught.value.found:
            shorter.append("".join(lines[:count]))
    assert len(shorter) > len(lines) // 4  # so many a reader of YAML alone would have taken
    path.write_text(text.rstrip("\n")[:-1], encoding="utf-8")
    with pytest.raises(UserError):
        load_settings(run.folder)
    # What somebody has changed inside of a line is no cut, and a run of an earlier version has no count.
    path.write_text(text.replace("seed:", "seed :"), encoding="utf-8")
    assert load_settings(run.folder) == run.own_config(space.config)
    path.write_text(shorter[0], encoding="utf-8")
    claimed = json.loads((run.folder / RUN_FILE).read_text(encoding="utf-8"))
    del claimed["config_lines"]
    (run.folder / RUN_FILE).write_text(json.dumps(claimed), encoding="utf-8")
    assert load_settings(run.folder) != run.own_config(space.config)
