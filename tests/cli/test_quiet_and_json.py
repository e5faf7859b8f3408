"""`--quiet` and `--json`: every command has both, and a script can rely on what it then prints."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from command_line import Cli, check_message
from typer.testing import CliRunner

from ortholora.cli import app as commands
from ortholora.cli import asking, pushing
from ortholora.cli import command as module
from ortholora.cli.command import Outcome, command
from ortholora.cli.console import people
from ortholora.cli.progress import stoppable
from ortholora.cli.voice import speaking, voice, worker_voice
from ortholora.runs.progress import Stopped
from ortholora.runs.push import Pushed
from stored_study import write_study

ROOT = Path(__file__).parents[2]
TEXT = "the goal was fine"


@dataclass(frozen=True)
class Told:
    """A command line, and what is printed of its result. `#` is the number of the call: some never write twice.

    Attributes:
        words: The words after the command.
        lines: All that `--quiet` prints; None: see the test.
        keys: Some keys of the JSON.
    """

    words: str
    lines: Sequence[str] | None
    keys: Sequence[str]


#: Every command. One that is missing here fails `test_the_table_has_every_command`.
TABLE = {
    "init": Told("train-topic.tsv --yes --force --out new.yaml", ["new.yaml"], ["config", "files", "tasks", "notes"]),
    "check": Told("tiny.yaml --no-measure", [], ["ok", "errors", "plan", "memory"]),
    "train": Told("tiny.yaml --out trained", ["trained"], ["runs"]),
    "compare": Told(
        "tiny.yaml --tasks topic,score --max-steps 1 --set study.methods=[] --out study",
        ["study"],
        ["folder", "report", "adapter", "methods", "gap", "verdict"],
    ),
    "demo": Told(
        "--max-steps 1 --jobs 1 --out study", ["study"], ["folder", "report", "adapter", "methods", "gap", "verdict"]
    ),
    "diagnose": Told("tiny.yaml --steps 0 --rows 16 --out found", ["found"], ["folder", "tasks", "verdict", "next"]),
    "report": Told("done --out page.html", ["page.html"], ["report"]),
    "evaluate": Told("trained", None, ["topic", "pair", "score"]),
    "predict": Told(
        "trained --task topic --data rows.jsonl --out answers-#.jsonl", ["answers-#.jsonl"], ["out", "rows"]
    ),
    "push": Told("trained me/adapter", ["https://hub/me/adapter"], ["repository", "url", "files"]),
    "export": Told("trained --out served-#", ["served-#"], ["folder", "backbone", "tasks", "heads"]),
}


@pytest.fixture
def prepared(home: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with all that the command lines of the table name; the demo is a study of two tiny tasks."""
    write_study(home / "done", rows=20, seeds=1)
    (home / "rows.jsonl").write_text(json.dumps({"text": TEXT}) + "\n", encoding="utf-8")
    settings = yaml.safe_load((home / "tiny.yaml").read_text(encoding="utf-8"))
    settings |= {"tasks": settings["tasks"][:2], "study": {"methods": []}}
    (home / "demo.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    monkeypatch.setattr(commands, "DEMO", "demo.yaml")
    monkeypatch.setattr(commands, "check_demo", lambda: None)
    monkeypatch.setattr(pushing, "push", lambda files, target: Pushed(target.repo, f"https://hub/{target.repo}"))
    return home


def names() -> list[str]:
    return [str(found.name or found.callback.__name__) for found in commands.app.registered_commands if found.callback]


def test_the_table_has_every_command() -> None:
    assert sorted(names()) == sorted(TABLE)
    page = (ROOT / "docs" / "scripts.md").read_text(encoding="utf-8")
    assert not [name for name in names() if f"\n| `{name}` |" not in page]


@pytest.mark.parametrize("name", TABLE)
def test_a_script_gets_the_result_and_nothing_else(cli: Cli, prepared: Path, name: str) -> None:
    told = TABLE[name]

    def call(number: int, *more: str) -> Any:
        result = cli(name, *told.words.replace("#", str(number)).split(), *more)
        assert result.exit_code == 0, result.output
        return result

    quiet = call(1, "--quiet")
    assert quiet.stderr == ""
    if told.lines is not None:
        assert quiet.stdout.splitlines() == [line.replace("#", "1") for line in told.lines]
    both = call(2, "--json", "-q")
    assert both.stderr == ""
    assert set(told.keys) <= set(json.loads(both.stdout))
    assert voice.to_people


def test_what_train_tells_a_machine(cli: Cli, run: Path) -> None:
    shown = cli("train", "tiny.yaml", "--out", run, "--json")
    assert "topic: 96 training and 48 dev rows" in shown.stderr
    (told,) = json.loads(shown.stdout)["runs"]
    record = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert (told["folder"], told["rule"], told["seed"]) == (str(run), "ortho", 0)
    assert {task: found["value"] for task, found in told["tasks"].items()} == record["metrics"]
    for found in told["tasks"].values():
        low, high = found["ci95"]
        assert low <= found["value"] <= high
        assert (found["rows"], found["scored_on"]) == (48, "dev")


def test_the_study_of_a_machine_is_the_summary(cli: Cli, prepared: Path) -> None:
    words = ["compare", *TABLE["compare"].words.split()]
    shown = cli(*words, "--json")
    told = json.loads(shown.stdout)
    assert (told.pop("folder"), told.pop("report")) == ("study", "study/report.html")
    assert (prepared / told.pop("adapter") / "adapter_config.json").is_file()
    assert told == json.loads((prepared / "study" / "summary.json").read_text(encoding="utf-8"))
    assert "joint · seed 0" in shown.stderr


def test_figures_and_answers_for_a_shell(cli: Cli, trained: Path) -> None:
    shown = cli.ok("evaluate", trained, "--quiet")
    scores = json.loads(cli.ok("evaluate", trained, "--json"))
    metrics = {"topic": "accuracy", "pair": "f1", "score": "pearson_spearman"}
    rows = [f"{task}\t{metric}\t{100 * scores[task]['main']:.2f}" for task, metric in metrics.items()]
    assert shown.splitlines() == rows
    ask = ("predict", trained, "--task", "topic", TEXT, "the bank")
    assert cli.ok(*ask, "--quiet") == cli.ok(*ask)
    assert len(cli.ok(*ask, "--quiet", "--json").splitlines()) == 2


@pytest.mark.parametrize("how", ["--quiet", "--json"])
def test_a_mistake_is_a_message_on_standard_error(cli: Cli, how: str) -> None:
    result = cli("train", "tiny.yaml", "--set", "training.stepz=5", how)
    assert (result.exit_code, result.stdout) == (2, "")
    check_message(result.stderr)


def test_check_says_why_its_code_is_not_0(cli: Cli, home: Path) -> None:
    result = cli("check", "tiny.yaml", "--set", "rule=orto", "-q", "--no-measure")
    assert (result.exit_code, result.stdout) == (2, "")
    check_message(result.stderr)
    words = ["check", "tiny.yaml", "--set", "study.methods=[nonsense]", "--no-measure", "-q"]
    assert cli.ok(*words) == ""  # a warning does not count
    result = cli(*words, "--strict")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("Warning: `compare` would refuse this")
    assert result.stderr.count("Warning") == 1


@pytest.mark.parametrize("how", ["--quiet", "--json"])
def test_nothing_is_asked(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(asking, "_at_a_terminal", lambda: True)
    (home / "odd.tsv").write_text("a text\tone\ttwo\n" + "some words\tx\ty\nmore words\tz\tw\n" * 20, encoding="utf-8")
    assert "nothing is asked" in cli.complaint("init", "odd.tsv", "--backbone", "x", how)


@pytest.fixture
def telling() -> typer.Typer:
    """A command line with one command, which does what a library or a rule of the user's own may do."""
    app = typer.Typer()

    @command(app)
    def tell() -> Outcome:
        """Tell."""
        print("printed")
        people().print("progress")
        warnings.warn("warned", stacklevel=1)
        logging.getLogger("somebody").warning("logged")
        return Outcome(lambda: print("shown"), ["line"], lambda: {"value": float("nan"), "word": "ä"})

    return app


@pytest.mark.parametrize(
    ("words", "out", "aside"),
    [
        ([], "printed\nprogress\nshown\n", []),
        (["--quiet"], "line\n", None),
        (["--json"], '{\n  "value": null,\n  "word": "ä"\n}\n', ["printed", "progress"]),
        (["--json", "--quiet"], '{\n  "value": null,\n  "word": "ä"\n}\n', None),
    ],
)
def test_where_things_go(
    telling: typer.Typer, words: list[str], out: str, aside: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = CliRunner().invoke(telling, words)
    assert (result.exit_code, result.stdout) == (0, out)
    assert result.stderr == "".join(f"{word}\n" for word in aside or [])
    assert (len(warned), len(caplog.records)) == ((0, 0) if aside is None else (1, 1))
    assert logging.root.manager.disable == logging.NOTSET


def test_a_terminal_that_lacks_letters_still_gets_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert module._in_json({"word": "ä"}, None) == '{"word": "\\u00e4"}'


def test_what_is_no_json_of_its_own() -> None:
    value = {"path": Path("a/b"), "number": np.int64(3), "array": np.array([1.5, np.inf]), "text": "NaN"}
    assert json.loads(module._in_json(value, 2)) == {"path": "a/b", "number": 3, "array": [1.5, None], "text": "NaN"}


def test_a_stop_is_told_also_with_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    class Asked:
        stop_requested = False

    with speaking(True, False), pytest.raises(typer.Exit) as left, stoppable(Asked(), people(), "Stopping."):
        raise Stopped("joint · seed 0")
    assert left.value.exit_code == 130
    out, told = capsys.readouterr()
    assert out == ""
    assert told == "Stopped in joint · seed 0. Start the same command again to go on.\n"


@pytest.mark.parametrize(("quiet", "as_json", "aside"), [(True, False, False), (False, True, True)])
def test_workers_keep_out_of_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet: bool, as_json: bool, aside: bool
) -> None:
    with speaking(quiet, as_json):
        speak = worker_voice()
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        speak()
        print("printed by a rule")
        if quiet:
            sys.stdout.close()
    logging.disable(disabled)
    out, told = capsys.readouterr()
    assert (out, "printed" in told) == ("", aside)
