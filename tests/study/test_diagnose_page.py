"""The page of a diagnosis: the answer first, every layer with what is known of it, and the same when read back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from html_reader import Reader
from ortholora.errors import UserError
from ortholora.study.diagnose.layers import cosines_map, layer_ratios_table, layer_sizes_table
from ortholora.study.diagnose.page import page_of
from ortholora.study.diagnose.tables import ratio_table, transfer_table
from ortholora.study.diagnose.write import write_diagnosis
from ortholora.study.report.door import report_on
from ortholora.study.report.page import render
from stored_diagnosis import diagnosis
from stored_study import write_study

TASKS = ["loud", "contrary", "calm"]
#: A ratio with its interval.
RATIO = re.compile(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)")


def test_the_answer_comes_first() -> None:
    found = diagnosis(TASKS)
    page = page_of(found)
    assert page.lead.startswith("`calm` stands still in company; the gradient of `loud` is surely more than 2 times")
    assert page.context == "Ortho-LoRA diagnosis · 3 tasks · 9 steps · measured on 64 rows of each · a backbone"
    text = re.sub(r"\s+", " ", " ".join(Reader(render(page)).words))
    order = ["only a comparison can tell", "Hardly tested", "To decide it", "Pace: losses", "Ratio of", "What one step"]
    places = [text.index(part) for part in ["stands still in company", *order]]
    assert places == sorted(places)


def test_every_layer_has_its_lengths_noise_and_ratios() -> None:
    found = diagnosis(TASKS)
    sizes = {row[0]: row[1:] for row in layer_sizes_table(found).rows}
    assert list(sizes) == ["all A", "all B", *(f"{n}.query" for n in range(3))]
    assert sizes["0.query"][2] == "–"  # no gradient, so no length
    assert all(re.fullmatch(r"[\d.]+\n\d+ rows", cell) for cell in sizes["1.query"])
    table = layer_ratios_table(found)
    ratios = {row[0]: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}
    assert ratios["0.query"]["loud : calm"] == "–"
    value, low, high = map(float, RATIO.fullmatch(ratios["1.query"]["loud : calm"]).groups())  # type: ignore[union-attr]
    assert 2 < low < value < high < 8  # four, in truth, but for what the draw of the directions does
    whole = {row[0]: row[-1] for row in ratio_table(found).rows}
    assert RATIO.fullmatch(whole["loud : contrary"])
    nothing = diagnosis(TASKS, noise=300.0)
    assert ratio_table(nothing).rows[0][1] == "not determined"
    assert "5 of 5 rows are left out" in layer_ratios_table(nothing).note


def test_the_map_has_all_layers_together_and_each() -> None:
    shown = cosines_map(diagnosis(TASKS))
    assert shown is not None
    assert list(shown.rows) == ["all layers", *(f"{n}.query" for n in range(3))]
    columns = [(pair, role) for pair, roles in shown.groups.items() for role in roles]
    row = dict(zip(columns, shown.rows["all layers"], strict=True))
    for role in "AB":
        cell = row["loud · contrary", role]
        assert cell is not None
        assert cell[0] < -0.5
        assert cell[1]
    assert dict(zip(columns, shown.rows["0.query"], strict=True))["loud · calm", "A"] is None
    assert "more `--rows` may tell" in str(page_of(diagnosis(TASKS, noise=300.0)).sections)
    assert "Cosines, layer by layer" in str(page_of(diagnosis(TASKS[:2], layers=41)).sections)


def test_changes_of_losses_are_written_alike() -> None:
    cells = {row[0]: row[1:] for row in transfer_table(diagnosis(TASKS, change=-0.02)).rows}
    assert cells["a step on loud"][1] == "-0.0200 ± 0.0004\nsure: helps; predicted -0.0200"
    assert "sure: hurts" in transfer_table(diagnosis(TASKS, change=0.02)).rows[0][1]


def test_whatever_is_in_a_name_is_text() -> None:
    hostile, long = """<script>alert('x')</script>&"$x_1$""", "n" * 200
    reader = Reader(render(page_of(diagnosis([hostile, long, "calm"], change=0.1))))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert hostile in " ".join(reader.words)
    assert long in " ".join(reader.words)
    assert reader.open == []


def test_the_page_can_be_written_anew(tmp_path: Path) -> None:
    """What is not determined is NaN in memory, and null in the file."""
    write_diagnosis(tmp_path, diagnosis(TASKS))
    assert b"null" in (tmp_path / "diagnosis.json").read_bytes()
    before = (tmp_path / "report.html").read_bytes()
    assert report_on([tmp_path], tmp_path / "new" / "again.html").read_bytes() == before
    (tmp_path / "report.html").unlink()
    assert report_on([tmp_path]).read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"), [("{", "cannot read"), ("[]", "`tasks`"), ('{"tasks": []}', "`settings`")]
)
def test_a_damaged_diagnosis_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "diagnosis.json").write_text(content)
    with pytest.raises(UserError, match=said):
        report_on([tmp_path])
    assert not (tmp_path / "report.html").exists()


def test_a_diagnosis_that_is_not_finished_and_one_among_studies(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (begun / "points").mkdir(parents=True)
    (begun / "points" / "settings.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="not finished"):
        report_on([begun])
    write_study(tmp_path / "study", finished=False, rows=20)
    with pytest.raises(UserError, match="a diagnosis"):
        report_on([tmp_path / "study", begun], tmp_path / "both.html")
    assert not (tmp_path / "both.html").exists()
