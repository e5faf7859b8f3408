"""The eight GLUE tasks out of the shared local files, with examples/glue.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortholora.config.file import load_config
from ortholora.data.read import read_tasks

ROOT = Path(__file__).parents[2]
GLUE = ROOT.parent / "shared" / "data" / "glue"
pytestmark = [pytest.mark.glue, pytest.mark.skipif(not GLUE.is_dir(), reason=f"no {GLUE}")]

ROWS = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3668, 408),
    "rte": (2490, 277),
    "stsb": (5749, 1500),
    "qnli": (20534, 5463),
    "qqp": (43813, 8403),
    "mnli": (27566, 7702),
}


def test_every_row_is_read():
    path = ROOT / "examples" / "glue.yaml"
    tasks = read_tasks(load_config(path), base=path.parent, data_dir=GLUE)
    assert {data.name: (len(data.train), len(data.dev)) for data in tasks} == ROWS
    by_name = {data.name: data for data in tasks}
    assert by_name["cola"].train.targets[0] == 1
    assert by_name["rte"].labels == ("entailment", "not_entailment")
    assert by_name["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert by_name["stsb"].labels is None
    assert by_name["stsb"].train.targets[0] == 5.0
    assert {len(row) for row in by_name["qqp"].train.texts} == {2}
    assert any('""' in text for row in by_name["qqp"].train.texts for text in row)  # quotes stay as they are
