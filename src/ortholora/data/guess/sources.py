"""Which files belong to one task: training, dev and test rows are told by names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ortholora.config.bounds import LONGEST_NAME
from ortholora.data.files import READERS
from ortholora.errors import UserError, listing

#: Words in the name of a file, or of its folder, that say which part of a task it holds.
PARTS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "dev": ("dev", "devel", "valid", "validation", "val", "eval"),
    "test": ("test", "testing"),
}
#: Such a word → its part.
PART_OF = {word: part for part, words in PARTS.items() for word in words}


@dataclass
class Source:
    """The files of a task.

    Attributes:
        name: A name for the task, out of the files' names.
        files: Part (`train`, `dev`, `test`) → its file.
        unused: Files that seem to belong to the task, and that have no place in it.
    """

    name: str
    files: dict[str, Path]
    unused: list[Path] = field(default_factory=list)


def sources_of(paths: Sequence[Path]) -> list[Source]:
    """Sort files into tasks.

    Args:
        paths: Data files, and folders that hold some.

    Returns:
        The tasks, in the order of their first files; their names differ.

    Raises:
        UserError: A path is neither, or no file holds the training rows that another one belongs to.
    """
    groups: dict[tuple[Path, str], Source] = {}
    for path in dict.fromkeys(file for given in paths for file in _files_of(given)):
        folder, rest, part = _read_name(path)
        source = groups.setdefault((folder, rest), Source(rest or folder.resolve().name, {}))
        if part in source.files:
            source.unused.append(path)
        else:
            source.files[part] = path
    return _named([source for key, source in groups.items() if not _joined(key, source, groups)])


def _files_of(given: Path) -> list[Path]:
    if given.is_file():
        return [given]
    other = "a pipe or a device" if given.exists() else "nothing there"
    found = sorted(file for ending in READERS for file in given.rglob(f"*{ending}")) if given.is_dir() else []
    if not found:
        raise UserError(
            f"{given}: no data",
            expected=f"a file that ends in {listing(READERS)}, or a folder of such files",
            found="none in this folder" if given.is_dir() else other,
            todo="correct the path",
        )
    return found


def _read_name(path: Path) -> tuple[Path, str, str]:
    """The folder, what is left of the name without the part's word, and the part; without a word it is `train`."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", path.stem) if word]
    for i, word in enumerate(words):
        if word.lower() in PART_OF:
            return path.parent, "_".join(words[:i] + words[i + 1 :]), PART_OF[word.lower()]
    part = PART_OF.get(path.parent.name.lower())
    return (path.parent.parent if part else path.parent), "_".join(words), part or "train"


def _joined(key: tuple[Path, str], source: Source, groups: dict[tuple[Path, str], Source]) -> bool:
    """Whether files without training rows went to the task of their folder, as MNLI's second dev file does."""
    if "train" in source.files:
        return False
    folder, rest = key
    owner = groups.get((folder, ""))
    if not rest or owner is None or "train" not in owner.files:
        file = next(iter(source.files.values()))
        raise UserError(
            f"{file}: no training rows belong to it",
            expected=f"a file for training beside it, such as {file.parent / ('train' + file.suffix)}",
            found=f"only a file for `{next(iter(source.files))}`, by its name",
            todo="give the training file as well, or rename this one: a name without a part's word is training data",
        )
    for part, file in source.files.items():
        if part in owner.files:
            owner.unused.append(file)
        else:
            owner.files[part] = file
    return True


def _named(sources: list[Source]) -> list[Source]:
    """Give every task a name that a configuration takes, and that no other one has."""
    taken: set[str] = set()
    for source in sources:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", source.name).lstrip("_.-")[: LONGEST_NAME - 4] or "task"
        if name == "average":  # the mean over tasks has this name
            name = "average_task"
        numbered = (name if n == 1 else f"{name}_{n}" for n in range(1, len(sources) + 2))
        source.name = next(free for free in numbered if free not in taken)
        taken.add(source.name)
    return sources
