"""Mutated command lines and questions. What they would start is not started, and no hub is asked."""

from __future__ import annotations

import json
import os
import random
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from judging import Case, Source, flip
from typer.testing import CliRunner

import ortholora.models.predictor
from ortholora.cli.app import app
from ortholora.data.labelled import LabelledFile

#: Words that some option may be given.
WORDS = [
    "",
    "0",
    "-1",
    "1",
    "1.5",
    "99999999999",
    "x",
    "topic",
    "pair,score",
    "topic,,",
    "0,1",
    "0,0",
    "1_0",
    "４",
    "demo",
    "\udc80",
    "a\0b",
    "/dev/full",
    "/dev/null",
    "/dev/zero",
    ".",
    "~nobody",
    "x" * 5000,
    "seed=1",
    "seed",
    "=",
    "seed=[",
    "tasks.topic.weight=2",
    "tasks.=1",
    "tasks.0=1",
    "lora.options.a.b=1",
    "training.steps=0",
    "\x1b[31m",
    "[red]x[/]",
    "seed=2020-13-45",
    "seed=" + "[" * 3000,
    "lora.r=true",
    "nowhere.yaml",
    "train-topic.tsv",
    "a\tb",
    "--",
    "--help",
]
OPTIONS = [
    "--out", "--data-dir", "--set", "--seeds", "--max-steps", "--tasks", "--jobs", "--json", "--task", "--file",
    "--data", "--text", "--label", "--revision", "--commit-message", "--private", "--quiet",
]  # fmt: skip
#: Commands that look at a run.
OF_A_RUN = ("evaluate", "predict", "push")
#: Of these words only a refusal is right, whatever else is said.
NEVER = {
    "train": [
        ["--seeds", "-1"],
        ["--seeds", "4294967296"],
        ["--seeds", "1_0"],
        ["--max-steps", "10000000000"],
        ["--set", "lora.r=true"],
        ["--set", "seed=!!bool maybe"],
        ["--set", "x=" + "[" * 3000],
        ["--tasks", "\udc80"],
        ["--set", "seed=" + "9" * 5000],
        ["--data-dir", "a\0b"],
        ["--data-dir", "/dev/full"],
    ],
    "compare": [
        ["--jobs", "0"],
        ["--jobs", "1000000000"],
        ["--seeds", "0,0"],
        ["--set", "study.bootstrap=1000000000"],
        ["--on", "nowhere"],
        ["--on", "\udc80"],
        ["--gpus-per-run", "1"],
    ],
    "predict": [["--task", "\udc80"], ["--file", "/dev/full"], ["--file", "a\0b"], ["\udcff"], ["--file", "nowhere"]],
    "evaluate": [
        ["--data", "/dev/full"],
        ["--data", "a\0b.tsv"],
        ["--data", "nowhere.tsv", "--task", "topic"],
        ["--data", "train-topic.tsv"],
        ["--data", "train-topic.tsv", "--task", "score"],
        ["--data", "train-topic.tsv", "--task", "topic", "--label", "text"],
        ["--data", "train-topic.tsv", "--task", "topic", "--text", "text,label"],
        ["--data", "train-topic.tsv", "--task", "topic", "--data-dir", "."],
        ["--data", "tiny.yaml", "--task", "topic"],
        ["--label", "label"],
        ["--task", "\udc80"],
    ],
    "push": [
        ["me/a/b"],
        [""],
        ["../a"],
        ["\udc80"],
        ["a\0b"],
        ["x" * 5000],
        ["me/a", "--revision", ""],
        ["me/a", "--commit-message", " "],
        ["me/a", "--revision", "\udc80"],
        ["https://me:hf_secret0123456789abcdef@hub/a"],
    ],
}
QUESTIONS = [
    "a text",
    "",
    " ",
    "\t",
    "a\tb",
    "\0",
    "[",
    '"',
    '"a"',
    "[1]",
    "[{}]",
    '[{"role": "user"}]',
    "[" * 9000,
    "9" * 5000,
    '[{"role": "user", "content": null}]',
    '"\\ud800"',
    "x" * 100_000,
    "\udc80",
    "é",
    '[{"role": 1, "content": "a"}]',
    json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
    "{}",
    "[[]]",
    "\u2028",
    "NaN",
]


