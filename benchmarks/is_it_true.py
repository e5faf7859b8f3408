"""Is it true? Train all pairs of tasks of some studies, and compare what they gain with what `diagnose` had predicted.

    python benchmarks/is_it_true.py demo parts many-4 --jobs 2 [--work FOLDER]
    python benchmarks/is_it_true.py demo parts many-4 --only-judge [--work FOLDER]     (of what is finished)

The studies are those of `benchmarks/gaps/`; its README says what was fixed beforehand. Data, runs and diagnoses go to
FOLDER (default: gaps/). Stopped, it goes on where it was. After every study the results are written anew.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import outcomes
import typer
from writing import markdown, save

from ortholora.cli.console import console
from ortholora.cli.progress import show_progress
from ortholora.cli.voice import hush_libraries
from ortholora.config.file import load_config
from ortholora.config.schema import Config
from ortholora.data.read import read_tasks
from ortholora.runs.method import JOINT, SINGLE, Method
from ortholora.runs.record import RunRecord
from ortholora.runs.run import Run
from ortholora.runs.train import announce
from ortholora.study.diagnose.diagnose import diagnose
from ortholora.study.running import Means, Workspaces, check_runs, do_runs

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "is-it-true.json"
#: Fixed before any result was seen. Nobody has looked at these seeds.
SEEDS, RATE = (20, 21), 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=sorted(path.stem for path in (HERE / "gaps").glob("*.yaml")))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--work", type=Path, default=Path("gaps"), help="folder of data and runs")
    parser.add_argument("--only-judge", action="store_true", help="train nothing: judge the studies that are finished")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results; the table goes beside them")
    arguments = parser.parse_args()
    rows = arguments.work / "data"
    if not (rows / "topic").is_dir():
        subprocess.run([sys.executable, str(HERE / "gaps" / "data.py"), str(rows)], check=True)
    hush_libraries()
    command = f"python benchmarks/is_it_true.py {' '.join(arguments.studies)} --jobs {arguments.jobs}"
    truth = Truth(arguments.studies, arguments.work, arguments.jobs)
    done: dict[str, Any] = {}
    for study in arguments.studies:
        if arguments.only_judge and not truth.finished(study):
            console.print(f"{study} is not finished, and left out.")
            continue
        done[study] = truth.of_study(study)
        save(arguments.out, command, results_of(done), table_of(results_of(done)))


class Truth:
    """The pairs of some studies. What two of them share is trained once.

    Args:
        studies: Names of the studies.
        work: Folder of data, runs and diagnoses.
        jobs: Runs at once.
    """

    def __init__(self, studies: Sequence[str], work: Path, jobs: int) -> None:
        self.work, self.jobs = work, jobs
        self.configs = {study: read_config(study) for study in studies}
        data = work / "data"
        self.tasks = {study: read_tasks(own, base=data, data_dir=data) for study, own in self.configs.items()}

    def of_study(self, study: str) -> dict[str, Any]:
        """Train what is missing, diagnose, and lay both side by side."""
        records: list[RunRecord] = []
        for owner, runs in self.runs(study).items():
            config, tasks = self.configs[owner], self.tasks[owner]
            workspaces = Workspaces(config, tasks)
            check_runs(runs, workspaces)
            with show_progress(console) as progress:
                announce(runs, workspaces.shared, progress)
                done = do_runs(runs, Means(config, tasks, None, self.jobs), workspaces, progress)
            records += [record for record in done if record is not None]
        config, tasks = self.configs[study], self.tasks[study]
        with show_progress(console) as progress:
            found = diagnose(config, tasks, self.work / "runs" / study / "diagnosis", progress=progress)
        return self._side_by_side(config, records, found)

    def runs(self, study: str) -> dict[str, list[Run]]:
        """Every task alone and every pair, seed by seed, by the first study that has them."""
        names = self.configs[study].task_names
        parts: list[tuple[str, tuple[str, ...]]] = [(SINGLE, (task,)) for task in names]
        parts += [(JOINT, pair) for pair in combinations(names, 2)]
        runs: dict[str, list[Run]] = {}
        for seed in SEEDS:
            for name, part in parts:
                owner = self._owner(study, part)
                folder = self.work / "runs" / owner / name / "+".join(part) / f"seed-{seed}"
                runs.setdefault(owner, []).append(Run(Method(name), part, seed, folder))
        return runs

    def _owner(self, study: str, part: tuple[str, ...]) -> str:
        """The first study that trains these tasks, in this order and with the same settings."""
        wanted = _settings(self.configs[study], part)
        return next(other for other, config in self.configs.items() if _settings(config, part) == wanted)

    def finished(self, study: str) -> bool:
        """Whether all of it is done."""
        diagnosis = self.work / "runs" / study / "diagnosis" / "diagnosis.json"
        return diagnosis.is_file() and all(run.done for runs in self.runs(study).values() for run in runs)

    def _side_by_side(self, config: Config, records: Sequence[RunRecord], found: dict[str, Any]) -> dict[str, Any]:
        alone = [record for record in records if record.method == SINGLE]
        measured = {
            pair: outcomes.gains(alone, [record for record in records if record.tasks == pair], pair)
            for pair in combinations(config.task_names, 2)
        }
        return {
            "outcomes": outcomes.outcomes(found, measured),
            "cases": {task: entry["case"] for task, entry in found["pace"].items()},
            "verdict": found["verdict"],
            "gains": [{"pair": list(pair), **own} for pair, own in measured.items()],
        }


def read_config(study: str) -> Config:
    """The study's configuration, at the one rate."""
    return load_config(HERE / "gaps" / f"{study}.yaml", [f"training.learning_rate={RATE}", "study.sweep=null"])


