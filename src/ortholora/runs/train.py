"""Do runs: train or go on, evaluate, save, keep the record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ortholora.errors import LostFolderError, UserError, link_to_nowhere
from ortholora.models.loading import check_files
from ortholora.ranks.together import on_any, on_first, rank
from ortholora.runs.build import build_trainer
from ortholora.runs.conflict_form import conflict_problem
from ortholora.runs.folder import check_claim, check_kept, check_same, claim, disclaim, is_claimed
from ortholora.runs.history import read_history
from ortholora.runs.lock import Held, check_unlocked, lock
from ortholora.runs.measure import measure
from ortholora.runs.merge import merge_run
from ortholora.runs.progress import Progress, Silent, Stopped
from ortholora.runs.publish import publish_model
from ortholora.runs.record import RESULT_FILE, RunRecord, read_record, unreadable, write_record
from ortholora.runs.run import Run
from ortholora.runs.trackers import tracked
from ortholora.runs.workspace import Workspace
from ortholora.trainers import checkpoints
from ortholora.trainers.cost import reset_peak_memory

#: Raises where something is not as it was.
Check = Callable[[], None]


def check_folder(run: Run, workspace: Workspace) -> None:
    """Check a run's folder before the first run of a command: a mistake shows at once, not after hours.

    Raises:
        UserError: The folder is of another run, another process writes it, a file of a finished run is damaged, or a
            symbolic link on the way to it leads nowhere.
    """
    for place in (run.folder, *run.folder.parents):
        if place.is_symlink() and not place.exists():
            raise link_to_nowhere(place)
    if run.folder.exists():
        check_claim(run, workspace)
        check_unlocked(run.folder)
    if run.finished:
        _record_of(run)
        read_history(run.folder)
        check_files(run.folder)


def announce(runs: Sequence[Run], workspace: Workspace, progress: Progress) -> None:
    """Tell the progress what is to come, and what a user should know before it."""
    # Merging is no work beside training.
    progress.plan([(run.label, 0 if run.method.merge else len(run.tasks), run.done) for run in runs])
    if not all(run.done for run in runs):
        for sentence in workspace.cut_rows():
            progress.note(sentence)


def ensure_record(run: Run, workspace: Workspace, progress: Progress, base: Path | None, jobs: int = 1) -> RunRecord:
    """The record of a run: read if it is finished, trained (or resumed, or merged) and written if not.

    Of several processes all call this; the first alone reads and writes the folder.

    Args:
        run: The run.
        workspace: Configuration and tokenised tasks.
        progress: Is told what happens.
        base: Folder that relative data files start from; kept with the run for `evaluate`.
        jobs: Runs that share the machine.

    Raises:
        UserError: See `train_run`; also another process that does this run now.
        Stopped: The progress asked to stop.
    """
    if not on_first(lambda: run.finished and is_claimed(run.folder)):
        with _locked(run.folder) as check_still:
            jobs = on_first(lambda: claim(run, workspace, base, jobs))
            check_same(run, workspace)
            if not on_first(lambda: run.finished):  # nor by whoever held the folder until now
                record = _train_or_disclaim(run, workspace, progress, jobs, check_still)

                def write() -> None:
                    check_still()
                    write_record(run.folder, record)

                on_first(write)
    return on_first(lambda: _record_of(run))


@contextmanager
def _locked(folder: Path) -> Iterator[Check]:
    """The first process holds the folder, for all; gives what checks, in that one, that it still does."""
    with ExitStack() as stack:
        held: list[Held] = []

        def hold() -> None:
            held.append(stack.enter_context(lock(folder)))

        def check_still() -> None:
            for one in held:
                check_kept(folder, one)

        on_first(hold)
        yield check_still


def _record_of(run: Run) -> RunRecord:
    """The record of a finished run, which must be of this very run."""
    record = read_record(run.folder)
    expected = (run.method.name, run.seed, run.tasks)
    if (record.method, record.seed, record.tasks) != expected:
        raise unreadable(
            run.folder / RESULT_FILE,
            "the result of {} with seed {}, of {}".format(*expected[:2], ", ".join(run.tasks)),
            f"{record.method} with seed {record.seed}, of {', '.join(record.tasks)}",
        )
    if problem := conflict_problem(record.conflict):
        raise unreadable(run.folder / RESULT_FILE, *problem)
    return record


def _train_or_disclaim(run: Run, workspace: Workspace, progress: Progress, jobs: int, check_still: Check) -> RunRecord:
    try:
        return (merge_run if run.sources else train_run)(run, workspace, progress, jobs, check_still)
    except LostFolderError:
        raise  # what is there now may be another run's
    except UserError:
        if rank() == 0:
            disclaim(run.folder)
        raise


def train_run(
    run: Run,
    workspace: Workspace,
    progress: Progress | None = None,
    jobs: int = 1,
    check_still: Check = lambda: None,
) -> RunRecord:
    """Train some tasks of a workspace with one method, or go on where a stopped run left off.

    The folder must be the run's own (`claim`), and nobody else may write it (`lock`): `ensure_record` sees to both.

    Args:
        run: What to train, and where.
        workspace: Configuration and tokenised tasks.
        progress: Is told what happens.
        jobs: Runs that share the machine; goes into the record.
        check_still: Is called in every process after every step and evaluation, and in the first before it writes the
            model: see `_locked`.

    Returns:
        The run's record, not yet written; the model is.

    Raises:
        UserError: Bad settings, a non-finite loss, a full disk, or a folder that is gone.
        Stopped: `progress.stop_requested` was set; a checkpoint was written.
    """
    progress, config = progress or Silent(), workspace.config
    reset_peak_memory()
    resume = on_first(lambda: checkpoints.last(run.checkpoints))
    trainer = build_trainer(run, workspace, progress)
    trainer.add_callback(_StepsInFolder(check_still))
    progress.start(run.label, config.training.steps, checkpoints.step_of(resume))
    with tracked(run, trainer.args):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if on_any(progress.stop_requested and trainer.state.global_step < trainer.state.max_steps):
            raise Stopped(run.label)
        record = measure(run, trainer, config, jobs)
    weights = trainer.gathered()

    def publish() -> None:
        check_still()
        publish_model(run, trainer, record, weights)

    on_first(publish)
    if trainer.ortho is not None:
        trainer.ortho.detach()
    progress.finish(run.label, record.metrics)
    return record


class _StepsInFolder(TrainerCallback):
    """Checks that the run still has its folder, before a checkpoint makes it anew: else it trains for nothing."""

    def __init__(self, check_still: Check) -> None:
        self._check_still = check_still

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check it."""
        self._check_still()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check it: that took a while."""
        self._check_still()
