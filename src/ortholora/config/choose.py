"""What a command leaves of a configuration: fewer steps, local files, some of its tasks. Torch-free."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from ortholora.config.schema import Config
from ortholora.errors import UserError, did_you_mean, listing


def with_steps(config: Config, steps: int) -> Config:
    """Train for `steps` optimizer steps; the warm-up keeps its share of them.

    Without that a short trial of a long run would never leave the warm-up.

    Args:
        config: The configuration; it stays as it is.
        steps: Optimizer steps, 1 or more.
    """
    old = config.training
    warmup = old.warmup_steps * steps // old.steps
    return config.model_copy(update={"training": old.model_copy(update={"steps": steps, "warmup_steps": warmup})})


def without_hub(config: Config) -> Config:
    """Forget the hub wherever a task names files: with --data-dir the files are meant, now and in `evaluate`."""
    tasks = [task.model_copy(update={"hub": None}) if task.train else task for task in config.tasks]
    return config.model_copy(update={"tasks": tasks})


def with_tasks(config: Config, names: Sequence[str]) -> Config:
    """Keep some tasks, in the order of the configuration.

    Args:
        config: The configuration; it stays as it is.
        names: Names of tasks. The name of an entry with `split_by` stands for all of its tasks `NAME.VALUE`.

    Raises:
        UserError: A name stands for no task.
    """
    chosen = {name: [task for task in config.task_names if _stands_for(name, task)] for name in names}
    unknown = [name for name, tasks in chosen.items() if not tasks]
    if unknown:
        raise UserError(
            f"--tasks: unknown task {unknown[0]!r}",
            expected="some of " + ", ".join(config.task_names),
            found=", ".join(unknown) or "nothing",
            todo=did_you_mean(unknown[0], config.task_names, "correct the option"),
        )
    return keep(config, {task for tasks in chosen.values() for task in tasks})


def check_known(key: str, names: Iterable[str], config: Config) -> None:
    """Check the tasks that a setting names.

    Args:
        key: The setting, dotted.
        names: The names in it.
        config: The configuration with the tasks.

    Raises:
        UserError: There is no task of one of the names.
    """
    unknown = next((name for name in names if name not in config.task_names), None)
    if unknown is not None:
        raise UserError(
            f"{key}: unknown task {unknown!r}",
            expected=f"some of {listing(config.task_names)}",
            found=unknown,
            todo=did_you_mean(unknown, config.task_names, "correct or remove it"),
        )


def keep(config: Config, names: Container[str]) -> Config:
    """The configuration of some tasks alone, without what is said of the others elsewhere."""
    training = config.training
    weights = {name: weight for name, weight in training.selection_weights.items() if name in names}
    tasks = [task for task in config.tasks if task.name in names]
    return config.model_copy(
        update={"tasks": tasks, "training": training.model_copy(update={"selection_weights": weights})}
    )


def _stands_for(name: str, task: str) -> bool:
    return bool(name) and (task == name or task.startswith(f"{name}."))
