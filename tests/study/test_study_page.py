"""A study's page: the answer first, everything it promises, and no more than there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from html_reader import Reader
from ortholora.errors import UserError
from ortholora.files import plain, write_json
from ortholora.runs.history import write_history
from ortholora.study.report.answer import answer
from ortholora.study.report.atlas import atlas_sentences
from ortholora.study.report.door import report_on
from ortholora.study.report.figures import sweep_panels
from ortholora.study.report.many import ledger_page
from ortholora.study.report.study import answer_cards, study_page, write_report
from ortholora.study.report.tables import dev_table, results_table
from ortholora.study.statistics.atlas import Map, conflict_map, over_time, size_map
from ortholora.study.statistics.summarise import summarise
from ortholora.study.stored import read_study
from stored_study import history, records_of, write_runs, write_study
from synthetic_study import SKILL

ALIKE = dict.fromkeys(["single", "joint", "ortho"], 0.75)


def text_of(path: Path, main: bool = False) -> str:
    html = path.read_text(encoding="utf-8")
    words = " ".join(Reader(html[html.index("<main>") : html.index("</main>")] if main else html).words)
    return re.sub(r"\\s+", " ", words.replace("\u00a0", " "))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, with its page; not to be changed."""
    folder = tmp_path_factory.mktemp("studies") / "mine"
    write_study(folder, rows=1500)
    write_report(folder)
    return folder


# ---- What is on the page ----------------------------------------------------------------------------------------


def test_the_answer_comes_first(finished: Path) -> None:
    page = study_page(read_study(finished))
    assert page.lead.startswith("Use ortho: surely better than joint training")
    text = text_of(finished / "report.html", main=True)
    order = [
        "The answer",
        "At what cost",
        "average",
        "the gap",
        "training loss",
        "Where tasks conflict",
        "What it costs",
    ]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert page.warnings == []


def test_everything_is_there(finished: Path) -> None:
    html = (finished / "report.html").read_text(encoding="utf-8")
    text = text_of(finished / "report.html")
    for part in ("task0 · task1", "Share of the gap recovered", "ortholora compare study.yaml", "torch", "backbone: x"):
        assert part in text, part
    pictures = [a["aria-label"] for tag, a in Reader(html).tags if a.get("class") == "picture"]
    # Two differences, the share, loss and metric of three tasks, three pairs, the sizes.
    assert len(pictures) == 2 + 1 + 2 * 3 + 3 + 1
    assert all(pictures)
    assert html.count("<svg ") == len(pictures)


