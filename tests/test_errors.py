"""A message can be shown whatever it names: cut, without control characters, and with no part empty."""

from __future__ import annotations

import pickle

from ortholora.errors import UserError


def test_a_long_value_is_cut_in_its_middle() -> None:
    error = UserError("a" + "x" * 5000 + "z", expected="e" * 5000, found="b" * 700_000, todo="do")
    assert len(str(error)) < 3000
    assert error.what.startswith("ax")
    assert error.what.endswith("xz")
    assert " … " in error.found


def test_a_long_list_of_lines_keeps_every_line() -> None:
    lines = [f"line {number} " + "x" * 2000 for number in range(20)]
    error = UserError("\n".join(lines), expected="a", found="b", todo="c")
    assert [line.split(" x")[0] for line in error.what.split("\n")] == [f"line {number}" for number in range(20)]
    assert max(map(len, error.what.split("\n"))) < 600


def test_no_part_is_empty() -> None:
    error = UserError("what", expected="", found="  ", todo="\n")
    assert str(error) == "what\n  expected: nothing\n  found:    nothing\n  to do:    nothing"


def test_what_no_terminal_shows_is_escaped() -> None:
    error = UserError("a\x1b[31m", expected="b\0", found="line\nline\r\n\udc80", todo="é “x” 中 🙂")
    assert str(error) == ("a\\x1b[31m\n  expected: b\\x00\n  found:    line line \\udc80\n  to do:    é “x” 中 🙂")
    str(error).encode("utf-8")


def test_a_message_survives_a_process() -> None:
    error = UserError("x" * 900, expected="b", found="", todo="d")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