class Reached(BaseException):
    """The command would start now."""


def sources(home: Path, run: Path) -> list[Source]:
    """The ways to mutate a command line; `home` holds `tiny.yaml`, `run` is a finished run of it."""

    def command(draw: random.Random) -> Case:
        name = draw.choice(["train", "compare", *OF_A_RUN])
        words = [name, str(run if name in OF_A_RUN else home / "tiny.yaml")]
        words += [draw.choice([*WORDS, "me/adapter", "me/adapter"])] if name == "push" else []
        for _ in range(draw.choice([0, 1, 1, 2, 3])):
            words += [draw.choice(OPTIONS), draw.choice(WORDS)][draw.random() < 0.1 :]
        if draw.random() < 0.2:
            words[1] = draw.choice(WORDS)
        return Case(f"{words}", lambda: _type(home, words))

    def never(draw: random.Random) -> Case:
        name = draw.choice(list(NEVER))
        words = [name, str(run if name in OF_A_RUN else home / "tiny.yaml"), *["a text"][: name == "predict"]]
        bad = draw.choice(NEVER[name])
        words += bad if "--task" in bad or name != "predict" else ["--task", "topic", *bad]
        return Case(f"{words}"[:300], lambda: _type(home, words), nonsense=True)

    def asked(draw: random.Random) -> Case:
        task = draw.choice(["topic", "pair", "score"])
        lines = [draw.choice(QUESTIONS) for _ in range(draw.choice([1, 1, 2, 4]))]
        content = "\n".join(lines).encode("utf-8", "surrogatepass" if draw.random() < 0.5 else "surrogateescape")
        if draw.random() < 0.3:
            content = flip(draw, content)[1]
        words = ["predict", str(run), "--task", task]
        how = draw.choice(["arguments", "file", "input"])
        if how == "arguments":
            words += lines
        elif how == "file":
            (home / "asked").write_bytes(content)
            words += ["--file", str(home / "asked")]
        given = content if how == "input" else b""
        return Case(f"{how}: {lines}"[:300], lambda: _type(home, words, given))

    return [command, never, asked]


def _type(home: Path, words: list[str], given: bytes = b"") -> None:
    """Give words to the command line, in the folder `home`; a refusal becomes the error that it is."""
    before, path = os.getcwd(), list(sys.path)
    os.chdir(home)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for place in ("ortholora.study.train.train_seeds", "ortholora.study.compare.compare"):
                patch.setattr(place, _reached)
            patch.setattr("ortholora.runs.evaluate.evaluate_run", _reached)
            patch.setattr("ortholora.runs.evaluate.evaluate_file", _checked)
            patch.setattr("ortholora.runs.push.get_token", lambda: "hf_secret0123456789abcdef")
            patch.setattr("ortholora.runs.push.HfApi", _reached)
            patch.setattr("ortholora.models.predictor.load", _loaded)
            result = CliRunner().invoke(app, words, input=given)
    except Reached:
        return
    finally:
        os.chdir(before)
        sys.path[:] = path
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{type(result.exception).__name__} got through: {result.exception}")
    if result.exit_code not in (0, 1, 2):
        raise AssertionError(f"exit code {result.exit_code}")
    if "hf_secret" in result.output:
        raise AssertionError("the token is shown")
    if "Traceback" in result.output:
        raise AssertionError(result.output[-300:])
    if result.exit_code:
        raise OSError("refused")


def _reached(*words: Any, **options: Any) -> Any:
    raise Reached


def _checked(run: Path, file: LabelledFile, *words: Any) -> Any:
    """All of `evaluate_file` that needs no model."""
    file.check()
    raise Reached


_load = ortholora.models.predictor.load


@cache
def _loaded(run: Path) -> Any:
    return _load(run, "cpu")
