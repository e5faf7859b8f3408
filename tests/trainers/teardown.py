"""How often does a process that trained under DDP abort or hang when it leaves? Not a test: it takes minutes.

PYTHONPATH=src:tests python tests/trainers/teardown.py --runs 20 --method ortho --ending leave

Starts `ddp_script.py` with torchrun again and again, with one of its endings, and counts what became of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

SCRIPT = Path(__file__).with_name("ddp_script.py")


def one_run(method: str, ending: str, ranks: int, seconds: float, debugger: bool) -> str:
    """`fine`, `aborted`, `hung` or `failed`; what the processes wrote is printed unless all was fine."""
    with tempfile.TemporaryDirectory() as folder:
        mixing = json.dumps({"layout": "mixed", "rows_per_task": 4})
        program = [sys.executable]
        if debugger:
            program = [
                "gdb",
                "-q",
                "-batch",
                "-ex",
                "set pagination off",
                "-ex",
                "run",
                "-ex",
                "thread apply all bt 40",
            ]
            program += ["--args", sys.executable]
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--no-python"]
        command = [sys.executable, *launch, *program, str(SCRIPT), folder, method, mixing, ending]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process:
            try:
                output, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.terminate()  # torchrun ends its workers
                output, _ = process.communicate()
                print(output[-20_000:])
                return "hung"
        if "terminate called" in output or "SIGABRT" in output:
            print(output[-20_000:])
            return "aborted"
        if process.returncode:
            print(output[-3000:])
        return "failed" if process.returncode else "fine"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--method", default="ortho")
    parser.add_argument("--ending", choices=["leave", "destroy", "collect", "exit"], default="leave")
    parser.add_argument("--seconds", type=float, default=60, help="after which a run counts as hung")
    parser.add_argument("--debugger", action="store_true", help="run under gdb and print all threads at the end")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    for _ in range(arguments.runs):
        one = one_run(arguments.method, arguments.ending, arguments.ranks, arguments.seconds, arguments.debugger)
        counts[one] += 1
        print(f"{arguments.method}, {arguments.ending}: {dict(counts)}", flush=True)


if __name__ == "__main__":
    main()
