"""Do the runs of a study: one after the other in this process, or several at once in processes of their own."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ortholora.config.file import with_settings
from ortholora.config.schema import Config
from ortholora.data.task import TaskData
from ortholora.errors import NonFiniteLossError, UserError
from ortholora.files import write_json
from ortholora.runs.build import check_plans, check_settings
from ortholora.runs.folder import fingerprint_of
from ortholora.runs.method import SINGLE, Method
from ortholora.runs.progress import Progress, Stopped
from ortholora.runs.record import RunRecord
from ortholora.runs.run import DIVERGED_FILE, Run
from ortholora.runs.train import check_folder, ensure_record
from ortholora.runs.workspace import Workspace
from ortholora.study.jobs.pool import Workers, work_off
from ortholora.study.jobs.processes import Processes
from ortholora.study.jobs.sharing import divide_this_machine
from ortholora.study.jobs.worker import Prepared, Relay, Work

#: Seconds for a result to arrive that another machine has written.
_SEEN = 90.0


class Workspaces:
    """Workspaces by the settings of a method: methods without any of their own share one."""

    def __init__(self, config: Config, tasks: Sequence[TaskData]) -> None:
        self._config, self._tasks = config, tasks
        self.shared: Workspace = Workspace(config, tasks)
        self._own: dict[str, Workspace] = {}

    def of(self, method: Method) -> Workspace:
        """The workspace with the method's settings."""
        if not method.overrides:
            return self.shared
        key = _key(method)
        if key not in self._own:
            config = with_settings(self._config, method.overrides)
            specs = {spec.name: spec for spec in config.tasks}  # a task's weight may be another
            tasks = [replace(task, spec=specs[task.name]) for task in self._tasks]
            self._own[key] = Workspace(config, tasks, like=self.shared)
        return self._own[key]


@dataclass(frozen=True)
class Means:
    """How the runs of a study are done.

    Attributes:
        config: The configuration.
        tasks: The data.
        base: Folder that relative data files start from; kept with the runs for `evaluate`.
        jobs: Runs at once.
        set_up: Is called first in every worker; a function of a module.
        workers: Who does the runs; None: this process, or with several `jobs` processes of this machine.
    """

    config: Config
    tasks: list[TaskData]
    base: Path | None = None
    jobs: int = 1
    set_up: Callable[[], None] | None = None
    workers: Workers | None = None


def check_runs(runs: Sequence[Run], workspaces: Workspaces, merging: bool = False) -> None:
    """Check all runs before the first starts.

    Args:
        runs: The runs.
        workspaces: Configuration and tokenised tasks.
        merging: Whether adapters of `single` will be merged that are not known yet as sources of a run.

    Raises:
        UserError: A folder is of another run, steps cannot be cut as the configuration says, or a method's settings
            make no sense.
    """
    for run in runs:
        check_folder(run, workspaces.of(run.method))
        if run.done and not run.finished:
            _forget_if_changed(run, workspaces.of(run.method))
    left = [run for run in runs if not run.done]
    merged = {_key(source.method) for run in left for source in run.sources}
    merged |= {_key(run.method) for run in left if merging and run.method.name == SINGLE}
    methods = [run.method for run in left if run.method.merge is None]
    methods += [source.method for run in left for source in run.sources]
    captured = {_key(method) for method in methods if method.rule is not None}
    for key, method in {_key(method): method for method in methods}.items():
        workspace = workspaces.of(method)
        check_plans(workspace)
        # `auto` gives every model micro-batches that it can take: nothing to build a model for.
        laid_out = key in captured and workspace.config.mixing.layout != "auto"
        if method.overrides or key in merged or laid_out:
            check_settings(workspace, key in merged, laid_out)


def _key(method: Method) -> str:
    """Methods with the same settings of their own have the same."""
    return json.dumps(method.overrides, sort_keys=True, default=str)


def _forget_if_changed(run: Run, workspace: Workspace) -> None:
    """Try settings again that diverged with another configuration or other data."""
    path = run.folder / DIVERGED_FILE
    try:
        before = json.loads(path.read_bytes())["fingerprint"]
    except (ValueError, KeyError, TypeError):
        before = None
    if before != fingerprint_of(run, workspace):
        path.unlink()


def do_runs(runs: Sequence[Run], means: Means, workspaces: Workspaces, progress: Progress) -> list[RunRecord | None]:
    """Do what is missing of the runs, and read all.

    Args:
        runs: The runs.
        means: How they are done.
        workspaces: Configuration and tokenised tasks, of this process.
        progress: Is told what happens.

    Returns:
        Their records, in the same order; None for a trial whose loss became infinite.

    Raises:
        UserError: See `ensure_record`.
        Stopped: The progress asked to stop.
    """
    if means.workers is not None or means.jobs > 1:
        work = Prepared(means.set_up, pickle.dumps(_StudyWork(replace(means, workers=None, set_up=None), tuple(runs))))
        for merging in (False, True):  # what is merged must be finished
            items = {n: run.label for n, run in enumerate(runs) if not run.done and bool(run.sources) == merging}
            workers = means.workers or Processes(divide_this_machine(means.jobs))
            if left := work_off(items, work, workers, progress):
                raise Stopped(", ".join(left[: means.jobs]))
            _wait_for([runs[n] for n in items])
    return [_do(run, workspaces, progress, means.base) for run in runs]


def _wait_for(runs: Sequence[Run]) -> None:
    """Wait until results of other machines are seen here: network file systems remember a while what was not there.

    Raises:
        UserError: One is not.
    """
    give_up = time.monotonic() + _SEEN
    for run in runs:
        while not run.done:
            if time.monotonic() > give_up:
                raise UserError(
                    f"{run.label}: its worker finished it, and this machine does not see the result",
                    expected=f"the same {run.folder} here and on the worker's machine",
                    found=f"no result in it after {_SEEN:.0f} seconds",
                    todo="give an --out on a file system that all machines share",
                )
            time.sleep(0.2)


def _do(run: Run, workspaces: Workspaces, progress: Progress, base: Path | None, jobs: int = 1) -> RunRecord | None:
    if run.done and not run.finished:
        return None
    workspace = workspaces.of(run.method)
    try:
        record: RunRecord | None = ensure_record(run, workspace, progress, base, jobs)
    except NonFiniteLossError as error:
        if not run.trial:
            raise
        # Too high a rate is an answer, not a mistake.
        run.folder.mkdir(parents=True, exist_ok=True)
        content = {"what": error.what, "fingerprint": fingerprint_of(run, workspace)}
        write_json(run.folder / DIVERGED_FILE, content)
        progress.finish(run.label, {})
        record = None
    if run.trial:  # it has told what it can tell: nobody will go on from here
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return record


@dataclass(frozen=True)
class _StudyWork:
    """What a worker process needs to do runs of a study; called there, it reads and checks nothing again."""

    means: Means
    runs: tuple[Run, ...]

    def __call__(self) -> Work:
        workspaces = Workspaces(self.means.config, self.means.tasks)

        def do(item: int, progress: Relay) -> bool:
            try:
                _do(self.runs[item], workspaces, progress, self.means.base, self.means.jobs)
            except Stopped:
                return False
            return True

        return do
