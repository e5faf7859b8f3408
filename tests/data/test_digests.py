"""The SHA-256 of a task's rows is part of saved results: it stays what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ortholora.config.schema import Config
from ortholora.data.read import read_tasks

CHAT = [
    {"role": "system", "content": "sei „nett“ — 日本"},
    {"role": "user", "content": 'hi "you"\n', "name": "x", "at": 1.50},
    {"role": "assistant", "content": "hello", "tool": None},
]
ROWS = [
    {"text": "één", "more": "b\t", "label": "no", "score": 1, "prompt": "a ", "completion": " yes\n", "messages": CHAT},
    {"text": "two", "more": "\u2028 |", "label": "yes", "score": -0.5, "prompt": "ü", "completion": "no"}
    | {"messages": CHAT[1:]},
]


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        ({}, "7a87d89ca0972643ad893e3fb1bf02489aa41db48b06835adbf381dc489ce026"),
        ({"text": ["text", "more"]}, "099335c335062e47707f8127d4f564b3d11a89ba0c52852fe213ca6054406a6d"),
        ({"kind": "regression", "label": "score"}, "c59c7ea21c2f07c155af26b307ba8c79bdb858a38eae0cecc15965203f61bc39"),
        ({"kind": "completion"}, "2feb3232eb355819575ee4f6dd919038602e88578c3ca8c5cb9311ecff44ac81"),
        (
            {"kind": "completion", "labels": ["no", " yes\n"]},
            "81a4e09a7fffb6f62c8543f3b97ca4c6ab93edeaaade5e7a494aac1f9009adfe",
        ),
        ({"kind": "chat"}, "807be328b462f77970b2d1eeffe780a2608ec936f8663b793497d9c748d38562"),
    ],
    ids=str,
)
def test_the_digest_of_rows_is_that_of_the_first_version(tmp_path: Path, task: dict[str, Any], digest: str) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    entry = {"name": "t", "train": "a.jsonl", "dev": "a.jsonl", **task}
    config = Config.model_validate({"backbone": "x", "tasks": [entry]})
    assert read_tasks(config, base=tmp_path, data_dir=None)[0].sources["train"] == f"a.jsonl sha256:{digest}"
