"""A run's fingerprint is a saved format: a folder of an earlier version must still be known as this very run's."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortholora.config.file import load_config
from ortholora.config.schema import Config
from ortholora.data.task import Split, TaskData
from ortholora.runs.provenance import fingerprint

ROOT = Path(__file__).parents[2]
EMPTY = Split([], [])
KNOWN = {
    "examples/glue.yaml": "2660de0519caf533c409c938cd49ee2ed2a34338a5c6415af0e3704d148dfa25",
    "examples/own_data.yaml": "e56608d9fe7c7314836d384868b8ee2f30cb2c19cea1aeeb362733b1db8a7dba",
    "examples/language/language.yaml": "9a64b8583180d5f9b5f5dbc94a3da0e18b1a263b6a74785ee7ea485af1780929",
    "src/ortholora/study/demo.yaml": "8173a72307ea64493c84c427646b4627d924a1c79679e975e1d0b6aaf277e1c4",
}
#: What an example had when its fingerprint was taken, and has no more.
ONCE = {"src/ortholora/study/demo.yaml": ["training.learning_rate=3e-3"]}


def of(config: Config) -> str:
    sources = {"train": "here sha256:1", "dev": "there sha256:2"}
    tasks = [TaskData(spec, None, EMPTY, EMPTY, sources) for spec in config.tasks]
    return fingerprint(config, tasks, {"method": ["ortho", "matrix"], "seed": 0, "quota": {}})


@pytest.mark.parametrize("name", KNOWN)
def test_the_examples_have_the_fingerprints_of_the_first_version(name: str) -> None:
    assert of(load_config(ROOT / name, ONCE.get(name, ()))) == KNOWN[name]


def test_where_the_data_lie_is_no_part_of_it() -> None:
    config = load_config(ROOT / "examples" / "glue.yaml")
    local = load_config(ROOT / "examples" / "glue.yaml", ["tasks.cola.hub=null", "tasks.cola.train=elsewhere.tsv"])
    assert of(local) == of(config)
    assert of(load_config(ROOT / "examples" / "glue.yaml", ["tasks.cola.label=other"])) != of(config)
