"""The answer of a study: what to use, how sure that is, and what it costs; in the order of what it would change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ortholora.study.report.wording import bounds, gap_recovered, listed, sign, signed_points, times

#: Below so many seeds a result is a hint.
_ENOUGH_SEEDS = 5


@dataclass(frozen=True)
class Answer:
    """What to do.

    Attributes:
        use: The method to use.
        sentence: The answer in one sentence or two.
        sure: How sure: in a few words, and what that means.
        cost: What it costs: in a few words, and against what.
    """

    use: str
    sentence: str
    sure: tuple[str, str]
    cost: tuple[str, str]


def answer(summary: dict[str, Any]) -> Answer:
    """Choose the best method that is surely better than joint training; else single, where that is; else joint.

    Args:
        summary: What `summarise` returned.
    """
    gap, rules = summary["gap"], summary["rules"]
    better = [name for name, rule in rules.items() if sign(rule["difference"]) > 0]
    if better:
        use = max(better, key=lambda name: rules[name]["difference"]["mean"])
        sentence, entry = _of_a_rule(summary, use), rules[use]["difference"]
    elif sign(gap) > 0:
        use, entry = "single", gap
        sentence = (
            f"Train an adapter for each task (single): surely better than joint training by {_points(gap)} points on "
            "average. " + _no_rule(summary)
        )
    else:
        use, entry = "joint", gap
        if sign(gap) < 0:
            sentence = (
                f"Plain joint training is enough: surely better than an adapter for each task, by {_points(gap, -1)} "
                "points on average. " + _no_rule(summary)
            )
        else:
            sentence = "Plain joint training is enough: an adapter for each task is not surely better. " + _no_rule(
                summary
            )
    seeds = len(summary["seeds"])
    if seeds < _ENOUGH_SEEDS:
        of = "one seed" if seeds == 1 else f"{seeds} seeds"
        sentence = f"{sentence.strip()} This is of {of}: a hint, until there are {_ENOUGH_SEEDS}."
    return Answer(use, sentence.strip(), _how_sure(summary, use, entry, len(better)), _cost(summary, use))


def _of_a_rule(summary: dict[str, Any], use: str) -> str:
    rule = summary["rules"][use]
    text = f"Use {use}: surely better than joint training, by {_points(rule['difference'])} points on average"
    if rule["recovered"] is not None:
        text += f". Of what joint training loses against an adapter for each task it recovers {_recovered(rule)}"
    worse = [task for task, entry in summary["tasks"].items() if sign(entry["difference"][use]) < 0]
    if worse:
        text += f". It is surely worse than joint training on {listed(worse)}"
    return text + "."


def _no_rule(summary: dict[str, Any]) -> str:
    rules = list(summary["rules"])
    if not rules:
        return ""
    return f"{'Nor is' if len(rules) == 1 else 'Nor is any of'} {listed(rules)} surely better than joint training."


def _recovered(rule: dict[str, Any]) -> str:
    return gap_recovered(rule["recovered"])


def _points(entry: dict[str, Any], factor: int = 1) -> str:
    return signed_points(factor * entry["mean"])


def _how_sure(summary: dict[str, Any], use: str, entry: dict[str, Any], candidates: int) -> tuple[str, str]:
    seeds = len(summary["seeds"])
    of = "1 seed" if seeds == 1 else f"{seeds} seeds"
    against = "single − joint" if use in ("single", "joint") else f"{use} − joint"
    note = f"{against}: {signed_points(entry['mean'])} points, 95 % interval {bounds(entry['ci95'])}; {of}."
    if candidates > 1:
        note += f" It is the best of {candidates} that are surely better; choosing the best flatters it a little."
    if not sign(entry):
        return "No sure difference", note
    return ("Sure, for this seed" if seeds == 1 else "Sure" if seeds >= _ENOUGH_SEEDS else "Sure, of few seeds"), note


def _cost(summary: dict[str, Any], use: str) -> tuple[str, str]:
    cost, tasks = summary["cost"][use], len(summary["tasks"])
    adapters = f"{cost['adapters']} adapters to keep and serve" if cost["adapters"] > 1 else "One adapter for all tasks"
    time, memory = cost["relative_step_seconds"], cost["relative_peak_memory"]
    if summary["rules"].get(use, {}).get("merge"):
        return "No training beyond single's", f"{adapters}, merged out of the {tasks} single ones."
    if use == "joint":
        return "What everything is measured against", f"{adapters}; single training would need {tasks}."
    notes = [f"{adapters}."]
    if time is None:
        notes.append("Time was not measured: runs shared the machine, or were not timed.")
    if memory is not None:
        notes.append(f"Peak memory {times(memory)} joint training's.")
    return ("Time not measured" if time is None else f"{times(time)} the time of a joint step"), " ".join(notes)
