"""How a command speaks: to people, with its result alone (`--quiet`), or with its result as JSON (`--json`).

With either, standard output is kept for the result: whatever else is written there, by a library or by a rule of the
user's own, goes to standard error, or with `--quiet` nowhere.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial

#: Progress bars and banners of libraries that a data set from the hub or a tracker brings.
_SILENT = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "WANDB_SILENT": "true",
}


@dataclass
class Voice:
    """How the command that runs was asked to speak.

    Attributes:
        quiet: `--quiet`: nothing but errors and the result.
        as_json: `--json`: the result as JSON.
    """

    quiet: bool = False
    as_json: bool = False

    @property
    def to_people(self) -> bool:
        """Whether neither was asked for."""
        return not (self.quiet or self.as_json)


voice: Voice = Voice()


@contextmanager
def speaking(quiet: bool, as_json: bool) -> Iterator[None]:
    """Speak like this until the end of the block, where the result is not printed yet."""
    before = (voice.quiet, voice.as_json)
    voice.quiet, voice.as_json = quiet, as_json
    try:
        with ExitStack() as stack:
            if quiet:
                stack.enter_context(_nothing_but_errors())
                stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
            elif as_json:
                stack.enter_context(redirect_stdout(sys.stderr))
            yield
    finally:
        voice.quiet, voice.as_json = before


@contextmanager
def _nothing_but_errors() -> Iterator[None]:
    logged, new = logging.root.manager.disable, {name: text for name, text in _SILENT.items() if name not in os.environ}
    os.environ.update(new)
    logging.disable(max(logged, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logged)
        for name in new:
            del os.environ[name]


def hush_libraries() -> None:
    """Turn off the chatter of the libraries; what matters is said here or raised."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # The last of them, on a CPU, complains when it is imported of a kernel that is not needed.
    for library in ("accelerate", "huggingface_hub", "bitsandbytes"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def worker_voice() -> Callable[[], None]:
    """What has the processes of a study speak as this one does; a worker calls it first."""
    return partial(_speak_in_worker, voice.quiet, voice.as_json)


def _speak_in_worker(quiet: bool, as_json: bool) -> None:
    """Speak like this until the end of the process, which has no result of its own to print."""
    hush_libraries()
    if quiet:
        os.environ.update(_SILENT)
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    elif as_json:
        sys.stdout = sys.stderr
