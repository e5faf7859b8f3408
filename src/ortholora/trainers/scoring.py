"""A task's dev rows → targets and predictions, and the metrics they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ortholora.config.metric_names import ANSWER_METRICS
from ortholora.config.tasks.union import TaskConfig
from ortholora.data.task import Split
from ortholora.metrics import point as metrics
from ortholora.metrics.answers import can_rouge, exact_match, rouge_l
from ortholora.models.answering import Answering
from ortholora.models.language import LanguageSpec
from ortholora.text.prompts import answer_of, mark

#: Adds up what the processes found, each for its share of the rows; the identity in one process.
Gather = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """What a model says to a task's rows.

    Attributes:
        targets: Class indices, regression targets, or the weight of each row's score, `[rows]`.
        predictions: Class indices, values, or each row's score times its weight, `[rows]`.
        scores: Every metric that fits the task, by name; the task's own also as `main`.
    """

    targets: np.ndarray
    predictions: np.ndarray
    scores: dict[str, float]


def evaluate_heads(spec: TaskConfig, targets: Any, predictions: np.ndarray, labels: int | None) -> Evaluation:
    """Evaluate what a task head predicted."""
    assert spec.metric is not None
    truth = np.asarray(targets, dtype=np.float64 if labels is None else np.int64)
    main = metrics.compute(spec.metric, truth, predictions, labels)
    return Evaluation(truth, predictions, {"main": main, **metrics.details(spec.kind, truth, predictions, labels)})


def evaluate_language(
    spec: TaskConfig,
    card: LanguageSpec,
    split: Split,
    ask: Answering,
    share: slice = slice(None),
    gather: Gather = lambda values: values,
) -> Evaluation:
    """Evaluate a language model on the rows of a task.

    The likelihood of the given answers is always measured; the likeliest of a closed set is chosen where there is
    one; answers are generated only for the metrics that need them.

    Args:
        spec: The task.
        card: What the model knows of it.
        split: The rows.
        ask: Asks the model.
        share: The rows that this process asks for.
        gather: Puts the shares together.
    """
    own = range(len(split))[share]
    rows = [split.texts[i] for i in own]

    def whole(values: Any) -> np.ndarray:
        result = np.zeros(len(split))
        result[share] = values
        return gather(result)

    classes, chosen, likelihoods = None, np.zeros(0), None
    scores: dict[str, float] = {}
    if card.labels is not None:
        classes = np.asarray(split.targets, dtype=np.int64)
        likelihoods = ask.choose(card, rows)
        chosen = whole(likelihoods.argmax(1)).astype(np.int64)
        scores |= metrics.details("classification", classes, chosen, len(card.labels))
        likelihoods = likelihoods[np.arange(len(rows)), classes[share]]
    tokens, losses = map(whole, _losses(card, rows, ask, likelihoods))
    scores["loss"] = float(losses.sum() / tokens.sum())
    found = {"inverse_perplexity": (tokens, losses)}
    if spec.metric in ("exact_match", "rouge_l"):
        wanted = [answer_of(card.kind, row) for row in split.texts]
        written = ask.write(card, rows)
        ones = np.ones(len(split))
        found["exact_match"] = (ones, whole(exact_match(wanted[share], written)))
        # Every rank has to agree, so all answers are asked about and not its own.
        if spec.metric == "rouge_l" or can_rouge(wanted):
            found["rouge_l"] = (ones, whole(rouge_l(wanted[share], written)))
    scores |= {name: metrics.compute(name, *pair, None) for name, pair in found.items()}  # type: ignore[arg-type]
    assert spec.metric is not None
    if spec.metric in ANSWER_METRICS:
        targets, predictions = found[spec.metric]
        return Evaluation(targets, predictions, {"main": scores[spec.metric], **scores})
    assert classes is not None
    assert card.labels is not None
    main = metrics.compute(spec.metric, classes, chosen, len(card.labels))
    return Evaluation(classes, chosen, {"main": main, **scores})


def _losses(
    card: LanguageSpec, rows: Sequence[Any], ask: Answering, known: np.ndarray | None
) -> tuple[list[int], np.ndarray]:
    """Target tokens and summed negative log-likelihood of every row.

    Args:
        known: Log-likelihoods of the rows' last answers, where they were measured already.
    """
    marked = [mark(ask.tokenizer, card.kind, row, ask.max_length, card.turns) for row in rows]
    only_last = card.kind == "completion" or card.turns == "last"
    return [row.targets for row in marked], ask.losses(marked) if known is None or not only_last else -known
