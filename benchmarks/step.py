"""Time and memory of one optimizer step: ours against plain PEFT and against every other way to the same update.

python benchmarks/step.py --out benchmarks/results/step.json            (about half an hour on 2 CPU cores)
python benchmarks/step.py --only minilm --tasks 4 --rank 8 --rounds 3   (a minute)

The lines are timed interleaved in one process, A B C A B C …; a line's figure is the median over the rounds of
its time over the base's time in the same round. Peak memory is taken in a process of its own for each line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from backbones import Case
from lines import LINES, SLOW, make, synchronise
from writing import COMMIT, markdown, save

from ortholora.trainers.cost import peak_memory_bytes, reset_peak_memory


def grid(only: str | None, tasks: list[int] | None, rank: int | None, device: str) -> list[Case]:
    """The cases: MiniLM over T, precision and rank; a decoder of the size that the device can take."""
    cases = [Case("minilm", "float32", False, 8, t) for t in (2, 4, 8, 16, 32)]
    cases += [Case("minilm", "float32", False, 64, t) for t in (8, 32)]
    cases += [Case("minilm", "bfloat16", autocast, 8, 8) for autocast in (True, False)]
    decoder = "llama-135m" if device == "cpu" else "llama-1b"
    rows = {"rows": 16, "tokens": 64} if device == "cpu" else {"rows": 32, "tokens": 512}
    cases += [Case(decoder, "bfloat16", False, r, 8, **rows) for r in (8, 64)]
    return [
        case
        for case in cases
        if (not only or case.model.startswith(only))
        and (not tasks or case.tasks in tasks)
        and (not rank or case.r == rank)
    ]


def wanted(case: Case) -> list[str]:
    """All lines, but for those whose one step would take minutes."""
    slow = case.r == 8 or case.tasks <= 8
    return [name for name in LINES if slow or name not in SLOW]


def time_case(case: Case, device: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of every line in every round, and their ratios to the base."""
    lines = {name: make(name, case, device) for name in wanted(case)}
    for line in lines.values():
        timed(line.step, device)  # warm-up; the engine's own checks run in its first two steps
        if line.title.startswith("Ortho"):
            timed(line.step, device)
    seconds: dict[str, list[float]] = {name: [] for name in lines}
    for round_ in range(rounds):
        for name, line in lines.items():
            if name not in SLOW or round_ < max(2, rounds // 3):
                seconds[name].append(timed(line.step, device))
    base = seconds["joint"]
    return {
        name: {
            "title": lines[name].title,
            "seconds": statistics.median(values),
            "ratio": statistics.median(s / b for s, b in zip(values, base, strict=False)),
            "ratios": [round(s / b, 4) for s, b in zip(values, base, strict=False)],
        }
        for name, values in seconds.items()
    }


def timed(step: Any, device: str) -> float:
    synchronise(device)
    start = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - start


def memory_of(name: str, case: Case, device: str) -> int:
    """Peak memory of a line's steps, in a process of its own."""
    command = [sys.executable, __file__, "--device", device, "--memory-of", name, "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def print_memory(name: str, case: Case, device: str) -> None:
    line = make(name, case, device)
    line.step()
    reset_peak_memory()
    for _ in range(2):
        line.step()
    print(peak_memory_bytes() or 0)


def measure(case: Case, device: str, rounds: int, memory: bool) -> dict[str, Any]:
    lines = time_case(case, device, rounds)
    if memory:
        for name in lines:
            lines[name]["peak_memory_bytes"] = memory_of(name, case, device)
    trainable = sum(p.numel() for p in make("joint", case, device).lora)
    measured = {"date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "commit": COMMIT, "rounds": rounds}
    named = {**asdict(case), "name": case.name}
    return {"case": named, "trainable_elements": trainable, "measured": measured, "lines": lines}


def table(results: list[dict[str, Any]]) -> str:
    """Ratios to the base as a Markdown table, one row a case."""
    head = ["case", "joint", *(LINES[name].title for name in LINES if name != "joint"), "rounds", "commit"]
    rows = []
    for result in results:
        lines, measured = result["lines"], result["measured"]
        ratios = [f"{lines[n]['ratio']:.2f}" if n in lines else "–" for n in LINES if n != "joint"]
        origin = [str(measured["rounds"]), measured["commit"][:7]]
        rows.append([result["case"]["name"], f"{lines['joint']['seconds']:.2f} s", *ratios, *origin])
    return markdown(head, rows)


def memory_table(results: list[dict[str, Any]]) -> str:
    """Peak memory above the base's, beside T times the trainable bytes."""
    head = ["case", "joint", "T × LoRA", *(f"{LINES[name].title}" for name in LINES if name != "joint")]
    rows = []
    for result in results:
        lines, mib = result["lines"], 2**20
        if "peak_memory_bytes" not in lines["joint"]:
            continue
        base = lines["joint"]["peak_memory_bytes"]
        more = [
            f"{(lines[n]['peak_memory_bytes'] - base) / mib:+.0f}" if n in lines else "–" for n in LINES if n != "joint"
        ]
        buffers = 4 * result["case"]["tasks"] * result["trainable_elements"] / mib
        rows.append([result["case"]["name"], f"{base / mib:.0f} MiB", f"{buffers:.0f}", *more])
    return markdown(head, rows)


def report(results: list[dict[str, Any]]) -> str:
    parts = ["Time of a step over plain PEFT's joint step (median of ratios):", table(results)]
    if any("peak_memory_bytes" in result["lines"]["joint"] for result in results):
        parts += ["Peak memory: joint, then MiB above it:", memory_table(results)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write JSON here, and a table beside it")
    parser.add_argument("--only", help="models whose name starts with this")
    parser.add_argument("--tasks", type=int, nargs="*")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--append", action="store_true", help="keep the cases that --out has already")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory-of", choices=list(LINES), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.append and arguments.out is None:
        parser.error("--append needs --out, the file that it adds to")
    if arguments.memory_of:
        print_memory(arguments.memory_of, Case(**json.loads(arguments.case)), arguments.device)
        return
    results = []
    if arguments.append:
        results = json.loads(arguments.out.read_text(encoding="utf-8"))["results"]
    for case in grid(arguments.only, arguments.tasks, arguments.rank, arguments.device):
        if arguments.dtype not in (None, case.dtype):
            continue
        started = time.perf_counter()
        results = [result for result in results if result["case"]["name"] != case.name]
        results.append(measure(case, arguments.device, arguments.rounds, not arguments.no_memory))
        ratios = {name: round(line["ratio"], 3) for name, line in results[-1]["lines"].items()}
        print(f"{case.name}: {ratios} ({time.perf_counter() - started:.0f} s)", flush=True)
        if arguments.out:
            save(arguments.out, f"python benchmarks/step.py --rounds {arguments.rounds}", results, report(results))
    print(report(results))


if __name__ == "__main__":
    main()
