"""What a conflict rule costs: seconds of its decision for the Grams of one step, nothing else.

python benchmarks/rules.py --out benchmarks/results/rules.json           (some minutes; `--rounds 3` for a first look)

448 blocks (A and B of seven linear modules in each of 32 layers) of T random task gradients, on one thread. Each round
times every rule once, one after the other; a figure is the median over the rounds. TorchJD's weightings take one block
at a time, so they run with T = 3 and 8 and in a few rounds only. One that is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from writing import markdown, save

from ortholora.engine.gram import unit_trace
from ortholora.engine.rules import RULES, Rule, RuleContext, get_rule
from ortholora.engine.rules.base import factors_of, memory_of, needs_losses
from ortholora.engine.rules.torchjd import PREFIX, WEIGHTINGS
from ortholora.errors import UserError

BLOCKS = 448
TASKS, TASKS_OF_TORCHJD = (2, 3, 8, 64), (3, 8)


def grams(tasks: int, memory: bool) -> torch.Tensor:
    """Grams `[448, T, T]` of random gradients (2T with a memory): about half of all pairs are in conflict."""
    size = 2 * tasks if memory else tasks
    stack = torch.randn(BLOCKS, size, 128, generator=torch.Generator().manual_seed(tasks))
    return unit_trace(stack @ stack.mT)


def timed(rule: Rule, gram: torch.Tensor, tasks: int) -> float:
    names, present = tuple(f"task{t}" for t in range(tasks)), torch.ones(tasks, dtype=torch.bool)
    losses = torch.ones(tasks) if needs_losses(rule) else None
    context = RuleContext(names, present, 0, torch.Generator().manual_seed(0), losses)
    start = time.perf_counter()
    factors_of(rule, context)
    rule(gram, context)
    return time.perf_counter() - start


def installed(names: list[str]) -> list[str]:
    found = []
    for name in names:
        try:
            get_rule(name)
            found.append(name)
        except UserError as error:
            print(f"left out: {name} ({error.found})")
    return found


def measure(rounds: int, rounds_of_torchjd: int) -> dict[str, dict[str, list[float]]]:
    """Rule → T → its seconds in every round."""
    usable = installed([f"{PREFIX}{name}" for name in WEIGHTINGS])
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in (*RULES, *usable)}
    for tasks in TASKS:
        plain, with_means = grams(tasks, memory=False), grams(tasks, memory=True)
        # Made anew: a rule's state is for one T.
        ours, theirs = ({name: get_rule(name) for name in names} for names in (RULES, usable))
        for round_ in range(-1, rounds):  # the first is a warm-up
            rules = dict(ours)
            if tasks in TASKS_OF_TORCHJD and 0 <= round_ < rounds_of_torchjd:
                rules |= theirs
            for name, rule in rules.items():
                taken = timed(rule, plain if memory_of(rule) is None else with_means, tasks)
                if round_ >= 0:
                    seconds[name].setdefault(str(tasks), []).append(taken)
    return seconds


def table(seconds: dict[str, dict[str, list[float]]]) -> str:
    rows = []
    for name, times in seconds.items():
        medians = [1e3 * statistics.median(times[str(t)]) if str(t) in times else None for t in TASKS]
        rows.append([name, *("–" if value is None else f"{value:.2f}" for value in medians)])
    return markdown(["ms a step of 448 blocks", *(f"T = {t}" for t in TASKS)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write JSON here, and a table beside it")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rounds-of-torchjd", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seconds = measure(arguments.rounds, arguments.rounds_of_torchjd)
    print(table(seconds))
    if arguments.out:
        command = f"python benchmarks/rules.py --rounds {arguments.rounds}"
        command += f" --rounds-of-torchjd {arguments.rounds_of_torchjd}"
        save(arguments.out, command, {"blocks": BLOCKS, "seconds": seconds}, table(seconds))


if __name__ == "__main__":
    main()
