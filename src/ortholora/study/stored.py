"""A study's folder as it lies on the disk: finished, half finished, or no study at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ortholora.config.file import load_config
from ortholora.config.schema import Config
from ortholora.errors import UserError
from ortholora.runs.folder import CONFIG_FILE, RUN_FILE
from ortholora.runs.history import read_history
from ortholora.runs.method import JOINT, SINGLE
from ortholora.runs.record import RESULT_FILE, RunRecord, read_record
from ortholora.study.finished import read_finished
from ortholora.study.folders import STUDY_FILE, SUMMARY_FILE, folder_of
from ortholora.study.methods import methods_of
from ortholora.study.statistics.summarise import FORMAT
from ortholora.study.summary import summary_of_study
from ortholora.trainers.history import ConflictHistory

#: What a report cannot do without.
_NEEDED = ("seeds", "methods", "gap", "rules", "tasks", "cost", "provenance", "verdict", "notes")


@dataclass(frozen=True)
class StoredStudy:
    """What there is of a study.

    Attributes:
        folder: Where it lies.
        summary: What `summarise` returned, of all its runs, or of those methods and seeds that are complete; None
            where not even `single` and `joint` are, with one seed.
        missing: What is missing, in sentences.
        records: The finished runs of a study that is not finished; None of one that is.
        settings: Its configuration as YAML; None where it was not kept.
        histories: Method → the conflicts of its runs, one a seed; methods and runs without them are left out.
    """

    folder: Path
    summary: dict[str, Any] | None
    missing: list[str]
    records: list[RunRecord] | None = None
    settings: str | None = None
    histories: dict[str, list[ConflictHistory]] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether `compare` has summarised it."""
        return self.records is None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name


def read_study(folder: Path) -> StoredStudy:
    """Read what there is of a study.

    Args:
        folder: What was given to `compare` as `--out`; or a folder with a `summary.json` alone.

    Raises:
        UserError: It is no study, or a file of it is damaged.
    """
    settings = folder / STUDY_FILE
    text = settings.read_text(encoding="utf-8") if settings.is_file() else None
    if (folder / SUMMARY_FILE).is_file():
        summary = _read_summary(folder / SUMMARY_FILE)
        missing = [*_newer(folder, summary), *_without_runs(folder)]
        return StoredStudy(
            folder, summary, missing, None, text, _histories(folder, summary["methods"], summary["seeds"])
        )
    config = _config_of(folder)
    if config is None:
        raise _no_study(folder)
    names = _names_of(config, folder)
    seeds = sorted({*config.study.seeds, *_found_seeds(folder)})
    records = [read_record(path) for path in finished_runs(folder)]
    whole, kept = _complete(records, names, seeds, config.task_names)
    part = [record for record in records if record.seed in kept]
    partial = summary_of_study(config, part, whole) if kept else None
    missing = _missing(records, names, seeds, config.task_names, whole, kept)
    return StoredStudy(folder, partial, missing, records, text, _histories(folder, names, seeds))


def finished_runs(folder: Path) -> list[Path]:
    """The folders of the finished runs of a study, without the trials of a sweep."""
    return sorted(path.parent for path in (folder / "runs").rglob(RESULT_FILE) if "checkpoints" not in path.parts)


def _read_summary(path: Path) -> dict[str, Any]:
    todo = f"delete only {path} and start `compare` again with the same --out: finished runs are kept"
    return read_finished(path, _NEEDED, todo, ("the summary of a study", FORMAT))


def _no_study(folder: Path) -> UserError:
    if not folder.exists():
        found = "no such folder"
    elif not folder.is_dir():
        found = "a file"
    elif (folder / RUN_FILE).is_file():
        found = f"the folder of a single run, with {RUN_FILE}"
    else:
        names = sorted(path.name for path in folder.iterdir())
        found = f"{', '.join(names[:5])}{' and more' if len(names) > 5 else ''}" if names else "an empty folder"
    return UserError(
        f"{folder} is no study",
        expected=f"what `ortholora compare` was given as --out: a folder with {SUMMARY_FILE}, or with runs",
        found=found,
        todo="give the folder of a study, or make one with `ortholora compare`",
    )


