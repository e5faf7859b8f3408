"""What launching the model once more costs, in tokens: the constant behind `layout: auto`.

python benchmarks/launch.py --out benchmarks/results/launch.json        (two minutes on 2 CPU cores)

Times a forward and a backward of MiniLM at several sizes, fits `seconds = a + b · tokens` (relative least
squares), and prints `a / b` and the FLOPs a layer that `training/launch.py` takes from it.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbones import Case
from lines import make
from step import timed
from writing import markdown, save

from ortholora.trainers.planning import launch_tokens

SHAPES = [(5, 8), (5, 16), (10, 16), (10, 32), (20, 32), (10, 64), (20, 64), (10, 128)]


def fit(dtype: str, autocast: bool, device: str, rounds: int) -> dict[str, Any]:
    lines = [make("fused", Case("minilm", dtype, autocast, 8, 5, rows, tokens), device) for rows, tokens in SHAPES]
    for line in lines:
        line.step(), line.step()
    seconds = [[timed(line.step, device) for line in lines] for _ in range(rounds)]
    median = np.array([statistics.median(column) for column in zip(*seconds, strict=True)])
    tokens = np.array([rows * length for rows, length in SHAPES], dtype=float)
    design = np.stack([np.ones_like(tokens), tokens], axis=1) / median[:, None]
    (launch, token), *_ = np.linalg.lstsq(design, np.ones_like(tokens), rcond=None)
    model = lines[0].model
    return {
        "launch_seconds": float(launch),
        "token_seconds": float(token),
        "launch_tokens": float(launch / token),
        "used_by_default": launch_tokens(model, device),
        "seconds": dict(zip(map(str, SHAPES), median.tolist(), strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    results = {
        name: fit(dtype, autocast, arguments.device, arguments.rounds)
        for name, dtype, autocast in [("float32", "float32", False), ("bfloat16 autocast", "bfloat16", True)]
    }
    head = ["precision", "launch, ms", "token, ms", "launch in tokens", "used by default"]
    keys = ("launch_tokens", "used_by_default")
    rows = [
        [name, f"{1e3 * r['launch_seconds']:.1f}", f"{1e3 * r['token_seconds']:.3f}", *(f"{r[k]:.0f}" for k in keys)]
        for name, r in results.items()
    ]
    print(markdown(head, rows))
    if arguments.out:
        command = f"python benchmarks/launch.py --rounds {arguments.rounds}"
        save(arguments.out, command, results, markdown(head, rows))


if __name__ == "__main__":
    main()
