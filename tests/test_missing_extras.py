"""A missing extra is one kind of error in one wording, at every door."""

from __future__ import annotations

import pickle
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import ortholora
from ortholora import __main__ as command
from ortholora.data.hub import read_hub
from ortholora.errors import MissingExtraError, UserError, missing_extra


def check(error: BaseException, what: str, package: str, extra: str) -> None:
    lines = str(error).splitlines()
    assert lines[0] == f"{what} needs the package {package!r}"
    assert lines[1] == f"  expected: the extra [{extra}]"
    assert package in lines[2]
    assert lines[3] == f'  to do:    pip install "ortholora[{extra}]"'


def test_it_is_the_users_error_and_pythons() -> None:
    error = missing_extra("A door", "cli", ModuleNotFoundError("No module named 'typer'", name="typer"))
    check(error, "A door", "typer", "cli")
    assert isinstance(error, UserError)
    assert isinstance(error, ModuleNotFoundError)
    assert error.name == "typer"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_names_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "ortholora.trl", raising=False)
    with pytest.raises(MissingExtraError) as caught:
        _ = ortholora.OrthoSFTTrainer
    check(caught.value, "ortholora.trl", "trl", "trl")


def test_a_name_that_needs_the_command_lines_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(module: str) -> None:
        raise ModuleNotFoundError("No module named 'pydantic'", name="pydantic")

    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(MissingExtraError) as caught:
        _ = ortholora.OrthoTrainer
    monkeypatch.undo()
    check(caught.value, "ortholora.OrthoTrainer", "pydantic", "cli")


@pytest.mark.parametrize(("word", "extra"), [("train", "cli"), ("demo", "demo")])
def test_the_command(monkeypatch: pytest.MonkeyPatch, word: str, extra: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ortholora", word])
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "ortholora.cli.app", raising=False)
    with pytest.raises(SystemExit) as caught:
        command.main()
    check(caught.value, "The ortholora command", "typer", extra)


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    source = SimpleNamespace(path="x", name=None, revision=None)
    task: Any = SimpleNamespace(name="news", hub=source)
    with pytest.raises(MissingExtraError) as caught:
        read_hub(task, "train")
    check(caught.value, "task `news`: the hub", "datasets", "cli")


@pytest.mark.parametrize("name", ortholora.__all__)
def test_every_public_name_is_there(name: str) -> None:
    if name == "OrthoSFTTrainer":
        pytest.importorskip("trl")
    assert getattr(ortholora, name).__name__ == name
