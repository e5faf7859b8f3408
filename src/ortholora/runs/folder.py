"""What makes a folder a run: `run.json` says whose it is, `config.yaml` how to repeat it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from ortholora.config.file import dump_config, load_config
from ortholora.config.schema import Config
from ortholora.config.stored import Stored, damaged, read_stored
from ortholora.errors import LostFolderError, UserError
from ortholora.files import write_json, write_text
from ortholora.runs.alike import check_alike
from ortholora.runs.differences import differences
from ortholora.runs.lock import Held
from ortholora.runs.provenance import fingerprint
from ortholora.runs.record import RESULT_FILE
from ortholora.runs.run import Run, how_merged, settings_of_sources
from ortholora.runs.workspace import Workspace
from ortholora.trainers import checkpoints

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
#: Rows of the data that were left out (`bad_rows: drop`).
DROPPED_FILE = "dropped_rows.json"
#: The names by which experiment trackers know the run.
TRACKERS_FILE = "trackers.json"


class RunFile(Stored):
    """What `run.json` holds.

    Attributes:
        fingerprint: Hash of all that decides the run's outcome.
        data_base: The folder that the run's data files are relative to.
        jobs: The most runs that shared the machine, over all the sittings it takes to finish.
        config_lines: Lines of `config.yaml`; None in a run of an earlier version.
    """

    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    data_base: Annotated[str, Field(pattern=r"^[^\x00]+$")] | None = None
    jobs: Annotated[int, Field(gt=0)] = 1
    config_lines: Annotated[int, Field(gt=0)] | None = None


def check_claim(run: Run, workspace: Workspace) -> str:
    """Check that a run may use its folder; nothing is written.

    Returns:
        The run's fingerprint.

    Raises:
        UserError: The folder holds a run with other settings or other data, files of somebody else, or a damaged
            `run.json` beside work that is worth keeping.
    """
    own = run.own_config(workspace.config)
    mark = fingerprint_of(run, workspace)
    found = _read(run.folder, needed=_has_work(run.folder))
    if found is None:
        _check_unmarked(run, own)
    elif found.fingerprint != mark and _has_work(run.folder):
        raise _of_another(run, own)
    return mark


def fingerprint_of(run: Run, workspace: Workspace) -> str:
    """The run's fingerprint."""
    method = run.method.rule and [run.method.rule, run.method.block]
    data = [task for task in workspace.tasks if task.name in run.tasks]
    extra: dict[str, Any] = {"method": method, "seed": run.seed, "quota": workspace.quota()}
    if run.sources:
        extra["merge"] = [asdict(how_merged(run, workspace.config)), settings_of_sources(run)]
    return fingerprint(workspace.config, data, extra)


def claim(run: Run, workspace: Workspace, base: Path | None = None, jobs: int = 1) -> int:
    """Make the folder this run's own, and keep its configuration in it. For the process that holds its lock.

    Args:
        run: The run.
        workspace: Its configuration and its tasks.
        base: Folder that relative data files start from; kept for `evaluate`.
        jobs: Runs that share the machine now.

    Returns:
        The most runs that shared it in any sitting.

    Raises:
        UserError: See `check_claim`.
    """
    mark = check_claim(run, workspace)
    before = _read(run.folder, needed=False)
    jobs = max(jobs, before.jobs if before else 1)
    settings = dump_config(run.own_config(workspace.config))
    content: dict[str, Any] = {"fingerprint": mark, "data_base": str(base.resolve()) if base else None}
    content["config_lines"] = settings.count("\n")
    if jobs > 1:
        content["jobs"] = jobs
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.folder / CONFIG_FILE, settings)
    _list_dropped(run, workspace)
    write_json(run.folder / RUN_FILE, content)
    return jobs


def check_same(run: Run, workspace: Workspace) -> None:
    """Check that all processes of a run do the same one, in the same folder: for all of them, after `claim`.

    Raises:
        UserError: See `check_alike`.
    """
    check_alike(fingerprint_of(run, workspace), run.folder / RUN_FILE)


def _list_dropped(run: Run, workspace: Workspace) -> None:
    """Say which rows of the run's data were left out, if any."""
    dropped = {task.name: task.dropped for task in workspace.tasks if task.name in run.tasks and task.dropped}
    if dropped:
        listed = {
            name: {part: [{"row": row, "problem": problem} for row, problem in rows] for part, rows in parts.items()}
            for name, parts in dropped.items()
        }
        write_json(run.folder / DROPPED_FILE, listed)


def check_kept(folder: Path, held: Held) -> None:
    """Check that a folder is still the run's that `claim` made it: somebody may clear up while the run goes on.

    Raises:
        LostFolderError: It is not.
    """
    missing = [name for name in (RUN_FILE, CONFIG_FILE) if _is_gone(folder / name)]
    if not missing and not held.is_of_another:
        return
    found = f"no {' and no '.join(missing)}" if missing else "a folder that another process has made, and writes now"
    raise LostFolderError(
        f"{folder} was changed by somebody else while its run was going on",
        expected=f"the run's own folder, with {RUN_FILE} and {CONFIG_FILE}, until the run is done",
        found=found if folder.is_dir() else "no such folder",
        todo="start the same command again, and leave the folder alone until it is done; it goes on from the last "
        "checkpoint, or begins anew where none is left",
    )


