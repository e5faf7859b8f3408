"""The notebooks run from their first cell to their last, with tiny models and few steps."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ortholora.cli.app import app
from tiny import write_backbone
from tiny_language import write_language_model

NOTEBOOKS = Path(__file__).parent.parent / "examples" / "notebooks"
MODELS = {"encoder_tasks": write_backbone, "language_model": write_language_model}


def cells(name: str) -> list[tuple[str, list[str]]]:
    """Source and tags of the code cells."""
    found = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code), "commit it without outputs"
    return [("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in code]


def run_cell(source: str, names: dict[str, Any]) -> str:
    """What a cell gives: the output of its commands, or the value of its last expression."""
    lines = source.splitlines()
    if any(line.startswith("!") for line in lines):
        assert all(line.startswith("!ortholora ") for line in lines)
        done = [CliRunner().invoke(app, shlex.split(line.format(**names))[1:]) for line in lines]
        assert all(result.exit_code == 0 for result in done), done[-1].output
        return "".join(result.output for result in done)
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return "" if last is None else repr(eval(compile(ast.Expression(last.value), "cell", "eval"), names))


@pytest.mark.parametrize("name", MODELS)
def test_it_runs_to_its_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(NOTEBOOKS)
    names: dict[str, Any] = {"__name__": "notebook"}
    shown = []
    for source, tags in cells(name):
        shown.append(run_cell(source, names))
        if tags == ["parameters"]:
            assert {"BACKBONE", "OUT", "STEPS"} <= set(names)
            names |= {"BACKBONE": str(MODELS[name](tmp_path / "model")), "OUT": str(tmp_path / "run"), "STEPS": 2}
    assert "tensors" not in shown[-1]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    if name == "encoder_tasks":
        assert any("praise" in text or "complaint" in text for text in shown)
        assert len(names["losses"]) == 2
    else:
        assert re.search(r"orders\.(happy~orders\.object|object~orders\.happy)", shown[-1])


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(MODELS)
