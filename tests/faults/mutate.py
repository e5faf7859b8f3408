"""Mutate configurations, command lines, questions, run folders and data files: no traceback, no hang, no nonsense.

    python tests/faults/mutate.py --count 10000 --seed 1
    python tests/faults/mutate.py --count 2000 --kind folders --seed 7

Prints what was wrong, and how many mutations of each kind there were; exits with 1 where something was. The same seed
makes the same mutations. `test_mutations.py` does 500.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import configurations  # noqa: E402
import data_files  # noqa: E402
import folders  # noqa: E402
import words  # noqa: E402
from judging import Source, judge  # noqa: E402

import workspaces  # noqa: E402
from ortholora.runs.progress import Silent, Stopped  # noqa: E402
from ortholora.runs.run import Run  # noqa: E402
from ortholora.runs.train import ensure_record  # noqa: E402
from tiny import tiny_config  # noqa: E402
from workspaces import ORTHO, TASKS  # noqa: E402

KINDS = ("configurations", "words", "folders", "data_files")


class _StopAt(Silent):
    def step(self, done: int) -> None:
        self.stop_requested = done >= 3


def prepare(home: Path) -> dict[str, list[Source]]:
    """Train the two tiny runs that are damaged, and return the sources of each kind."""
    space = workspaces.workspace(lora={"dropout": 0.2})
    ensure_record(Run(ORTHO, TASKS, 0, home / "finished"), space, Silent(), None)
    with suppress(Stopped):
        ensure_record(Run(ORTHO, TASKS, 0, home / "stopped"), space, _StopAt(), None)
    for name in ("configurations", "words", "folders", "data_files"):
        (home / name).mkdir()
    tiny_config(home / "configurations")
    tiny_config(home / "words")
    return {
        "configurations": configurations.sources(home / "configurations"),
        "words": words.sources(home / "words", home / "finished"),
        "folders": folders.sources(home / "finished", home / "stopped", space, home / "folders"),
        "data_files": data_files.sources(home / "data_files", space),
    }


def mutate(sources: dict[str, list[Source]], count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Try mutations.

    Args:
        sources: The sources by kind; the kinds take turns.
        count: Number of mutations.
        seed: Seed of all draws.

    Returns:
        Number of mutations by kind, and a line for each that went wrong.
    """
    done: Counter[str] = Counter()
    wrong = []
    names = list(sources)
    for number in range(count):
        kind = names[number % len(names)]
        draw = random.Random(f"{seed}/{number}")
        case = draw.choice(sources[kind])(draw)
        done[kind] += 1
        if problem := judge(case):
            wrong.append(f"{kind} {number} (seed {seed}): {case.what[:300]}\n    {problem}")
    return done, wrong


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        sources = prepare(Path(home))
        os.environ["HF_HUB_OFFLINE"] = "1"
        done, wrong = mutate(
            {kind: found for kind, found in sources.items() if options.kind in (None, kind)},
            options.count,
            options.seed,
        )
    print("\n".join(wrong))
    print(f"{sum(done.values())} mutations with seed {options.seed} ({dict(done)}), {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
