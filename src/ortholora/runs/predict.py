"""Answers to all rows of a file, as a file of JSON lines: streamed, and gone on with after a stop.

Rows are answered a window at a time. A window's lines are on the disk before `OUT.state.json` says so, and what that
file does not vouch for is cut off on the next start: half a line is never taken for a whole one. Windows begin at
fixed rows, and the size of a forward is kept with them, so that a stop changes no byte. When all is done, `OUT.partial`
gets its name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size
from pydantic import Field, TypeAdapter

from ortholora.config.stored import Stored, read_stored
from ortholora.errors import TemplateError, UserError
from ortholora.files import append_piece, write_json
from ortholora.models import predictor as predictors
from ortholora.models.answers import Prediction
from ortholora.models.kinds import model_of
from ortholora.models.predictor import Predictor
from ortholora.models.saving import ADAPTER, HEADS, METADATA
from ortholora.runs.lock import lock
from ortholora.runs.progress import RowProgress, Stopped
from ortholora.runs.questions import Asked, Questions

#: Padded tokens of a forward to begin with. Where memory runs out, half of it is tried; on a CPU it would be the end.
_TOKENS = {"cpu": 8192}
_MOST_TOKENS, _LEAST_TOKENS = 65_536, 16


class State(Stored):
    """How far a file of answers is.

    Attributes:
        mark: Hash of what decides the answers: the run, the task, the columns.
        rows: Rows that are answered.
        bytes: Bytes of their lines.
        digest: Hash of their questions.
        problems: Rows of them that have no answer.
        max_tokens: Most padded tokens of a forward.
    """

    format: Literal[1] = 1
    mark: str
    rows: Annotated[int, Field(ge=0)] = 0
    bytes: Annotated[int, Field(ge=0)] = 0
    digest: str = ""
    problems: Annotated[int, Field(ge=0)] = 0
    max_tokens: Annotated[int, Field(gt=0)] = _MOST_TOKENS


@dataclass(frozen=True)
class Work:
    """What is to be answered, and where to.

    Attributes:
        questions: The rows of the file, as questions of one task.
        out: The file of answers.
        total: Rows of the file.
    """

    questions: Questions
    out: Path
    total: int


class Answered(NamedTuple):
    """What came of it: rows of the file, and those of them without an answer."""

    rows: int
    problems: int


def predict_file(run: Path, questions: Questions, out: Path, progress: RowProgress) -> Answered:
    """Answer all rows of a file, or those that an earlier sitting has left.

    Args:
        run: The run's folder.
        questions: The rows of the file.
        out: The file of answers, `.jsonl`: a line for every row, in the order of the file.
        progress: What the rows are reported to.

    Raises:
        Stopped: On request, after a window.
        UserError: The file cannot be read, none of its rows can be answered, `out` is there, its beginnings are of
            another run or other rows, another process writes it, or one row alone does not fit into memory.
    """
    _check_out(out)
    with lock(out.parent, out.name):
        state = _read_state(run, questions, out)
        work = Work(questions, out, _check_rows(questions, out, state, progress))
        predictor = predictors.load(run)
        if not state.rows:
            device = next(predictor.model.parameters()).device.type
            state = state.model_copy(update={"max_tokens": _TOKENS.get(device, _MOST_TOKENS)})
        progress.start(questions.task, work.total, state.rows)
        for rows in _windows(islice(questions, state.rows, work.total), questions):
            state = _answer_window(rows, state, work, predictor)
            progress.step(state.rows)
            if progress.stop_requested and state.rows < work.total:
                raise Stopped(f"{questions.task}, after {state.rows:,} of {work.total:,} rows")
        if state.problems == work.total:
            raise _none_answered(work)
        os.replace(_partial(out), out)
        _state_file(out).unlink()
    return Answered(work.total, state.problems)


def _check_rows(questions: Questions, out: Path, state: State, progress: RowProgress) -> int:
    """Read the whole file, without a model: what is wrong with it is known before the work, not in its middle.

    Returns:
        Its number of rows.
    """
    total, problems, digest, same = 0, 0, "", state.rows == 0
    first: Asked | None = None
    for rows in _windows(questions, questions):
        total += len(rows)
        bad = [row for row in rows if row.problem is not None]
        problems, first = problems + len(bad), first or next(iter(bad), None)
        if total <= state.rows:
            digest = _chain(digest, rows)
            same = same or (total == state.rows and digest == state.digest)
    if total == problems:
        raise _none_good(questions.path, total, first)
    if not same:
        raise _other(out, f"other rows among the first {state.rows:,} of {questions.path}")
    if first is not None:
        progress.note(
            f"{problems:,} of {total:,} rows cannot be answered (the first is row {first.number}: {first.problem}). "
            "Their lines have a `problem` in place of an answer."
        )
    return total


def _windows(rows: Iterable[Asked], questions: Questions) -> Iterator[list[Asked]]:
    """The rows that are answered and written together."""
    left, size = iter(rows), model_of(questions.card).window
    while window := list(islice(left, size)):
        yield window


def _answer_window(rows: Sequence[Asked], state: State, work: Work, predictor: Predictor) -> State:
    tried, answers, max_tokens = _ask_good(predictor, work.questions.task, rows, state.max_tokens)
    left = iter(answers)
    lines = [
        {"row": row.number} | ({"problem": row.problem} if row.problem is not None else next(left).to_json())
        for row in tried
    ]
    piece = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8")
    state = State(
        mark=state.mark,
        rows=state.rows + len(rows),
        bytes=append_piece(_partial(work.out), state.bytes, piece),
        digest=_chain(state.digest, rows),
        problems=state.problems + len(rows) - len(answers),
        max_tokens=max_tokens,
    )
    write_json(_state_file(work.out), state.model_dump())
    return state


def _ask_good(
    predictor: Predictor, task: str, rows: Sequence[Asked], max_tokens: int
) -> tuple[list[Asked], list[Prediction], int]:
    """Answer the rows that can be; one that the chat template refuses gets a problem, before anything is computed."""
    tried = list(rows)
    while True:
        good = [index for index, row in enumerate(tried) if row.problem is None]
        try:
            return tried, *_ask(predictor, task, [tried[index].question for index in good], max_tokens)
        except TemplateError as error:
            if error.row is None:
                raise
            refused = good[error.row]
            tried[refused] = tried[refused]._replace(problem=f"{error.found}; expected {error.expected}")


def _ask(predictor: Predictor, task: str, questions: list[Any], max_tokens: int) -> tuple[list[Prediction], int]:
    """Answers, and the size of a forward that fitted; the whole window again with each, so that all rows had it."""
    while questions:
        try:
            predictor.max_tokens = max_tokens
            return predictor.predict(task, questions, batch_size=None), max_tokens
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
            if max_tokens <= _LEAST_TOKENS:
                raise UserError(
                    "A row does not fit into memory",
                    expected="memory for a forward of the longest row alone",
                    found=" ".join(str(error).split())[:200],
                    todo="stop what else uses this device, or use another one; start the same command again to go on",
                ) from None
        # Here, where the error holds no tensors any more.
        max_tokens //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return [], max_tokens


def _chain(digest: str, rows: Sequence[Asked]) -> str:
    """The hash of all questions up to these, from that of those before."""
    content = json.dumps([digest, [[row.question, row.problem] for row in rows]], default=str)
    return hashlib.sha256(content.encode("ascii")).hexdigest()


def _mark_of(run: Path, questions: Questions) -> str:
    files = [hashlib.sha256((run / name).read_bytes()).hexdigest() for name in _files(run)]
    content = [*files, questions.task, questions.columns, model_of(questions.card).window]
    return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()


def _files(run: Path) -> Iterator[str]:
    return (name for name in (METADATA, ADAPTER, HEADS) if (run / name).is_file())


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _state_file(out: Path) -> Path:
    return out.with_name(out.name + ".state.json")


def _read_state(run: Path, questions: Questions, out: Path) -> State:
    mark, path = _mark_of(run, questions), _state_file(out)
    if not (path.is_file() and _partial(out).is_file()):
        return State(mark=mark)
    todo = f"delete {path} and start the same command again, which then begins anew"
    state = read_stored(path, TypeAdapter(State), "how far the answers are", todo)
    if state.mark != mark:
        raise _other(out, "another run, another task or other columns")
    if _partial(out).stat().st_size < state.bytes:
        raise _other(out, f"less than the {state.bytes:,} bytes that {path.name} speaks of")
    return state


def _check_out(out: Path) -> None:
    if out.suffix.lower() != ".jsonl":
        raise UserError(
            f"--out {out}",
            expected="a file that ends in `.jsonl`: one JSON object a line",
            found=f"`{out.suffix}`" if out.suffix else "no ending",
            todo="give another name",
        )
    if out.exists():
        raise UserError(
            f"{out} is there already",
            expected="a new file for the answers; one that was begun lies beside it and is gone on with",
            found="a folder" if out.is_dir() else "a finished file",
            todo="give another --out, or remove it",
        )


def _none_good(path: Path, total: int, first: Asked | None) -> UserError:
    return UserError(
        f"{path}: no row that can be answered",
        expected="rows with texts in the columns of the task",
        found=f"row {first.number}: {first.problem}; and so with all {total:,}" if first else "no rows",
        todo="give a file with texts, or name their columns with --text; answers there? `ortholora evaluate`",
    )


def _none_answered(work: Work) -> UserError:
    """The chat template refused whatever could be read: nothing to keep."""
    with _partial(work.out).open(encoding="utf-8") as lines:
        first = json.loads(next(lines))
    for path in (_state_file(work.out), _partial(work.out)):
        path.unlink()
    return _none_good(work.questions.path, work.total, Asked(first["row"], None, first["problem"]))


def _other(out: Path, found: str) -> UserError:
    begun = _partial(out)
    return UserError(
        f"{begun} was begun with something else",
        expected="the same run, task and columns, and the rows that are answered as they were",
        found=found,
        todo=f"give another --out; or delete {begun} to begin anew",
    )
