"""From files to the tasks of a configuration: look, ask where a look does not tell, and try the result out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ortholora.config.tasks.union import KINDS
from ortholora.data.files import read_file
from ortholora.data.guess.cutting import cut_dev_rows, lines_of, parts_inside
from ortholora.data.guess.shapes import PAIRED, Shape, shape_of, values_of
from ortholora.data.guess.sources import PARTS, Source, sources_of
from ortholora.data.labels import is_number
from ortholora.data.lines import damaged
from ortholora.data.table import Table
from ortholora.errors import UserError


@dataclass(frozen=True)
class Question:
    """What a look at a file does not tell.

    Attributes:
        task: The task, or nothing where all are meant.
        key: What is asked for: a key of the configuration.
        words: The question.
        guess: The likeliest answer.
        choices: All answers; none where any text will do.
    """

    task: str
    key: str
    words: str
    guess: str
    choices: tuple[str, ...]


#: Gives one of a question's choices.
Ask = Callable[[Question], str]


@dataclass
class Draft:
    """A task as it was recognised.

    Attributes:
        name: Its name.
        shape: What its columns are.
        files: Part → the file that the configuration names.
        table: Its training rows, all columns.
        tsv_quotes: Whether its .tsv files quote their texts.
        new: Files to be written for it: path → content.
        notes: What the user should know besides.
    """

    name: str
    shape: Shape
    files: dict[str, Path]
    table: Table
    tsv_quotes: bool = False
    new: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def learner(self) -> str:
        """What learns the task."""
        return KINDS[self.shape.kind].learner


def draft_tasks(paths: Sequence[Path], folder: Path, ask: Ask) -> list[Draft]:
    """Recognise the tasks in files.

    Args:
        paths: Data files, or folders of them.
        folder: Where dev rows that have to be cut off training rows are to be written.
        ask: Answers what the files leave open.

    Raises:
        UserError: A file cannot be read, is not recognised, or the tasks do not go together.
    """
    drafts = [_draft(source, folder, ask) for source in sources_of(paths)]
    if len({draft.learner for draft in drafts}) > 1:
        raise UserError(
            "The files do not go into one configuration",
            expected="tasks that are all for an encoder, or all for a language model",
            found="; ".join(f"{draft.name} is for {draft.learner} ({draft.shape.kind})" for draft in drafts),
            todo="run `ortholora init` for each of the two, or put the classes into words: a prompt and a completion",
        )
    return drafts


def read_whole(path: Path, tsv_quotes: bool = False) -> Table:
    """Read a file with all of its columns; lines that cannot be read are left out and listed."""
    return read_file(path.parent, path.name, text=(), label="", also=None, tsv_quotes=tsv_quotes, drop=True)


def _draft(source: Source, folder: Path, ask: Ask) -> Draft:
    table, quotes = _read(source.files["train"])
    shape = shape_of(table)
    draft = Draft(source.name, shape, dict(source.files), table, tsv_quotes=quotes)
    _settle(draft, ask)
    draft.notes += [f"{path} is not used: the task has such a file already" for path in source.unused]
    draft.notes += _left_out(draft)
    if "test" in draft.files and not _has_labels(draft):
        draft.notes.append(f"{draft.files.pop('test')} has no labels, and is not used")
    if set(draft.files) == {"train"}:
        _divide(draft, folder, ask)
    if "dev" not in draft.files:
        _cut(draft, folder, ask)
    return draft


def _left_out(draft: Draft) -> list[str]:
    """What a prompt lacks that rows as Alpaca has them say in a second column."""
    names = [
        name for name in draft.table.found if name.lower() in ("input", "context") and name not in draft.shape.text
    ]
    filled = {name: len(values_of(draft.table, name)) for name in names if draft.shape.kind == "completion"}
    return [
        f"Column `{name}` is no part of the prompt, and {count:,} rows have a text there. If the answers need it, join "
        f"it with `{draft.shape.text[0]}` in the file"
        for name, count in filled.items()
        if count
    ]


def _read(path: Path) -> tuple[Table, bool]:
    """The table, and whether its double quotes quote."""
    table = read_whole(path)
    if path.suffix.lower() != ".tsv" or not _quoted(table):
        return table, False
    try:
        return read_whole(path, tsv_quotes=True), True
    except UserError:
        return table, False


def _quoted(table: Table) -> bool:
    """Whether most texts of a column stand in double quotes."""
    for name in table.found:
        values = [value for value in values_of(table, name)[:1000] if " " in value]
        if values and sum(v.startswith('"') and v.endswith('"') for v in values) > len(values) / 2:
            return True
    return False


def _settle(draft: Draft, ask: Ask) -> None:
    """Ask for what was guessed out of values."""
    shape, name = draft.shape, draft.name
    for key, others in list(shape.unsure.items()):
        guess = {
            "kind": shape.kind,
            "label": shape.label,
            "messages": shape.label,
            "split_by": shape.split_by or "no",
            "text": PAIRED.join(shape.text),
        }[key]
        choices = (guess, *(other for other in others if other != guess))
        words = _about_numbers(draft) if key == "kind" and "regression" in choices else _WORDS[key].format(guess)
        answer = ask(Question(name, key, words, guess, choices))
        if answer == guess:
            continue
        if key == "split_by":
            shape.split_by = None
        elif key == "kind":
            shape.kind = answer  # type: ignore[assignment]
        elif key == "text":
            shape.text = (answer,) if answer in draft.table.found else tuple(answer.split(PAIRED))
        elif key == "label":
            shape.label = answer
            shape.text = tuple(column for column in shape.text if column != answer) or shape.text
        else:
            shape.text, shape.label = (answer,), answer


_WORDS = {
    "kind": "What kind of task is it?",
    "label": "Which column holds the labels?",
    "messages": "Which column holds the messages?",
    "split_by": "Does the column `{}` name the task of each row, so that every value becomes a task?",
    "text": "Which column holds the text (two: a pair)?",
}


def _about_numbers(draft: Draft) -> str:
    """The question whether whole numbers are a scale."""
    numbers = {float(value) for value in values_of(draft.table, draft.shape.label) if is_number(value)}
    return (
        f"Column `{draft.shape.label}` has {len(numbers)} whole numbers from {min(numbers):g} to {max(numbers):g}. Are "
        "they a scale (regression), or names of classes (classification)?"
    )


def _has_labels(draft: Draft) -> bool:
    label, quotes = draft.shape.label, draft.tsv_quotes
    table = read_whole(draft.files["test"], quotes)
    if label not in table.columns:
        return False
    values = values_of(table, label)
    return len(values) == len(table.columns[label]) and bool(set(values) - {"-1", "?"})


def _divide(draft: Draft, folder: Path, ask: Ask) -> None:
    """Make files of the parts of a file, where a column says which part each row is."""
    found = parts_inside(draft.table)
    if found is None:
        return
    column, rows = found
    shown = ", ".join(f"{len(rows[part]):,} {part}" for part in PARTS if part in rows)
    words = f"Column `{column}` says which part a row belongs to ({shown}). Write these parts into new files?"
    if ask(Question(draft.name, "split", words, "yes", ("yes", "no"))) == "no":
        return
    _leave_out_unread(draft, ask)
    for part, chosen in rows.items():
        if part != "train":
            _write_part(draft, folder, part, chosen)
    if "dev" in rows:
        _write_part(draft, folder, "train", rows["train"])
    columns = {name: [values[row] for row in rows["train"]] for name, values in draft.table.columns.items()}
    draft.table = replace(draft.table, columns=columns)


def _write_part(draft: Draft, folder: Path, part: str, rows: Sequence[int]) -> None:
    draft.files[part] = folder / f"{draft.name}-{part}.jsonl"
    draft.new[draft.files[part]] = lines_of(draft.table, rows)
    draft.tsv_quotes = False


def _cut(draft: Draft, folder: Path, ask: Ask) -> None:
    """Cut dev rows off the training rows, into two new files."""
    _leave_out_unread(draft, ask)
    train, dev = cut_dev_rows(draft.table, draft.shape.text)
    words = f"There are no dev rows. Cut {len(dev):,} of {len(train) + len(dev):,} rows off, into new files?"
    if ask(Question(draft.name, "dev", words, "yes", ("yes", "no"))) == "no":
        raise UserError(
            f"task `{draft.name}`: no dev rows",
            expected=f"a file to evaluate on, beside {draft.files['train']}",
            found="none, and none are to be cut off",
            todo="give one, for example with `dev` in its name",
        )
    for part, rows in (("train", train), ("dev", dev)):
        _write_part(draft, folder, part, rows)


def _leave_out_unread(draft: Draft, ask: Ask) -> None:
    """Ask whether lines that cannot be read may stay out of the new files, where nobody would miss them."""
    unread = draft.table.dropped
    if not unread:
        return
    path, (_, first) = draft.files["train"], unread[0]
    words = f"{path}: {len(unread):,} of its lines cannot be read (the first is {first}). Leave such lines out?"
    if ask(Question(draft.name, "bad_rows", words, "yes", ("yes", "no"))) == "no":
        raise damaged(path, "lines that can be read", first)
    draft.table = replace(draft.table, dropped=())


def task_keys(draft: Draft, folder: Path) -> dict[str, Any]:
    """The keys of the task in a configuration that lies in a folder."""
    shape = draft.shape
    keys: dict[str, Any] = {"name": draft.name}
    if shape.kind != "classification":
        keys["kind"] = shape.kind
    keys |= {part: _relative(draft.files[part], folder) for part in ("train", "dev", "test") if part in draft.files}
    if draft.tsv_quotes:
        keys["tsv_quotes"] = True
    if shape.split_by is not None:
        keys["split_by"] = shape.split_by
    if shape.kind == "chat":
        return keys | {"messages": shape.label}
    if shape.kind == "completion":
        return keys | {"prompt": shape.text[0], "completion": shape.label}
    return keys | {"text": shape.text[0] if len(shape.text) == 1 else list(shape.text), "label": shape.label}


def _relative(path: Path, folder: Path) -> str:
    """The path as a configuration in `folder` names it."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
