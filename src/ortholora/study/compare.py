"""`compare`: every task alone, all jointly, and with each rule, over the seeds, on identical data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ortholora.config.file import with_settings
from ortholora.config.schema import Config
from ortholora.data.task import TaskData
from ortholora.errors import UserError
from ortholora.runs.build import check_plans, check_settings
from ortholora.runs.folder import RUN_FILE
from ortholora.runs.method import SINGLE, Method
from ortholora.runs.progress import Progress, Silent, Stopped
from ortholora.runs.record import RunRecord
from ortholora.runs.run import Run
from ortholora.runs.train import announce, check_folder, ensure_record
from ortholora.runs.workspace import Workspace
from ortholora.study.folders import folder_of
from ortholora.study.jobs.pool import work_off
from ortholora.study.jobs.sharing import divide_this_machine
from ortholora.study.jobs.worker import Relay, Work
from ortholora.study.methods import methods_of
from ortholora.study.report.write import write_summary
from ortholora.study.statistics.conflict import conflict_sentences, summarise_conflict
from ortholora.study.statistics.summarise import summarise


def plan(config: Config, out: Path) -> list[Run]:
    """List all runs of a study; seed by seed, so that a stopped study has whole seeds.

    Raises:
        UserError: Fewer than two tasks, or a method that cannot be.
    """
    if len(config.tasks) < 2:
        raise UserError(
            "There is nothing to compare",
            expected="two tasks or more",
            found=f"one task, {config.tasks[0].name!r}",
            todo="add tasks to the configuration, or use `ortholora train`",
        )
    runs = []
    names = tuple(config.task_names)
    for seed in config.study.seeds:
        for method in methods_of(config):
            folder = folder_of(out, method.name, seed)
            if method.name == SINGLE:
                runs += [Run(method, (name,), seed, folder / name) for name in names]
            else:
                runs.append(Run(method, names, seed, folder))
    return runs


def compare(
    config: Config,
    tasks: Sequence[TaskData],
    out: Path,
    progress: Progress | None = None,
    base: Path | None = None,
    jobs: int = 1,
    set_up: Callable[[], None] | None = None,
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

    Returns:
        The summary; it is also written to `out` as JSON, Markdown and a picture.

    Raises:
        UserError: See `train_run`; also a folder that holds a study with other settings.
        Stopped: The progress asked to stop; start again to go on.
    """
    progress = progress or Silent()
    runs = plan(config, out)
    _check_out(out)
    workspaces = _Workspaces(config, tasks)
    for run in runs:
        check_folder(run, workspaces.of(run.method))
    for method in {run.method.name: run.method for run in runs if not run.finished}.values():
        check_plans(workspaces.of(method))
        if method.overrides:
            check_settings(workspaces.of(method))
    announce(runs, workspaces.shared, progress)
    if jobs > 1:
        _run_at_once(_Study(config, list(tasks), out, base, jobs, set_up), runs, progress)
    records = [ensure_record(run, workspaces.of(run.method), progress, base) for run in runs]
    summary = _summary(config, records, runs)
    write_summary(out, summary)
    return summary


def _check_out(out: Path) -> None:
    run_files = [name for name in (RUN_FILE, "adapter_config.json") if (out / name).exists()]
    if run_files or (out.exists() and not out.is_dir()):
        raise UserError(
            f"{out} cannot hold a study",
            expected="a new folder, or the folder of this study",
            found=f"the folder of a run, with {run_files[0]}" if run_files else "a file",
            todo="give another --out",
        )


class _Workspaces:
    """Workspaces by method: methods without settings of their own share one."""

    def __init__(self, config: Config, tasks: Sequence[TaskData]) -> None:
        self._config, self._tasks = config, tasks
        self.shared = Workspace(config, tasks)
        self._own: dict[str, Workspace] = {}

    def of(self, method: Method) -> Workspace:
        if not method.overrides:
            return self.shared
        if method.name not in self._own:
            config = with_settings(self._config, method.overrides)
            specs = {spec.name: spec for spec in config.tasks}  # a task's weight may be another
            tasks = [replace(task, spec=specs[task.name]) for task in self._tasks]
            self._own[method.name] = Workspace(config, tasks)
        return self._own[method.name]


@dataclass(frozen=True)
class _Study:
    """What a worker process needs to do runs of a study; called there, it reads and checks nothing again."""

    config: Config
    tasks: list[TaskData]
    out: Path
    base: Path | None
    jobs: int
    set_up: Callable[[], None] | None

    def __call__(self) -> Work:
        if self.set_up is not None:
            self.set_up()
        runs, workspaces = plan(self.config, self.out), _Workspaces(self.config, self.tasks)

        def do(item: int, progress: Relay) -> bool:
            try:
                ensure_record(runs[item], workspaces.of(runs[item].method), progress, self.base, self.jobs)
            except Stopped:
                return False
            return True

        return do


def _run_at_once(study: _Study, runs: Sequence[Run], progress: Progress) -> None:
    """Have worker processes do the runs that are not finished."""
    items = {number: run.label for number, run in enumerate(runs) if not run.finished}
    if left := work_off(items, study, divide_this_machine(study.jobs), progress):
        raise Stopped(", ".join(left[: study.jobs]))


def _summary(config: Config, records: Sequence[RunRecord], runs: Sequence[Run]) -> dict[str, Any]:
    names = list(dict.fromkeys(run.method.name for run in runs))  # single, joint, then the rules
    summary = summarise(
        records,
        methods=names,
        tasks=config.task_names,
        resamples=config.study.bootstrap,
        seed=config.data_seed,
    )
    summary["conflict"] = {name: summarise_conflict([r for r in records if r.method == name]) for name in names[2:]}
    if summary["recovered_method"]:
        summary["verdict"] += conflict_sentences(summary["conflict"][summary["recovered_method"]])
    return summary
