"""A pickle runs whatever it names when it is loaded. Put in place of any file of a run, none is ever loaded."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ortholora.config.file import load_config
from ortholora.errors import UserError
from ortholora.models.loading import load_model
from ortholora.runs.folder import CONFIG_FILE
from ortholora.runs.progress import Silent
from ortholora.runs.run import Run
from ortholora.runs.train import check_folder, ensure_record
from ortholora.runs.workspace import Workspace
from ortholora.trainers.resumable import check_resumable
from ortholora.trainers.resume import STATE_FILE, read_state, write_state


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def plain(path: Path, evil: Evil) -> None:
    path.write_bytes(pickle.dumps(evil, protocol=2))  # which torch reads without a warning


def of_torch(path: Path, evil: Evil) -> None:
    torch.save({"state": evil}, path)


def of_old_torch(path: Path, evil: Evil) -> None:
    torch.save({"state": evil}, path, _use_new_zipfile_serialization=False)


def of_numpy(path: Path, evil: Evil) -> None:
    with path.open("wb") as stream:
        np.savez(stream, **{"topic/target": np.array([evil], dtype=object)})


KINDS: list[Callable[[Path, Evil], None]] = [plain, of_torch, of_old_torch, of_numpy]


@pytest.mark.parametrize("write", KINDS)
def test_the_payload_works(write: Callable[[Path, Evil], None], tmp_path: Path) -> None:
    """Else the tests below could not fail."""
    write(tmp_path / "file.npz", Evil(tmp_path / "mark"))
    if write is of_numpy:
        np.load(tmp_path / "file.npz", allow_pickle=True)["topic/target"]
    elif write is plain:
        pickle.loads((tmp_path / "file.npz").read_bytes())
    else:
        torch.load(tmp_path / "file.npz", weights_only=False)
    assert (tmp_path / "mark").is_dir()


def use(run: Run, space: Workspace) -> None:
    """All that reads a finished run."""
    load_config(run.folder / CONFIG_FILE)
    check_folder(run, space)
    load_model(run.folder)


#: What nothing reads back: for people, and what a Trainer writes for itself.
UNREAD = {"README.md", "training_args.bin", "dropped_rows.json"}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


@pytest.mark.parametrize("write", KINDS)
def test_no_file_of_a_finished_run_is_loaded_as_a_pickle(
    write: Callable[[Path, Evil], None], finished: Run, whole: Path, space: Workspace
) -> None:
    mark = finished.folder / "mark"
    names = files(whole)
    assert {"predictions.npz", "heads.safetensors", "adapter_model.safetensors", "config.yaml"} <= set(names)
    refused = set()
    for name in names:
        write(finished.folder / name, Evil(mark))
        try:
            use(finished, space)
        except UserError:
            refused.add(name)
        assert not mark.exists(), name
        shutil.copy(whole / name, finished.folder)
    use(finished, space)
    assert refused >= set(names) - UNREAD - {"conflicts.npz", "lock"}


@pytest.mark.parametrize("write", KINDS)
def test_no_file_of_a_checkpoint_is_loaded_as_a_pickle(
    write: Callable[[Path, Evil], None], stopped: Run, cut: Path, space: Workspace
) -> None:
    checkpoint, whole = stopped.checkpoints / "checkpoint-3", cut / "checkpoints" / "checkpoint-3"
    mark = stopped.folder / "mark"
    names = files(whole)
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", STATE_FILE, "adapter_model.safetensors"} <= set(names)
    for name in sorted(set(names) - UNREAD - {"ortholora.json", "adapter_config.json"}):
        write(checkpoint / name, Evil(mark))
        with pytest.raises(UserError):
            check_resumable(checkpoint)  # before a Trainer opens any of them
        assert not mark.exists(), name
        shutil.copy(whole / name, checkpoint)
    check_resumable(checkpoint)


def test_a_run_does_not_go_on_from_a_pickle(stopped: Run, space: Workspace) -> None:
    of_torch(stopped.checkpoints / "checkpoint-3" / "optimizer.pt", Evil(stopped.folder / "mark"))
    with pytest.raises(UserError, match=r"optimizer\.pt, which would run code \(`posix.mkdir`\)"):
        ensure_record(stopped, space, Silent(), None)
    assert not (stopped.folder / "mark").exists()


def test_what_no_training_goes_on_from_is_not_opened(stopped: Run, space: Workspace) -> None:
    mark = stopped.folder / "mark"
    checkpoint = stopped.checkpoints / "checkpoint-3"
    for name in set(files(checkpoint)) & (UNREAD | {"ortholora.json", "adapter_config.json"}):
        of_torch(checkpoint / name, Evil(mark))
    with suppress(UserError):
        ensure_record(stopped, space, Silent(), None)
    assert not mark.exists()


@pytest.mark.parametrize("write", [plain, of_torch, of_old_torch])
def test_the_state_of_any_trainer(write: Callable[[Path, Evil], None], tmp_path: Path) -> None:
    """Also of those that do not look at their checkpoints beforehand, such as TRL's."""
    write(tmp_path / STATE_FILE, Evil(tmp_path / "mark"))
    with pytest.raises(UserError, match="could run code"):
        read_state(tmp_path)
    assert not (tmp_path / "mark").exists()


def test_a_state_that_would_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    good = {"a": [1, None, "x", torch.ones(2)], ("b", 2): {"c": (1.5, {3}), "d": torch.float32}}
    write_state(tmp_path, good)
    assert str(read_state(tmp_path)) == str(good)
    write_state(tmp_path, {**good, "a": [np.int64(1), None, "x", torch.ones(2)]})
    assert str(read_state(tmp_path)) == str(good)
    for odd in (np.ones(2), Path("x"), len):
        with pytest.raises(UserError, match=r"cannot keep the state\['rule'\]"):
            write_state(tmp_path, {"rule": [odd]})
    assert str(read_state(tmp_path)) == str(good)
