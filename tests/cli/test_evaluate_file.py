"""`evaluate --data FILE`: the scores of a finished run on another file of one task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from command_line import Cli

import ortholora
from ortholora.cli.evaluating import Wanted, _labelled
from ortholora.metrics.bootstrap import draw_rows
from ortholora.metrics.compute import resampled, row_interval
from ortholora.models.loading import load_card
from ortholora.models.multitask import MultiTaskModel
from ortholora.models.predictor import Predictor
from ortholora.runs.evaluate import evaluate_file
from ortholora.runs.progress import Silent, Stopped
from tiny_language import language_config

FILES = {"topic": "dev-topic.tsv", "pair": "dev-pair.csv", "score": "dev-score.jsonl"}


@pytest.fixture(scope="module")
def loaded(trained: Path) -> Predictor:
    """The run, loaded once for all tests here."""
    return ortholora.load(trained, "cpu")


@pytest.fixture(autouse=True)
def loaded_once(loaded: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortholora.models.predictor.load", lambda run: loaded)


def scores(cli: Cli, *words: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cli.ok("evaluate", *words, "--json"))
    for scored in found.values():  # numbers alone, which `approx` compares
        scored["low"], scored["high"] = scored.pop("interval")
    return found


@pytest.mark.parametrize("task", FILES)
def test_it_is_what_evaluate_says_of_the_same_rows(
    cli: Cli, trained: Path, home: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the windows, and whatever the format."""
    own = scores(cli, trained, "--task", task)
    assert list(own) == [task]
    assert own[task]["rows"] == 48
    monkeypatch.setattr(MultiTaskModel, "window", 7)
    reader = {".tsv": lambda path: pd.read_csv(path, sep="\t"), ".csv": pd.read_csv}
    path = home / FILES[task]
    frame = reader.get(path.suffix, lambda path: pd.read_json(path, lines=True))(path)
    frame.to_parquet(home / "rows.parquet")
    for data in (path, home / "rows.parquet"):
        assert scores(cli, trained, "--data", data, "--task", task)[task] == pytest.approx(own[task], abs=1e-6)


def test_the_interval_is_that_of_a_study_with_one_seed(cli: Cli, trained: Path) -> None:
    """The bootstrap over rows of the run's own record, with as many resamples as the configuration says."""
    from ortholora.runs.record import read_record

    record = read_record(trained)
    found = scores(cli, trained)
    for task, classes in {"topic": 3, "pair": 2, "score": None}.items():
        drawn = draw_rows(np.random.default_rng(0), 48, 100)
        both = record.targets[task], record.predictions[task][None]
        values = [resampled(record.metric_names[task], *both, classes, counts) for counts in drawn]
        low, high = np.percentile(np.concatenate(values, axis=1), [2.5, 97.5])
        assert (found[task]["low"], found[task]["high"]) == pytest.approx((low, high), abs=1e-6)
        assert low <= found[task]["main"] <= high
        assert low < high


def test_an_interval_of_very_many_rows_takes_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortholora.metrics.compute._MOST_DRAWN", 500 * 8)
    rng = np.random.default_rng(1)
    both = rng.integers(0, 2, 8), rng.integers(0, 2, 8)
    assert row_interval("accuracy", *both, 2, 100_000) == row_interval("accuracy", *both, 2, 500)
    monkeypatch.setattr("ortholora.metrics.compute._MOST_DRAWN", 1)
    assert row_interval("accuracy", *both, 2, 100_000) == row_interval("accuracy", *both, 2, 400)


def test_other_columns_and_rows_that_are_worse(cli: Cli, trained: Path, home: Path) -> None:
    frame = pd.read_csv(home / "dev-pair.csv")
    frame.columns = ["a", "b", "answer"]
    frame.to_csv(home / "new.csv", index=False)
    words = ["--task", "pair", "--text", "a,b", "--label", "answer"]
    before = scores(cli, trained, "--data", "new.csv", *words)["pair"]
    assert before == pytest.approx(scores(cli, trained, "--task", "pair")["pair"], abs=1e-6)
    frame["answer"] = ["no" if answer == "yes" else "yes" for answer in frame["answer"]]
    frame.to_csv(home / "new.csv", index=False)
    after = scores(cli, trained, "--data", "new.csv", *words)["pair"]
    assert after["accuracy"] == pytest.approx(1 - before["accuracy"])
    shown = cli.ok("evaluate", trained, "--data", "new.csv", *words)
    assert "Results on new.csv" in shown
    assert "48 rows" in shown


