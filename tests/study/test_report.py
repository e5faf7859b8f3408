"""The report: what it must say, and what it must never say."""

from __future__ import annotations

import dataclasses
import io
import json

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from ortholora.config.schema import Config
from ortholora.study.report import picture
from ortholora.study.report.markdown import to_markdown, to_table
from ortholora.study.report.settings import task_lines
from ortholora.study.report.wording import listed, mean_std, points, sign, signed_points
from ortholora.study.report.write import write_summary
from ortholora.study.statistics.summarise import summarise
from synthetic_study import methods_and_tasks, study

NO_GAP = dict.fromkeys(["single", "joint", "ortho"], 0.75)


def summary_of(change=lambda record: record, **options):
    records = [change(record) for record in study(np.random.default_rng(0), **options)]
    return summarise(records, **methods_and_tasks(records), resamples=100, seed=0)


def shown(summary, width=100):
    stream = io.StringIO()
    Console(width=width, file=stream).print(to_table(summary))
    return stream.getvalue()


def test_markdown_has_every_part():
    text = to_markdown(summary_of(rows=1500))
    for part in ("Verdict", "Gap", "Cost of a step", "Provenance", "| average |", "ortho − joint"):
        assert part in text
    assert "- hardware: 2 CPU cores" in text
    assert "- versions.torch: 2.9.0" in text
    assert "Recovered by ortho: " in text
    assert " | 1.00 × |" in text
    tables = [line for line in text.splitlines() if line.startswith("| task") or line.startswith("| average")]
    assert len({line.count("|") for line in tables}) == 1
    # The average's difference is sure here, so it is bold.
    assert text.count("**+") >= 1


def test_no_gap_no_percentage_anywhere(tmp_path, monkeypatch):
    summary = summary_of(skill=NO_GAP)
    drawn = []
    text_of = picture.Figure.text

    def spy(figure, x, y, text, **options):
        drawn.append(text)
        return text_of(figure, x, y, text, **options)

    monkeypatch.setattr(picture.Figure, "text", spy)
    write_summary(tmp_path, summary)
    for text in (to_markdown(summary), shown(summary), json.dumps(summary), *drawn):
        # 95 % is the interval's name; any other percentage would be a share of a gap that is not there.
        assert "%" not in text.replace("95 %", "")
    assert "there is no gap to recover" in to_markdown(summary)
    assert any("No gap to recover" in text for text in drawn)


@pytest.mark.parametrize("rules", [["ortho"], ["ortho", "ortho-layer"]])
def test_table_fits_a_terminal(rules):
    skill = {"single": 0.8, "joint": 0.7, **dict.fromkeys(rules, 0.75)}
    summary = summary_of(skill=skill, tasks=5)
    lines = shown(summary).splitlines()
    assert max(map(len, lines)) <= 100
    rows = [line for line in lines if line.strip().startswith(("task0", "average"))]
    # Mean ± std of every method stands whole on the row's first line.
    assert all(line.count("±") == len(skill) for line in rows)
    average = summary["rules"]["ortho"]["difference"]
    assert signed_points(average["mean"]) in "\n".join(lines)


def test_one_seed_has_no_spread():
    summary = summary_of(seeds=1)
    assert "±" not in shown(summary).replace("mean ± std", "")
    assert "over 1 seed;" in to_markdown(summary)


def test_what_differs_between_runs_is_said():
    def change(record):
        hardware = "A100" if record.method == "joint" else "CPU"
        extra = {"settings": {"training.steps": 9}} if record.method == "ortho" else {}
        return dataclasses.replace(record, provenance={"hardware": hardware, **extra})

    text = to_markdown(summary_of(change, rows=50))
    assert "hardware: differs between runs: CPU; A100" in text
    assert "do not compare their costs" in text
    assert "ortho ran with settings of its own (training.steps = 9)" in text


def with_tasks(**weights):
    """A change to a record: a configuration whose task `sst2` has a weight of its own in some methods."""
    cola = {"name": "cola", "train": "a.tsv", "dev": "b.tsv", "labels": ["no", "yes"], "metric": "matthews"}

    def change(record):
        sst2 = {"name": "sst2", "hub": {"path": "x/y"}, "weight": weights.get(record.method, 1.0)}
        config = Config.model_validate({"backbone": "x", "tasks": [cola, sst2]}).model_dump(mode="json")
        return dataclasses.replace(record, provenance={"config": config})

    return change


def settings_of(summary):
    """What the page says of every task's settings."""
    return task_lines(summary["provenance"]["config"]["tasks"])


def test_the_document_has_no_line_of_a_tasks_settings():
    text = to_markdown(summary_of(with_tasks(), rows=50))
    assert "- config.tasks: in report.html, and in summary.json\n" in text
    assert "config.tasks.cola" not in text
    assert "- config.backbone: x\n" in text


def test_a_task_is_one_line_of_what_was_set():
    found = settings_of(summary_of(with_tasks(), rows=50))
    assert found == {
        "cola": 'train = a.tsv, dev = b.tsv, metric = matthews, labels = ["no", "yes"]',
        "sst2": 'hub = {"path": "x/y"}, metric = accuracy',
    }


def test_a_task_whose_settings_differ_between_runs_says_how():
    found = settings_of(summary_of(with_tasks(ortho=2.0), rows=50))
    sst2 = 'hub = {"path": "x/y"}, metric = accuracy'
    assert found["sst2"] == {"differs": [sst2, f"{sst2}, weight = 2.0"]}
    assert isinstance(found["cola"], str)


