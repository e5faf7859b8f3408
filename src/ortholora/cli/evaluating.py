"""`evaluate`: a run on its own tasks' data, or on another file with answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ortholora.cli import showing
from ortholora.cli.command import Outcome
from ortholora.cli.console import console, people
from ortholora.cli.reading import questions_of, read, settings_of
from ortholora.cli.voice import hush_libraries, voice
from ortholora.config.choose import keep
from ortholora.errors import UserError

if TYPE_CHECKING:
    from ortholora.data.labelled import LabelledFile
    from ortholora.models.card import ModelCard
    from ortholora.runs.evaluate import Scored
    from ortholora.runs.progress import RowProgress


@dataclass(frozen=True)
class Wanted:
    """What is to be evaluated on what, as it was typed; the fields are the options of `evaluate`."""

    run: Path
    data_dir: Path | None
    task: str | None
    data: Path | None
    text: str | None
    label: str | None


def run_evaluation(wanted: Wanted) -> Outcome:
    """Evaluate, and tell the scores."""
    from ortholora.models.loading import load_card

    card = load_card(wanted.run)
    if wanted.data is None:
        _refuse(wanted, "text", "label")
        scores, metrics, parts = _own_data(wanted, card)
    else:
        _refuse(wanted, "data_dir")
        scores, metrics, parts = _other_file(wanted, wanted.data, card)
    table = showing.scores_table(scores, metrics, parts)
    return Outcome(
        partial(console.print, table),
        showing.score_lines(scores, metrics),
        lambda: {task: scored.to_json() for task, scored in scores.items()},
    )


#: The scores of each task; its metric; and what it was scored on.
_Found = tuple[dict[str, "Scored"], dict[str, str], dict[str, str]]


def _own_data(wanted: Wanted, card: ModelCard) -> _Found:
    config, base = settings_of(wanted.run)
    if wanted.task is not None:
        card.index_of(wanted.task)
        config = keep(config, {wanted.task})
    tasks = read(config, base, wanted.data_dir, show=voice.to_people)
    from ortholora.models.predictor import load
    from ortholora.runs.evaluate import evaluate_run

    hush_libraries()
    scores = evaluate_run(load(wanted.run), tasks, config.study.bootstrap)
    return scores, {task.name: str(task.spec.metric) for task in tasks}, {task.name: task.scored_on for task in tasks}


def _other_file(wanted: Wanted, data: Path, card: ModelCard) -> _Found:
    file = _labelled(wanted, data, card)
    config, _ = settings_of(wanted.run)
    from ortholora.runs.evaluate import evaluate_file

    hush_libraries()
    name = file.spec.name
    with _progress() as progress:
        scored = evaluate_file(wanted.run, file, config.study.bootstrap, progress)
    return {name: scored}, {name: str(file.spec.metric)}, {name: str(data)}


def _labelled(wanted: Wanted, data: Path, card: ModelCard) -> LabelledFile:
    """The rows of --data with the columns of --text and --label.

    Raises:
        UserError: The task is not clear, or the columns do not fit it.
    """
    from ortholora.data.labelled import LabelledFile

    names = [task.name for task in card.tasks]
    if wanted.task is None and len(names) > 1:
        raise UserError(
            "Which task are the rows of --data of?",
            expected="one of " + ", ".join(names),
            found="no --task",
            todo="name the task with --task",
        )
    task = wanted.task or names[0]
    spec = card.tasks[card.index_of(task)]
    questions = questions_of(wanted.run, task, data, wanted.text)
    text, label = questions.columns, questions.config.columns[1]
    if label in questions.config.columns[0]:  # the messages of a chat hold the answers, too
        if wanted.label is not None:
            raise UserError(
                f"--label {wanted.label}",
                expected="--text alone: the messages of a chat hold the answers",
                found="--label",
                todo="leave it out",
            )
        label = text[0]
    return LabelledFile(data, questions.config, spec.labels, text, wanted.label or label)


@contextmanager
def _progress() -> Iterator[RowProgress]:
    """Nothing beside the JSON of a machine."""
    from ortholora.cli.row_progress import show_rows
    from ortholora.runs.progress import Silent

    if voice.as_json:
        yield Silent()
        return
    with show_rows(people(), "Stopping after these rows; nothing is kept.") as progress:
        yield progress


def _refuse(wanted: Wanted, *names: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(wanted, name) is not None]
    if given:
        raise UserError(
            f"{given[0]} does not go with what is evaluated",
            expected="--data with --text and --label, or --data-dir, or neither",
            found=f"{given[0]} {'without' if wanted.data is None else 'beside'} --data",
            todo="correct the options",
        )