def test_results_of_test_rows_say_so_and_dev_rows_are_to_choose_by(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert "Metrics on the dev rows" in results_table(summary).caption
    assert dev_table(summary) is None
    for task in summary["tasks"].values():
        task["scored_on"] = "test"
    summary["on_dev"] = summary["methods"]
    assert "Metrics on the test rows" in results_table(summary).caption
    table = dev_table(summary)
    assert table is not None
    assert [row[0] for row in table.rows] == ["task0", "task1", "task2", "average"]
    summary["tasks"]["task0"]["scored_on"] = "dev"
    assert "or the dev rows of tasks that have none" in results_table(summary).caption


def test_the_same_study_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    write_report(finished, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (finished / "report.html").read_bytes()


def test_a_study_of_twelve_tasks_and_five_seeds_is_small(tmp_path: Path) -> None:
    skill = {"single": 0.8, "joint": 0.7, "balanced": 0.75, "ortho": 0.75}
    write_study(tmp_path / "many", skill, seeds=5, tasks=12, rows=60)
    write_report(tmp_path / "many")
    assert (tmp_path / "many" / "report.html").stat().st_size < 2_000_000


def test_a_summary_of_an_earlier_version_without_curves(finished: Path, tmp_path: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for key in ("curves", "endings", "conflict"):
        del summary[key]
    write_json(tmp_path / "summary.json", summary)
    write_report(tmp_path)
    assert "The runs themselves are not here" in text_of(tmp_path / "report.html")


# ---- The answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skill", "use", "words"),
    [
        ({"single": 0.8, "joint": 0.7, "ortho": 0.76}, "ortho", "it recovers"),
        ({"single": 0.8, "joint": 0.7, "ortho": 0.7, "b": 0.76, "c": 0.79}, "c", "best of 2"),
        ({"single": 0.8, "joint": 0.7, "ortho": 0.7}, "single", "Train an adapter for each task"),
        (ALIKE, "joint", "not surely better"),
        ({"single": 0.7, "joint": 0.8, "ortho": 0.8}, "joint", "surely better than an adapter for each task"),
        ({"single": 0.8, "joint": 0.7}, "single", "Train an adapter"),
    ],
)
def test_what_to_use(skill: dict[str, float], use: str, words: str) -> None:
    records = records_of(skill=skill, rows=1500, seeds=2)
    summary = summarise(records, methods=list(skill), tasks=["task0", "task1"], resamples=100, seed=0)
    found = answer(summary)
    assert found.use == use
    assert words in f"{found.sentence} {found.sure[1]}"
    assert ("surely better" in found.sentence) or use == "joint"
    assert "2 seeds" in found.sure[1]
    assert found.sentence.endswith("This is of 2 seeds: a hint, until there are 5.")
    assert found.cost[0]


def test_a_merge_costs_no_training() -> None:
    summary = summarise(records_of(rows=1500), methods=list(SKILL), tasks=["task0", "task1"], resamples=50, seed=0)
    summary["rules"]["ortho"] |= {"rule": None, "block": None, "merge": {"kept": 1.0}}
    assert answer(summary).cost[0] == "No training beyond single's"
    assert answer_cards(summary).cards[0].note == "one adapter, merged out of the single ones."


def test_a_sweep_in_which_a_merge_has_settings_of_its_own() -> None:
    rates, scales = [1e-3, 2e-3, 4e-3], [0.5, 1.0]

    def entry(key: str, values: list[float], averages: list[float | None]) -> dict[str, Any]:
        scores = [{"settings": {key: v}, "tasks": {}, "average": a} for v, a in zip(values, averages, strict=True)]
        return {"scores": scores, "chosen": {"average": {key: values[-1]}}}

    sweep = {
        "values": {"training.learning_rate": rates, "study.merge.scale": scales},
        "methods": {
            "joint": entry("training.learning_rate", rates, [None, 0.5, 0.6]),
            "ties": entry("study.merge.scale", scales, [0.7, 0.8]),
        },
    }
    first, second = sweep_panels(sweep, ["single", "joint", "ties"])
    assert "joint: none at 0.001, 50.0 at 0.002, 60.0 at 0.004." in first.alt
    assert "ties" not in first.alt
    assert "ties: 70.0 at 0.5, 80.0 at 1.0." in second.alt


def test_a_task_that_gets_worse_is_named() -> None:
    records = records_of(rows=400)
    summary = summarise(records, methods=["single", "joint", "ortho"], tasks=["task0", "task1"], resamples=50, seed=0)
    summary["tasks"]["task1"]["difference"]["ortho"] = {"mean": -0.02, "ci95": [-0.03, -0.01]}
    summary["rules"]["ortho"]["difference"] = {"mean": 0.02, "ci95": [0.01, 0.03]}
    assert "surely worse than joint training on task1" in answer(summary).sentence


# ---- The atlas --------------------------------------------------------------------------------------------------


def test_conflicts_are_found_where_they_are() -> None:
    found = conflict_map([history(["a", "b", "c"], seed) for seed in range(3)])
    assert found.groups == {"all": ["all"], "A": ["0", "1", "2"], "B": ["0", "1", "2"]}
    sure = {name: [cell is not None and cell[1] for cell in row] for name, row in found.rows.items()}
    assert sure["a · b"] == [True, False, False, False, True, True, True]
    assert sure["a · c"] == [False, True, False, False, True, False, False]
    assert sum(sure["b · c"]) <= 1
    cell = found.rows["a · b"][4]
    assert cell is not None
    assert abs(cell[0] + 0.4) < 0.05


def test_what_the_maps_say_in_words() -> None:
    found = [history(["a", "b", "c"], seed) for seed in range(3)]
    lines = atlas_sentences(conflict_map(found), size_map(found))
    assert lines[0] == "a · b: surely against each other in 3 of 6 places (layers, A and B apart)."
    assert lines[1] == "a · c: surely along in 2 of 6 places (layers, A and B apart)."
    assert re.fullmatch(
        r"The smallest gradients are those of c \(0\.3\d×.*, the largest those of a \(2\.\d×\)\.", lines[-1]
    )
    quiet = Map({"all": ["all"], "A": ["0"]}, {"a · b": [(0.1, False), (0.2, False)]})
    assert atlas_sentences(quiet, Map({}, {})) == ["Of no pair it is sure, in any layer, that it conflicts or agrees."]


def test_noise_is_seldom_called_sure() -> None:
    noise = []
    for seed in range(20):
        made = history(["a", "b", "c"], seed, layers=20)
        made.cosines[:, :, :2] = made.cosines[:, :, 2:]
        noise += [cell[1] for row in conflict_map([made]).rows.values() for cell in row if cell is not None]
    assert np.mean(noise) < 0.02


def test_sizes_are_relative_and_layers_share_columns() -> None:
    found = size_map([history(["a", "b", "c"], 0, layers=40)])
    assert len(found.groups["A"]) <= 16
    assert found.groups["A"][0] == "0–2"
    rows = np.array([[cell[0] for cell in row if cell is not None] for row in found.rows.values()])
    np.testing.assert_allclose(rows.sum(0), 0, atol=1e-9)
    np.testing.assert_allclose(rows.mean(1), np.array([1, 0, -1]) / np.log(2), atol=0.1)


def test_parts_of_the_training() -> None:
    found = over_time([history(["a", "b"], seed, windows=5) for seed in range(2)])
    assert found.groups == {"up to step": ["–12", "–30"]}


# ---- What is missing --------------------------------------------------------------------------------------------


def test_a_half_finished_study_says_what_is_there_and_what_is_missing(tmp_path: Path) -> None:
    records = write_study(tmp_path / "half", finished=False, rows=800)
    write_runs(tmp_path / "half", [r for r in records if r.seed < 2 and not (r.method == "ortho" and r.seed == 1)])
    write_report(tmp_path / "half")
    text = text_of(tmp_path / "half" / "report.html")
    assert "This study is not finished. Missing: ortho, seed 1; single, seed 2; joint, seed 2; ortho, seed 2." in text
    assert "single, joint, ortho with seed 0" in text
    assert "1 seed" in text
    assert "Where tasks conflict" in text


def test_without_a_seed_that_has_every_method_the_complete_methods_are_shown(tmp_path: Path) -> None:
    records = write_study(tmp_path / "half", finished=False, rows=800)
    write_runs(tmp_path / "half", [r for r in records if r.method != "ortho"])
    study = read_study(tmp_path / "half")
    assert study.summary is not None
    assert list(study.summary["methods"]) == ["single", "joint"]
    assert study.summary["seeds"] == [0, 1, 2]
    study_page(study)


def test_runs_that_cannot_be_compared_yet_are_listed(tmp_path: Path) -> None:
    records = write_study(tmp_path / "half", finished=False, rows=50)
    write_runs(tmp_path / "half", [r for r in records if r.method == "joint" or r.tasks == ("task1",)])
    write_report(tmp_path / "half")
    text = text_of(tmp_path / "half" / "report.html")
    assert "single (task0, task2), seed 0" in text
    assert "There is no answer yet." in text
    assert "joint, seed 1" in text


def test_a_study_of_which_nothing_is_done(tmp_path: Path) -> None:
    write_study(tmp_path / "new", finished=False, rows=20)
    write_report(tmp_path / "new")
    assert "No run is finished yet." in text_of(tmp_path / "new" / "report.html")


def test_seeds_that_the_summary_does_not_know(finished: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "s", rows=50, seeds=2)
    write_runs(tmp_path / "s", [r for r in records_of(seeds=3, tasks=3, rows=50) if r.seed == 2])
    assert any("seed-2" in line for line in read_study(tmp_path / "s").missing)
    assert read_study(finished).missing == []


def test_whatever_is_in_a_name_is_text(tmp_path: Path) -> None:
    hostile, long = """<script>alert('x')&"$x_1$""", "n" * 200
    records = records_of(rows=50)
    summary = summarise(records, methods=list(ALIKE), tasks=["task0", "task1"], resamples=50, seed=0)
    text = json.dumps(plain(summary)).replace("task0", json.dumps(hostile)[1:-1]).replace("task1", long)
    (tmp_path / "summary.json").write_text(text)
    run = tmp_path / "runs" / "ortho" / "seed-0"
    run.mkdir(parents=True)
    write_history(run, history([hostile, long], 0))
    write_report(tmp_path)
    reader = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert hostile in " ".join(reader.words)
    assert long in " ".join(reader.words)
    report_on([tmp_path, tmp_path], tmp_path / "both.html")
    assert "script" not in {tag for tag, _ in Reader((tmp_path / "both.html").read_text(encoding="utf-8")).tags}


# ---- What is no study -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["nothing", "file", "empty", "run", "other"])
def test_a_folder_that_is_no_study(tmp_path: Path, made: str) -> None:
    folder = tmp_path / "x"
    if made == "file":
        folder.write_text("x")
    elif made != "nothing":
        folder.mkdir()
        if made == "run":
            (folder / "run.json").write_text("{}")
        if made == "other":
            (folder / "a.txt").write_text("x")
    with pytest.raises(UserError, match="is no study") as caught:
        write_report(folder)
    shown = {"nothing": "no such folder", "file": "a file", "empty": "an empty folder", "run": "a single run"}
    assert shown.get(made, "a.txt") in caught.value.found
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "expected", "found"),
    [
        ("", "a whole JSON file", "Expecting value"),
        ("[]", "a study, format 1", "list"),
        ("{}", "a study, format 1", "format None"),
        ('{"format": 9}', "a study, format 1", "format 9"),  # before its keys: another format may have others
        ('{"format": 1}', "key `seeds`", "no such key"),
    ],
)
def test_a_damaged_summary_is_named(tmp_path: Path, content: str, expected: str, found: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match="cannot read") as caught:
        write_report(tmp_path)
    assert expected in caught.value.expected
    assert found in caught.value.found
    assert "delete only" in caught.value.todo


# ---- Several studies --------------------------------------------------------------------------------------------


def test_several_studies_in_one_page(finished: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "none", ALIKE, rows=100)
    write_study(tmp_path / "new", finished=False, rows=20)
    path = report_on([finished, tmp_path / "none", tmp_path / "new"], tmp_path / "deep" / "ledger.html")
    text = text_of(path)
    assert "In 1 of 2 studies an adapter for each task is surely better" in text
    assert "new: This study is not finished" in text
    for part in ("mine", "none", "recovers", "3 studies"):
        assert part in text


def test_studies_of_one_name_are_told_apart(finished: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "other" / "mine", ALIKE, rows=60)
    write_study(tmp_path / "alone", ALIKE, rows=60)
    studies = [read_study(path) for path in (finished, tmp_path / "other" / "mine", tmp_path / "alone")]
    page = ledger_page(studies)
    names = [f"{finished.parent.name}/mine", "other/mine", "alone"]
    assert [section.title for section in page.sections] == ["All studies", *names]