def _is_gone(path: Path) -> bool:
    """Whether a file is surely not there; a file system that does not answer says nothing."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def is_claimed(folder: Path) -> bool:
    """Whether the folder says whose it is."""
    return (folder / RUN_FILE).is_file()


def disclaim(folder: Path) -> None:
    """Take back `claim` for a run that was refused; not where something was trained."""
    if _has_work(folder):
        return
    for name in (RUN_FILE, CONFIG_FILE, DROPPED_FILE, TRACKERS_FILE):
        (folder / name).unlink(missing_ok=True)
    for empty in (folder / "checkpoints", folder):
        with suppress(OSError):  # not there, or not empty
            empty.rmdir()


def data_base(folder: Path) -> Path:
    """The folder that the run's data files were relative to.

    Raises:
        UserError: `run.json` is damaged.
    """
    found = _read(folder, needed=True)
    return Path(found.data_base) if found and found.data_base else folder


def load_settings(folder: Path) -> Config:
    """The configuration of a run.

    A part of a YAML file is YAML: cut off at the end of a line it would be read as other settings. So its lines are
    counted. A path that somebody has changed in it changes none of them.

    Raises:
        UserError: `config.yaml` is missing, damaged, or not whole; or `run.json` is damaged.
    """
    config, claimed = load_config(folder / CONFIG_FILE), _read(folder, needed=True)
    wanted = None if claimed is None else claimed.config_lines
    lines = (folder / CONFIG_FILE).read_bytes().count(b"\n")
    if wanted is not None and lines < wanted:
        raise damaged(
            folder / CONFIG_FILE,
            f"the settings of the run in {wanted} lines, as {RUN_FILE} says",
            f"{lines} line breaks: its end is missing",
            f"restore the file; or remove `config_lines` from {RUN_FILE}, if you have shortened it on purpose",
        )
    return config


def _read(folder: Path, needed: bool) -> RunFile | None:
    """Read `run.json`; None where there is none, or a damaged one that is not needed."""
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    todo = (
        f"delete only {path}, and start the same `train` or `compare` again: checkpoints and results are kept, and the "
        f"file is written anew if {CONFIG_FILE} has the same settings"
    )
    try:
        return read_stored(path, TypeAdapter(RunFile), "whose run this is", todo)
    except UserError:
        if needed:
            raise
        return None


def _has_work(folder: Path) -> bool:
    """Whether anything was reached that a corrected setting must not be mixed with, or would lose."""
    return checkpoints.has_any(folder / "checkpoints") or any(
        (folder / name).exists() for name in ("adapter_model.safetensors", RESULT_FILE)
    )


def _check_unmarked(run: Run, own: Config) -> None:
    """Check a folder without `run.json`: new, an unfinished start, or one whose damaged file was deleted."""
    folder = run.folder
    if folder.is_file():
        raise UserError(f"{folder} is a file", expected="a folder", found="a file", todo="give another --out")
    settings = folder / CONFIG_FILE
    if _has_work(folder) and settings.is_file():
        try:
            there = load_config(settings)
        except UserError as error:
            alone = not (folder / RESULT_FILE).exists()
            raise UserError(
                f"{settings} is damaged",
                expected=f"the settings of the run in this folder, which has no {RUN_FILE}",
                found=error.what,
                todo=f"delete only {settings} if the checkpoints are of this very run: they are kept and gone on from; "
                "or give another --out"
                if alone
                else "copy the configuration of the run there, or give another --out",
            ) from None
        if differences(there, own, merges=bool(run.sources)):
            raise _of_another(run, own)
        return
    for name in ("adapter_config.json", "summary.json", "config.json"):
        if (folder / name).exists():
            raise UserError(
                f"{folder} holds something else",
                expected="an empty folder, or one that this very run was started in before",
                found=f"{name}, but no {RUN_FILE}",
                todo="give another --out",
            )


def _of_another(run: Run, own: Config) -> UserError:
    folder = run.folder
    hidden = "another mixture of tasks in a step"
    if run.sources:
        hidden = "single adapters that were trained with other settings of their own"
    elif own.init_from is not None:
        hidden = f"another adapter in {own.init_from}, or {hidden}"
    try:
        shown = differences(load_config(folder / CONFIG_FILE), own, merges=bool(run.sources)) or (
            f"the same settings, but other rows in the data files, or {hidden}"
        )
    except UserError:
        shown = f"a run whose settings cannot be compared ({CONFIG_FILE} is missing or damaged)"
    return UserError(
        f"{folder} holds a run with other settings or other data",
        expected="an empty folder, or one that this very run was started in before",
        found=shown,
        todo="give another --out, or the settings and the data that the folder was started with",
    )