def test_a_file_may_lack_a_class(cli: Cli, trained: Path, home: Path, loaded: Predictor) -> None:
    """The classes are the run's, not the file's: the indices are those that the head was trained with."""
    lines = (home / "dev-topic.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.endswith(("\tmoney\n", "\tsport\n"))]
    (home / "space.tsv").write_text("".join(kept), encoding="utf-8")
    found = scores(cli, trained, "--data", "space.tsv", "--task", "topic")["topic"]
    answers = loaded.predict("topic", [line.split("\t")[0] for line in kept[1:]])
    assert found["accuracy"] == pytest.approx(np.mean([answer.label == "space" for answer in answers]))


def test_bad_rows_are_left_out_as_the_configuration_says(cli: Cli, run: Path, home: Path) -> None:
    text = (home / "dev-score.jsonl").read_text(encoding="utf-8")
    own = scores(cli, run, "--task", "score")["score"]
    (home / "new.jsonl").write_text('{"text": "x"}\n' + text + "no JSON\n", encoding="utf-8")
    assert "no JSON object" in cli.complaint("evaluate", run, "--data", "new.jsonl", "--task", "score")
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    settings["tasks"][2]["bad_rows"] = "drop"
    (run / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    found = scores(cli, run, "--data", "new.jsonl", "--task", "score")["score"]
    assert (found.pop("left_out"), own.pop("left_out")) == (2, 0)
    assert found == pytest.approx(own, abs=1e-6)
    assert "2 bad rows were left out" in cli.ok("evaluate", run, "--data", "new.jsonl", "--task", "score")
    (home / "new.jsonl").write_text('{"text": "x"}\n' * 9 + text, encoding="utf-8")
    assert "9 of 57, 15.8%" in cli.complaint("evaluate", run, "--data", "new.jsonl", "--task", "score")


def test_a_part_of_a_file_of_several_tasks(cli: Cli, run: Path, home: Path) -> None:
    """With `split_by` the rows of the task alone; all rows of a file that does not name tasks."""
    own = scores(cli, run, "--task", "score")["score"]
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    settings["tasks"][2] |= {"split_by": "of", "only": "mine"}
    (run / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    rows = [json.loads(line) for line in (home / "dev-score.jsonl").read_text(encoding="utf-8").splitlines()]
    mixed = [{**row, "of": name} for row in rows for name in ("mine", "other")]
    for content in (rows, mixed):
        (home / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        found = scores(cli, run, "--data", "new.jsonl", "--task", "score")["score"]
        assert found == pytest.approx(own, abs=1e-6)
    (home / "new.jsonl").write_text(json.dumps({**rows[0], "of": "other"}), encoding="utf-8")
    message = cli.complaint("evaluate", run, "--data", "new.jsonl", "--task", "score")
    assert "at least one row of `mine`" in message


def write(home: Path, name: str, content: str) -> None:
    (home / name).write_text(content, encoding="utf-8")


@pytest.mark.parametrize(
    ("task", "name", "content", "parts"),
    [
        ("topic", "a.tsv", "text\nthe goal\n", ["has no labels", "`label`", "no such column", "--label"]),
        ("topic", "a.tsv", "text\tlabel\nthe goal\t-1\nmoon\t-1\n", ["has no labels", "-1 in every row"]),
        ("score", "a.jsonl", '{"text": "x", "score": -1.0}\n' * 3, ["has no labels", "-1 in every row"]),
        ("topic", "a.tsv", "text\tlabel\nthe goal\t\n", ["without a label", "row 1"]),
        ("topic", "a.tsv", "text\tlabel\nmoon\tspace\nbank\tcash\n", ["unknown label", "`cash` in row 2", "`money`"]),
        ("topic", "a.tsv", "texts\tlabel\nmoon\tspace\n", ["no column `text`", "did you mean `texts`"]),
        ("topic", "a.tsv", "text\tlabel\nmoon\n", ["row 1", "bad_rows"]),
        ("topic", "a.tsv", "text\tlabel\n", ["no rows"]),
        ("topic", "a.tsv", "", ["empty file"]),
        ("topic", "a.xlsx", "", ["unknown format"]),
        ("pair", "a.csv", "first,second,label\na,,yes\n", ["without a text", "row 1"]),
        ("score", "a.jsonl", '{"text": "x", "score": "high"}\n', ["not a number", "`high`"]),
        ("score", "a.jsonl", '{"text": "x"}\n', ["has no labels", "`score`"]),
        ("score", "a.parquet", "x", ["Parquet"]),
    ],
)
def test_files_that_are_refused(
    cli: Cli, trained: Path, home: Path, task: str, name: str, content: str, parts: list[str]
) -> None:
    write(home, name, content)
    for as_json in ([], ["--json"]):
        message = cli.complaint("evaluate", trained, "--data", name, "--task", task, *as_json)
        assert all(part in message for part in [*parts, name]), message


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--data", "dev-topic.tsv"], ["Which task", "topic, pair, score", "no --task"]),
        (["--data", "dev-topic.tsv", "--task", "topics"], ["'topics'", "`topic`"]),
        (["--task", "topics"], ["'topics'", "`topic`"]),
        (["--data", "nowhere.tsv", "--task", "topic"], ["nowhere.tsv", "no such file"]),
        (["--data", "dev-topic.tsv", "--task", "topic", "--text", "a,b"], ["2 columns"]),
        (["--data", "dev-topic.tsv", "--task", "topic", "--data-dir", "."], ["--data-dir beside --data"]),
        (["--label", "x"], ["--label without --data"]),
        (["--text", "x"], ["--text without --data"]),
    ],
)
def test_words_that_are_refused(cli: Cli, trained: Path, words: list[str], parts: list[str]) -> None:
    message = cli.complaint("evaluate", trained, *words)
    assert all(part in message for part in parts), message


def test_what_is_wrong_in_the_last_row_is_said_before_any_is_asked(
    cli: Cli, trained: Path, home: Path, loaded: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ortholora.data.labelled._CHECKED", 5)
    monkeypatch.setattr(MultiTaskModel, "window", 4)
    monkeypatch.setattr(loaded.model, "answer", lambda *_, **__: pytest.fail("a row was asked"))
    write(home, "a.tsv", "text\tlabel\n" + "moon\tspace\n" * 11 + "moon\tearth\n")
    assert "`earth` in row 12" in cli.complaint("evaluate", trained, "--data", "a.tsv", "--task", "topic")


def test_one_window_of_a_file_is_in_memory(trained: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a stop is heeded between two."""
    monkeypatch.setattr(MultiTaskModel, "window", 10)
    wanted = Wanted(trained, None, "topic", home / "dev-topic.tsv", None, None)
    file = _labelled(wanted, home / "dev-topic.tsv", load_card(trained))
    assert [len(split) for split in file.windows(10)] == [10, 10, 10, 10, 8]

    class Impatient(Silent):
        def step(self, done: int) -> None:
            self.stop_requested = done >= 20

    with pytest.raises(Stopped, match="topic, after 20 of 48 rows"):
        evaluate_file(trained, file, 100, Impatient())


def test_a_language_model(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open and closed answers, prompts and chats; windows of a language model are weighted by their tokens."""
    monkeypatch.undo()
    monkeypatch.chdir(home)
    config = language_config(home, training={"steps": 2, "save_every": 0})
    cli.ok("train", config, "--out", "run")
    own = scores(cli, "run")
    settings = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    monkeypatch.setattr("ortholora.models.language.LanguageModel.window", 13)
    for task in settings["tasks"]:
        found = scores(cli, "run", "--data", task["dev"], "--task", task["name"])
        assert found[task["name"]] == pytest.approx(own[task["name"]], rel=1e-4, abs=1e-4)
