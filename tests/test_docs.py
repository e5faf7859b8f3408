"""The documents: no link leads nowhere, the README is short, every law has its tests, and every rule its page."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ortholora
from ortholora import errors
from ortholora.engine.rules import RULES
from ortholora.engine.rules.torchjd import WEIGHTINGS, TorchJD
from ortholora.models.answers import Prediction
from ortholora.models.predictor import Predictor

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_leads_nowhere(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_sources_of_the_comparison() -> None:
    """A source that is cited is listed and the other way round; no cell of a table is missing or empty."""
    page = ROOT / "docs" / "comparison.md"
    text = page.read_text(encoding="utf-8")
    cited = set(re.findall(r"\]\[([\w-]+)\]", text))
    listed = re.findall(r"^\[([\w-]+)\]: https://github\.com/\S+$", text, flags=re.MULTILINE)
    assert sorted(cited) == sorted(listed)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert len(table) > 30
    assert not [row for row in table if len(row) != 6 or not all(row)]


def test_the_page_of_the_wheel_has_no_link_into_the_repository(tmp_path: Path) -> None:
    """What the build puts into METADATA, and an index shows without the files beside it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name in ("pyproject.toml", settings["project"]["readme"], "LICENSE", "src/ortholora/version.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    build = "import setuptools.build_meta as backend; backend.prepare_metadata_for_build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.dist-info/METADATA")
    found = email.message_from_bytes(path.read_bytes())
    page = str(found.get_payload())
    assert (found["Version"], found["Description-Content-Type"]) == (ortholora.__version__, "text/markdown")
    assert "pip install" in page
    assert re.findall(r"\]\(", page)  # some are there
    assert not re.findall(r"\]\((?!https://)|\]\[|^\[.*\]:|<a |<img ", page, flags=re.MULTILINE)
    for_us = {"browser", "dev", "docs", "lightning"}
    extras = set(settings["project"]["optional-dependencies"]) - for_us
    assert sorted(name for name in extras if f"[{name}]" not in page) == []


def test_the_search_finds_links() -> None:
    assert "docs/performance.md" in links(ROOT / "README.md")
    assert "what-is-where" in anchors(ROOT / "README.md")


def test_the_readme_is_short() -> None:
    """In what readers see: what is said to the tests about a snippet is invisible."""
    shown = re.sub(r"<!-- test: .*? -->", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(shown.split()) < 900


# ---- Laws -------------------------------------------------------------------------------------------------------

LAWS = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("\n## Laws\n")[2].partition("\n## ")[0]


def test_every_law_names_tests_that_are_there() -> None:
    laws = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |\Z)", LAWS, flags=re.MULTILINE | re.DOTALL)
    assert [int(number) for number, _ in laws] == list(range(1, len(laws) + 1))
    for number, text in laws:
        named = re.findall(r"`(?:tests/(?:\w+/)*(test_\w+\.py)|(test_\w+\.py))?(?:::(test_\w+))?`", text)
        files: list[Path] = []
        assert any(any(found) for found in named), number
        for found in named:
            name = found[0] or found[1]
            files = list((ROOT / "tests").rglob(name)) if name else files
            assert len(files) == 1 or not any(found), (number, found)
            assert not found[2] or f"def {found[2]}(" in files[0].read_text(encoding="utf-8"), (number, found)


def test_every_law_that_is_cited_is_there() -> None:
    known = {int(number) for number in re.findall(r"^(\d+)\. \*\*", LAWS, flags=re.MULTILINE)}
    cited: dict[int, str] = {}
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for numbers in re.findall(r"\b[Ll]aws? (\d+(?:(?:, | and )\d+)*)", path.read_text(encoding="utf-8")):
            cited |= {int(number): path.name for number in re.findall(r"\d+", numbers)}
    assert len(cited) > 8  # an empty search would let everything through
    assert cited.keys() <= known, cited


# ---- A page for every rule -------------------------------------------------------------------------------------

RULE_PAGES = {path.stem: path for path in (ROOT / "docs" / "rules").glob("*.md")}


def rows(page: Path) -> list[list[str]]:
    """The cells of all rows of a page's tables."""
    lines = re.findall(r"^\|(.*)\|$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


@pytest.mark.parametrize("name", [*RULES, "torchjd"])
def test_every_rule_has_a_page(name: str) -> None:
    assert name in RULE_PAGES


def test_every_page_has_a_rule() -> None:
    assert RULE_PAGES.keys() <= {*RULES, "torchjd"}


@pytest.mark.parametrize("name", [*RULES, "torchjd"])
def test_every_rule_has_a_row_in_the_overview(name: str) -> None:
    shown = "torchjd:NAME" if name == "torchjd" else name
    assert [row for row in rows(ROOT / "docs" / "rules.md") if row[0] == f"[`{shown}`](rules/{name}.md)"]


def test_the_overview_says_under_which_rules_the_size_of_a_loss_matters() -> None:
    text = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8").partition("## The size of a loss")[2]
    free, heeding = (set(re.findall(r"`([a-z-]+)`", item.partition(".")[0])) for item in text.split("\n* ")[1:3])
    assert free == {name for name, rule in RULES.items() if getattr(rule, "scale_free_per_task", False)}
    assert heeding == RULES.keys() - free


@pytest.mark.parametrize("name", sorted(RULE_PAGES))
def test_the_page_of_a_rule_has_its_form(name: str) -> None:
    text = RULE_PAGES[name].read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    assert re.search(r"^```text\n[^`]* = ", text, flags=re.MULTILINE), "an equation"
    parts = [
        part
        for part in ("Source", "When", "State", "Limits", "Cost")
        if not re.search(rf"^\*{part}\.\* \S", text, re.M)
    ]
    assert not parts, "missing"


REFERENCE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def full_name(thing: type) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


@pytest.mark.parametrize(("name", "rule"), [*RULES.items(), ("torchjd", TorchJD)])
def test_every_rule_is_in_the_reference_beside_its_page(name: str, rule: type) -> None:
    entry = rf"\[`{name}(?::NAME)?`\]\(rules/{name}\.md\)\n\n```{{eval-rst}}\n\.\. autoclass:: {full_name(rule)}\n```\n"
    assert len(re.findall(entry, REFERENCE)) == 1


def test_the_reference_has_the_public_names_and_no_others() -> None:
    """Beside the rules: what the package offers, what `load` and `predict` give back, and what may be raised."""
    shown = re.findall(r"^\.\. auto(?:class|function|exception):: (\S+)$", REFERENCE, flags=re.MULTILINE)
    offered = {"ortholora.trl.OrthoSFTTrainer", *(f"ortholora.{name}" for name in ortholora.__all__)}
    offered.remove("ortholora.OrthoSFTTrainer")
    classes = [thing for thing in vars(errors).values() if isinstance(thing, type)]
    raised = {full_name(thing) for thing in classes if issubclass(thing, errors.UserError)}
    rules = {full_name(rule) for rule in [*RULES.values(), TorchJD] if isinstance(rule, type)}
    assert sorted(shown) == sorted(offered | raised | rules | {full_name(Predictor), full_name(Prediction)})


def test_every_weighting_of_torchjd_has_a_row() -> None:
    named = {name for row in rows(RULE_PAGES["torchjd"]) for name in re.findall(r"`torchjd:(\w+)`", row[0])}
    assert named == set(WEIGHTINGS)
