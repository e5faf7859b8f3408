"""What processes tell each other on the board: who speaks, who ended how, who is gone; and what they agree on."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ortholora.errors import LostProcessError, UserError
from ortholora.ranks import board, together


class Seat:
    """The three processes of a start, one after the other in this one, around a real store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store: Any = dist.HashStore()
        self._set = monkeypatch.setenv
        monkeypatch.setattr(board, "_board", lambda: self.store)
        monkeypatch.setattr(board, "_LOOKING", 0.05)
        monkeypatch.setattr(board, "_HEAD_START", 0.0)
        monkeypatch.setattr(board, "_WAITING", {True: 0.2, False: 0.05})
        self._set("WORLD_SIZE", "3")
        self.take(0)

    def take(self, rank: int) -> None:
        self._set("RANK", str(rank))


@pytest.fixture
def seat(monkeypatch: pytest.MonkeyPatch) -> Seat:
    return Seat(monkeypatch)


def test_one_of_them_speaks_and_the_first_is_ahead(seat: Seat, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(board, "_HEAD_START", 7.0)
    monkeypatch.setattr(board.time, "sleep", waited.append)
    found = []
    for rank in range(3):
        seat.take(rank)
        found.append(board.may_speak())
    assert found == [True, False, False]
    assert waited == [7.0, 7.0]


def test_one_alone_asks_nobody(seat: Seat, monkeypatch: pytest.MonkeyPatch) -> None:
    board.may_speak()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert board.may_speak()  # although one has spoken
    assert board.may_speak()


def test_where_the_store_is_gone_it_is_told_twice_rather_than_never(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> Any:
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(board, "_board", gone)
    assert board.may_speak()
    assert board.end(0) is False
    assert board.ended_elsewhere() is None
    assert board._gone() == []


def test_ends_are_waited_for(seat: Seat) -> None:
    assert board.end(0) is False  # nobody else came
    for rank in (1, 2):
        seat.take(rank)
        board.end(0, wait=False)
    seat.take(0)
    assert board.end(0) is True
    assert board.end(0, wait=False) is False  # not known


def test_how_long_an_end_is_waited_for(seat: Seat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long after all went well: others still write; not after a mistake, which they may never hear of."""
    waited: list[timedelta] = []
    asked: list[list[str]] = []

    def wait(keys: list[str], patience: timedelta) -> None:
        asked.append(keys)
        waited.append(patience)

    seat.store = SimpleNamespace(set=seat.store.set, wait=wait)
    assert board.end(0) is True
    assert board.end(2) is True
    assert waited == [timedelta(seconds=0.2), timedelta(seconds=0.05)]
    assert asked == [["end/0", "end/1", "end/2"]] * 2


def test_only_a_mistake_of_another_is_an_end_elsewhere(seat: Seat) -> None:
    board.end(2, wait=False)
    assert board.ended_elsewhere() is None  # its own
    seat.take(1)
    assert board.ended_elsewhere() == 2
    seat.take(2)
    board.end(0, wait=False)
    seat.take(0)
    assert board.ended_elsewhere() is None  # that one went well


def introduced(seat: Seat, rank: int, pid: int, host: str | None = None) -> None:
    seat.store.set(f"who/{rank}", json.dumps({"pid": pid, "host": host or socket.gethostname()}))


def dead() -> int:
    """The id of a process that is no more."""
    done = subprocess.Popen([sys.executable, "-S", "-c", ""])
    done.wait()
    return done.pid


def test_who_is_gone(seat: Seat) -> None:
    board.introduce()
    seat.take(1)
    assert board._gone() == []  # the first lives; of the third nothing is known
    gone = dead()
    introduced(seat, 2, gone)
    assert board._gone() == [f"rank 2 of 3 (process {gone} on {socket.gethostname()})"]
    seat.take(2)
    assert board._gone() == []  # nobody is gone to itself


def test_who_ended_with_a_word_is_not_gone(seat: Seat) -> None:
    introduced(seat, 1, dead())
    seat.store.set("end/1", "0")
    assert board._gone() == []


def test_a_process_of_another_machine_is_gone_where_that_machine_says_so(seat: Seat) -> None:
    """Its number may be anybody's here."""
    introduced(seat, 1, dead(), "elsewhere")
    assert board._gone() == []
    seat.store.set("gone/1", "")
    assert "rank 1 of 3" in board._gone()[0]
    assert "elsewhere" in board._gone()[0]


def test_a_loss_is_written_down_for_other_machines(seat: Seat) -> None:
    introduced(seat, 1, dead())
    board._gone()
    assert seat.store.check(["gone/1"])


def test_a_failed_collective_names_who_is_gone(seat: Seat) -> None:
    introduced(seat, 1, dead())
    introduced(seat, 2, os.getpid())
    found = board.why_lost(RuntimeError("any"))
    assert isinstance(found, LostProcessError)
    assert "lost rank 1 of 3" in str(found)
    seat.store.set("end/2", "130")
    assert board.why_lost(RuntimeError("any")) == 130  # one that says itself why


# ---- what is agreed on ---------------------------------------------------------------------------------------


def three(monkeypatch: pytest.MonkeyPatch, rank: int, others: list[Callable[[], Any]]) -> None:
    """This is one of three processes; the others do something else, and send it as they would."""

    def gather(into: list[Any], own: Any, group: Any = None) -> None:
        sent = [together._tried(other) for other in others]
        sent.insert(rank, own)
        into[:] = pickle.loads(pickle.dumps(sent))

    def broadcast(values: list[Any], src: int, group: Any = None) -> None:
        sent = values if rank == src else [together._tried(others[0])]
        values[:] = pickle.loads(pickle.dumps(sent))

    monkeypatch.setattr(together, "count", lambda: 3)
    monkeypatch.setattr(together, "rank", lambda: rank)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)


def fail(error: Exception) -> Callable[[], Any]:
    def do() -> Any:
        raise error

    return do


MISTAKE = UserError("Wrong", expected="a", found="b", todo="c")


def test_the_first_does_it_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    three(monkeypatch, 1, [lambda: "of the first", lambda: 0])
    assert together.on_first(fail(AssertionError("done by the second, too"))) == "of the first"
    three(monkeypatch, 0, [lambda: 1, lambda: 2])
    assert together.on_first(lambda: "of the first") == "of the first"


@pytest.mark.parametrize("error", [MISTAKE, OSError("full")])
def test_a_mistake_of_the_first_is_everybodys(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    three(monkeypatch, 2, [fail(error), lambda: 0])
    with pytest.raises(type(error)):
        together.on_first(lambda: 0)


def test_another_error_of_the_first_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    three(monkeypatch, 2, [fail(KeyError("x")), lambda: 0])
    with pytest.raises(together.FailedElsewhere):
        together.on_first(lambda: 0)


def test_all_do_it_and_know_all_the_results_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    three(monkeypatch, 1, [lambda: "z", lambda: "a"])
    assert together.on_all(lambda: "m") == ["z", "m", "a"]


def test_a_mistake_anywhere_is_everybodys_and_the_first_ones_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    three(monkeypatch, 1, [lambda: 0, fail(MISTAKE)])
    with pytest.raises(UserError, match="Wrong"):
        together.on_all(lambda: 0)
    three(monkeypatch, 1, [fail(OSError("first")), fail(MISTAKE)])
    with pytest.raises(OSError, match="first"):
        together.on_all(lambda: 0)


def test_an_error_stays_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    three(monkeypatch, 1, [lambda: 0, fail(KeyError("there"))])
    with pytest.raises(together.FailedElsewhere):
        together.on_all(lambda: 0)
    three(monkeypatch, 1, [fail(MISTAKE), lambda: 0])
    with pytest.raises(KeyError, match="here"):
        together.on_all(fail(KeyError("here")))  # with its traceback, whatever others have to say


def test_any_process_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def another_says_so(shared: torch.Tensor, op: Any = None, group: Any = None) -> None:
        asked.append(op)
        shared.clamp_(min=1)

    three(monkeypatch, 0, [])
    monkeypatch.setattr(dist, "all_reduce", another_says_so)
    assert together.on_any(False) is True
    assert asked == [dist.ReduceOp.MAX]


@pytest.mark.parametrize(
    ("given", "seconds"), [(7, 7), (None, 1800), (True, 1800), (0, 1800), (-3, 1800), ("7", 1800), (2.5, 1800)]
)
def test_patience(given: object, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(together, "_control", None)
    monkeypatch.setattr("accelerate.PartialState", lambda **kwargs: made.append(kwargs["timeout"]))
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "new_group", lambda **kwargs: (made.append(kwargs["timeout"]), kwargs["backend"])[1])
    together.join(given)
    assert made == [timedelta(seconds=seconds)] * 2
    assert together._control == "gloo"  # so that a training on GPUs waits for nothing
    together.join(given)
    assert len(made) == 2  # once
