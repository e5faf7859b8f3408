"""Imports point one way, and a layer brings no more than it says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ortholora

ROOT = Path(ortholora.__file__).parent

PAGE = ROOT.parents[1] / "docs" / "architecture.md"


def table_of_rooms() -> dict[str, set[str]]:
    """Room → what it imports, as the table of docs/architecture.md says, in its order."""
    table = PAGE.read_text(encoding="utf-8").partition("<!-- rooms:begin -->")[2].partition("<!-- rooms:end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    return {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[2])) for row in rows}


ROOMS = table_of_rooms()


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """Parts of `ortholora` that a file imports, at any depth of the file, type checking included."""
    package = ["ortholora", *path.relative_to(ROOT).parts[:-1]]
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from ortholora import engine` names a part; `from ortholora.engine import X` is one.
            names += [f"{module}.{alias.name}" if module == "ortholora" else module for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("ortholora.")}


#: `__init__` and `__main__` are doors: the public names, and the command.
FILES = [path for path in sorted(ROOT.rglob("*.py")) if part_of(path) not in ("__init__", "__main__")]


def test_the_search_finds_imports() -> None:
    """An empty search would let everything through."""
    assert imported_parts(ROOT / "engine" / "attach.py") == {"engine", "errors"}
    assert len(FILES) > 15
    assert set(ROOMS) == {part_of(f) for f in FILES}


def test_no_arrow_runs_back_up() -> None:
    rooms = list(ROOMS)
    for room, imports in ROOMS.items():
        assert imports <= set(rooms[: rooms.index(room)]), room


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports for a type checker count, too: who knows whom is what a reader has to hold in the head."""
    names = {".".join(("ortholora", *path.relative_to(ROOT).with_suffix("").parts)): path for path in FILES}
    imports = {}
    for name, path in names.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        wanted = {full for n in nodes for a in n.names for full in (str(n.module), f"{n.module}.{a.name}")}
        imports[name] = wanted & set(names) - {name}
    assert sum(map(len, imports.values())) > 500  # an empty search would let everything through
    TopologicalSorter(imports).prepare()  # raises a CycleError that names the circle


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_what_its_room_may(path: Path) -> None:
    assert imported_parts(path) - {part_of(path)} <= ROOMS[part_of(path)]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_all_that_the_page_says(room: str) -> None:
    found = set().union(*(imported_parts(path) for path in FILES if part_of(path) == room))
    assert found - {room} == ROOMS[room]


#: One process for three questions, each a line: starting one, and importing torch and TRL, is what takes long.
ASKED = """
import sys
import ortholora
assert ortholora.__version__
print('torch' in sys.modules)
import torch, peft
before = set(sys.modules) - {n for n in sys.modules if n.partition('.')[0] == 'ortholora'}
import ortholora.engine
print(sorted(set(sys.modules) - before))
class Hidden:
    def find_spec(self, name, *rest):
        if name.partition('.')[0] in {'scipy', 'sklearn', 'pydantic', 'matplotlib', 'typer'}:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
try:
    import trl.trainer.sft_trainer  # what it finds by itself is its own affair
except ModuleNotFoundError:
    sys.exit(print('no trl'))
for name in [n for n in sys.modules if n.partition('.')[0] in {'scipy', 'sklearn', 'pydantic'}]:
    del sys.modules[name]
sys.meta_path.insert(0, Hidden())
from ortholora import ResolveMixin
from ortholora.trl import OrthoSFTTrainer
from ortholora.trainers.task_column import TaskCollator
try:
    from ortholora import OrthoTrainer
except ModuleNotFoundError as error:
    print(repr(str(error)))
"""


@pytest.fixture(scope="module")
def answers() -> list[str]:
    run = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_the_package_itself_does_not_wait_for_torch(answers: list[str]) -> None:
    assert answers[0] == "False"


def test_the_engine_brings_nothing_but_torch_and_peft(answers: list[str]) -> None:
    brought = [name.split(".") for name in ast.literal_eval(answers[1])]
    assert {name[1] for name in brought if name[0] == "ortholora" and len(name) > 1} == {"engine", "errors", "version"}
    assert {name[0] for name in brought} <= {"ortholora", "torch", "peft"}


def test_the_mixin_and_the_sft_trainer_do_without_the_packages_of_metrics(answers: list[str]) -> None:
    """Of the extras only `[trl]` is needed for them; a trainer that needs `[cli]` says so."""
    pytest.importorskip("trl")
    assert 'pip install "ortholora[cli]"' in ast.literal_eval(answers[2])


def test_test_files_without_a_package_have_names_of_their_own() -> None:
    """pytest would import one for the other, and collect nothing at all; a run of a part of the tests hides it."""
    tests = Path(__file__).resolve().parent
    names = [path.name for path in tests.rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    assert sorted({name for name in names if names.count(name) > 1}) == []
