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


def load_publish() -> ModuleType:
    spec = importlib.util.spec_from_file_location("publish", ROOT / "benchmarks" / "publish.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_shows_the_committed_result() -> None:
    publish = load_publish()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition(publish.BEGIN)[2].partition(publish.END)[0].strip()
    assert shown == publish.block("demo").strip()


def test_the_performance_pages_show_the_committed_tables() -> None:
    publish = load_publish()
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
