"""`ortholora report`: pages of studies, and one message where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Cli

from stored_study import write_study


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two studies, one of them without a finished run."""
    folder = tmp_path_factory.mktemp("studies")
    write_study(folder / "done", rows=60, seeds=2)
    write_study(folder / "begun", rows=20, finished=False)
    return folder


def test_one_study(cli: Cli, home: Path, studies: Path) -> None:
    shown = cli.ok("report", studies / "done", "--out", "new/page.html")
    assert "new/page.html" in shown
    assert (home / "new" / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (studies / "done" / "report.html").exists()
    cli.ok("report", studies / "done")
    assert (studies / "done" / "report.html").is_file()


def test_several_studies(cli: Cli, home: Path, studies: Path) -> None:
    assert "report.html" in cli.ok("report", studies / "done", studies / "begun")
    assert "begun: This study is not finished" in (home / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["nowhere", "tiny.yaml", "backbone"])
def test_what_is_no_study(cli: Cli, home: Path, studies: Path, place: str) -> None:
    for before in ([], [studies / "done"]):
        assert f"{place} is no study" in cli.complaint("report", *before, place)
    assert not list(home.glob("**/report.html"))


def test_a_page_that_cannot_be_written(cli: Cli, home: Path, studies: Path) -> None:
    before = (home / "tiny.yaml").read_bytes()
    assert "tiny.yaml" in cli.complaint("report", studies / "done", "--out", "tiny.yaml/page.html")
    assert (home / "tiny.yaml").read_bytes() == before
