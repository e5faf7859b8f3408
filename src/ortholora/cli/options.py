"""The arguments and options of the commands; those of `train` and `compare` are one list."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from ortholora.cli.command import Outcome
from ortholora.config.bounds import MOST_STEPS
from ortholora.errors import UserError

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML configuration; `demo` is the embedded one (extra `[demo]`).")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
StudiesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="STUDY...", help="Folder of a study, finished or not; of several; or of a diagnosis."),
]
ReportOption = Annotated[
    Path | None,
    typer.Option("--out", help="The HTML file; default `report.html` in that folder; of several studies, here."),
]
TextsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TEXT...",
        help="Texts (a chat: also messages in JSON); for a pair task two after two. Without: standard input.",
    ),
]
FilesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="Data files (.tsv, .csv, .jsonl, .parquet), or folders of them. A word in the name says what a file is: "
        "`train`, `dev` or `test`; without one it is training data.",
    ),
]
NewConfigOption = Annotated[Path, typer.Option("--out", help="The configuration to write.")]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", metavar="ID", help="Hub id or folder of the encoder or language model.")
]


def _say_version(asked: bool) -> None:
    """Say the version, and end."""
    if asked:
        print(version("ortholora"))
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Say the version, and end.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Ask nothing: take the likeliest answer, and say which.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace files that are there already.")]
DiagnosisOption = Annotated[
    Path | None, typer.Option("--out", help="Folder for the results; default `runs/CONFIG-NAME-diagnosis`.")
]
ExportOption = Annotated[Path, typer.Option("--out", help="Folder for the merged model; new, or empty.")]
PushedArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a finished run, or one that `export` wrote.")
]
HubIdArgument = Annotated[
    str, typer.Argument(metavar="HUB-ID", help="USER/NAME or ORGANISATION/NAME; the repository is made if need be.")
]
PrivateOption = Annotated[
    bool, typer.Option("--private", help="Only for you, or your organisation; a public repository is then refused.")
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="BRANCH", help="Branch to push to; default `main`; made if need be.")
]
MessageOption = Annotated[
    str | None, typer.Option("--commit-message", metavar="TEXT", help="First line of the commit.")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder for the results; default `runs/CONFIG-NAME`.")]
DemoOption = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
DataOption = Annotated[Path | None, typer.Option("--data-dir", help="Folder that the tasks' files are relative to.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. `tasks.cola.weight=2`.")
]
SeedsOption = Annotated[str | None, typer.Option("--seeds", metavar="0,1,2", help="Seeds, separated by commas.")]
StepsOption = Annotated[
    int | None, typer.Option("--max-steps", min=1, max=MOST_STEPS, help="Optimizer steps, instead of the file's.")
]
TasksOption = Annotated[
    str | None, typer.Option("--tasks", metavar="A,B", help="Only these tasks of the file, separated by commas.")
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        max=256,
        help="Runs at once, each in a process of its own: on GPUs one after the other of them, on the CPU with its "
        "share of the cores. Default 1; with --on as many as there is room for. Steps that were timed so are no "
        "measure of cost.",
    ),
]
DemoJobsOption = Annotated[
    int | None,
    typer.Option("--jobs", min=1, max=256, help="As in `compare`. Default 2, where there are two cores."),
]
OnOption = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ray[://HOST:PORT]",
        help="Hand the runs to a Ray cluster (extra `[ray]`): `ray` is the one that this machine is in. --out must be "
        "a folder that all its nodes share.",
    ),
]
GpusOption = Annotated[
    float | None,
    typer.Option("--gpus-per-run", help="With --on: GPUs of a run, or a part of one; default 1 if there are any."),
]
CpusOption = Annotated[
    int, typer.Option("--cpus-per-run", min=1, max=1024, help="With --on: CPU cores, and threads, of a run.")
]
FewStepsOption = Annotated[
    int | None,
    typer.Option("--steps", min=0, help="Steps to train; default 50, or all that there are. 0: the start as it is."),
]
GroupsOption = Annotated[
    int | None, typer.Option("--groups", metavar="K", help="Propose groups of tasks for at most K adapters.")
]
RowsOption = Annotated[
    int, typer.Option("--rows", min=1, help="Rows of each task to measure on; taken from the training rows.")
]
TaskOption = Annotated[str, typer.Option("--task", help="Name of the task.")]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--file",
        help="One text a line; a pair is separated by a tab. For a language model also JSON: a text, or messages.",
    ),
]
AnswersOption = Annotated[
    Path | None,
    typer.Option("--out", help="File for the answers to --data, `.jsonl`: a line for each row, in its order."),
]
RowsFileOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="A file of any size with the task's columns (.tsv, .csv, .jsonl, .parquet); the answers go to --out. "
        "Start again to go on.",
    ),
]
TextColumnsOption = Annotated[
    str | None,
    typer.Option("--text", metavar="A[,B]", help="Text columns of --data, where they are not called as in training."),
]
LabelledOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Another file of any size with the columns of one task, answers included (.tsv, .csv, .jsonl, .parquet).",
    ),
]
LabelOption = Annotated[
    str | None,
    typer.Option("--label", metavar="COLUMN", help="Label column of --data, where it is not called as in training."),
]
OneTaskOption = Annotated[
    str | None, typer.Option("--task", help="Only this task; with --data the task of its rows, if there are several.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit with 3 if there are warnings, though no errors.")]
MeasureOption = Annotated[
    bool,
    typer.Option("--measure/--no-measure", help="Train a few steps that nobody keeps, to estimate time and memory."),
]


@dataclass(frozen=True)
class Choices:
    """What `train` and `compare` are told alike, as it was typed; the fields are their options."""

    config: ConfigArgument
    out: OutOption = None
    data_dir: DataOption = None
    set_: SetOption = None
    seeds: SeedsOption = None
    max_steps: StepsOption = None
    only: TasksOption = None


def check_words(words: Mapping[str, Any]) -> None:
    """Refuse words that are no text: bytes that are not UTF-8, which Python hands on as halves of characters.

    Raises:
        UserError: One is not.
    """
    for value in words.values():
        for word in value if isinstance(value, list) else [value]:
            if isinstance(word, str | Path) and not _is_word(str(word)):
                raise UserError(
                    "A word of the command is no text",
                    expected="words in UTF-8, without NUL",
                    found=ascii(str(word)),
                    todo="correct the word, or set the terminal to UTF-8",
                )


def _is_word(word: str) -> bool:
    try:
        return b"\0" not in word.encode()
    except UnicodeEncodeError:  # half of a character: the terminal speaks no UTF-8
        return False


def takes_choices(command: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Replace a command's first parameter, its `Choices`, by their fields: Typer reads options off a signature."""
    shared = inspect.signature(Choices, eval_str=True).parameters
    _, *own = inspect.signature(command, eval_str=True).parameters.values()

    def called(**words: Any) -> Outcome:
        choices = Choices(**{name: words.pop(name) for name in shared})
        return command(choices, **words)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__signature__ = inspect.Signature([*shared.values(), *own])  # type: ignore[attr-defined]
    return called
