"""Where the time of one step goes, and what bounds it.

python benchmarks/profile_step.py --out benchmarks/results/profile.json      (seven minutes on 2 CPU cores)

Parts are measured with torch's profiler: products are told apart by the ranges they run in (capture, Gram, rule,
write) and by their shapes (a side as small as the rank: LoRA; else base). The two bounds are measured beside it:
FLOPs of the step over the rate of a large product, and bytes of the task gradients over the speed of a copy.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from backbones import Case
from lines import Line, make
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode
from writing import markdown, save

from ortholora.engine import ortho_lora
from ortholora.engine.buffers import Slot
from ortholora.engine.distributed import Reduced

RANGES = {"capture": (Slot, "capture"), "Gram": (Reduced, "inner_products"), "rule": (ortho_lora.OrthoLora, "_decide")}
RANGES |= {"write": (ortho_lora.OrthoLora, "_write"), "resolve": (ortho_lora.OrthoLora, "resolve")}
LINES = ("joint", "general", "fused")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm")


def mark_ranges() -> None:
    """Let the engine's phases show in the profile."""
    for name, (owner, attribute) in RANGES.items():
        setattr(owner, attribute, _marked(getattr(owner, attribute), f"ortholora {name}"))


def _marked(function: Any, name: str) -> Any:
    @functools.wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return marked


def parts(line: Line, rank: int, steps: int) -> dict[str, float]:
    """Seconds of a step by part."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        for _ in range(steps):
            line.step()
    seconds: dict[str, float] = defaultdict(float)
    for event in found.events():
        seconds[_part(event, rank)] += event.self_cpu_time_total * 1e-6 / steps
    return dict(seconds)


def _part(event: Any, rank: int) -> str:
    inside = event
    while inside is not None:
        if inside.name.startswith("ortholora "):
            name = inside.name.removeprefix("ortholora ")
            return "rest of resolve" if name == "resolve" else name
        inside = inside.cpu_parent
    if event.name in PRODUCTS:
        sides = [side for shape in event.input_shapes if len(shape) >= 2 for side in shape[-2:]]
        if event.name == "aten::bmm":
            return "attention"
        return "LoRA products" if rank in sides else "base products"
    if "attention" in event.name or "softmax" in event.name:
        return "attention"
    if "bernoulli" in event.name:
        return "dropout masks"
    if "Adam" in event.name:
        return "optimizer"
    return "everything else"


def rates() -> dict[str, float]:
    """FLOPs a second of a large float32 and bfloat16 product, and bytes a second of a copy."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2048, 1536).to(dtype), torch.randn(1536, 1536).to(dtype)
        found[f"{str(dtype).removeprefix('torch.')} FLOPs"] = 2 * 2048 * 1536 * 1536 / _best(lambda a=a, b=b: a @ b)
    source, target = torch.randn(2**26), torch.empty(2**26)
    found["bytes"] = 2 * source.nbytes / _best(lambda: target.copy_(source))
    return found


def _best(run: Any) -> float:
    times = []
    for _ in range(10):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def addmm_flops(out: Any, a: Any, b: Any, **_: Any) -> int:
    """The counter of torch knows `addmm` but not the in-place form."""
    return 2 * a[0] * a[1] * b[1]


def analyse(case: Case, measured: dict[str, float], steps: int) -> dict[str, Any]:
    """Every line of a case: seconds of whole steps (interleaved), then its parts and its FLOPs."""
    lines = {name: make(name, case, "cpu") for name in LINES}
    seconds: dict[str, list[float]] = {name: [] for name in LINES}
    for step in range(steps + 2):
        for name, line in lines.items():
            start = time.perf_counter()
            line.step()
            if step >= 2:  # the engine's own checks run in its first two steps
                seconds[name].append(time.perf_counter() - start)
    result: dict[str, Any] = {"case": case.name}
    for name, line in lines.items():
        whole = statistics.median(seconds[name])
        result[name] = {"seconds": whole, "parts": parts(line, case.r, steps), "flops": _flops(line)}
    buffers = 4 * case.tasks * sum(p.numel() for p in lines["fused"].lora)
    result["bounds"] = {
        "product_seconds": result["fused"]["flops"] / measured[f"{case.dtype} FLOPs"],
        # Written by capture, read for the ordinary gradient, for the Gram and for the weighted sum.
        "task_gradient_seconds": 4 * buffers / measured["bytes"],
        "task_gradient_bytes": buffers,
    }
    return result


def _flops(line: Line) -> int:
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_flops}) as counter:
        line.step()
    return counter.get_total_flops()


def tables(results: list[dict[str, Any]]) -> str:
    """One table for each case: milliseconds of a step by part, a column for each line."""
    return "\n\n".join(_table(result) for result in results)


def _table(result: dict[str, Any]) -> str:
    parts_of = {name: result[name]["parts"] for name in LINES}
    names = sorted({part for found in parts_of.values() for part in found}, key=lambda p: -parts_of["fused"].get(p, 0))
    rows = [[part, *(f"{1e3 * parts_of[name].get(part, 0):.1f}" for name in LINES)] for part in names]
    rows.append(["**whole step**", *(f"{1e3 * result[name]['seconds']:.0f}" for name in LINES)])
    for title, key in (("FLOPs over rate", "product_seconds"), ("task gradients over speed", "task_gradient_seconds")):
        rows.append([title, "", "", f"{1e3 * result['bounds'][key]:.1f}"])
    return markdown([f"{result['case']}, ms", *LINES], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    mark_ranges()
    measured = rates()
    cases = [
        Case("minilm", "float32", False, 8, 8),
        Case("llama-135m", "bfloat16", False, 8, 8, 16, 64),
        Case("llama-135m", "bfloat16", False, 64, 8, 16, 64),
        Case("minilm", "float32", False, 64, 32),
    ]
    results = [analyse(case, measured, arguments.steps) for case in cases]
    text = tables(results)
    print(text)
    if arguments.out:
        command = f"python benchmarks/profile_step.py --steps {arguments.steps}"
        save(arguments.out, command, {"rates": measured, "cases": results}, text)


if __name__ == "__main__":
    main()
