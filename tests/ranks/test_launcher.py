"""What a launcher says, and what is done where there is none."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from ortholora.errors import LostProcessError, UserError
from ortholora.ranks import board, together
from ortholora.ranks.launcher import check_alone, index, launched
from ortholora.runs import alike
from ortholora.study.compare import compare
from workspaces import config


@pytest.mark.parametrize(("size", "expected"), [(None, 1), ("1", 1), ("3", 3), ("0", 1), ("x", 1), ("", 1)])
def test_how_many(size: str | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    if size is None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("WORLD_SIZE", size)
    assert launched() == expected
    assert index() == (2 if expected == 3 else 0)


def test_one_process_does_all_of_it_alone() -> None:
    together.join()
    assert (together.count(), together.rank()) == (1, 0)
    assert together.on_first(lambda: 5) == 5
    assert together.on_all(lambda: 5) == [5]
    assert (together.on_any(True), together.on_any(False)) == (True, False)
    assert board.may_speak()
    with pytest.raises(KeyError):
        together.on_all(lambda: {}["no"])


def test_a_launcher_that_says_too_little_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="no LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        together.join()


def test_studies_are_done_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_alone("compare")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="`compare` is done by one process"):
        compare(config(), [], tmp_path / "study")
    assert not (tmp_path / "study").exists()


def processes(monkeypatch: pytest.MonkeyPatch, others: tuple[str, bool]) -> None:
    """Three processes, of which the last says something else."""
    host = socket.gethostname()
    monkeypatch.setattr(alike, "count", lambda: 3)
    monkeypatch.setattr(alike, "on_all", lambda do: [do(), do(), (others[0], host, others[1])])


def test_a_folder_that_another_machine_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    path.touch()
    processes(monkeypatch, ("mark", True))
    alike.check_alike("mark", path)
    processes(monkeypatch, ("mark", False))
    with pytest.raises(UserError, match=r"is not the same folder on all machines(.|\n)*process 2 on"):
        alike.check_alike("mark", path)


def test_waiting_for_a_file_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike, "_PATIENCE", 0.1)
    began = time.monotonic()
    assert not alike._seen(tmp_path / "run.json")
    assert 0.1 < time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("Timed out waiting 1800000ms for recv operation to complete", "did not answer"),
        (
            "[gloo/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:1",
            "lost a process of another machine",
        ),
        ("size of tensor a (3) must match", None),
    ],
)
def test_what_a_failed_collective_means(error: str, message: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody of this machine is gone."""
    monkeypatch.setattr(board, "_LOOKING", 0.05)
    monkeypatch.setattr(board, "ended_elsewhere", lambda: None)
    monkeypatch.setattr(board, "_gone", list)
    found = board.why_lost(RuntimeError(error))
    if message is None:
        assert found is None
    else:
        assert isinstance(found, LostProcessError)
        assert message in str(found)
    monkeypatch.setattr(board, "ended_elsewhere", lambda: 130)
    assert board.why_lost(RuntimeError(error)) == 130