def _config_of(folder: Path) -> Config | None:
    """The configuration of a study without a summary; one that is older than `study.yaml` has it in its runs."""
    settings = [path for path in [folder / STUDY_FILE] if path.is_file()]
    runs = sorted((folder / "runs").glob(f"*/seed-*/{CONFIG_FILE}"))
    found = settings or runs or sorted((folder / "runs").glob(f"{SINGLE}/seed-*/*/{CONFIG_FILE}"))
    if not found:
        return None
    config = load_config(found[0])
    if not settings and not runs:  # each of the runs of `single` knows its own task alone
        tasks = {task.name: task for path in found for task in load_config(path).tasks}
        config = config.model_copy(update={"tasks": list(tasks.values())})
    return config


def _names_of(config: Config, folder: Path) -> list[str]:
    """The methods; where a rule of the user's own cannot be imported from here, those that have runs."""
    try:
        return [method.name for method in methods_of(config)]
    except UserError:
        found = sorted(path.name for path in (folder / "runs").iterdir() if path.is_dir())
        return [SINGLE, JOINT, *(name for name in found if name not in (SINGLE, JOINT))]


def _found_seeds(folder: Path) -> set[int]:
    names = (path.name.removeprefix("seed-") for path in (folder / "runs").glob("*/seed-*"))
    return {int(name) for name in names if name.isdecimal()}


def _complete(
    records: Sequence[RunRecord], names: Sequence[str], seeds: Sequence[int], tasks: Sequence[str]
) -> tuple[list[str], list[int]]:
    """The methods and seeds of the largest part that is complete: all methods if there is a seed with all."""

    def whole(method: str, seed: int) -> bool:
        return {t for r in records if (r.method, r.seed) == (method, seed) for t in r.tasks} >= set(tasks)

    kept = [seed for seed in seeds if all(whole(name, seed) for name in names)]
    if kept:
        return list(names), kept
    kept = [seed for seed in seeds if whole(SINGLE, seed) and whole(JOINT, seed)]
    return [name for name in names if all(whole(name, seed) for seed in kept)], kept


def _missing(
    records: Sequence[RunRecord],
    names: Sequence[str],
    seeds: Sequence[int],
    tasks: Sequence[str],
    whole: Sequence[str],
    kept: Sequence[int],
) -> list[str]:
    there = {(record.method, record.seed, task) for record in records for task in record.tasks}
    left = []
    for seed in seeds:
        for name in names:
            lacking = [task for task in tasks if (name, seed, task) not in there]
            if lacking:
                only = f" ({', '.join(lacking)})" if len(lacking) < len(tasks) else ""
                left.append(f"{name}{only}, seed {seed}")
    more = f" and {len(left) - 12} more" if len(left) > 12 else ""
    lines = [f"This study is not finished. Missing: {'; '.join(left[:12])}{more}."]
    if kept:
        what = f"{', '.join(whole)} with {'seed' if len(kept) == 1 else 'seeds'} {', '.join(map(str, kept))}"
        lines.append(f"What follows is of what is complete: {what}.")
    lines.append("The same `compare` command goes on where it stopped; finished runs are kept.")
    return lines


def _newer(folder: Path, summary: dict[str, Any]) -> list[str]:
    """What was run after the summary was written."""
    new = []
    for path in finished_runs(folder):
        method, seed = path.relative_to(folder / "runs").parts[:2]
        if method not in summary["methods"] or seed.removeprefix("seed-") not in map(str, summary["seeds"]):
            new.append(f"{method}, {seed}")
    if not new:
        return []
    listed = "; ".join(dict.fromkeys(new))
    return [f"There are finished runs that the summary does not know yet ({listed}): start `compare` again."]


def _without_runs(folder: Path) -> list[str]:
    if (folder / "runs").is_dir():
        return []
    return ["The runs themselves are not here, only their summary: there is no map of conflicts."]


def _histories(
    folder: Path, methods: Sequence[str] | dict[str, Any], seeds: Sequence[int]
) -> dict[str, list[ConflictHistory]]:
    found = {
        method: [h for seed in seeds if (h := read_history(folder_of(folder, method, seed))) is not None]
        for method in methods
        if method != SINGLE
    }
    return {method: histories for method, histories in found.items() if histories}
