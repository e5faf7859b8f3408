"""The configuration of recognised tasks, as YAML with comments."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ortholora.config.schema import Config
from ortholora.config.sections import RECOMMENDED_RULE
from ortholora.data.guess.draft import Draft, task_keys
from ortholora.data.guess.shapes import values_of
from ortholora.data.labels import is_number

#: How many letters make a token: an estimate for languages in Latin letters, on the safe side.
_LETTERS_A_TOKEN = 4
#: Passes over a task of middle size, and bounds for the steps that follow.
_PASSES, _FEWEST, _MOST = 3, 100, 2000
#: Lengths that are suggested; no more without being asked.
_LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512)
#: So many different completions may be a closed set of answers.
_MOST_ANSWERS = 20
#: Words that YAML reads as something else than text.
_TAKEN = {"y", "n", "yes", "no", "true", "false", "on", "off", "null", "~"}


def page(drafts: Sequence[Draft], backbone: str, path: Path, dropping: set[str]) -> str:
    """Write the configuration.

    Args:
        drafts: The tasks.
        backbone: The backbone.
        path: Where it will lie.
        dropping: Names of the tasks whose bad rows are to be left out.

    Returns:
        YAML that `load_config` takes.
    """
    rows = [len(draft.table.columns[draft.shape.label]) for draft in drafts]
    length = _max_length(drafts)
    parts = [
        _HEAD.format(path=path, model=drafts[0].learner),
        _line(f"backbone: {_scalar(backbone)}", f"{drafts[0].learner}: a hub id or a folder"),
        _line(f"max_length: {length}", _why_length(drafts, length)),
        _RULE,
        "training:",
        _line(f"  steps: {_steps(rows)}", f"{_PASSES} passes over a task of middle size; 8 rows of each task a step"),
        "",
        "tasks:",
        *(_task(draft, path.parent, draft.name in dropping) for draft in drafts),
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


_HEAD = """\
# Written by `ortholora init` out of the files alone: look it over. Every key and its default: docs/configuration.md
#
#   ortholora diagnose {path}    which tasks help and which hurt each other, before training
#   ortholora train {path}       one adapter for all tasks
#   ortholora compare {path}     is it better than joint training, and as good as an adapter for each task?
"""
_RULE = f"rule: {RECOMMENDED_RULE}  # did best in our studies so far (docs/rules.md); `ortho` is the paper's\n"


def _task(draft: Draft, folder: Path, dropping: bool) -> str:
    keys = task_keys(draft, folder)
    if dropping:
        keys["bad_rows"] = "drop"
    comments = {
        "train": f"{len(draft.table.columns[draft.shape.label]):,} rows" if "dev" not in map(_part, draft.new) else "",
        "bad_rows": "rows that cannot be used are left out, and listed in every run",
        "tsv_quotes": "double quotes around texts are no part of them",
        "split_by": "every value of this column becomes a task",
        **_about_labels(draft),
    }
    lines = [_line(f"    {key}: {_scalar(value)}", comments.get(key, "")) for key, value in keys.items()]
    lines[0] = "  - " + lines[0].lstrip()
    return "\n".join([*lines, *_closed_set(draft), _metric(draft), ""])


def _part(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _about_labels(draft: Draft) -> dict[str, str]:
    shape = draft.shape
    if shape.kind in ("completion", "chat"):
        return {"completion": "it follows the prompt as it is: mind the space between them"}
    values = values_of(draft.table, shape.label)
    if shape.kind == "regression":
        numbers = [float(value) for value in values if is_number(value)]
        what = f"numbers from {min(numbers):g} to {max(numbers):g}"
        if all(number.is_integer() for number in numbers):
            return {
                "kind": "a scale: 4 is nearer to 5 than 1 is. `classification` makes each number a class of its own",
                "label": f"{what}, whole ones",
            }
        return {"label": what}
    counts = Counter(values)
    scale = "; `kind: regression` makes a scale of them" if len(counts) > 2 and all(map(is_number, counts)) else ""
    shown = ", ".join(f"{label} ({count / len(values):.0%})" for label, count in sorted(counts.items())[:6])
    more = f" and {len(counts) - 6} more" if len(counts) > 6 else ""
    return {"label": f"{len(counts)} classes: {shown}{more}{scale}"}


def _closed_set(draft: Draft) -> list[str]:
    """The completions as a comment, where the same few come again and again."""
    if draft.shape.kind != "completion":
        return []
    counts = Counter(map(str, draft.table.columns[draft.shape.label]))
    if not 2 <= len(counts) <= _MOST_ANSWERS or max(counts.values()) == 1:
        return []
    listed = f"    # labels: {_scalar(sorted(counts))}"
    return [_line(listed, "only these: the likeliest is the prediction, the metric is accuracy")]


def _metric(draft: Draft) -> str:
    """The metric as a comment: it is the default one, and these are the others."""
    keys = task_keys(draft, Path()) | {"labels": None}
    task = Config.model_validate({"backbone": "any", "tasks": [keys]}).tasks[0]
    classes = len(set(values_of(draft.table, draft.shape.label))) if draft.shape.kind == "classification" else 0
    fitting = task.fitting_metrics if classes == 2 else task.metrics_of_many_labels
    others = [name for name in fitting if name != task.metric]
    return f"    # metric: {task.metric}  # or {', '.join(others)}" if others else f"    # metric: {task.metric}"


def _steps(rows: Sequence[int]) -> int:
    return min(_MOST, max(_FEWEST, round(_PASSES * median(rows) / 8)))


def _max_length(drafts: Sequence[Draft]) -> int:
    tokens = _most_letters(drafts) / _LETTERS_A_TOKEN + 2
    return next((length for length in _LENGTHS if length >= tokens), _LENGTHS[-1])


def _why_length(drafts: Sequence[Draft], length: int) -> str:
    letters = _most_letters(drafts)
    if letters / _LETTERS_A_TOKEN + 2 > length:
        return f"in tokens; 19 of 20 rows have up to {letters:,} letters, so that longer ones are cut"
    return f"in tokens; 19 of 20 rows have up to {letters:,} letters, at about {_LETTERS_A_TOKEN} a token"


def _most_letters(drafts: Sequence[Draft]) -> int:
    """The letters that 19 of 20 rows do not exceed, in the task with the longest rows."""
    found = []
    for draft in drafts:
        also = {"completion": draft.shape.label, "chat": "tools"}.get(draft.shape.kind, "")
        wanted = [*draft.shape.text, *([also] if also in draft.table.columns else [])]
        columns = [draft.table.columns[name] for name in wanted]
        sizes = sorted(sum(_size(value) for value in row) for row in zip(*columns, strict=True))
        found.append(sizes[math.ceil(0.95 * len(sizes)) - 1])
    return max(found)


def _size(value: object) -> int:
    """Letters of a value; of messages and tools those of everything in them, which is about what a template writes."""
    return len(json.dumps(value, ensure_ascii=False, default=str)) if isinstance(value, list) else len(str(value))


def _line(text: str, comment: str) -> str:
    return f"{text}  # {' '.join(comment.split())}" if comment else text


def _scalar(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", value) and value.lower() not in _TAKEN
    return value if plain else json.dumps(value, ensure_ascii=False)
