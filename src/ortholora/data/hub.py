"""Read a split from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ortholora.config.tasks.base import HubSource
from ortholora.config.tasks.union import TaskConfig
from ortholora.data.table import Table
from ortholora.errors import UserError, missing_extra

if TYPE_CHECKING:
    from datasets import Dataset


def read_hub(spec: TaskConfig, split: str) -> Table:
    """Download (or take from the cache) one split of a task's hub data set.

    A numbered class label (`ClassLabel`) becomes its name, or its number as text if the configured `labels`
    are numbers; so one list of `labels` fits the hub and a local copy of the same data.

    Args:
        spec: The task; `spec.hub` is set.
        split: Name of the split on the hub.

    Returns:
        The raw columns.

    Raises:
        UserError: The data set cannot be had.
    """
    source = spec.hub
    assert source is not None
    dataset = _load(spec, source, split)
    text, label = spec.columns
    if source.text is not None:
        text = (source.text,) if isinstance(source.text, str) else tuple(source.text)
    label = source.label if source.label is not None else label
    found = tuple(dataset.column_names)
    wanted = dict.fromkeys([*text, label, *spec.more_columns])
    columns: dict[str, Sequence[object]] = {name: list(dataset[name]) for name in wanted if name in found}
    if spec.split_by in columns and hasattr(dataset.features[spec.split_by], "names"):
        names = dataset.features[spec.split_by].names
        columns[str(spec.split_by)] = [_class_of(index, names) for index in columns[str(spec.split_by)]]
    classes = None
    if label in columns and hasattr(dataset.features[label], "names"):
        classes = _class_texts(dataset.features[label].names, spec.labels)
        # A hidden test label is -1 on the hub: no class, so it counts as missing.
        columns[label] = [_class_of(index, classes) for index in columns[label]]
    full_name = source.path if source.name is None else f"{source.path}/{source.name}"
    origin = f"hub:{full_name}@{source.revision or 'latest'}#{split}"
    return Table(f"{full_name} (hub, split {split})", origin, found, columns, text, label, classes)


def _class_texts(names: Sequence[str], configured: Sequence[str] | None) -> tuple[str, ...]:
    numbers = tuple(str(index) for index in range(len(names)))
    by_number = configured is not None and set(configured) <= set(numbers) and not set(configured) <= set(names)
    return numbers if by_number else tuple(names)


def _class_of(index: Any, classes: Sequence[str]) -> str | None:
    return classes[index] if index is not None and index >= 0 else None


def _load(spec: TaskConfig, source: HubSource, split: str) -> Dataset:
    name = source.path if source.name is None else f"{source.path} ({source.name})"
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise missing_extra(f"task `{spec.name}`: the hub", "cli", error) from None
    try:
        return load_dataset(source.path, source.name, split=split, revision=source.revision)
    except Exception as error:  # the hub's client fails in dozens of ways, all of them the network's or the user's
        reason = next(iter(str(error).splitlines()), "") or "no reason given"
        files = f"{spec.train} and {spec.dev}" if spec.train else "the task's `train` and `dev` files"
        raise UserError(
            f"task `{spec.name}`: data set {name} cannot be loaded from the hub",
            expected=f"the split `{split}`, from the hub or from the local cache",
            found=f"{type(error).__name__}: {reason[:300]}",
            todo="check the name, the split and the connection; to work offline, give --data-dir FOLDER "
            f"with {files}" + ("" if spec.train else " (add these keys to the configuration)"),
        ) from error
