"""Write the data sets of the ledger's studies, out of the packages that the demo uses (`ortholora[demo]`).

    python benchmarks/gaps/data.py FOLDER

Every choice comes from the SHA-256 of the texts: the same packages give the same bytes. Tables are TSV files with a
header, `TASK/train.tsv` and `TASK/dev.tsv`. The split is the demo's: no article or tweet is in both.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ortholora.data.packages import read_package

Row = tuple[str, ...]
PARTS = ("train", "dev")
#: How many of the five topics get another name in the second task of the control.
CONTROL = {"none": 0, "some": 2, "full": 5}


@dataclass(frozen=True)
class Article:
    """A news article: its headline, its first sixty words, and its topic."""

    headline: str
    body: str
    topic: str


def main(out: Path) -> None:
    """Write all data sets."""
    for part, articles, tweets in zip(PARTS, read_articles(), read_tweets(), strict=True):
        for name, make in TASKS.items():
            header, rows = make(articles, tweets)
            write_table(out / name / f"{part}.tsv", header, sorted(rows, key=lambda row: rank(*row)))
        for number in range(3):
            thirds = [tweet for i, tweet in enumerate(tweets) if i % 3 == number]
            write_table(out / f"tweets-{number}" / f"{part}.tsv", ("text", "label"), thirds)
        for name, renamed in CONTROL.items():
            write_lines(out / "control" / f"{name}-{part}.jsonl", control(articles, renamed))


# ---- the texts -----------------------------------------------------------------------------------------


def read_articles() -> tuple[list[Article], list[Article]]:
    """The articles of both splits."""
    found = []
    for topics, pairs in zip(read_package("bbc-topic"), read_package("bbc-headline"), strict=True):
        topic_of = dict(zip(topics.columns["text"], topics.columns["label"], strict=True))
        own = zip(*(pairs.columns[key] for key in ("headline", "body", "label")), strict=True)
        found.append([Article(h, b, topic_of[f"{h}. {b}"]) for h, b, label in own if label == "match"])
    train, dev = found
    return train, dev


def read_tweets() -> tuple[list[Row], list[Row]]:
    """Text and sentiment of the tweets of both splits."""
    train, dev = (
        list(zip(table.columns["text"], table.columns["label"], strict=True))
        for table in read_package("tweet-sentiment")
    )
    return train, dev


# ---- the tasks -----------------------------------------------------------------------------------------


def topic(articles: Sequence[Article], _: Sequence[Row]) -> tuple[Row, list[Row]]:
    """Headline and body → one of five topics."""
    return ("text", "label"), [(f"{a.headline}. {a.body}", a.topic) for a in articles]


def headline_topic(articles: Sequence[Article], _: Sequence[Row]) -> tuple[Row, list[Row]]:
    """The headline alone → one of five topics."""
    return ("text", "label"), [(a.headline, a.topic) for a in articles]


def match(articles: Sequence[Article], _: Sequence[Row]) -> tuple[Row, list[Row]]:
    """Headline and body → do they belong together? The wrong headline is another article's of the same topic."""
    wrong = neighbours(articles, lambda a: a.topic)
    rows = [(a.headline, a.body, "match") for a in articles]
    return ("first", "second", "label"), rows + [(b.headline, a.body, "mismatch") for a, b in wrong]


def easy_match(articles: Sequence[Article], _: Sequence[Row]) -> tuple[Row, list[Row]]:
    """As `match`, but the wrong headline is any other article's."""
    wrong = neighbours(articles, lambda _: "")
    rows = [(a.headline, a.body, "match") for a in articles]
    return ("first", "second", "label"), rows + [(b.headline, a.body, "mismatch") for a, b in wrong]


def halves(articles: Sequence[Article], _: Sequence[Row]) -> tuple[Row, list[Row]]:
    """Two pieces of text → are they of one article? The other one is of the same topic."""
    wrong = neighbours(articles, lambda a: a.topic)
    rows = [(*cut(a.body), "same") for a in articles]
    return ("first", "second", "label"), rows + [(cut(a.body)[0], cut(b.body)[1], "other") for a, b in wrong]


def order(articles: Sequence[Article], _: Sequence[Row]) -> tuple[Row, list[Row]]:
    """Two pieces of one article → does the first come first?"""
    rows = []
    for article in articles:
        first, second = cut(article.body)
        swapped = coin(article.body, "order")
        rows.append((second, first, "swapped") if swapped else (first, second, "right"))
    return ("first", "second", "label"), rows


def same_topic(articles: Sequence[Article], _: Sequence[Row]) -> tuple[Row, list[Row]]:
    """Two headlines → have they the same topic?"""
    ranked = sorted(articles, key=lambda a: rank(a.body))
    alike = neighbours(ranked, lambda a: a.topic)
    shifted = [(a, b) for a, b in zip(ranked, ranked[7:] + ranked[:7], strict=True) if a.topic != b.topic]
    rows = [(a.headline, b.headline, "same") for a, b in alike[: len(shifted)]]
    return ("first", "second", "label"), rows + [(a.headline, b.headline, "other") for a, b in shifted]


