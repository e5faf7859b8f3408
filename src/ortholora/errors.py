"""The errors a user sees, and the nearest known word for them. Torch-free: the command line imports it in no time."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable

#: Most characters of a part of a message; what it names may be a value of thousands.
_LONGEST = 1000


class UserError(ValueError):
    """A mistake in what the user gave: one message with expected, found and what to do.

    Args:
        what: One line that names the thing that is wrong (a key, a file, a module).
        expected: What would have been right.
        found: What was there instead.
        todo: The next action, as a command or an edit where possible.
    """

    what: str
    expected: str
    found: str
    todo: str

    def __init__(self, what: str, *, expected: str, found: str, todo: str) -> None:
        self.what = "\n".join(_readable(line, _LONGEST // 2) for line in what.splitlines()) or "Something is wrong"
        self.expected, self.found, self.todo = (_readable(part, _LONGEST) for part in (expected, found, todo))
        super().__init__(f"{self.what}\n  expected: {self.expected}\n  found:    {self.found}\n  to do:    {self.todo}")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the four parts (the base class would pickle the joined message)."""
        return _rebuild, (type(self), self.what, self.expected, self.found, self.todo)


def _readable(text: str, longest: int) -> str:
    """A part of a message as a terminal can show it: never empty, cut in its middle, without control characters."""
    text = " ".join(text.splitlines())
    if len(text) > longest:
        text = f"{text[: longest // 2]} … {text[-longest // 4 :]}"
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text.rstrip() or "nothing"


def _rebuild(cls: type[UserError], what: str, expected: str, found: str, todo: str) -> UserError:
    return cls(what, expected=expected, found=found, todo=todo)


def file_error(error: OSError) -> UserError:
    """Say what to do about a full disk or a file that may not be touched."""
    if error.errno == errno.EEXIST and os.path.islink(error.filename or "") and not os.path.exists(error.filename):
        return link_to_nowhere(error.filename)
    return UserError(
        f"{error.filename or 'A file'} could not be read or written",
        expected="files and folders that may be read and written, on a disk with room",
        found=str(error.strerror or error),
        todo="make room or correct the path, and start the same command again; finished runs are kept",
    )


def link_to_nowhere(path: str | os.PathLike[str]) -> UserError:
    """The message about a symbolic link in the place of a folder, when what it points to is not there."""
    return UserError(
        f"{os.fspath(path)} is a link to nowhere",
        expected="a folder, a link to one, or a name that is free",
        found=f"a symbolic link to {os.readlink(path)}, which does not exist",
        todo="make that folder, correct or remove the link, or give another path",
    )


class MissingExtraError(UserError, ModuleNotFoundError):
    """A package that an extra of ortholora brings; also the error that Python raises for it."""


def missing_extra(what: str, extra: str, error: ImportError) -> MissingExtraError:
    """Say which extra brings what could not be imported.

    Args:
        what: What needs it.
        extra: The extra's name in `pip install "ortholora[...]"`.
        error: What importing it raised.
    """
    missing = MissingExtraError(
        f"{what} needs the package {error.name!r}",
        expected=f"the extra [{extra}]",
        found=str(error),
        todo=f'pip install "ortholora[{extra}]"',
    )
    missing.name = error.name
    return missing


class NonFiniteLossError(UserError):
    """A task's loss became NaN or infinite; names the step and the task."""


class LostProcessError(UserError):
    """One of the processes that train together is gone, or does not answer; names it where it is known."""


class LockedError(UserError):
    """The folder of a run that another process writes now."""


class LostFolderError(UserError):
    """The folder of a run that somebody removed, emptied or took over while the run was going on."""


class CaptureError(UserError):
    """A LoRA matrix whose task gradients cannot be, or were not, captured."""


class TemplateError(UserError):
    """A chat that the tokenizer's chat template does not write out as it must be.

    Attributes:
        row: Its index among the rows that were being written out; None where it is none of them.
    """

    row: int | None = None

    def of(self, where: str) -> TemplateError:
        """The same, and where the row stands."""
        found = TemplateError(f"{where}: {self.what}", expected=self.expected, found=self.found, todo=self.todo)
        found.row = self.row
        return found


class RuleError(UserError):
    """A conflict rule that returned something that is no weights."""


def nearest(word: str, options: Iterable[str]) -> str | None:
    """Return the option that is spelled most like `word`, or `None` when nothing is close."""
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def did_you_mean(word: str, options: Iterable[str], otherwise: str) -> str:
    """Return "did you mean `x`?" for the nearest option, or `otherwise` when nothing is close."""
    option = nearest(word, options)
    return f"did you mean `{option}`?" if option else otherwise


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Return names in backticks, comma separated, cut after `limit`."""
    names = list(names)
    shown = ", ".join(f"`{name}`" for name in names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown or "none"
