"""Configuration files: overrides, the user's mistakes in words, and the generated page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ortholora.config.docs import PAGE, render
from ortholora.config.file import dump_config, load_config, parse_override, with_settings
from ortholora.config.schema import Config
from ortholora.config.tasks.base import Task
from ortholora.config.tasks.union import KINDS, recorded
from ortholora.errors import UserError

ROOT = Path(__file__).parents[2]
GOOD = """
backbone: some/encoder
training: {learning_rate: 5e-4}
tasks:
  - {name: cola, train: a.tsv, dev: b.tsv}
  - {name: v1.1, hub: {path: x/y}}
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_the_ledger_chose_what_trains_where_no_rule_is_named(write):
    config = load_config(write(GOOD))
    assert config.rule == "gradnorm(alpha=2)"
    assert config.study.methods == ["single", "joint", "gradnorm(alpha=2)", "ortho"]


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def with_task(line: str) -> str:
    return f"backbone: x\ntasks:\n  - {{name: cola, train: a.tsv, dev: b.tsv, {line}}}\n"


def test_a_good_file_loads_and_numbers_without_a_dot_are_numbers(write):
    config = load_config(write(GOOD + "lora: {options: {eps: 1e-6}}\n"))
    assert config.task_names == ["cola", "v1.1"]
    assert config.training.learning_rate == 5e-4
    assert config.lora.options == {"eps": 1e-6}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tasks.cola.weight=2", ("tasks.cola.weight", 2)),
        ("training.learning_rate=1e-3", ("training.learning_rate", 1e-3)),
        ("tasks.a.text=[x, y]", ("tasks.a.text", ["x", "y"])),
        ("backbone=a=b", ("backbone", "a=b")),
        ("tasks.a.labels=", ("tasks.a.labels", None)),
    ],
)
def test_parse_override(override, expected):
    assert parse_override(override) == expected


def test_overrides_reach_tasks_by_name_and_index_and_the_later_one_wins(write):
    overrides = [
        "tasks.cola.weight=2",
        "tasks.cola.weight=3",
        "tasks.1.max_dev_rows=7",
        "tasks.v1.1.hub.name=sub",
        "lora.options.use_dora=false",
        "study.seeds=[4]",
    ]
    config = load_config(write(GOOD), overrides)
    assert config.tasks[0].weight == 3
    assert config.tasks[1].max_dev_rows == 7
    assert config.tasks[1].hub is not None
    assert config.tasks[1].hub.name == "sub"
    assert config.lora.options == {"use_dora": False}
    assert config.study.seeds == [4]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("tasks.coal.weight=2", ["expected: one of the tasks `cola`, `v1.1`", "`coal`", "did you mean `cola`?"]),
        ("tasks.cola.wieght=2", ["`tasks.cola.wieght`", "did you mean `tasks.cola.weight`?"]),
        ("tasks.cola=2", ["--set tasks.cola: unknown key", "`name`, `kind`"]),
        ("learning_rate=1", ["unknown key", "did you mean `training.learning_rate`?"]),
        ("training.stepz=1", ["`steps`", "did you mean `training.steps`?"]),
        ("seed.x=1", ["`seed` has no keys below it", "--set seed=VALUE"]),
        ("backbone.x.y=1", ["`backbone` has no keys below it"]),
        ("training.steps", ["expected: key=value", "no `=`", "--set training.steps=50"]),
        ("=3", ["no key before `=`"]),
        ("seed=[1", ["the value cannot be read", "expected: a value in YAML"]),
        ("seed=x", ["seed", "found:    'x'"]),
    ],
)
def test_a_wrong_override_is_explained(write, override, parts):
    message = complaint(write(GOOD), override)
    assert all(part in message for part in parts), message


def test_an_override_below_a_plain_value_is_explained(write):
    assert "expected: a section with keys" in complaint(write(GOOD + "lora: 3\n"), "lora.r=4")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["is no configuration", "expected: keys", "found:    an empty file", "`ortholora init FILES` writes one"]),
        ("- a\n- b\n", ["is no configuration", "found:    a list"]),
        ("a: 1\nb: [1\nc: 2\n", ["is not valid YAML", "line 3", "to do:    correct this line"]),
        ("backbone: x\nseed: 1\nseed: 2\n", ["line 3", "the key `seed` appears twice"]),
        (b"backbone: \xe9\n", ["expected: a text file in UTF-8", "byte 0xe9", "save the file as UTF-8"]),
    ],
)
def test_a_file_that_is_no_configuration(write, text, parts):
    message = complaint(write(text))
    assert all(part in message for part in parts), message


