"""What a check says of rare classes: each by name while they are few, one sentence where a column of ids was taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_folder import Folder
from ortholora.study.check.findings import Findings
from ortholora.study.check.rows import look_at_rows


def said(folder: Folder, labels: list[str]) -> list[str]:
    for part in ("train", "dev"):
        rows = "".join(f"{part} words {i}\t{label}\n" for i, label in enumerate(labels))
        folder.write(f"{part}.tsv", "text\tlabel\n" + rows)
    found = Findings()
    look_at_rows([folder.read()], found)
    return found.warnings


@pytest.mark.parametrize("rare", [1, 8])
def test_a_few_rare_classes_are_named(tmp_path: Path, rare: int) -> None:
    labels = ["often", "too"] * 20 + [f"rare{i}" for i in range(rare)]
    assert said(Folder(tmp_path), labels) == [f"t, train: 1 rows of class `rare{i}`" for i in range(rare)]


def test_many_are_one_sentence(tmp_path: Path) -> None:
    labels = ["often", "too"] * 20 + [f"rare{i}" for i in range(9)]
    assert said(Folder(tmp_path), labels) == ["t, train: fewer than 10 rows of each of 9 of 11 classes"]
    (doubt,) = said(Folder(tmp_path), [f"id{i}" for i in range(2000)])
    assert doubt.endswith("each of 2,000 of 2,000 classes. Does `label` name the right column?")
