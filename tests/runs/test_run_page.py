"""The page in a run's folder: what the hub and a reader see of an adapter."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard as HubCard

from ortholora.models.card import ModelCard
from ortholora.models.heads import HeadSpec
from ortholora.runs.page import run_page
from ortholora.runs.record import RunRecord

LABELS = np.arange(40) % 2


def card(name: str = "topic", labels: tuple[str, ...] = ("a", "b"), backbone: str = "owner/model") -> ModelCard:
    return ModelCard(backbone, None, "float32", "mean", 32, (HeadSpec(name, "classification", labels),))


def record(name: str = "topic", right: int = 30) -> RunRecord:
    predictions = np.where(np.arange(40) < right, LABELS, 1 - LABELS)
    of = {name: 2}
    return RunRecord(
        "ortho",
        "ortho",
        "matrix",
        3,
        (name,),
        {name: right / 40},
        {name: "accuracy"},
        {name: LABELS},
        {name: predictions},
        of,
        0.1,
        1,
    )


def test_the_head_is_what_the_hub_reads() -> None:
    about = HubCard(run_page(card(), record(), 100, with_heads=True)).data.to_dict()
    assert (about["base_model"], about["library_name"], about.get("pipeline_tag")) == ("owner/model", "peft", None)
    assert HubCard(run_page(card(), record(), 100, with_heads=False)).data.pipeline_tag == "text-generation"


def test_the_value_has_an_interval_over_its_rows() -> None:
    page = run_page(card(), record(), 100, with_heads=True)
    row = next(line for line in page.splitlines() if line.startswith("| topic"))
    value, low, high = (float(part.strip("[],")) for part in row.split("|")[5].split())
    assert value == 75.0
    # A binomial share of 40 rows: 0.75 ± 1.96 · sqrt(0.75 · 0.25 / 40) = 0.62 to 0.88.
    assert low == pytest.approx(62, abs=3)
    assert high == pytest.approx(88, abs=3)
    assert "Trained with the rule ortho in 100 steps" in page
    assert "Merged out of adapters" in run_page(card(), replace(record(), rule=None), 0, with_heads=True)


def test_a_folder_of_this_machine_is_not_named(tmp_path: Path) -> None:
    page = run_page(card(backbone=str(tmp_path)), record(), 100, with_heads=True)
    assert str(tmp_path) not in page
    assert "the folder of the backbone" in page


def test_it_names_the_data_and_no_folder_of_this_machine() -> None:
    data = {
        "topic": {
            "train": "owner/set/part train sha256:ab",
            "dev": "/home/somebody/dev.tsv sha256:cd",
            "rows": [90, 40],
        }
    }
    settings = {"tasks": [{"name": "topic", "hub": {"path": "owner/set"}}, {"name": "other", "hub": None}]}
    known = replace(record(), provenance={"data": data, "config": settings})
    page = run_page(card(), known, 100, with_heads=True)
    plain = html.unescape(page)
    assert "| topic | train | 90 | owner/set/part train |" in plain
    assert "| topic | dev | 40 | dev.tsv |" in plain
    assert "somebody" not in page
    assert HubCard(page).data.datasets == ["owner/set"]


@pytest.mark.parametrize(
    "name", ["a|b", "---\nbase_model: evil", "<script>x</script>", "[x](http://y)", "`$(ls)`", "x" * 500]
)
def test_names_from_data_do_nothing(name: str) -> None:
    page = run_page(card(name, labels=(name, "b")), record(name), 100, with_heads=True)
    head, _, body = page.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(head)["base_model"] == "owner/model"
    rows = [line.split("|") for line in body.splitlines() if line.startswith("|")]
    assert [len(row) for row in rows] == [8, 8, 8]
    assert not set("<>[]()`$*_") & set(rows[-1][1] + rows[-1][3])
    assert len(rows[-1][1]) < 400