def test_a_missing_file_and_a_folder_name_the_files_that_are_there(write, tmp_path):
    write(GOOD)
    missing, folder = complaint(tmp_path / "rum.yaml"), complaint(tmp_path)
    assert "No such file" in missing
    assert "run.yaml" in missing
    assert "found:    a folder" in folder
    assert "run.yaml" in folder
    assert "`ortholora init FILES` writes one" in complaint(tmp_path / "nowhere" / "run.yaml")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (with_task("weight: -1"), ["tasks.cola.weight", "expected: greater than 0", "found:    -1"]),
        (with_task("lable: x"), ["tasks.cola.lable", "found:    the unknown key `lable`", "did you mean `label`?"]),
        (with_task("zzz: x"), ["to do:    remove it"]),
        (with_task("metric: acuracy"), ["tasks.cola.metric", "did you mean `accuracy`?"]),
        (
            with_task("metric: pearson"),
            ["run.yaml: tasks.cola\n", "a metric for classification", "use one of accuracy, f1"],
        ),
        (with_task("text: 3"), ["tasks.cola.text\n", "expected: text (in quotes", "or a list"]),
        (with_task("labels: [yes, no]"), ["tasks.cola.labels", "in quotes", "YAML reads them"]),
        (with_task("labels: [a, a]"), ["at least two different `labels`"]),
        (with_task("hub: {name: x}"), ["tasks.cola.hub.path", "no such key", "add `path:`"]),
        ("backbone: x\ntasks:\n  - {name: q}\n", ["run.yaml: tasks.q", "the task's data", "add `train:`"]),
        ("backbone: x\ntasks:\n  - {train: a.tsv, dev: b.tsv}\n", ["tasks.0.name", "add `name:`"]),
        ("backbone: x\ntasks: []\n", ["run.yaml: tasks\n", "at least 1 item"]),
        (GOOD + "lora:\n", ["run.yaml: lora\n", "found:    nothing", "write its keys below"]),
        (GOOD + "study: {methods: [joint, {name: a, block: mtrix}]}\n", ["methods.1.block", "`matrix`"]),
        (GOOD.replace("v1.1", "cola"), ["the configuration as a whole", "cola more than once", "rename"]),
    ],
)
def test_a_mistake_in_the_values_names_key_expected_found_and_what_to_do(write, text, parts):
    message = complaint(write(text))
    assert all(part in message for part in [*parts, "expected:", "found:", "to do:"]), message


def test_several_mistakes_come_in_one_message(write):
    message = complaint(write(GOOD.replace("b.tsv", "b.tsv, weight: 0") + "sede: 1\nmax_length: long\n"))
    assert "3 problems" in message
    assert "tasks.cola.weight: expected greater than 0" in message
    assert "did you mean `seed`?" in message
    assert "max_length: expected a whole number" in message


def test_dump_loads_back_to_the_same_even_with_texts_that_look_like_numbers(write):
    labels = ["1e5", "yes", "null", "~", "0", "1_000", "2020-01-01", "a: b", "5e-4", "é", " x"]
    task = {"name": "cola", "train": "a", "dev": "b", "labels": labels}
    config = Config.model_validate({"backbone": "x", "tasks": [task], "lora": {"options": {"a": None, "b": 1e-7}}})
    assert load_config(write(dump_config(config))) == config


def test_integer_labels_need_no_quotes(write):
    assert load_config(write(with_task("labels: [0, 1]"))).tasks[0].labels == ["0", "1"]


def test_with_settings_leaves_the_original_alone(write):
    config = load_config(write(GOOD))
    changed = with_settings(config, {"training.steps": 5, "tasks.cola.weight": 2})
    assert (changed.training.steps, changed.tasks[0].weight) == (5, 2)
    assert (config.training.steps, config.tasks[0].weight) == (600, 1)
    with pytest.raises(UserError, match="greater than 0"):
        with_settings(config, {"training.steps": 0})


