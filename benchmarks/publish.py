"""Keep a study's summary in the repository, with the command that made it.

python benchmarks/publish.py runs/glue glue-minilm --note "..." --command "ortholora compare examples/glue.yaml ..."
python benchmarks/publish.py --tables       (put the benchmarks' tables into the pages on performance)
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Pages that show benchmarks' tables.
PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "performance-method.md")
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?", help="the --out folder of `ortholora compare`")
    parser.add_argument("name", nargs="?", help="folder under benchmarks/results")
    parser.add_argument("--command", help="the command that made the study")
    parser.add_argument("--note", help="what a reader must know of the data and the machine")
    parser.add_argument("--tables", action="store_true", help="renew the tables of the pages on performance")
    arguments = parser.parse_args()
    if arguments.tables:
        for page in PAGES:
            page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
        return
    if not (arguments.study and arguments.name and arguments.command and arguments.note):
        parser.error("a study needs its folder, a name, --command and --note")
    publish(arguments.study, arguments.name, arguments.command, arguments.note)


def publish(study: Path, name: str, command: str, note: str) -> None:
    """Copy the summaries and their pictures, and write down the command and the note."""
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [picture for picture in ("curves.png", "sweep.png") if (study / picture).is_file()]
    for file in ("summary.json", "summary.md", "summary.png", *pictures):
        shutil.copyfile(study / file, folder / file)
    (folder / "command.txt").write_text(command + "\n", encoding="utf-8")
    (folder / "note.md").write_text(note + "\n", encoding="utf-8")


def with_tables(text: str) -> str:
    """The page with every `<!-- NAME:begin -->` … `<!-- NAME:end -->` filled from `benchmarks/results/NAME.json`."""
    for name in re.findall(r"<!-- ([a-z-]+):begin -->", text):
        before, _, rest = text.partition(f"<!-- {name}:begin -->")
        _, _, after = rest.partition(f"<!-- {name}:end -->")
        text = f"{before}<!-- {name}:begin -->\n{benchmark(name)}\n<!-- {name}:end -->{after}"
    return text


def benchmark(name: str) -> str:
    """A benchmark's table, and where it comes from."""
    path = RESULTS / f"{name}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    versions, hardware = content["versions"], content["hardware"]
    packages = ", ".join(f"{package} {versions[package]}" for package in ("torch", "transformers", "peft"))
    machine = f"{hardware['torch_threads']} threads of {hardware['cpu']}"
    # Where rows were measured one by one, each says its own rounds and commit.
    each = isinstance(content["results"], list) and all("measured" in row for row in content["results"])
    command = content["command"].partition(" --rounds")[0] if each else content["command"]
    commit = "rounds and commit in each row" if each else f"commit {content['commit'][:7]}"
    origin = f"`{command}` · {content['date'][:10]} · {machine} · {packages} · {commit}"
    return path.with_suffix(".md").read_text(encoding="utf-8").strip() + "\n\n" + origin


if __name__ == "__main__":
    main()
