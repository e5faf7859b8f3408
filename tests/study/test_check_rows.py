"""What a check says of classes that hardly any row has."""

from __future__ import annotations

from pathlib import Path

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


def test_a_column_of_ids_taken_for_labels_is_doubted(tmp_path: Path) -> None:
    (few,) = said(Folder(tmp_path), ["often", "too"] * 20 + ["rare"])
    assert few == "t, train: few rows of class `rare` (1)"
    (doubt,) = said(Folder(tmp_path), [f"id{i}" for i in range(2000)])
    assert len(doubt) < 300
    assert doubt.endswith("and 1992 more. Does `label` name the right column?")
