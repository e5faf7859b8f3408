"""`predict --data FILE --out FILE`: every row, in its order, whatever stops it on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Cli

import ortholora
from ortholora.cli.reading import questions_of
from ortholora.errors import UserError
from ortholora.models.multitask import MultiTaskModel
from ortholora.models.predictor import Predictor
from ortholora.runs import predict
from ortholora.runs.lock import lock
from ortholora.runs.predict import predict_file
from ortholora.runs.progress import Stopped

TEXTS = [" ".join(["the goal was fine", *["bank"] * (n * 7 % 13)]) for n in range(21)]


class Recorder:
    """Takes down what is reported, and asks to stop after some windows."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[int] = []
        self.notes: list[str] = []
        self.begun: list[int] = []
        self._left = stop_after

    @property
    def stop_requested(self) -> bool:
        return self._left is not None and len(self.steps) >= self._left

    def start(self, label: str, rows: int, done: int) -> None:
        self.begun.append(done)

    def step(self, done: int) -> None:
        self.steps.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def loaded(trained: Path) -> Predictor:
    """The run, loaded once for all tests here."""
    return ortholora.load(trained, "cpu")


@pytest.fixture(autouse=True)
def small_windows(loaded: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortholora.models.predictor.load", lambda run: loaded)
    monkeypatch.setattr(MultiTaskModel, "window", 4)


@pytest.fixture
def rows(home: Path) -> Path:
    """A file whose row 3 has no text."""
    path = home / "rows.jsonl"
    texts = [*TEXTS[:2], "", *TEXTS[2:]]
    path.write_text("".join(json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(texts)), "utf-8")
    return path


def answer(run: Path, rows: Path, out: Path, progress: Any = None) -> bytes:
    predict_file(run, questions_of(run, "topic", rows, None), out, progress or Recorder())
    return out.read_bytes()


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_every_row_has_its_answer(cli: Cli, trained: Path, rows: Path, home: Path, loaded: Predictor) -> None:
    shown = cli.ok("predict", trained, "--task", "topic", "--data", "rows.jsonl", "--out", "deep/answers.jsonl")
    assert "1 of 22 rows cannot be answered (the first is row 3: no text)" in shown
    assert "22 rows; 1 of them have a `problem`" in shown
    lines = lines_of(home / "deep" / "answers.jsonl")
    assert [line.pop("row") for line in lines] == list(range(1, 23))
    assert lines.pop(2) == {"problem": "no text"}
    for line, wanted in zip(lines, loaded.predict("topic", TEXTS), strict=True):
        assert line["label"] == wanted.label
        assert line["scores"] == pytest.approx(wanted.scores, abs=1e-5)
    assert [path.name for path in (home / "deep").iterdir()] == ["answers.jsonl"]


def test_pairs_with_columns_of_other_names(cli: Cli, trained: Path, home: Path) -> None:
    (home / "pairs.csv").write_text("id,a,b\n1,the goal,yes indeed\n2,the bank,never\n", encoding="utf-8")
    words = ["predict", trained, "--task", "pair", "--data", "pairs.csv", "--out", "out.jsonl"]
    message = cli.complaint(*words)
    assert "no column `first`" in message
    assert "`id`, `a`, `b`" in message
    assert "2 for task 'pair'" in cli.complaint(*words, "--text", "a")
    cli.ok(*words, "--text", "a,b")
    assert [line["row"] for line in lines_of(home / "out.jsonl")] == [1, 2]


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_stopped_command_goes_on_to_the_same_bytes(trained: Path, rows: Path, home: Path, after: int) -> None:
    whole = answer(trained, rows, home / "whole.jsonl")
    out = home / "out.jsonl"
    with pytest.raises(Stopped, match=f"after {4 * after} of 22 rows"):
        answer(trained, rows, out, Recorder(after))
    assert not out.exists()
    rest = Recorder()
    assert answer(trained, rows, out, rest) == whole
    assert rest.begun == [4 * after]
    assert rest.steps[0] == min(4 * after + 4, 22)


def test_the_last_rows_are_no_place_to_stop(trained: Path, rows: Path, home: Path) -> None:
    answer(trained, rows, home / "out.jsonl", Recorder(6))


@pytest.mark.parametrize("left", [b'{"row": 9, "la', b'{"row": 9, "label": "sport", "scores": {}}\n'])
def test_what_a_kill_leaves_behind_is_cut_off(
    trained: Path, rows: Path, home: Path, monkeypatch: pytest.MonkeyPatch, left: bytes
) -> None:
    whole, out = answer(trained, rows, home / "whole.jsonl"), home / "out.jsonl"
    with pytest.raises(Stopped):
        answer(trained, rows, out, Recorder(2))
    with (home / "out.jsonl.partial").open("ab") as stream:
        stream.write(left)
    assert answer(trained, rows, out) == whole


def test_a_kill_before_the_state_was_written(
    trained: Path, rows: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out, written = answer(trained, rows, home / "whole.jsonl"), home / "out.jsonl", []

    def write_json(path: Path, value: Any) -> None:
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        real(path, value)

    real = predict.write_json
    monkeypatch.setattr(predict, "write_json", write_json)
    with pytest.raises(KeyboardInterrupt):
        answer(trained, rows, out)
    again = Recorder()
    assert answer(trained, rows, out, again) == whole
    assert again.begun == [8]


def test_a_kill_before_the_file_got_its_name(
    trained: Path, rows: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = home / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", _Killed(out))
        with pytest.raises(KeyboardInterrupt):
            answer(trained, rows, out)
    assert answer(trained, rows, out, again := Recorder()).count(b"\n") == 22
    assert again.steps == []


class _Killed:
    """`os.replace`, but for one file."""

    def __init__(self, of: Path) -> None:
        import os

        self._of, self._real = of, os.replace

    def __call__(self, source: Any, target: Any) -> None:
        if Path(target) == self._of:
            raise KeyboardInterrupt
        self._real(source, target)


class _SmallMemory:
    """An encoder that cannot take more than some tokens at once."""

    def __init__(self, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        real = MultiTaskModel.encode

        def encode(model: MultiTaskModel, inputs: Any) -> torch.Tensor:
            size = inputs["input_ids"].numel()
            if size > most:
                raise RuntimeError(f"CUDA out of memory. Tried to allocate {size} GiB")
            self.sizes.append(size)
            return real(model, inputs)

        monkeypatch.setattr(MultiTaskModel, "encode", encode)


def test_smaller_forwards_where_memory_runs_out(
    trained: Path, rows: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(trained, rows, home / "whole.jsonl")
    memory, out = _SmallMemory(40, monkeypatch), home / "out.jsonl"
    with pytest.raises(Stopped):
        answer(trained, rows, out, Recorder(2))
    tried = json.loads((home / "out.jsonl.state.json").read_text(encoding="utf-8"))["max_tokens"]
    assert tried == 32
    assert max(memory.sizes) <= 40
    answer(trained, rows, out)
    for one, other in zip(lines_of(home / "whole.jsonl"), lines_of(out), strict=True):
        assert one.pop("scores", None) == pytest.approx(other.pop("scores", None), abs=1e-5)
        assert one == other


def test_a_row_that_never_fits(trained: Path, rows: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _SmallMemory(3, monkeypatch)
    with pytest.raises(UserError, match="row does not fit into memory"):
        answer(trained, rows, home / "out.jsonl")


def test_another_error_is_no_lack_of_memory(
    trained: Path, rows: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: Any, inputs: Any) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(MultiTaskModel, "encode", broken)
    with pytest.raises(RuntimeError, match="multiplied"):
        answer(trained, rows, home / "out.jsonl")


def test_it_goes_on_only_with_the_same_rows_and_the_same_run(cli: Cli, run: Path, rows: Path, home: Path) -> None:
    out = home / "out.jsonl"
    with pytest.raises(Stopped):
        answer(run, rows, out, Recorder(2))
    kept = (home / "out.jsonl.partial").read_bytes()
    words = ["predict", run, "--data", "rows.jsonl", "--out", "out.jsonl", "--task"]
    assert "another run, another task" in cli.complaint(*words, "score")
    content = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    rows.write_text("".join([content[1], *content[1:]]), encoding="utf-8")
    assert "other rows among the first 8" in cli.complaint(*words, "topic")
    rows.write_text("".join(content[:7]), encoding="utf-8")
    assert "other rows among the first 8" in cli.complaint(*words, "topic")
    assert (home / "out.jsonl.partial").read_bytes() == kept
    # Rows that are not answered yet may be corrected.
    rows.write_text("".join([*content[:-1], '{"text": "the moon"}\n']), encoding="utf-8")
    cli.ok(*words, "topic")
    assert len(lines_of(out)) == 22


def test_bad_input(cli: Cli, trained: Path, rows: Path, home: Path) -> None:
    words = ["predict", trained, "--task", "topic"]
    both = [*words, "--data", "rows.jsonl", "--out", "out.jsonl"]
    assert "--data" in cli.complaint(*words, "--out", "x.jsonl")
    assert "go together" in cli.complaint(*both[:-2])
    assert "texts as arguments" in cli.complaint(*both, "some text")
    assert "`.csv`" in cli.complaint(*both[:-1], "out.csv")
    assert "no such file" in cli.complaint(*words, "--data", "nowhere.csv", "--out", "out.jsonl")
    (home / "empty.jsonl").write_text('{"words": "x"}\n{"text": " "}\n', encoding="utf-8")
    message = cli.complaint(*words, "--data", "empty.jsonl", "--out", "out.jsonl")
    assert "row 1: no text; and so with all 2" in message
    with lock(home, "out.jsonl"):
        assert "out.jsonl is being written by another process" in cli.complaint(*both)
    (home / "out.jsonl").write_text("mine", encoding="utf-8")
    assert "there already" in cli.complaint(*both)
    assert (home / "out.jsonl").read_text(encoding="utf-8") == "mine"
    assert not list(home.glob("out.jsonl.*"))
