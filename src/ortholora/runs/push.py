"""A finished run, or an exported model, to the Hugging Face hub (or what `HF_ENDPOINT` names): as one commit.

The token is the one that `huggingface_hub` finds: `HF_TOKEN`, or a login. No message shows it (`runs/secrets.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from ortholora.errors import UserError
from ortholora.runs.hub_files import HubFiles
from ortholora.runs.secrets import without_secrets
from ortholora.version import __version__

_LOGIN = "run `hf auth login`, or set HF_TOKEN, with a token that has the right to write"
#: What an answer of the hub means here: what was expected, and what to do.
_ANSWERS = {
    401: ("a token that the hub knows", _LOGIN),
    403: ("a token with the right to write there", "take such a token, or name a repository of your own"),
    404: ("a user or an organisation of that name, and a token that may write there", "correct HUB-ID, or the token"),
}
_REFUSED = ("a hub that takes the files", "correct what the hub names, or try again later")
_UNREACHED = (
    "an answer of a hub",
    "check the network (and HF_ENDPOINT and HF_HUB_OFFLINE, if they are set), and start the same command again: a push "
    "is one commit, which is there as a whole or not at all",
)


class Target(NamedTuple):
    """Where to.

    Attributes:
        repo: `USER/NAME`, or `NAME` for the token's own user; it is made if need be.
        revision: The branch; it is made if need be. None: `main`.
        private: Whether nobody else may see it; an existing public repository is then refused.
        message: First line of the commit; None for one of ours.
    """

    repo: str
    revision: str | None = None
    private: bool = False
    message: str | None = None


class Pushed(NamedTuple):
    """What came of it.

    Attributes:
        repo: The repository's whole name.
        url: The page of its newest commit.
    """

    repo: str
    url: str


def push(files: HubFiles, target: Target) -> Pushed:
    """Make the repository if need be, and commit the files.

    Files of the same names are replaced; others that are there stay.

    Raises:
        UserError: There is no token, the hub cannot be reached or refuses, or a name is none.
    """
    with _messages(files, target) as token:
        _check_words(target)
        _check_token(token)
        api = HfApi(token=True, library_name="ortholora", library_version=__version__)
        repo = str(api.create_repo(target.repo, private=target.private or None, exist_ok=True).repo_id)
        if target.private:
            _check_private(api, repo)
        if target.revision is not None:
            _make_branch(api, repo, target.revision)
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(name, files.folder / name) for name in files.names],
            commit_message=target.message or f"Upload {files.what} with ortholora {__version__}",
            revision=target.revision,
        )
    return Pushed(repo, str(commit.commit_url))


@contextmanager
def _messages(files: HubFiles, target: Target) -> Iterator[str | None]:
    """Give the token, and turn whatever goes wrong into a message without it."""
    token = None
    try:
        token = get_token()  # may ask the hub for one, or read a file that nobody may read
        yield token
    except UserError as error:
        plain = {part: without_secrets(getattr(error, part), token) for part in ("expected", "found", "todo")}
        raise UserError(without_secrets(error.what, token), **plain) from None
    except Exception as error:  # of the hub's library, its HTTP client, the operating system, or the hub itself
        expected, todo = _meaning(error)
        raise UserError(
            without_secrets(f"{files.folder} could not be pushed to {target.repo}", token),
            expected=expected,
            found=without_secrets(_reason(error), token),
            todo=todo,
        ) from None  # the first error's text may hold the token


def _check_words(target: Target) -> None:
    try:
        validate_repo_id(target.repo)
    except ValueError as error:
        raise UserError(
            f"HUB-ID {target.repo!r} is no name of a repository",
            expected="USER/NAME or ORGANISATION/NAME: letters, digits, `-`, `_` and `.`, at most 96 of them",
            found=str(error),
            todo="correct the name",
        ) from None
    for option, text in (("--revision", target.revision), ("--commit-message", target.message)):
        if text is not None and not text.strip():
            raise UserError(f"{option} is empty", expected="a text", found="none", todo="give one, or leave it out")


def _check_token(token: str | None) -> None:
    """Refuse none, and one that HTTP cannot carry: the client's error would show it."""
    if token is None:
        raise UserError(
            "There is no token for the hub",
            expected="a token in HF_TOKEN, or of a login",
            found="neither",
            todo=_LOGIN,
        )
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token):
        raise UserError(
            "The token for the hub is damaged",
            expected="letters, digits and a few signs, as the hub shows it",
            found=f"other characters among its {len(token)}",
            todo="copy the token again: it is in HF_TOKEN, or of `hf auth login`",
        )


def _check_private(api: HfApi, repo: str) -> None:
    """The hub leaves a repository that is there as it is, whatever it was asked for."""
    if not api.repo_info(repo).private:
        raise UserError(
            f"{repo} is public",
            expected="a private repository, because of --private",
            found="one that was there already, and that everybody can see; nothing was pushed",
            todo="make it private in its settings on the hub, give another HUB-ID, or leave out --private",
        )


def _make_branch(api: HfApi, repo: str, revision: str) -> None:
    try:
        api.repo_info(repo, revision=revision)
    except RevisionNotFoundError:
        api.create_branch(repo, branch=revision, exist_ok=True)


def _meaning(error: Exception) -> tuple[str, str]:
    refusal = _refusal(error)
    return _UNREACHED if refusal is None else _ANSWERS.get(int(refusal.response.status_code), _REFUSED)


def _reason(error: Exception) -> str:
    """What the hub said; else the innermost error that was the reason for the others."""
    refusal = _refusal(error)
    if refusal is not None:
        said = refusal.server_message or refusal.response.headers.get("X-Error-Message") or str(refusal)
        return f"{refusal.response.status_code}: {' '.join(said.split())}"
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _refusal(error: BaseException | None) -> HfHubHTTPError | None:
    """The hub's answer that an error, or a reason for it, is about; None where there was none."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error
