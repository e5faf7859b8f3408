"""Make a study of the ledger: its data, its runs, and its row.

    python benchmarks/gaps/run.py STUDY [--jobs 2] [--data-dir GLUE] [--work FOLDER]
    python benchmarks/gaps/run.py --table

A study is a configuration in this folder. Data and runs go to FOLDER (default: gaps/), the summary to
`benchmarks/gaps/results/STUDY`. Stopped studies go on where they were. `--table` renews the table of the README here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import picture

import data

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS, README, PICTURE = HERE / "results", HERE / "README.md", HERE / "results" / "ledger.png"
BEGIN, END = "<!-- ledger:begin -->", "<!-- ledger:end -->"
#: Pages that show the table, and the rules that each shows (none named: all). Their links start from other folders.
PAGES: dict[Path, tuple[str, ...]] = {README: (), ROOT / "README.md": ("gradnorm", "ortho")}
#: Studies on GLUE's files, which are not made here.
GLUE = ("glue5", "alike", "words")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", choices=sorted(path.stem for path in HERE.glob("*.yaml")))
    parser.add_argument("--jobs", default="2", help="runs at once")
    parser.add_argument("--data-dir", type=Path, help="GLUE's files: CoLA/train.tsv and so on")
    parser.add_argument("--work", type=Path, default=Path("gaps"), help="folder of data and runs")
    parser.add_argument("--table", action="store_true", help="only renew the table")
    arguments = parser.parse_args()
    if arguments.study:
        make(arguments.study, arguments.work.resolve(), arguments.data_dir, arguments.jobs)
    elif not arguments.table:
        parser.error("name a study, or give --table")
    for page in PAGES:
        page.write_text(with_table(page.read_text(encoding="utf-8"), page), encoding="utf-8")
    picture.draw(summaries(), PICTURE)


def make(study: str, work: Path, glue: Path | None, jobs: str) -> None:
    """Run a study and keep its summary."""
    if study in GLUE and glue is None:
        sys.exit(f"{study} needs GLUE's files: --data-dir FOLDER with CoLA/train.tsv and so on")
    rows = work / "data"
    if not (rows / "topic").is_dir():
        data.main(rows)
    if study == "words":
        script = HERE.parent.parent / "examples" / "language" / "put_into_words.py"
        subprocess.run([sys.executable, str(script), str(glue), str(rows / "words")], check=True)
    source = glue.resolve() if glue is not None and study in ("glue5", "alike") else rows
    command = [sys.executable, "-m", "ortholora", "compare", str(HERE / f"{study}.yaml"), "--data-dir", str(source)]
    # One thread a run: on a small machine two runs of one thread each do more than one run of two.
    environment = {"OMP_NUM_THREADS": "1", **os.environ} if jobs != "1" else dict(os.environ)
    out = work / "runs" / study
    _obey([*command, "--out", str(out), "--jobs", jobs], work, environment)
    kept = RESULTS / study
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("summary.json", "summary.md", "summary.png", "curves.png", "sweep.png"):
        shutil.copyfile(out / name, kept / name)


def _obey(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Do a command; on Ctrl-C, which reaches it as well, let it stop by itself: `subprocess.run` would kill it."""
    with subprocess.Popen(command, cwd=folder, env=environment) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            code = process.wait()
    if code:
        sys.exit(code)


def with_table(text: str, page: Path) -> str:
    """The page with the table of all studies between its marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(RESULTS.relative_to(page.parent), PAGES[page])}\n{END}{rest.partition(END)[2]}"


def summaries() -> dict[str, dict[str, Any]]:
    """Name of a study that was made → its summary, in the order of the alphabet."""
    found = sorted(RESULTS.glob("*/summary.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in found}


def table(results: Path, shown: tuple[str, ...]) -> str:
    """A row for every study that was made.

    Args:
        results: The folder of the results, from the page that shows the table.
        shown: The rules that the page shows; none named: all.
    """
    found = summaries()
    made = {name for summary in found.values() for name in summary["rules"]}
    rules = [name for name in picture.LOOKS if name in made and (not shown or name in shown)]
    lines = [
        "| study | single | joint | gap | " + " | ".join(rules) + " |",
        "|---|---:|---:|---:|" + "---:|" * len(rules),
    ]
    for study, summary in found.items():
        means = [f"{100 * summary['methods'][name]['average']['mean']:.1f}" for name in ("single", "joint")]
        cells = " | ".join([*means, _gap(summary), *(_recovered(summary, rule) for rule in rules)])
        lines.append(f"| [{study}]({results.as_posix()}/{study}/summary.md) | {cells} |")
    return "\n".join(lines)


def _gap(summary: dict[str, Any]) -> str:
    low, high = summary["gap"]["ci95"]
    text = f"{100 * summary['gap']['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"**{text}**" if low > 0 else text


def _recovered(summary: dict[str, Any], rule: str) -> str:
    """What a rule recovers where there is a gap; its difference to joint where there is none."""
    entry = summary["rules"].get(rule)
    if entry is None:
        return "–"
    if entry["recovered"] is None:
        low, high = entry["difference"]["ci95"]
        return f"({100 * entry['difference']['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}])"
    low, high = entry["recovered"]["ci95"]
    return f"{round(100 * entry['recovered']['mean'])} % [{round(100 * low)}, {round(100 * high)}]"


if __name__ == "__main__":
    main()
