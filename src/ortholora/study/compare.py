"""`compare`: every task alone, all jointly, and with each rule, over the seeds, on identical data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ortholora.config.file import dump_config
from ortholora.config.schema import Config
from ortholora.data.task import TaskData
from ortholora.errors import UserError
from ortholora.files import write_text
from ortholora.ranks.launcher import check_alone
from ortholora.runs.folder import RUN_FILE
from ortholora.runs.lock import lock
from ortholora.runs.method import Method
from ortholora.runs.progress import Progress, Silent
from ortholora.runs.train import announce
from ortholora.study.folders import STUDY_FILE
from ortholora.study.jobs.pool import Workers
from ortholora.study.methods import methods_of
from ortholora.study.planning import plan
from ortholora.study.report.study import write_report
from ortholora.study.report.write import write_summary
from ortholora.study.running import Means, Workspaces, check_runs, do_runs
from ortholora.study.summary import summary_of_study
from ortholora.study.sweep.choice import Choice, given_by
from ortholora.study.sweep.kept import check_chosen, check_possible, possible_runs
from ortholora.study.sweep.rows import cut_rows
from ortholora.study.sweep.trials import plan_merges, plan_trials, run_trials, summary_of, write_choices
from ortholora.study.sweep.values import check_sweep


def compare(
    config: Config,
    tasks: Sequence[TaskData],
    out: Path,
    progress: Progress | None = None,
    base: Path | None = None,
    jobs: int = 1,
    set_up: Callable[[], None] | None = None,
    workers: Workers | None = None,
) -> dict[str, Any]:
    """Run what is missing, and summarise. Finished runs are kept, a stopped one is resumed.

    Args:
        config: The configuration; `study` says what to compare.
        tasks: The data.
        out: The study's folder.
        progress: Is told what happens.
        base: Folder that relative data files start from; kept with the runs for `evaluate`.
        jobs: Runs at once. With more than one, each is done in a process of its own (`study/jobs/sharing.py`); a
            script that calls this needs the usual `if __name__ == "__main__"`.
        set_up: Is called first in every such process; a function of a module.
        workers: Who does the runs instead, such as a Ray cluster (`study/jobs/ray_cluster.py`); `jobs` is then theirs.

    Returns:
        The summary; it is also written to `out` as JSON, Markdown, pictures and a page of HTML.

    Raises:
        UserError: See `train_run`; also fewer than two tasks, a method or a sweep that cannot be, and a folder that
            holds a study with other settings.
        Stopped: The progress asked to stop; start again to go on.
    """
    check_alone("compare")
    progress = progress or Silent()
    _check_tasks(config)
    _check_start(config)
    methods = methods_of(config)
    _check_out(out)
    means = Means(config, list(tasks), base, workers.size if workers else jobs, set_up, workers)
    # Of two commands the second is refused here, and not whichever of them comes later to a run of the other.
    with lock(out, of=STUDY_FILE, what=out):
        return _compare(config, methods, out, means, progress)


def _compare(config: Config, methods: Sequence[Method], out: Path, means: Means, progress: Progress) -> dict[str, Any]:
    if config.study.sweep is None:
        workspaces = Workspaces(config, means.tasks)
        runs = plan(config, methods, out)
        check_runs(runs, workspaces)
        announce(runs, workspaces.shared, progress)
        choices: list[Choice] = []
    else:
        means, choices = _sweep(config, methods, out, means, progress)
        workspaces = Workspaces(config, means.tasks)
        runs = plan(config, methods, out, given_by(choices, config.task_names))
        check_runs(runs, workspaces)
    _keep_settings(config, out)
    records = do_runs(runs, means, workspaces, progress)
    found = [record for record in records if record is not None]
    summary = summary_of_study(config, found, [method.name for method in methods])
    if choices:
        summary["sweep"] = summary_of(config, choices)
    write_summary(out, summary)
    write_report(out)
    return summary


def _keep_settings(config: Config, out: Path) -> None:
    """Keep the configuration of the whole study: the report of a half-finished one knows from it what is missing."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / STUDY_FILE, dump_config(config))


def _sweep(
    config: Config, methods: Sequence[Method], out: Path, means: Means, progress: Progress
) -> tuple[Means, list[Choice]]:
    """Choose every method's settings; returns how to go on, without the rows that were cut off to choose on."""
    assert config.study.sweep is not None
    check_sweep(config, methods)
    tasks, trial_tasks = cut_rows(means.tasks, config.study.sweep.rows, config.data_seed)
    workspaces = Workspaces(config, trial_tasks)
    trials = plan_trials(config, methods, out)
    check_runs(trials, workspaces, merging=any(method.merge for method in methods))
    kept = Workspaces(config, tasks)
    check_possible(possible_runs(config, methods, out), kept)
    # What is chosen decides how the runs of the study are trained or merged, not how many there are.
    announce([*trials, *plan_merges(config, methods, out), *plan(config, methods, out)], workspaces.shared, progress)
    choices = run_trials(trials, config, methods, out, replace(means, tasks=trial_tasks), workspaces, progress)
    write_choices(out, config, choices)
    check_chosen(config, methods, choices, kept, out)
    return replace(means, tasks=tasks), choices


def _check_tasks(config: Config) -> None:
    if len(config.tasks) < 2:
        raise UserError(
            "There is nothing to compare",
            expected="two tasks or more",
            found=f"one task, {config.tasks[0].name!r}",
            todo="add tasks to the configuration, or use `ortholora train`",
        )


def _check_start(config: Config) -> None:
    if config.init_from is not None:
        raise UserError(
            "`init_from` cannot be compared",
            expected="new adapters: `single` trains each task alone, and an adapter that has learned other tasks is no "
            "longer alone",
            found=f"init_from: {config.init_from}",
            todo="use `ortholora train` for it, once with each rule; or remove `init_from` to compare from the start",
        )


def _check_out(out: Path) -> None:
    run_files = [name for name in (RUN_FILE, "adapter_config.json") if (out / name).exists()]
    if run_files or (out.exists() and not out.is_dir()):
        raise UserError(
            f"{out} cannot hold a study",
            expected="a new folder, or the folder of this study",
            found=f"the folder of a run, with {run_files[0]}" if run_files else "a file",
            todo="give another --out",
        )
