"""What docs/security.md promises, where no other test holds it already."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ortholora.config.file import load_config
from ortholora.config.schema import Config
from ortholora.config.tasks.classification import ClassificationTask
from ortholora.data.read import split_config
from ortholora.errors import UserError
from ortholora.models import backbone
from tiny import tiny_config

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
#: Worker processes of one command talk through a pipe that nobody else can write to; no file is read.
PIPES = {"study/jobs/worker.py"}
#: Loaders that run what a file names, or may.
FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "joblib.load",
    "dill.load",
    "dill.loads",
    "marshal.loads",
}
FORBIDDEN |= {
    "torch.jit.load",
    "shelve.open",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pandas.read_pickle",
    "pd.read_pickle",
}
FORBIDDEN |= {"eval", "exec"}


def calls(code: str) -> list[tuple[str, dict[str, Any]]]:
    """Every call of a module: the function as it is written, and the arguments by name that are constants."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            constants = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            found.append((ast.unparse(node.func), constants))
    return found


def problems(code: str) -> list[str]:
    """Calls that may run what they read."""
    odd = [name for name, _ in calls(code) if name in FORBIDDEN]
    odd += [name for name, given in calls(code) if name == "torch.load" and given.get("weights_only") is not True]
    odd += [
        name for name, given in calls(code) if name.endswith(".load") and given.get("allow_pickle", False) is not False
    ]
    odd += [name for name, given in calls(code) if name in {"np.load", "numpy.load"} and "allow_pickle" not in given]
    odd += [name for name, given in calls(code) if given.get("trust_remote_code", False) is not False]
    if "yaml.load" in [name for name, _ in calls(code)] and "Loader=_Loader" not in code:
        odd.append("yaml.load")
    return odd


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src" / "ortholora")))
def test_no_source_loads_a_pickle(path: Path) -> None:
    found = problems(path.read_text(encoding="utf-8"))
    own = path.relative_to(ROOT / "src" / "ortholora").as_posix()
    assert [name for name in found if not (own in PIPES and name == "pickle.loads")] == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
        "pickle.loads(data)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_is_for(line: str) -> None:
    assert problems(line)


# ---- Names from data and configurations never become paths -------------------------------------------------------

EVIL_NAMES = ["../x", "..", ".", "/etc/x", "a/b", "a\\b", "~", "C:x", "a\0b", "", "-rf", "a b", "x\n", "é"]


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_no_task_and_no_method_has_the_name_of_a_path(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        ClassificationTask(name=name, train="a.tsv", dev="b.tsv")
    with pytest.raises(ValueError, match="name"):
        Config.model_validate(
            {
                "backbone": "x",
                "tasks": [{"name": "a", "train": "a", "dev": "b"}],
                "study": {"methods": [{"name": name}]},
            }
        )


@pytest.mark.parametrize("value", ["../../x", "/etc/x", "a/../b", "a\\b"])
def test_a_column_that_names_tasks_makes_no_paths(tmp_path: Path, value: str) -> None:
    rows = "".join(f"text {n}\t{'yn'[n % 2]}\t{value if n < 4 else 'good'}\n" for n in range(8))
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text(f"text\tlabel\ttask\n{rows}", encoding="utf-8")
    tasks = [{"name": "all", "train": "train.tsv", "dev": "dev.tsv", "split_by": "task"}]
    config = Config.model_validate({"backbone": "x", "tasks": tasks})
    with pytest.raises(UserError, match="no name for a task"):
        split_config(config, base=tmp_path, data_dir=None)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dev.tsv", "train.tsv"]


# ---- Code from a hub, a folder or a YAML file --------------------------------------------------------------------

CODE = "import pathlib\npathlib.Path({mark!r}).write_text('run')\nclass X: pass\n"


@pytest.mark.parametrize(
    "load",
    [backbone.load_config, lambda path: backbone.load_encoder(path, torch.float32), backbone.load_tokenizer],
    ids=["config", "model", "tokenizer"],
)
def test_a_backbone_brings_no_code(tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither run nor asked for: transformers would wait for an answer at the terminal."""
    monkeypatch.setattr("builtins.input", lambda *text: pytest.fail("it asked"))
    mark = tmp_path / "mark"
    (tmp_path / "own.py").write_text(CODE.format(mark=str(mark)), encoding="utf-8")
    names = {"AutoConfig": "own.X", "AutoModel": "own.X", "AutoTokenizer": ["own.X", None]}
    content = {"model_type": "own", "architectures": ["X"], "auto_map": names}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": names}), encoding="utf-8")
    with pytest.raises(UserError, match="could not be loaded"):
        load(str(tmp_path))
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "backbone: !!python/object/apply:os.mkdir [mark]",
        "backbone: !!python/object/new:os.mkdir [mark]",
        "backbone: !!python/name:os.system",
        "backbone: !!python/module:this",
    ],
)
def test_a_yaml_file_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.yaml"):
        load_config(tmp_path / "x.yaml")
    assert not (tmp_path / "mark").exists()


def test_reading_a_configuration_imports_no_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of one's own is code: it is imported when it trains, never by looking at a run."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil_rule.py").write_text(CODE.format(mark=str(tmp_path / "mark")), encoding="utf-8")
    load_config(tiny_config(tmp_path, rule="evil_rule:X"))
    assert not (tmp_path / "mark").exists()


# ---- The page ----------------------------------------------------------------------------------------------------


def test_every_test_that_the_page_names_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 15
    for path, name in named:
        content = (ROOT / path).read_text(encoding="utf-8")
        assert not name or re.search(rf"^\s*def {name}\(", content, re.MULTILINE), (path, name)
