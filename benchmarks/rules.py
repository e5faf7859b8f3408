"""What a conflict rule costs: the CPU time of its decision for the Grams of one step, and of a resolve with it.

python benchmarks/rules.py --out benchmarks/results/rules.json           (`--rounds 2 --numel 64` for a first look)

448 blocks (A and B of seven linear modules in each of 32 layers) of T random task gradients, on one thread. Each round
times every rule once, one after the other; a figure is the median over the rounds. CPU time and not the clock's: it
does not count what other processes of the machine do meanwhile.

A resolve is the Gram, the decision and the weighted sum, and what a rule does to gradients before them. The Gram and
the sum are timed once a round for T vectors, and once for 2T, which rules with a memory or with halves work on; those
pay for copies and means besides, which are not counted. TorchJD's weightings take one block at a time, so they run
with T = 4 and 8 and in a few rounds only. One that is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from writing import markdown, save

from ortholora.engine.gram import inner_products, unit_trace, weighted_sum
from ortholora.engine.precondition import preconditioner_of
from ortholora.engine.rules import RULES, Rule, RuleContext, get_rule
from ortholora.engine.rules.base import factors_of, memory_of, needs_losses
from ortholora.engine.rules.torchjd import PREFIX, WEIGHTINGS

BLOCKS = 448
TASKS, TASKS_OF_TORCHJD = (2, 4, 8, 16, 32, 64), (4, 8)

#: Stage (a rule, or `gram` and `sum` of T or 2T vectors) → T → its seconds in every round.
Seconds = dict[str, dict[str, list[float]]]


def cpu_time(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def vectors_of(rule: Rule) -> int:
    """How many vectors a task has in the rule's Gram."""
    return 2 if memory_of(rule) is not None or getattr(rule, "halves", False) else 1


def decision(rule: Rule, gram: torch.Tensor, stack: torch.Tensor, step: int) -> float:
    tasks = gram.shape[1] // vectors_of(rule)
    names, present = tuple(f"task{t}" for t in range(tasks)), torch.ones(tasks, dtype=torch.bool)
    losses = torch.ones(tasks) if needs_losses(rule) else None
    generator = torch.Generator().manual_seed(step)
    context = RuleContext(names, present, step, generator, losses, torch.full((2, tasks), 4.0))
    stage = preconditioner_of(rule)

    def decide() -> None:
        if stage is not None:
            stage.transform(0, stack, present, step)
        factors_of(rule, context)
        answer = rule(gram, context)
        answer.sum(1) if answer.dim() == 3 else answer

    return cpu_time(decide)


def installed(names: list[str]) -> list[str]:
    found = []
    for name in names:
        try:
            get_rule(name)
            found.append(name)
        except ValueError as error:  # not installed: a `UserError`
            print(f"left out: {name} ({error})")
    return found


def measure(numel: int, rounds: int, rounds_of_torchjd: int) -> Seconds:
    usable = installed([f"{PREFIX}{name}" for name in WEIGHTINGS])
    seconds: Seconds = {}
    for tasks in TASKS:
        stacks = {n: torch.randn(BLOCKS, n * tasks, numel, generator=torch.Generator().manual_seed(n)) for n in (1, 2)}
        grams = {n: unit_trace(inner_products(stack)) for n, stack in stacks.items()}
        # Made anew: a rule's state is for one T.
        ours, theirs = ({name: get_rule(name) for name in names} for names in (RULES, usable))
        for round_ in range(-1, rounds):  # the first is a warm-up
            taken = {}
            for n, stack in stacks.items():
                taken[f"gram of {n}T"] = cpu_time(lambda stack=stack: unit_trace(inner_products(stack)))
                ones = torch.ones(stack.shape[:2])
                taken[f"sum of {n}T"] = cpu_time(lambda ones=ones, stack=stack: weighted_sum(ones, stack))
            rules = dict(ours)
            if tasks in TASKS_OF_TORCHJD and 0 <= round_ < rounds_of_torchjd:
                rules |= theirs
            for name, rule in rules.items():
                taken[name] = decision(rule, grams[vectors_of(rule)], stacks[1], round_ + 1)
            for stage, value in taken.items():
                if round_ >= 0:
                    seconds.setdefault(stage, {}).setdefault(str(tasks), []).append(value)
    return seconds


def table(seconds: Seconds) -> str:
    """Two tables: milliseconds of the decision, and a resolve over one with `sum`."""
    head = [f"T = {t}" for t in TASKS]
    names = [name for name in seconds if " of " not in name]
    decisions = [[name, *(_cell(_median(seconds, name, t), 1e3) for t in TASKS)] for name in names]
    ratios = [[name, *(_cell(_resolve(seconds, name, t), 1) for t in TASKS)] for name in names]
    return "\n\n".join(
        [
            markdown(["decision, ms of CPU time a step", *head], decisions),
            markdown(["a resolve, times that with `sum`", *head], ratios),
            f"{BLOCKS} matrices, random gradients, one thread. Other processes ran on the machine at the same time: "
            "compare figures of one column, which were taken side by side, and no others.",
        ]
    )


def _median(seconds: Seconds, stage: str, tasks: int) -> float | None:
    times = seconds[stage].get(str(tasks))
    return None if times is None else statistics.median(times)


def _resolve(seconds: Seconds, name: str, tasks: int) -> float | None:
    """Gram, decision and sum, over those with `sum`."""
    own = _median(seconds, name, tasks)
    if own is None:
        return None
    n = vectors_of(get_rule(name))
    parts = [own, *(_median(seconds, f"{stage} of {n}T", tasks) for stage in ("gram", "sum"))]
    plain = [_median(seconds, stage, tasks) for stage in ("sum", "gram of 1T", "sum of 1T")]
    return sum(part or 0.0 for part in parts) / sum(part or 0.0 for part in plain)


def _cell(value: float | None, scale: float) -> str:
    return "–" if value is None else f"{scale * value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write JSON here, and a table beside it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rounds-of-torchjd", type=int, default=2)
    parser.add_argument("--numel", type=int, default=2048, help="elements of a matrix")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        seconds = measure(arguments.numel, arguments.rounds, arguments.rounds_of_torchjd)
    print(table(seconds))
    if arguments.out:
        command = f"python benchmarks/rules.py --rounds {arguments.rounds} --numel {arguments.numel}"
        command += f" --rounds-of-torchjd {arguments.rounds_of_torchjd}"
        results = {"blocks": BLOCKS, "numel": arguments.numel, "seconds": seconds}
        save(arguments.out, command, results, table(seconds))


if __name__ == "__main__":
    main()
