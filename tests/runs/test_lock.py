"""The lock of a run's folder: one holder, and none once its process is gone."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time

import pytest

from ortholora.errors import UserError
from ortholora.runs import lock as module
from ortholora.runs.lock import LOCK_FILE, check_unlocked, lock

#: A process that holds a lock until it is killed; loads the module alone, without torch.
HOLDER = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with module.lock(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.1)


def test_the_second_is_told_who_holds_it(tmp_path):
    folder = tmp_path / "new" / "run"
    with lock(folder):
        with pytest.raises(UserError) as caught, lock(folder):
            pass
        with pytest.raises(UserError):
            check_unlocked(folder)
    assert str(folder) in caught.value.what
    assert f"process {os.getpid()} on " in caught.value.found
    assert not folder.exists()
    check_unlocked(folder)
    with lock(folder):
        pass


def test_other_folders_are_free(tmp_path):
    with lock(tmp_path / "a"), lock(tmp_path / "b"):
        pass


def test_a_failure_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path):
        1 / 0  # noqa: B018
    check_unlocked(tmp_path)


def test_a_killed_holder_holds_nothing(tmp_path):
    command = [sys.executable, "-c", HOLDER, module.__file__, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=f"process {holder.pid} on "):
                check_unlocked(tmp_path)
        finally:
            holder.kill()
    assert (tmp_path / LOCK_FILE).exists()
    check_unlocked(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_short_look_of_another_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 30.0)
    order = []

    def hold():
        with lock(tmp_path):
            held.set()
            time.sleep(0.2)
            order.append("first")

    held = threading.Event()
    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    with lock(tmp_path):
        order.append("second")
        assert (tmp_path / LOCK_FILE).exists()
    other.join()
    assert order == ["first", "second"]


def test_a_file_that_was_removed_meanwhile_is_not_the_lock(tmp_path, monkeypatch):
    take, taken = module._lock, []

    def late(descriptor):
        if not taken:
            (tmp_path / LOCK_FILE).unlink()  # by the holder before, between our opening and our locking
        taken.append(descriptor)
        take(descriptor)

    monkeypatch.setattr(module, "_lock", late)
    with lock(tmp_path):
        assert len(taken) == 2
        with pytest.raises(UserError):
            check_unlocked(tmp_path)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def none(descriptor):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(module, "_lock", none)
    with pytest.warns(UserWarning, match="no locks"), lock(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_anything_else_is_an_error(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(module, "_lock", broken)
    with pytest.raises(OSError, match="Input/output"), lock(tmp_path):
        pass


def test_a_folder_that_stayed_empty_is_removed_again(tmp_path):
    with lock(tmp_path / "refused"):
        pass
    assert not (tmp_path / "refused").exists()
    with lock(tmp_path / "done"):
        (tmp_path / "done" / "file").touch()
    (tmp_path / "mine").mkdir()
    with lock(tmp_path / "mine"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done", "mine"]
