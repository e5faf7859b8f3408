"""What a sweep chooses, and what the report says of it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from ortholora.errors import UserError
from ortholora.runs.method import Method
from ortholora.runs.run import Run
from ortholora.study.report.figures import sweep_panels
from ortholora.study.report.sweep import _panel, sweep_lines, sweep_table
from ortholora.study.sweep.choice import choose
from ortholora.study.sweep.values import combinations, folder_name

RATE = "training.learning_rate"
JOINT, SINGLE = Method("joint"), Method("single")


def trial(method, **metrics):
    """A run that trained the tasks and reached these metrics."""
    return Run(method, tuple(metrics), 0, Path("unused")), SimpleNamespace(metrics=metrics)


def diverged(method, *tasks):
    return Run(method, tasks, 0, Path("unused")), None


def chosen(method, *tried):
    settings = [{RATE: value} for value in (0.1, 0.2, 0.3)]
    return choose(method, list(zip(settings, tried, strict=False)), ["a", "b"])


def test_a_method_gets_the_best_mean_over_tasks():
    choice = chosen(JOINT, [trial(JOINT, a=0.9, b=0.1)], [trial(JOINT, a=0.5, b=0.6)])
    assert choice.settings == {"average": {RATE: 0.2}}
    assert choice.of("a") == choice.of("b") == {RATE: 0.2}


def test_single_chooses_for_each_task_by_itself():
    choice = chosen(SINGLE, [trial(SINGLE, a=0.9), trial(SINGLE, b=0.1)], [trial(SINGLE, a=0.5), trial(SINGLE, b=0.6)])
    assert (choice.of("a"), choice.of("b")) == ({RATE: 0.1}, {RATE: 0.2})


def test_a_group_of_tasks_chooses_by_its_own_mean():
    groups = Method("two", "sum", groups=(("a",), ("b",)))
    choice = chosen(groups, [trial(groups, a=0.9), trial(groups, b=0.1)], [trial(groups, a=0.5), trial(groups, b=0.6)])
    assert (choice.of("a"), choice.of("b")) == ({RATE: 0.1}, {RATE: 0.2})


def test_seeds_count_alike_and_of_equal_values_the_first_is_taken():
    choice = chosen(
        JOINT,
        [trial(JOINT, a=0.0, b=0.0), trial(JOINT, a=0.5, b=0.5)],
        [trial(JOINT, a=0.25, b=0.25), trial(JOINT, a=0.25, b=0.25)],
    )
    assert [score.average for score in choice.scores] == [0.25, 0.25]
    assert choice.of("a") == {RATE: 0.1}


@pytest.mark.parametrize("bad", [diverged(JOINT, "a", "b"), trial(JOINT, a=math.nan, b=1.0)])
def test_what_fails_with_one_seed_is_not_chosen(bad):
    choice = chosen(JOINT, [trial(JOINT, a=0.9, b=0.9), bad], [trial(JOINT, a=0.1, b=0.1)])
    assert choice.scores[0].average is None
    assert choice.of("a") == {RATE: 0.2}
    with pytest.raises(UserError, match="no settings work for joint"):
        chosen(JOINT, [bad], [bad])


def test_combinations_are_a_product_with_a_folder_each():
    found = combinations({RATE: [1e-3, 1e-2], "lora.r": [4, 8]})
    assert found == [{RATE: rate, "lora.r": r} for rate in (1e-3, 1e-2) for r in (4, 8)]
    assert folder_name(found[0]) == "learning_rate-0.001-r-4"


def test_keys_move_together():
    entry = "mixing.rows_per_task, training.steps"
    found = combinations({RATE: [1e-3, 1e-2], entry: [[8, 100], [2, 400]]})
    expected = [(rate, rows, steps) for rate in (1e-3, 1e-2) for rows, steps in ((8, 100), (2, 400))]
    assert [tuple(settings.values()) for settings in found] == expected
    assert list(found[0]) == [RATE, "mixing.rows_per_task", "training.steps"]
    assert folder_name(found[1]) == "learning_rate-0.001-rows_per_task-2-steps-400"


def test_the_pictures_show_keys_that_move_together():
    entry, (large, small) = "mixing.rows_per_task, training.steps", ([8, 100], [2, 400])
    scores = [
        {"settings": settings, "tasks": {"a": value}, "average": value}
        for settings, value in zip(
            combinations({RATE: [0.1, 0.2], entry: [large, small]}), (0.1, 0.2, 0.4, 0.3), strict=True
        )
    ]
    joint = {"scores": scores, "chosen": {"average": scores[2]["settings"]}}
    merge = {"scores": [{"settings": {"study.merge.scale": 1}, "tasks": {"a": 0.9}, "average": 0.9}], "chosen": {}}
    values = {RATE: [0.1, 0.2], entry: [large, small], "study.merge.scale": [1]}
    sweep = {"values": values, "rows": 20, "seeds": [100], "methods": {"joint": joint, "merge-linear": merge}}
    axes = Figure().add_subplot()
    _panel(axes, sweep, entry)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["[8, 100]", "[2, 400]"]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert lines[0] == ([0, 1], pytest.approx([40, 30]))  # the best over the rates
    assert lines[1] == ([0], pytest.approx([40]))  # chosen
    assert len(lines) == 2  # no merge
    words = [panel.alt for panel in sweep_panels(sweep, ["joint", "merge-linear"])]
    assert "joint: 40.0 at [8, 100], 30.0 at [2, 400]" in words[1]
    assert "merge-linear" not in words[1]


def sweep_of(**entries):
    """The sweep of a summary: method → scores and choice, over two values or three."""
    count = len(next(iter(entries.values()))["scores"])
    return {"values": {RATE: [0.1, 0.2, 0.3][:count]}, "rows": 20, "seeds": [100], "methods": entries}


def entry(chosen, *scores):
    settings = [{RATE: value} for value in (0.1, 0.2, 0.3)]
    rows = []
    for own, (a, b) in zip(settings, scores, strict=False):
        average = None if None in (a, b) else (a + b) / 2
        rows.append({"settings": own, "tasks": {"a": a, "b": b}, "average": average})
    return {"scores": rows, "chosen": {name: {RATE: value} for name, value in chosen.items()}}


def test_the_table_marks_the_choice_and_the_text_the_end_of_a_list():
    joint = entry({"average": 0.3}, (0.1, 0.1), (0.2, 0.2), (0.3, 0.5))
    single = entry({"a": 0.2, "b": 0.2}, (0.1, None), (0.9, 0.8), (0.3, 0.3))
    header, rows = sweep_table(sweep_of(single=single, joint=joint))
    assert header[1:] == ["single", "joint"]
    assert rows[0][1:] == ["not finite on b", "10.00"]
    assert rows[1][1:] == ["85.00 (**a, b**)", "20.00"]
    assert rows[2][1:] == ["30.00", "**40.00**"]
    words = " ".join(sweep_lines(sweep_of(single=single, joint=joint)))
    assert "joint chose the end of its list (training.learning_rate = 0.3)" in words
    assert "single chose" not in words


def test_of_two_values_every_choice_is_an_end():
    joint = entry({"average": 0.2}, (0.1, 0.1), (0.2, 0.2))
    words = " ".join(sweep_lines(sweep_of(joint=joint)))
    assert "training.learning_rate has two values only" in words
    assert "joint chose" not in words


def test_a_method_without_a_mean_leaves_the_picture_whole():
    """Each value fails on one of single's tasks: no point of it, and an axis of numbers."""
    single = entry({"a": 0.2, "b": 0.1}, (None, 0.5), (0.5, None))
    joint = entry({"average": 0.2}, (0.1, 0.1), (0.2, 0.2))
    axes = Figure().add_subplot()
    _panel(axes, sweep_of(single=single, joint=joint), RATE)
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines["single"] == []
    assert lines["joint"] == pytest.approx([10, 20])
    assert not axes.yaxis.have_units()
