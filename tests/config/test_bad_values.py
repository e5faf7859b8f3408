"""Values that PyYAML, pydantic or a library behind them would choke on, bend, or take for something else."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ortholora.config.bounds import read_text
from ortholora.config.file import dump_config, load_config
from ortholora.errors import UserError

BASE = "backbone: x\ntasks:\n  - {name: a, train: a.tsv, dev: b.tsv}\n"
TOO_MANY = str({key: list(range(10)) for key in "abcd"})
#: Nine times nine times nine … values in twelve lines.
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(12)
)
MERGES = LAUGHS.replace("a: &a [x,x,x,x,x,x,x,x,x]", "a: &a {x: 1}").replace("[*", "{<<: [*").replace("]", "]}")


def complaint(folder: Path, text: str, *overrides: str) -> UserError:
    path = folder / "run.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    assert len(str(caught.value)) < 15_000
    return caught.value


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("2020-13-45", "`2020-13-45` is no timestamp"),
        ("!!int x", "`x` is no int"),
        ("!!int ''", "`` is no int"),
        ("!!float x", "`x` is no float"),
        ("!!bool maybe", "`maybe` is no bool"),
        ("!!timestamp x", "`x` is no timestamp"),
        ("!!int 1:30", "`1:30` is no int"),
        ("9" * 5000, "is no int"),
        ('"\\U00110000"', "ValueError"),
        ("&a [*a]", "an anchor that holds itself"),
        ("[" * 5000, "nested more than 50 levels"),
        ("{a: " * 5000, "nested more than 50 levels"),
        ("[" * 60 + "]" * 60, "nested more than 50 levels"),
        ("\0", "special characters are not allowed"),
    ],
)
def test_what_is_no_yaml(tmp_path: Path, value: str, found: str) -> None:
    assert found in complaint(tmp_path, f"{BASE}revision: {value}\n").found
    assert found in complaint(tmp_path, BASE, f"revision={value}").found


@pytest.mark.parametrize(("text", "found"), [(LAUGHS, "more than 100,000 values"), (MERGES, "more than 100,000 keys")])
def test_a_few_lines_that_are_billions_of_values(tmp_path: Path, text: str, found: str) -> None:
    message = complaint(tmp_path, text).found
    # PyYAML 6.0.4 drops repeated merge keys itself: what is left are keys that are unknown.
    assert found in message or (text is MERGES and "problems above" in message)


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("lora: {r: true}", "lora.r", "a number"),
        ("head_dropout: no", "head_dropout", "a number"),
        ("study: {seeds: [0, yes]}", "study.seeds", "a number"),
        ("max_length: 1:30", "max_length", "a whole number"),
        ("revision: 2020-01-01", "revision", "text"),
        ("revision: !!binary aGk=", "revision", "text"),
        ('revision: "a\\x07"', "revision", "text without control characters"),
        ('revision: "\\ud800"', "revision", "text without control characters"),
        ("revision: a b", "revision", "the name of a commit, a branch or a tag"),
        ("revision: ''", "revision", "the name of a commit, a branch or a tag"),
        ("backbone: ''", "backbone", "at least 1 character"),
        ("lora: {options: {a: 2020-01-01}}", "lora.options", "text, numbers"),
        ("lora: {options: {a: [{b: !!binary aGk=}]}}", "lora.options", "text, numbers"),
        ("study: {seeds: [1, 1]}", "study", "different `seeds`"),
        ("seed: -1", "seed", "greater than or equal to 0"),
        ("seed: 4294967296", "seed", "less than 4294967296"),
        ("data_seed: 4294967296", "data_seed", "less than 4294967296"),
        ("max_length: 1000000000", "max_length", "less than or equal to"),
        ("lora: {r: 1000000000}", "lora.r", "less than or equal to"),
        ("lora: {alpha: 1e308}", "lora.alpha", "less than or equal to"),
        ("lora: {alpha: .inf}", "lora.alpha", "a finite number"),
        ("training: {arguments: {max_grad_norm: .nan}}", "training.arguments", "a finite number"),
        ("training: {weight_decay: .nan}", "training.weight_decay", "a finite number"),
        ("mixing: {rows_per_task: 1000000000}", "mixing.rows_per_task", "less than or equal to"),
        ("study: {bootstrap: 1000000000}", "study.bootstrap", "less than or equal to"),
        ("training: {steps: 1000000000}", "training.steps", "less than or equal to"),
        ("training: {log_every: " + "9" * 40 + "}", "training.log_every", "at most 19 digits"),
        ("study: {sweep: {values: " + TOO_MANY + "}}", "study.sweep", "1000 combinations"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_or_out_of_bounds(tmp_path: Path, line: str, key: str, expected: str) -> None:
    base = BASE.replace("backbone: x\n", "") if line.startswith("backbone") else BASE
    error = complaint(tmp_path, f"{base}{line}\n")
    assert error.what == f"{tmp_path / 'run.yaml'}: {key}"
    assert expected in error.expected


def test_a_name_must_be_short_enough_for_a_folder(tmp_path: Path) -> None:
    error = complaint(tmp_path, BASE.replace("name: a", "name: " + "a" * 5000))
    assert error.expected == "at most 100 characters"


def test_thousands_of_problems_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    error = complaint(tmp_path, BASE + "".join(f"k{i}: 1\n" for i in range(5000)))
    assert "run.yaml: 5000 problems" in error.what
    assert error.what.endswith("\n  and 4980 more")
    assert error.what.count("\n") == 21


def test_a_long_key_is_cut(tmp_path: Path) -> None:
    assert len(str(complaint(tmp_path, BASE, "x" * 5000 + "=1"))) < 3000
    assert len(str(complaint(tmp_path, BASE, "tasks." + "x." * 3000 + "=1"))) < 3000


@pytest.mark.parametrize("device", ["/dev/full", "/dev/zero", "/dev/null"])
def test_a_device_is_no_configuration(device: str) -> None:
    with pytest.raises(UserError, match="a device, not a file"):
        load_config(Path(device))


def test_a_pipe_is_no_configuration(tmp_path: Path) -> None:
    """It would wait until somebody writes."""
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="a pipe or a device, not a file") as caught:
        load_config(tmp_path / "pipe.yaml")
    assert "pipe.yaml" not in caught.value.todo


def test_questions_come_out_of_a_pipe_that_somebody_writes_to(tmp_path: Path) -> None:
    """As `predict --file <(command)` has it."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe that nobody writes to"):
        read_text(tmp_path / "pipe", 100, pipe=True)
    with ThreadPoolExecutor(1) as pool, open(os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK), "wb") as writer:
        read = pool.submit(read_text, tmp_path / "pipe", 100, True)
        time.sleep(0.05)  # it is asked before there is anything
        writer.write(b"a text")
        writer.close()
        assert read.result(10) == "a text"


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(UserError, match="cannot be read"):
            load_config(tmp_path / name)


def test_a_file_larger_than_any_configuration(tmp_path: Path) -> None:
    assert "characters, more than" in complaint(tmp_path, "x: " + "a " * 300_000).found
    assert "bytes that are read" in complaint(tmp_path, "x" * 2_100_000).found


def test_numbers_as_everybody_writes_them(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(BASE + "training: {learning_rate: 5e-4, weight_decay: .5, steps: 1_000}\n")
    training = load_config(tmp_path / "run.yaml").training
    assert (training.learning_rate, training.weight_decay, training.steps) == (5e-4, 0.5, 1000)


def test_texts_that_look_like_other_things_are_kept(tmp_path: Path) -> None:
    labels = ["1:30", "010", "2020-13-45", "2020-01-01", ".5", "1e5", "0x1", "yes"]
    (tmp_path / "run.yaml").write_text(BASE.replace("dev: b.tsv", f"dev: b.tsv, labels: {labels}"))
    config = load_config(tmp_path / "run.yaml")
    assert config.tasks[0].labels == labels
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config
