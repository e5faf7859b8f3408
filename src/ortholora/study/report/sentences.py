"""What a study's numbers say, in plain sentences: what is sure, what is not, and what to be careful about."""

from __future__ import annotations

from typing import Any

from ortholora.study.report.merged import differing
from ortholora.study.report.wording import bounds, difference, gap_recovered, listed, sign, signed_points

#: From so many per-task comparisons on, the ones that are sure by chance are worth a sentence.
_MANY_COMPARISONS = 5
#: Up to so many seeds the spread over seeds is itself known badly.
_FEW_SEEDS = 4
#: So many seeds are advised for a result that is published.
_ADVISED_SEEDS = 5


def no_gap(gap: dict[str, Any]) -> str:
    """Say why there is no gap recovered to report."""
    return (
        f"single is not surely better than joint (gap {signed_points(gap['mean'])} points, "
        f"95 % interval {bounds(gap['ci95'])}): there is no gap to recover"
    )


def findings(summary: dict[str, Any]) -> list[str]:
    """Return the findings of a summary, the most important first, each a sentence."""
    sentences = [_gap_sentence(summary["gap"])]
    for name, rule in summary["rules"].items():
        sentences.append(_average_sentence(name, rule["difference"]))
        sentences.extend(_task_sentences(name, summary["tasks"]))
        if rule["recovered"] is not None:
            sentences.append(f"Of the gap, {name} recovers {gap_recovered(rule['recovered'])}.")
    seeds, advised = len(summary["seeds"]), f"{_ADVISED_SEEDS} are advised for a result that is published."
    if seeds == 1:
        sentences.append(
            "There is one seed: the intervals resample evaluation rows only, and “surely” means for this seed; "
            + advised
        )
    elif seeds < _ADVISED_SEEDS:
        sentences.append(f"This is of {seeds} seeds; {advised}")
    return sentences


def notes(summary: dict[str, Any]) -> list[str]:
    """Return what a reader of the numbers must know, each a sentence."""
    seeds = len(summary["seeds"])
    drawn = "evaluation rows" if seeds == 1 else "seeds and evaluation rows"
    sentences = [
        f"Intervals: 95 %, percentile bootstrap over {drawn}, {summary['resamples']} resamples; methods are "
        "compared on the same seeds and rows. “Surely” means that the interval, as written, does not hold zero.",
        _scored(summary["tasks"]),
    ]
    if seeds == 1:
        sentences.append("With one seed, the luck of a seed is in no interval: run more seeds before you decide.")
    elif seeds <= _FEW_SEEDS:
        sentences.append(
            f"With {seeds} seeds the spread over seeds is itself uncertain, and the intervals are too narrow."
        )
    comparisons = len(summary["tasks"]) * len(summary["rules"])
    if comparisons >= _MANY_COMPARISONS:
        sentences.append(
            f"{comparisons} differences by task are shown; about {0.05 * comparisons:.1f} of them would look sure "
            "by chance if there were none."
        )
    if differing(summary["provenance"], "hardware"):
        sentences.append("The runs were not all made on the same hardware: do not compare their costs.")
    for key in ("versions", "commit"):
        if differing(summary["provenance"], key):
            sentences.append(f"The runs were not all made with the same {key}; the provenance lists them.")
    selection = summary["provenance"].get("config", {}).get("training", {}).get("selection")
    on_dev = [task for task, entry in summary["tasks"].items() if _part(entry) == "dev"]
    if selection == "best" and on_dev:
        of = "" if len(on_dev) == len(summary["tasks"]) else f" on {listed(on_dev)}"
        sentences.append(
            f"Checkpoints{of} were chosen on the rows they are scored on; this flatters single most, which chooses "
            "for each task by itself."
        )
    if summary["cut_rows"]:
        cut = ", ".join(f"{rows:,} of {task}" for task, rows in summary["cut_rows"].items())
        sentences.append(f"Rows that were longer than `max_length`, and so were cut: {cut}.")
    if summary["dropped_rows"]:
        left_out = ", ".join(
            f"{rows:,} of {task} ({part})"
            for task, parts in summary["dropped_rows"].items()
            for part, rows in parts.items()
        )
        sentences.append(f"Bad rows that were left out of the data (`bad_rows: drop`): {left_out}.")
    for name, rule in summary["rules"].items():
        if rule.get("groups"):
            shown = "; ".join(listed(group) for group in rule["groups"])
            sentences.append(f"{name} trains {len(rule['groups'])} adapters, each on a group of tasks: {shown}.")
        if rule.get("merge"):
            sentences.append(_merge_sentence(name, rule["merge"]))
        elif rule["settings"]:
            pairs = ", ".join(f"{key} = {value}" for key, value in rule["settings"].items())
            sentences.append(f"{name} ran with settings of its own ({pairs}): its difference is not the rule's alone.")
    return sentences


def _merge_sentence(name: str, merge: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {merge[key]:g}" for key in ("scale", "density", "rank") if merge[key] is not None)
    kept = "" if merge["kept"] >= 1 else f"; the rank keeps {100 * merge['kept']:.0f} % of its squared length"
    return f"{name} was merged out of the single adapters of each seed, without training ({settings}){kept}."


def _part(entry: dict[str, Any]) -> str:
    return entry.get("scored_on", "dev")


def _scored(tasks: dict[str, Any]) -> str:
    """On which rows the tasks are scored, and which choose."""
    parts = {part: [task for task, entry in tasks.items() if _part(entry) == part] for part in ("test", "dev")}
    if not parts["dev"]:
        return "All is scored on the test rows; the dev rows were there to choose on."
    both = "so the dev rows serve for both: what is chosen by looking at them is flattered by them"
    if not parts["test"]:
        return f"All is scored on the dev rows. No task has a `test` file, {both}."
    on_test, on_dev = listed(parts["test"]), listed(parts["dev"])
    return f"Scored on test rows: {on_test}. Scored on dev rows: {on_dev}; there is no `test` file, {both}."


def _gap_sentence(gap: dict[str, Any]) -> str:
    if sign(gap) > 0:
        return f"single is surely better than joint on average: gap {_points(gap)}."
    if sign(gap) < 0:
        return f"joint is surely better than single on average (gap {_points(gap)}): there is no gap to recover."
    text = no_gap(gap)
    return f"{text}."


def _average_sentence(name: str, entry: dict[str, Any]) -> str:
    if sign(entry) == 0:
        return f"On average, {name} is neither surely better nor surely worse than joint: {_points(entry)}."
    word = "better" if sign(entry) > 0 else "worse"
    return f"On average, {name} is surely {word} than joint: {_points(entry)}."


def _task_sentences(name: str, tasks: dict[str, Any]) -> list[str]:
    """Sort the tasks by what the rule did to them: none is left unnamed."""
    signs = {task: sign(entry["difference"][name]) for task, entry in tasks.items()}
    sure = {word: [t for t, s in signs.items() if s == value] for value, word in ((1, "better"), (-1, "worse"))}
    unsure = [task for task, value in signs.items() if value == 0]
    if len(unsure) == len(tasks):
        return [f"By task, nothing is sure about {name} against joint ({listed(unsure)})."]
    sentences = [f"{name} is surely {word} than joint on {listed(found)}." for word, found in sure.items() if found]
    if unsure:
        sentences.append(f"{name} does not surely help or hurt on {listed(unsure)}.")
    return sentences


def _points(entry: dict[str, Any]) -> str:
    value, interval = difference(entry).split(" ", 1)
    return f"{value} points, 95 % interval {interval}"