def _settings(config: Config, part: tuple[str, ...]) -> dict[str, Any]:
    """All that decides a run of these tasks."""
    own = {task.name: task.model_dump() for task in config.tasks if task.name in part}
    return {
        **config.model_dump(exclude={"study", "tasks"}),
        "tasks": [own[name] for name in config.task_names if name in own],
    }


def results_of(done: dict[str, Any]) -> dict[str, Any]:
    """The figures of each study, and of all together."""
    every = outcomes.distinct([entry["outcomes"] for entry in done.values()])
    cases = {task: case for entry in done.values() for task, case in entry["cases"].items()}
    return {
        "seeds": list(SEEDS),
        "learning_rate": RATE,
        "studies": {
            study: {
                **{key: value for key, value in entry.items() if key != "outcomes"},
                "outcomes": [asdict(row) for row in entry["outcomes"]],
                "judged": outcomes.judge(entry["outcomes"]),
                "pace": outcomes.judge_pace(entry["cases"], entry["outcomes"]),
            }
            for study, entry in done.items()
        },
        "all": {"judged": outcomes.judge(every), "pace": outcomes.judge_pace(cases, every)},
    }


def table_of(results: dict[str, Any]) -> str:
    """Two tables: how good the predictions were, and every ordered pair."""
    columns = {**results["studies"], "all": results["all"]}
    pairs = {name: str(entry["judged"]["pairs"]) for name, entry in columns.items()}
    head = ["", *(f"{name} ({pairs[name]})" for name in columns)]
    judged = [entry["judged"] for entry in columns.values()]
    paces = [entry["pace"] for entry in columns.values()]
    lines = [
        ["surely gained / surely lost", *(f"{j['surely_gained']} / {j['surely_lost']}" for j in judged)],
        *(
            [f"rank correlation with the gain: {words}", *(_rho(j["rank_correlation"][name]) for j in judged)]
            for name, words in outcomes.PREDICTIONS.items()
        ),
        ["a sure transfer has the gain's sign", *(_share(j["sure"]) for j in judged)],
        ["… the gain being sure too / surely the other", *(_both(j) for j in judged)],
        ["… sure to help, and helped", *(_share(j["sure_to_help"]) for j in judged)],
        ["… sure to hurt, and hurt", *(_share(j["sure_to_hurt"]) for j in judged)],
        ["(for comparison: any pair helped)", *(_share(j["any_gain"]) for j in judged)],
        ["a sure direction has the sign of both gains' sum", *(_share(j["direction"]) for j in judged)],
        ["surely a gradient of less than half, and lost", *(_share(j["outweighed"]) for j in judged)],
        ["a task said to lag lost, on average", *(_share(p["named"]) for p in paces)],
        ["a task not said to lag did not lose", *(_share(p["not_named"]) for p in paces)],
    ]
    every = [
        [f"{study}: {row['giver']} → {row['taker']}", *_row(row)]
        for study, entry in results["studies"].items()
        for row in entry["outcomes"]
    ]
    header = ["ordered pair", "a step lowers the loss by", "cosine", "gain, points"]
    return f"{markdown(head, lines)}\n\n{markdown(header, every)}"


def _row(row: dict[str, Any]) -> list[str]:
    cosine = "–" if row["cosine"] is None else f"{row['cosine']:+.2f}{' sure' if row['direction'] else ''}"
    gain = f"{100 * row['gain']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    if row["low"] > 0 or row["high"] < 0:
        gain = f"**{gain}**"
    return [f"{row['transfer']:+.1e}{' sure' if row['sure'] else ''}", cosine, gain]


def _rho(entry: dict[str, Any]) -> str:
    if entry["rho"] is None:
        return "–"
    return f"{entry['rho']:+.2f} [{entry['ci95'][0]:+.2f}, {entry['ci95'][1]:+.2f}]"


def _share(entry: dict[str, Any]) -> str:
    if entry["ci95"] is None:
        return "none"
    low, high = (round(100 * end) for end in entry["ci95"])
    return f"{entry['right']} of {entry['of']} [{low}, {high} %]"


def _both(judged: dict[str, Any]) -> str:
    return f"{judged['sure_surely_right']} / {judged['sure_surely_wrong']} of {judged['sure']['of']}"


if __name__ == "__main__":
    try:
        main()
    except typer.Exit as stopped:  # said already, and nobody here turns it into an exit code
        sys.exit(stopped.exit_code)
