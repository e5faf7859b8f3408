"""Names of columns that the field uses, the usual ones first."""

from __future__ import annotations

import re
from collections.abc import Sequence

LABELS = (
    *("label", "labels", "class", "target", "category", "gold_label", "gold", "topic", "intent", "sentiment"),
    *("emotion", "stance", "polarity", "score", "similarity", "rating", "stars", "quality", "is_duplicate"),
)
PAIRS = (
    *(("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2"), ("text_a", "text_b")),
    *(("sentence_a", "sentence_b"), ("first", "second"), ("premise", "hypothesis"), ("question", "sentence")),
    *(("query", "passage"), ("query", "document"), ("question", "passage"), ("question", "context")),
)
TEXTS = (
    *("text", "sentence", "tweet", "message", "review", "content", "body", "document", "comment", "headline", "title"),
    *("utterance", "query"),
)
PROMPTS = ("prompt", "instruction", "question", "input", "query", "source")
ANSWERS = ("completion", "response", "output", "answer", "target", "summary")
IDS = {"id", "idx", "index", "guid", "uid", "row", "pairid", "prompt_id", "qid", "tweet_id"}
#: What often stands beside the label, and is none.
ASIDE = {
    *("confidence", "conf", "annotator", "author", "user", "editor", "date", "created", "time", "timestamp", "year"),
    *("source", "src", "lang", "language", "split", "fold", "length", "url"),
}
#: The end of the second name of a pair, by that of the first.
_SECOND = {"1": "2", "a": "b"}
TASK_NAMES = ("task", "task_name", "channel", "dataset")


def plain(name: str) -> str:
    """A name without capitals, and without what stands in brackets after it: `Similarity (0-5)` is `similarity`."""
    return re.sub(r"[\s_-]+", "_", re.sub(r"(?<=\w)\s*[(\[].*$", "", name.strip().lower()))


def by_name(found: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of some usual names that a column has."""
    columns = {plain(name): name for name in reversed(found)}
    return next((columns[name] for name in names if name in columns), None)


def pairs_of(found: Sequence[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Columns that are pairs by their names: the usual ones, and those that differ at the end (1 and 2, or a and b)."""
    columns = {plain(name): name for name in reversed(found)}
    usual = [(columns[first], columns[second]) for first, second in PAIRS if first in columns and second in columns]
    like = [(name, name[:-1] + _SECOND[name[-1]]) for name in columns if name[-1:] in _SECOND]
    return usual, [(columns[first], columns[second]) for first, second in like if second in columns]
