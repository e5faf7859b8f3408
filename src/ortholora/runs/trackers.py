"""Experiment trackers: one run of theirs for each of ours, from before its training until after its evaluation.

The Trainer's own callbacks (`report_to`) write the figures. Left to themselves they would put all runs of a process
into one (Weights & Biases), open another, nameless run for the evaluation after the training (MLflow), mix runs of one
name (trackio), and begin anew after a stop. `trackers.json` in a run's folder has the names by which a run goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from transformers import TrainingArguments
from transformers import __version__ as transformers_version
from transformers.integrations import integration_utils

from ortholora.config.sections import Tracker
from ortholora.errors import UserError, missing_extra
from ortholora.files import write_json
from ortholora.ranks.together import rank
from ortholora.runs.folder import TRACKERS_FILE
from ortholora.runs.run import Run

#: What collects runs of a tracker, unless an environment variable or `training.arguments.project` says another.
PROJECT = "ortholora"


def names_in(arguments: TrainingArguments) -> list[str]:
    """The trackers that get the logs."""
    names = arguments.report_to or []
    return [names] if isinstance(names, str) else list(names)


def check_trackers(arguments: TrainingArguments) -> None:
    """Look for the trackers that are asked for before anything is trained.

    Raises:
        MissingExtraError: One is not installed; names the extra.
        UserError: The version of transformers does not know it.
    """
    for name in names_in(arguments):
        if name in get_args(Tracker) and not _is_installed(name):
            absent = ModuleNotFoundError(f"No module named {name!r}", name=name)
            raise missing_extra(f"`report_to: {name}`", name, absent)
        if name not in integration_utils.INTEGRATION_TO_CALLBACK:
            raise UserError(
                f"`report_to: {name}` is not known to transformers",
                expected="a tracker of transformers " + transformers_version,
                found=name,
                todo="install a newer transformers, or remove it",
            )


def _is_installed(name: str) -> bool:
    """Whether there is such a package; a folder `wandb`, which Weights & Biases leaves behind, is none."""
    found = find_spec(name)
    return found is not None and found.origin is not None


def name_run(run: Run, arguments: TrainingArguments, given: Mapping[str, Any]) -> None:
    """Call the run after its folder, and put TensorBoard's files into it.

    Args:
        run: The run.
        arguments: Its arguments, changed in place.
        given: What the user has set of them (`training.arguments`), which stays.
    """
    if "run_name" not in given:
        arguments.run_name = run.title
    if hasattr(arguments, "project") and "project" not in given:  # transformers 4 has no such argument
        arguments.project = PROJECT
    if "tensorboard" in names_in(arguments):
        # transformers 5 reads it from the environment only, transformers 4 from its arguments.
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.folder / "logs")
        if hasattr(arguments, "logging_dir"):
            arguments.logging_dir = str(run.folder / "logs")


@contextmanager
def tracked(run: Run, arguments: TrainingArguments) -> Iterator[None]:
    """Hold the tracker's runs open for a run's training and evaluation; of several processes the first does.

    Args:
        run: The run; its folder is there.
        arguments: Its arguments, after `name_run`.

    Raises:
        UserError: A tracker cannot be started.
    """
    with ExitStack() as opened:
        if rank() == 0:
            for name in names_in(arguments):
                if name in _SESSIONS:
                    _open(opened, name, run, arguments)
        yield


def _open(opened: ExitStack, name: str, run: Run, arguments: TrainingArguments) -> None:
    known = _known(run.folder)
    try:
        found = opened.enter_context(_SESSIONS[name](run, arguments, known.get(name)))
    except Exception as error:  # whatever a network, a login or a store makes them raise
        raise UserError(
            f"The tracker {name} cannot be started",
            expected="a tracker that takes a new run",
            found=f"{type(error).__name__}: {str(error).strip()[:300]}",
            todo=f"set it up (docs/training.md has how it works without a network), or remove {name} from "
            "`training.report_to`",
        ) from error
    if found is not None and found != known.get(name):
        write_json(run.folder / TRACKERS_FILE, {**known, name: found})


def _known(folder: Path) -> dict[str, str]:
    """The names by which trackers know the run; a damaged file is no reason not to train."""
    try:
        content = json.loads((folder / TRACKERS_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    pairs = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, str)}


def _about(run: Run) -> dict[str, Any]:
    """What runs are told apart and grouped by."""
    return {"method": run.method.name, "seed": run.seed, "tasks": ", ".join(run.tasks)}


def _project(variable: str, arguments: TrainingArguments) -> str:
    return os.environ.get(variable) or str(getattr(arguments, "project", PROJECT))


@contextmanager
def _wandb(run: Run, arguments: TrainingArguments, known: str | None) -> Iterator[str | None]:
    import wandb

    if wandb.run is not None:  # the caller's own
        yield None
        return
    again: dict[str, Any] = {} if known is None else {"id": known, "resume": "allow"}
    group = run.title.partition("/")[0]
    project = _project("WANDB_PROJECT", arguments)
    made = wandb.init(project=project, name=arguments.run_name, group=group, config={"run": _about(run)}, **again)
    code = 1
    try:
        yield made.id
        code = 0
    finally:
        wandb.finish(exit_code=code)


@contextmanager
def _mlflow(run: Run, arguments: TrainingArguments, known: str | None) -> Iterator[str | None]:
    import mlflow

    chosen = any(os.environ.get(name) for name in ("MLFLOW_RUN_ID", "MLFLOW_NESTED_RUN"))
    if chosen or mlflow.active_run() is not None:  # the caller's own
        yield None
        return
    if not any(os.environ.get(name) for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")):
        mlflow.set_experiment(_project("", arguments))
    made = None if known is None else _reopened(mlflow, known)
    if made is None:
        made = mlflow.start_run(run_name=arguments.run_name, tags={k: str(v) for k, v in _about(run).items()})
    status = "FAILED"
    try:
        yield made.info.run_id
        status = "FINISHED"
    finally:
        mlflow.flush_async_logging()
        mlflow.end_run(status)


def _reopened(mlflow: Any, run_id: str) -> Any:
    """The run of a stopped training; None where the store has none such any more."""
    try:
        return mlflow.start_run(run_id=run_id)
    except mlflow.MlflowException:
        return None


@contextmanager
def _trackio(run: Run, arguments: TrainingArguments, known: str | None) -> Iterator[str | None]:
    import trackio

    # Its callback goes on in the last run of the same name: a name of its own for every run.
    there: set[str] = set()
    with suppress(ValueError):  # there is no such project yet
        there = {other.name for other in trackio.Api().runs(_project("", arguments))}
    name = known or _unused(str(arguments.run_name), there)
    arguments.run_name = name
    try:
        yield name
    finally:
        trackio.finish()  # the callback opens it once more for the evaluation after the training


def _unused(name: str, names: set[str]) -> str:
    """The name, with a number behind it if there is one such."""
    number = 2
    found = name
    while found in names:
        found, number = f"{name} ({number})", number + 1
    return found


#: Trackers whose runs are opened and closed here: TensorBoard has a folder in each run's.
_SESSIONS: dict[str, Callable[[Run, TrainingArguments, str | None], AbstractContextManager[str | None]]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
