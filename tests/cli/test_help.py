"""`--help` and typing mistakes must not wait for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ortholora.version import __version__

COMMANDS = ["train", "compare", "evaluate", "predict"]
SLOW = ("torch", "transformers", "pandas", "matplotlib", "datasets", "scipy", "sklearn", "numpy")
SCRIPT = f"""
import contextlib, io, sys
from ortholora.cli.app import app
for words in ([], *([command] for command in {COMMANDS})):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            app([*words, "--help"])
        except SystemExit as stop:
            assert not stop.code, stop
    assert "Usage:" in shown.getvalue(), words
try:
    app(["train", "broken.yaml"])
except SystemExit as stop:
    assert stop.code == 2, stop
print([name for name in {SLOW} if name in sys.modules])
"""


def test_help_and_a_wrong_configuration_import_nothing_slow(home):
    (home / "broken.yaml").write_text("backbone: x\ntaks: []\n", encoding="utf-8")
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"
    assert "did you mean `tasks`?" in result.stderr


@pytest.mark.parametrize("words", [["--help"], ["compare", "--help"]])
def test_the_module_can_be_run(words):
    result = subprocess.run([sys.executable, "-m", "ortholora", *words], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "compare" in result.stdout


def test_no_command_shows_the_help(cli):
    result = cli()
    assert all(command in result.output for command in COMMANDS)


def test_the_version_is_told(cli):
    assert cli.ok("--version").strip() == __version__


def test_compare_says_what_jobs_do(cli):
    shown = " ".join(cli.ok("compare", "--help").split())
    assert "--jobs" in shown
    assert "Runs at once" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["trian", "tiny.yaml"],
        ["train", "tiny.yaml", "--max-steps", "0"],
        ["compare", "tiny.yaml", "--jobs", "0"],
        ["predict", "run"],
        ["train", "--x"],
    ],
)
def test_a_typing_mistake_is_a_usage_error(cli, words):
    result = cli(*words)
    assert result.exit_code == 2
    assert "Usage:" in result.output
