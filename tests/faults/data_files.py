"""Mutated data files, with `bad_rows: error` and `drop`: to train on, and for `evaluate --data`."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from judging import Case, Source, flip

from ortholora.config.schema import Config
from ortholora.data.labelled import LabelledFile
from ortholora.data.read import read_tasks
from ortholora.data.task import Split
from ortholora.runs.workspace import Workspace

#: What a cell of a table may hold.
CELLS = [
    "",
    " ",
    "\t",
    "\0",
    "é",
    "\u2028",
    "x" * 20_000,
    "NaN",
    "nan",
    "1e999",
    "-1",
    "null",
    '"',
    '""',
    "a\nb",
    "\ufeff",
    "1_0",
]
#: What a value in JSON may be, as it is written.
JSON = [
    "null",
    "true",
    "[]",
    "{}",
    '""',
    '"\\ud800"',
    "9" * 5000,
    "1e999",
    "NaN",
    "-Infinity",
    "[" * 9000,
    '"a',
    "0",
    '"\\u0000"',
]


def sources(folder: Path, space: Workspace) -> list[Source]:
    """The ways to mutate data; `folder` gets the files. `space` has the tokenizer of a tiny backbone."""
    rows = [(f"the moon say {i}", i % 3, round(0.1 * i, 1)) for i in range(30)]
    lines = {
        "tsv": ["text\tlabel\tscore", *(f"{t}\t{c}\t{s}" for t, c, s in rows)],
        "csv": ["text,label,score", *(f'"{t}",{c},{s}' for t, c, s in rows)],
        "jsonl": [json.dumps({"text": t, "label": c, "score": s}) for t, c, s in rows],
    }
    table = pa.table(
        {"text": [t for t, _, _ in rows], "label": [c for _, c, _ in rows], "score": [s for *_, s in rows]}
    )
    pq.write_table(table, folder / "whole.parquet")
    whole = {ending: "\n".join(found).encode() + b"\n" for ending, found in lines.items()}
    whole["parquet"] = (folder / "whole.parquet").read_bytes()
    for ending, content in whole.items():
        (folder / f"dev.{ending}").write_bytes(content)

    def case(ending: str, what: str, content: bytes, keys: dict[str, Any], training: bool) -> Case:
        def run() -> None:
            (folder / f"train.{ending}").write_bytes(content)
            task = {"name": "t", "train": f"train.{ending}", "dev": f"dev.{ending}", **keys}
            (_use if training else _use_answered)(folder, task, space)

        return Case(f"{'train' if training else 'evaluate --data'}, {ending}, {keys}: {what}", run)

    def keys_of(draw: random.Random) -> dict[str, Any]:
        keys: dict[str, Any] = draw.choice([{}, {"kind": "regression", "label": "score"}, {"tsv_quotes": True}])
        return keys | draw.choice([{}, {"bad_rows": "drop"}, {"bad_rows": "drop", "max_bad_rows": 0.9}])

    def damaged(draw: random.Random) -> Case:
        ending = draw.choice(list(whole))
        what, content = flip(draw, whole[ending])
        return case(ending, what, content, keys_of(draw), draw.random() < 0.6)

    def cell(draw: random.Random) -> Case:
        ending, new, at = draw.choice(["tsv", "csv", "jsonl"]), draw.choice(CELLS), draw.randrange(1, 30)
        found = list(lines[ending])
        if ending == "jsonl":
            key, new = draw.choice(["text", "label", "score"]), draw.choice(JSON)
            found[at] = json.dumps(json.loads(found[at]) | {key: "@"}).replace('"@"', new)
        else:
            cells = found[at].split("\t" if ending == "tsv" else ",")
            cells[draw.randrange(3)] = new
            found[at] = ("\t" if ending == "tsv" else ",").join(cells[: draw.choice([1, 2, 3, 3, 3])])
        content = "\n".join(found).encode("utf-8", "surrogatepass")
        return case(ending, f"{new[:40]!r} in line {at}", content, keys_of(draw), draw.random() < 0.6)

    return [damaged, cell]


def _use(folder: Path, task: dict[str, Any], space: Workspace) -> None:
    """Read and tokenise; what is accepted must be usable in every row."""
    config = Config.model_validate({"backbone": space.config.backbone, "tasks": [task], "max_length": 24})
    (data,) = read_tasks(config, base=folder, data_dir=None)
    for split in (data.train, data.dev):
        _check_usable(split, data.labels)
    dropped = sum(map(len, data.dropped.values()))
    assert not dropped or (task.get("bad_rows") == "drop" and dropped <= task.get("max_bad_rows", 0.05) * 60), (
        "too many"
    )
    Workspace(config, [data]).encoded("t")


def _use_answered(folder: Path, task: dict[str, Any], space: Workspace) -> None:
    """Read as `evaluate --data` does; every row that is counted must come, and be usable."""
    config = Config.model_validate({"backbone": space.config.backbone, "tasks": [task], "max_length": 24})
    (spec,) = config.tasks
    labels = None if spec.kind == "regression" else ("0", "1", "2")
    text, label = spec.columns
    file = LabelledFile(folder / task["train"], spec, labels, text, label)
    counted = file.check()
    for window in (7, 1000):
        splits = list(file.windows(window))
        for split in splits:
            _check_usable(split, labels)
        assert sum(map(len, splits)) == counted.rows, "other rows than were counted"
    assert not counted.left_out or task.get("bad_rows") == "drop", "rows were left out"


def _check_usable(split: Split, labels: Sequence[str] | None) -> None:
    for row, target in zip(split.texts, split.targets, strict=True):
        texts = [text.encode("utf-8") for text in getattr(row, "texts", row)]
        assert all(text.strip() for text in texts), "an empty text was accepted"
        fine = math.isfinite(target) if labels is None else 0 <= target < len(labels)
        assert fine, f"the target {target} was accepted"