EXAMPLES = [
    "examples/glue.yaml",
    "examples/own_data.yaml",
    "examples/language/language.yaml",
    "src/ortholora/study/demo.yaml",
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_valid(name):
    config = load_config(ROOT / name)
    assert len(config.tasks) >= 2


def test_the_page_of_keys_is_current():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == render(), "run: python -m ortholora.config.docs"
    assert "| `steps` | integer, > 0, ≤ 10,000,000 | `600` | Optimizer steps. |" in page


def test_the_page_of_keys_is_written_wherever_one_stands(tmp_path):
    assert PAGE == ROOT / "docs" / "configuration.md"
    command = [sys.executable, "-m", "ortholora.config.docs", "page.md"]
    subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_reading_a_configuration_imports_nothing_heavy():
    code = (
        "import sys, ortholora.config.file; "
        "sys.exit(str([m for m in ('torch', 'pandas', 'datasets', 'pyarrow', 'transformers') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


class TestKinds:
    """A task's `kind` decides which keys it has."""

    #: What versions before the kinds had keys of their own wrote for every task.
    IDLE = "text: text, label: label, prompt: prompt, completion: completion, messages: messages, turns: all, "
    IDLE += "labels: null, max_new_tokens: 64"

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_saved_configuration_of_an_earlier_version_loads(self, write, kind):
        config = load_config(write(with_task(f"kind: {kind}, {self.IDLE}")))
        assert config == load_config(write(with_task(f"kind: {kind}")))
        assert load_config(write(dump_config(config))) == config

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_recorded_has_the_keys_of_all_kinds(self, write, kind):
        task = load_config(write(with_task(f"kind: {kind}"))).tasks[0]
        idle = yaml.safe_load("{" + self.IDLE + "}")
        assert {key: recorded(task)[key] for key in idle} == idle
        later = {"test", "max_test_rows", "bad_rows", "max_bad_rows"}
        assert set(recorded(task)) - set(idle) == set(Task.model_fields) - later
        with_test = task.model_copy(update={"test": "test.tsv"})
        assert recorded(with_test) == recorded(task) | {"test": "test.tsv"}

    @pytest.mark.parametrize(
        ("line", "parts"),
        [
            ("prompt: x", ["tasks.cola.prompt\n", "keys of a classification task", "`prompt`", "or correct `kind`"]),
            ("max_new_tokens: 3", ["keys of a classification task", "remove `max_new_tokens`"]),
            ("kind: regression, labels: [a, b]", ["keys of a regression task", "remove `labels`"]),
            ("kind: completion, completion: y, messages: x", ["tasks.cola.messages\n", "keys of a completion task"]),
            ("kind: chat, completion: x", ["tasks.cola.completion\n", "keys of a chat task"]),
            ("promt: x", ["the unknown key `promt`", "did you mean `prompt`?"]),
            ("kind: clasification", ["tasks.cola.kind\n", "one of `classification`", "did you mean `classification`?"]),
            ("kind: [chat]", ["tasks.cola.kind\n", "found:    ['chat']", "did you mean `chat`?"]),
            ("kind: ", ["tasks.cola.kind\n", "found:    None"]),
            ("kind: completion, completion: 3", ["tasks.cola.completion\n", "expected: text (in quotes"]),
            ("kind: chat, turns: none", ["tasks.cola.turns\n", "'all' or 'last'"]),
            ("kind: regression, package: bbc-headline-writing", ["`kind: chat` with", "`kind: regression`"]),
        ],
    )
    def test_what_does_not_fit_the_kind_is_explained(self, write, line, parts):
        message = complaint(write(with_task(line)))
        assert all(part in message for part in [*parts, "expected:", "found:", "to do:"]), message

    def test_all_problems_of_a_task_come_in_one_message(self, write):
        message = complaint(write(with_task("prompt: x, weight: 0")))
        assert "2 problems" in message
        assert "tasks.cola.weight: expected greater than 0" in message
        assert "tasks.cola.prompt: expected keys of a classification task" in message

    @pytest.mark.parametrize("entry", ["3", "null", "[a]"])
    def test_a_task_that_is_no_section(self, write, entry):
        message = complaint(write(f"backbone: x\ntasks: [{entry}]\n"))
        assert "run.yaml: tasks.0\n" in message

    def test_overrides_may_change_the_kind_before_and_after_its_keys(self, write):
        for overrides in (["kind=completion", "prompt=q"], ["prompt=q", "kind=completion"]):
            task = load_config(write(with_task("weight: 1")), [f"tasks.cola.{override}" for override in overrides])
            assert task.tasks[0].columns == (("q",), "completion")
        message = complaint(write(with_task("weight: 1")), "tasks.cola.prompt=q")
        assert "keys of a classification task" in message
        assert "did you mean `tasks.cola.prompt`?" in complaint(write(with_task("kind: chat")), "tasks.cola.promt=q")
