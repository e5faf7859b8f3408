"""The README shows the committed result, not somebody's memory of it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted(path.parent for path in ROOT.glob("benchmarks/results/*/summary.json"))


def load_script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "benchmarks" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_and_ledger_show_the_committed_studies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "gaps"))
    ledger = load_script("gaps/run.py")
    for page in ledger.PAGES:
        text = page.read_text(encoding="utf-8")
        assert ledger.with_table(text, page) == text, "run: python benchmarks/gaps/run.py --table"
        assert all(f"/{study}/summary.md)" in text for study in ledger.summaries())
    assert "](benchmarks/gaps/results/ledger.png)" in (ROOT / "README.md").read_text(encoding="utf-8")
    ledger.picture.draw(ledger.summaries(), tmp_path / "ledger.png")
    assert min((tmp_path / "ledger.png").stat().st_size, ledger.PICTURE.stat().st_size) > 10_000


def test_the_performance_pages_show_the_committed_tables() -> None:
    publish = load_script("publish.py")
    pages = [page.read_text(encoding="utf-8") for page in publish.PAGES]
    assert [publish.with_tables(page) for page in pages] == pages
    shown = {name for page in pages for name in re.findall(r"<!-- ([a-z-]+):begin -->", page)}
    assert {"step", "epoch", "profile", "launch", "thin-products"} <= shown


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/results/*.json")), ids=lambda path: path.stem)
def test_a_committed_benchmark_says_where_it_comes_from(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    assert content["command"].startswith("python benchmarks/")
    assert content["commit"]
    assert not content["commit"].endswith("+changes")
    assert content["hardware"]["cpu"]
    assert content["versions"]["torch"]
    assert not re.search(r"(?<![\w.~-])/\w+/", text)


@pytest.mark.parametrize("folder", RESULTS, ids=lambda path: path.name)
def test_a_committed_result_is_complete_and_says_where_it_comes_from(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert {"single", "joint", "ortho"} <= summary["methods"].keys()
    assert (summary["recovered"] is None) == bool(summary["recovered_reason"])
    assert summary["provenance"]["commit"]
    assert summary["provenance"]["hardware"]["cpu"]
    assert "ortholora compare" in (folder / "command.txt").read_text(encoding="utf-8")
    assert (folder / "summary.png").stat().st_size > 10_000
    text = (folder / "summary.json").read_text(encoding="utf-8")
    # No absolute path of whatever machine made it (a name such as `owner/name` has a letter before the slash).
    assert not re.search(r"(?<![\w.~-])/\w+/", text)


def test_results_are_there() -> None:
    assert {path.name for path in RESULTS} >= {"demo", "glue-minilm"}
