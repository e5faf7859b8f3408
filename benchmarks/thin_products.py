"""The thin products of a LoRA layer, one by one: why capture multiplies some of them the other way round.

python benchmarks/thin_products.py --out benchmarks/results/thin-products.json           (half a minute)

N tokens in T equal groups, a layer of width d, rank r. Times are the best of 60.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from writing import markdown, save

TOKENS = 2048


def best(run: Callable[[], Any]) -> float:
    """Microseconds of the fastest of 60."""
    seconds = []
    for _ in range(60):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 1e6 * min(seconds)


def measure(dtype: torch.dtype, d: int, r: int, tasks: int) -> dict[str, float]:
    delta, z = torch.randn(TOKENS, d).to(dtype), torch.randn(TOKENS, r).to(dtype)
    b = torch.randn(d, r).to(dtype)
    deltas, zs = delta.view(tasks, -1, d), z.view(tasks, -1, r)
    out = torch.empty(tasks, d, r, dtype=dtype)
    return {
        "joint δᵀz": best(lambda: torch.mm(delta.T, z)),
        "by task δᵀz": best(lambda: torch.bmm(deltas.mT, zs, out=out)),
        "by task (zᵀδ)ᵀ": best(lambda: out.copy_(torch.bmm(zs.mT, deltas).mT)),
        "δB": best(lambda: torch.mm(delta, b)),
        "δB, B transposed": best(lambda: torch.mm(delta, b.T.contiguous().T)),
        "base δW": best(lambda: torch.mm(delta, torch.empty(d, d, dtype=dtype))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        for d, r, tasks in [(384, 8, 4), (384, 8, 32), (1536, 8, 4), (384, 64, 4), (384, 64, 32)]:
            name = f"{str(dtype).removeprefix('torch.')}, d={d}, r={r}, T={tasks}"
            results[name] = measure(dtype, d, r, tasks)
    head = ["µs", *next(iter(results.values()))]
    rows = [[name, *(f"{value:.0f}" for value in times.values())] for name, times in results.items()]
    print(markdown(head, rows))
    if arguments.out:
        save(arguments.out, "python benchmarks/thin_products.py", results, markdown(head, rows))


if __name__ == "__main__":
    main()
