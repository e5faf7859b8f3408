"""Put five GLUE tasks into words: prompts with the answers yes and no, all in one file, with a column `task`.

    python examples/language/put_into_words.py GLUE_FOLDER OUT_FOLDER

GLUE_FOLDER holds CoLA/train.tsv and so on: tab-separated files with a header (`sentence`, or `sentence1` and
`sentence2`, and `label`). OUT_FOLDER gets train.jsonl and dev.jsonl with `task`, `prompt` and `completion`.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

#: Task → folder, prompt, and the label that means yes.
TASKS = {
    "sst2": ("SST-2", "Review: {sentence}\nIs the review positive?\nAnswer:", "1"),
    "cola": ("CoLA", "Sentence: {sentence}\nIs the sentence correct English?\nAnswer:", "1"),
    "rte": (
        "RTE",
        "Text: {sentence1}\nClaim: {sentence2}\nDoes the claim follow from the text?\nAnswer:",
        "entailment",
    ),
    "qnli": (
        "QNLI",
        "Question: {sentence1}\nText: {sentence2}\nDoes the text answer the question?\nAnswer:",
        "entailment",
    ),
    "mrpc": ("MRPC", "First: {sentence1}\nSecond: {sentence2}\nDo both say the same?\nAnswer:", "1"),
}


def main(glue: str, out: str) -> None:
    """Write both files."""
    Path(out).mkdir(parents=True, exist_ok=True)
    for part in ("train", "dev"):
        path = Path(out) / f"{part}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            count = sum(bool(file.write(json.dumps(row, ensure_ascii=False) + "\n")) for row in rows(Path(glue), part))
        print(f"{path}: {count:,} rows of {len(TASKS)} tasks")


def rows(glue: Path, part: str) -> Iterator[dict[str, str]]:
    """The rows of all tasks, in words."""
    for task, (folder, prompt, yes) in TASKS.items():
        with (glue / folder / f"{part}.tsv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                answer = " yes" if row["label"] == yes else " no"
                yield {"task": task, "prompt": prompt.format(**row), "completion": answer}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
