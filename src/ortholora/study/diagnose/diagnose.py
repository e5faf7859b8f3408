"""`diagnose`: train a few steps, measure, judge."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ortholora.config.schema import Config
from ortholora.data.task import TaskData
from ortholora.errors import UserError
from ortholora.files import stage
from ortholora.runs.folder import RUN_FILE
from ortholora.runs.lock import lock
from ortholora.runs.progress import Progress, Silent
from ortholora.runs.provenance import fingerprint, provenance
from ortholora.runs.workspace import Workspace
from ortholora.study.diagnose.figures import figures
from ortholora.study.diagnose.rows import deal, hold_out
from ortholora.study.diagnose.stored import POINTS, Points
from ortholora.study.diagnose.training import FewSteps, gradient_points, plain
from ortholora.study.diagnose.verdict import headline, verdict
from ortholora.study.diagnose.write import write_diagnosis
from ortholora.study.folders import STUDY_FILE, SUMMARY_FILE

STEPS, ROWS = 50, 192
#: Files of a run or a study: a diagnosis changes neither.
_OTHERS = (RUN_FILE, "adapter_config.json", STUDY_FILE, SUMMARY_FILE)


def diagnose(
    config: Config,
    tasks: Sequence[TaskData],
    out: Path,
    steps: int | None = None,
    rows: int = ROWS,
    progress: Progress | None = None,
    compare: Sequence[str] = ("ortholora", "compare", "CONFIG"),
    adapters: int | None = None,
) -> dict[str, Any]:
    """Say whether tasks help or hurt each other, before any real training. What is finished is kept.

    Args:
        config: The configuration.
        tasks: The data.
        out: Folder for the results; it must not be that of a run or a study.
        steps: Steps of the joint training, and of each task alone; default 50, or as many as the training has.
        rows: Rows of each task that are measured on and not trained on.
        progress: Is told what happens.
        compare: The words of the `compare` command that the verdict ends with.
        adapters: Propose groups of tasks for at most so many adapters.

    Returns:
        All figures and the verdict; also written to `out` as JSON, Markdown and HTML.

    Raises:
        UserError: Fewer than two tasks, too few rows, a loss that is not finite, or a folder of something else.
        Stopped: The progress asked to stop; start again to go on.
    """
    progress = progress or Silent()
    config = plain(config)
    steps = min(STEPS, config.training.steps) if steps is None else steps
    _check(config, steps, adapters)
    groups = deal(rows)
    workspace = Workspace(config, hold_out(tasks, groups, config.data_seed))
    settings = {"steps": steps, **dataclasses.asdict(groups), "seed": config.seed, "data_seed": config.data_seed}
    mark = fingerprint(config, tasks, settings | {"quota": workspace.quota()})
    _check_out(out)
    with lock(out):
        points = Points(out / POINTS, mark)
        with stage(out) as scratch:
            few = FewSteps(workspace, groups, steps, config.seed, points, scratch, progress)
            progress.plan([(few.label(n), _work(few, n), few.done(n)) for n in few.trainings])
            left = not all(few.done(n) for n in few.trainings)
            for sentence in workspace.cut_rows() if left else ():
                progress.note(sentence)
            for training in few.trainings:
                few.ensure(training)
                if progress.stop_requested:
                    raise few.stopped(training)
        quota = workspace.quota()
        names, weights = [task.name for task in tasks], [task.spec.weight for task in tasks]
        found: dict[str, Any] = {
            "tasks": names,
            "settings": settings | {"points": gradient_points(steps), "quota": quota},
            **figures(points, names, weights, groups, list(quota.values()), steps, adapters),
        }
        sentences, methods = verdict(found)
        found["headline"], found["verdict"] = headline(found), sentences
        found["next"] = shlex.join([*compare, "--set", f"study.methods=[{', '.join(methods)}]"])
        found["again"] = shlex.join([compare[0], "diagnose", *compare[2:], *_options(steps, rows, adapters)])
        found["provenance"] = provenance(config, tasks)
        write_diagnosis(out, found)
    return found


def _options(steps: int, rows: int, adapters: int | None) -> list[str]:
    """The options that give the same diagnosis again."""
    return ["--steps", f"{steps}", "--rows", f"{rows}", *([] if adapters is None else ["--groups", f"{adapters}"])]


def _work(few: FewSteps, training: int) -> int:
    """The share of a training: rows that are trained and measured on."""
    return len(few.workspace.tasks) * 5 if training < 0 else 1


def _check(config: Config, steps: int, adapters: int | None) -> None:
    if len(config.tasks) < 2:
        raise UserError(
            "There is nothing to diagnose",
            expected="two tasks or more",
            found=f"one task, {config.tasks[0].name!r}",
            todo="add tasks to the configuration; a task alone has nobody to conflict with",
        )
    if not 0 <= steps <= config.training.steps:
        raise UserError(
            f"--steps {steps} cannot be taken",
            expected=f"0 (the start as it is) to {config.training.steps}, the steps of the training",
            found=f"{steps}",
            todo="correct the option, or `training.steps`",
        )
    if adapters is not None and not 2 <= adapters <= len(config.tasks):
        raise UserError(
            f"--groups {adapters} cannot be proposed",
            expected=f"2 to {len(config.tasks)} groups, for {len(config.tasks)} tasks",
            found=f"{adapters}",
            todo="correct the option, or leave it out",
        )


def _check_out(out: Path) -> None:
    found = [name for name in _OTHERS if (out / name).exists()]
    if found or (out.exists() and not out.is_dir()):
        raise UserError(
            f"{out} cannot hold a diagnosis",
            expected="a new folder, or the folder of this diagnosis",
            found=f"the folder of a run or a study, with {found[0]}" if found else "a file",
            todo="give another --out",
        )
