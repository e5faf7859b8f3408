"""One finished and one stopped run for all tests of folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from stopping import StopAt

import workspaces
from ortholora.runs.progress import Silent, Stopped
from ortholora.runs.record import RESULT_FILE
from ortholora.runs.run import Run
from ortholora.runs.train import ensure_record
from ortholora.runs.workspace import Workspace
from workspaces import ORTHO, TASKS


@pytest.fixture(scope="session")
def space() -> Workspace:
    return workspaces.workspace(lora={"dropout": 0.2})


@pytest.fixture(scope="session")
def whole(space: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    ensure_record(Run(ORTHO, TASKS, 0, folder), space, Silent(), folder)
    return folder


@pytest.fixture(scope="session")
def cut(space: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after three of six steps; not to be changed."""
    folder = tmp_path_factory.mktemp("cut")
    with pytest.raises(Stopped):
        ensure_record(Run(ORTHO, TASKS, 0, folder), space, StopAt(3), folder)
    assert not (folder / RESULT_FILE).exists()
    return folder


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Run:
    """A copy of the finished run, for this test to spoil."""
    return Run(ORTHO, TASKS, 0, Path(shutil.copytree(whole, tmp_path / "run")))


@pytest.fixture
def stopped(cut: Path, tmp_path: Path) -> Run:
    """A copy of the stopped run, for this test to spoil."""
    return Run(ORTHO, TASKS, 0, Path(shutil.copytree(cut, tmp_path / "run")))