def test_tasks_of_another_version_are_shown_without_what_was_not_set():
    """A summary is written from records, and those of an older version may have other keys."""

    def change(record):
        task = {"name": "cola", "no_such_key": 3, "hub": None}
        return dataclasses.replace(record, provenance={"config": {"tasks": [task]}})

    assert settings_of(summary_of(change, rows=50)) == {"cola": "no_such_key = 3"}


def test_rows_that_were_cut_are_said():
    def change(record):
        return dataclasses.replace(record, provenance={"cut_rows": {"task1": 1200} if record.method == "joint" else {}})

    assert "so were cut: 1,200 of task1." in to_markdown(summary_of(change, rows=50))
    assert "cut" not in to_markdown(summary_of(rows=50))


def test_times_of_runs_side_by_side_are_marked_and_have_no_ratio(monkeypatch, tmp_path):
    def beside(*methods):
        def change(record):
            return dataclasses.replace(record, provenance={"jobs": 2 if record.method in methods else 1})

        return summary_of(change, rows=50)

    text = to_markdown(beside("ortho"))
    assert "| ortho | 1 | 200.0 ms (2 at once) | – | 200 MiB | 1.00 × |" in text
    assert "| single | 2 | 200.0 ms | 1.00 × |" in text
    assert "no measure of cost" in text
    costs = beside("joint")["cost"]
    assert all(cost["relative_step_seconds"] is None for cost in costs.values())
    assert all(cost["relative_peak_memory"] for cost in costs.values())
    text = to_markdown(beside())
    assert "at once" not in text
    assert "| ortho | 1 | 200.0 ms | 1.00 × |" in text
    drawn = []
    monkeypatch.setattr(picture.Figure, "text", lambda figure, x, y, text, **options: drawn.append(text))
    picture.draw(beside("joint"), tmp_path / "a.png")
    (footnote,) = (text for text in drawn if text.startswith("Cost of a step"))
    assert "single 0.50 × memory" in footnote
    assert "time" not in footnote


def test_all_three_files_and_nothing_beside(tmp_path):
    summary = summary_of(rows=60)
    write_summary(tmp_path / "new", summary)
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["summary.json", "summary.md", "summary.png"]
    assert json.loads((tmp_path / "new" / "summary.json").read_text()) == summary
    assert (tmp_path / "new" / "summary.md").read_text(encoding="utf-8") == to_markdown(summary)


@pytest.mark.parametrize(("tasks", "methods"), [(1, 3), (8, 3), (3, 8)])
def test_nothing_in_the_picture_is_cut_off(tmp_path, monkeypatch, tasks, methods):
    names = ["single", "joint", "ortho", *(f"a-long-rule-name-{index}" for index in range(methods - 3))]
    figures = []
    savefig = picture.Figure.savefig

    def keep(figure, *args, **options):
        figures.append(figure)
        savefig(figure, *args, **options)

    monkeypatch.setattr(picture.Figure, "savefig", keep)
    picture.draw(summary_of(skill=dict.fromkeys(names, 0.75), tasks=tasks, rows=60), tmp_path / "a.png")
    image = matplotlib.image.imread(tmp_path / "a.png")
    # Without a frame, ink on the border would be something that runs off the page.
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert (edge[..., :3] == 1).all()
    (figure,) = figures
    renderer = figure.canvas.get_renderer()
    texts = [*figure.texts, *(axes.xaxis.label for axes in figure.axes), figure.legends[0]]
    boxes = [text.get_window_extent(renderer) for text in texts]
    for index, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= image.shape[1]
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_a_difference_that_is_written_as_zero_is_not_sure():
    entry = {"mean": -1.1e-06, "ci95": [-1.5e-06, -6.4e-07]}
    assert sign(entry) == 0
    assert sign({"mean": -1e-3, "ci95": [-2e-3, -6e-5]}) == -1
    assert sign({"mean": 1e-3, "ci95": [4e-5, 2e-3]}) == 0


def test_wording():
    assert points(0.8512) == "85.12"
    assert points(-0.00001) == "0.00"
    assert signed_points(0.0) == signed_points(-0.00001) == "+0.00"
    assert signed_points(-0.0123) == "-1.23"
    assert mean_std({"mean": 0.5, "std": None}) == "50.00"
    assert mean_std({"mean": 0.5, "std": 0.0123}, 1) == "50.0 ± 1.2"
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


TEST = {"scored_on": {"task0": "test", "task1": "test"}, "dev_metrics": {"task0": 0.5, "task1": 0.6}}
BOTH = "so the dev rows serve for both"


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({}, ["All is scored on the dev rows. No task has a `test` file, " + BOTH], ["to choose by"]),
        (TEST, ["All is scored on the test rows", "| on dev, to choose by | single | joint | ortho |"], [BOTH]),
        (
            {"scored_on": {"task0": "test"}, "dev_metrics": {"task0": 0.5}},
            ["Scored on test rows: task0. Scored on dev rows: task1; there is no `test` file, " + BOTH],
            [],
        ),
    ],
)
@pytest.mark.parametrize("selection", ["last", "best"])
def test_it_says_on_which_rows_it_scored(changes, said, unsaid, selection):
    provenance = {"provenance": {"config": {"training": {"selection": selection}}}}
    summary = summary_of(lambda record: dataclasses.replace(record, **changes, **provenance))
    text = to_markdown(summary)
    assert all(part in text for part in said)
    assert not any(part in text for part in unsaid)
    flattered = "were chosen on the rows they are scored on" in text
    assert flattered == (selection == "best" and len(changes.get("scored_on", ())) < 2)
    if changes:
        assert summary["on_dev"]["joint"]["task0"]["mean"] == 0.5
        assert ("on task1 were chosen" in text) == (flattered and bool(changes))