def shuffled(articles: Sequence[Article], _: Sequence[Row]) -> tuple[Row, list[Row]]:
    """The first words of a body → are they in order, or mixed up?"""
    rows = []
    for article in articles:
        words = article.body.split()[:20]
        mixed = coin(article.body, "shuffled")
        text = " ".join(sorted(words, key=lambda w: rank(w, article.body)) if mixed else words)
        rows.append((text, "mixed" if mixed else "right"))
    return ("text", "label"), rows


def numbers(articles: Sequence[Article], _: Sequence[Row]) -> tuple[Row, list[Row]]:
    """A body without its digits → did it hold any?"""
    rows = [(re.sub(r"\d+", "", a.body), "yes" if re.search(r"\d", a.body) else "no") for a in articles]
    return ("text", "label"), rows


def word_length(articles: Sequence[Article], _: Sequence[Row]) -> tuple[Row, list[Row]]:
    """A body → the mean length of its words, standardised."""
    means = {a.body: sum(map(len, a.body.split())) / len(a.body.split()) for a in articles}
    return ("text", "label"), [(body, f"{(mean - 4.9) / 0.5:.3f}") for body, mean in means.items()]


def fine_word_length(articles: Sequence[Article], _: Sequence[Row]) -> tuple[Row, list[Row]]:
    """As `word-length`, in units of a tenth: a loss of some fifty beside the others' of about one."""
    header, rows = word_length(articles, _)
    return header, [(body, f"{10 * float(standardised):.2f}") for body, standardised in rows]


def sentiment(_: Sequence[Article], tweets: Sequence[Row]) -> tuple[Row, list[Row]]:
    """A tweet → positive or negative."""
    return ("text", "label"), list(tweets)


def same_sentiment(_: Sequence[Article], tweets: Sequence[Row]) -> tuple[Row, list[Row]]:
    """Two tweets → have they the same sentiment?"""
    pairs = zip(tweets[::2], tweets[1::2], strict=False)
    return ("first", "second", "label"), [(a, b, "same" if x == y else "other") for (a, x), (b, y) in pairs]


def exclaimed(_: Sequence[Article], tweets: Sequence[Row]) -> tuple[Row, list[Row]]:
    """A tweet without its punctuation → did it hold an exclamation mark?"""
    rows = [(" ".join(re.findall(r"[\w@#']+", text)), "yes" if "!" in text else "no") for text, _ in tweets]
    return ("text", "label"), rows


TASKS: dict[str, Callable[[Sequence[Article], Sequence[Row]], tuple[Row, list[Row]]]] = {
    "topic": topic,
    "match": match,
    "easy-match": easy_match,
    "sentiment": sentiment,
    "headline-topic": headline_topic,
    "halves": halves,
    "order": order,
    "same-topic": same_topic,
    "shuffled": shuffled,
    "numbers": numbers,
    "word-length": word_length,
    "fine-word-length": fine_word_length,
    "same-sentiment": same_sentiment,
    "exclaimed": exclaimed,
}


def control(articles: Sequence[Article], renamed: int) -> Iterator[dict[str, str]]:
    """Two tasks on the same headlines; the second one calls the first `renamed` topics by each other's names."""
    names = sorted({a.topic for a in articles})
    turned = dict(zip(names, names, strict=True)) | dict(
        zip(names[:renamed], names[1:renamed] + names[:1], strict=True) if renamed else ()
    )
    for article in articles:
        for task, name in (("plain", article.topic), ("renamed", turned[article.topic])):
            yield {"task": task, "prompt": f"{task}: {article.headline}\nTopic:", "completion": f" {name}"}


# ---- small things --------------------------------------------------------------------------------------


def neighbours(articles: Sequence[Article], group: Callable[[Article], str]) -> list[tuple[Article, Article]]:
    """Every article with the next one of its group: no article with itself."""
    found = []
    for name in sorted({group(a) for a in articles}):
        own = [a for a in articles if group(a) == name]
        found += list(zip(own, own[1:] + own[:1], strict=True))
    return found


def cut(text: str) -> tuple[str, str]:
    """A text in two pieces of as many words."""
    words = text.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def coin(*texts: str) -> bool:
    """Heads or tails, always the same for a text."""
    return int(rank(*texts), 16) % 2 == 0


def rank(*texts: str) -> str:
    """A place in an order that depends on the text alone."""
    return hashlib.sha256("\t".join(texts).encode()).hexdigest()


def write_table(path: Path, header: Row, rows: Sequence[Row]) -> None:
    """Write a TSV file without quotes; the texts hold neither tabs nor line ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_lines(path: Path, records: Iterator[dict[str, str]]) -> None:
    """Write a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
