"""What several ranks send for the task gradients: computed from LoRA shapes, nothing is run.

python benchmarks/scaling.py --out benchmarks/results/scaling.json

The bytes are those that the collectives of `engine/distributed.py` send per rank round a ring; `tests/engine/
test_ranks.py` counts them in real runs and compares. Seconds are bytes over a stated bandwidth, and the share of a step
rests on a stated rate of computation: both are assumptions, not measurements.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from writing import markdown, save

RANK, TASKS = 16, (4, 16, 64)

#: Ranks and bytes a second that each of them sends: 8 GPUs joined by NVLink; 16, two machines with 200 Gbit/s a GPU.
PLACES = {"8 GPUs, 300 GB/s": (8, 300e9), "16 GPUs, 25 GB/s": (16, 25e9)}

#: FLOPs a second that a GPU keeps up (40 % of an H100's dense bf16 peak), and the tokens of a step on each GPU.
FLOPS, TOKENS = 0.4 * 989e12, 16_384


@dataclass(frozen=True)
class Llama:
    """The sizes of a Llama-shaped model that LoRA's shapes and the cost of a token follow from."""

    hidden: int
    inner: int
    key_value: int
    layers: int
    vocabulary: int = 128_256

    def linears(self) -> list[tuple[int, int]]:
        """`(k, d)` of a layer's seven linear modules: q, k, v, o, gate, up, down."""
        h, i, kv = self.hidden, self.inner, self.key_value
        return [(h, h), (h, kv), (h, kv), (h, h), (h, i), (h, i), (i, h)]

    def parameters(self) -> int:
        """Weights that every token meets: the layers and the output head."""
        return self.layers * sum(k * d for k, d in self.linears()) + self.hidden * self.vocabulary

    def lora_shapes(self, rank: int) -> list[tuple[int, int]]:
        """`(n, numel)` of every shape of LoRA matrix (A is `[r, k]`, B `[d, r]`), all linear modules adapted."""
        count: dict[tuple[int, int], int] = {}
        for k, d in self.linears():
            for shape in ((rank, k), (d, rank)):
                count[shape] = count.get(shape, 0) + self.layers
        return [(n, rows * columns) for (rows, columns), n in count.items()]


MODELS = {
    "1 B": Llama(2048, 8192, 512, 16),
    "8 B": Llama(4096, 14336, 1024, 32),
    "70 B": Llama(8192, 28672, 1024, 80),
}


def sent(shapes: Sequence[tuple[int, int]], tasks: int, ranks: int, width: int = 4) -> dict[str, float]:
    """Bytes that one rank sends in a step besides the few flags.

    Args:
        shapes: `(n, numel)`: n matrices of one shape with numel elements each.
        tasks: T.
        ranks: W.
        width: Bytes of an element of the task gradients (`buffer_dtype`).

    Returns:
        `spread` (reduce-scatter, Gram, all-gather: a usual step), `whole` (all-reduce: steps with the completeness
        check, and rules with a memory), and `plain`, the `.grad` of LoRA that DDP reduces in any case.
    """
    ring = (ranks - 1) / ranks
    elements = sum(n * numel for n, numel in shapes)
    spread = sum(n // ranks * ranks * numel for n, numel in shapes)
    gram = 2 * ring * 4 * sum(n for n, _ in shapes) * tasks**2 if spread else 0.0
    return {
        "spread": ring * (spread * (tasks * width + 4) + 2 * (elements - spread) * tasks * width) + gram,
        "whole": 2 * ring * tasks * width * elements,
        "plain": 2 * ring * 4 * elements,
    }


def flags(matrices: int, tasks: int, ranks: int) -> float:
    """Bytes that one rank sends to agree on which tasks and matrices were there."""
    return 2 * (ranks - 1) / ranks * 4 * (tasks + matrices)


def step_seconds(model: Llama) -> float:
    """A step by computation alone: 4 FLOPs a weight and token, because the base gets no weight gradients."""
    return 4 * model.parameters() * TOKENS / FLOPS


def compute() -> list[dict[str, Any]]:
    lines = []
    for name, model in MODELS.items():
        shapes = model.lora_shapes(RANK)
        elements = sum(n * numel for n, numel in shapes)
        for tasks in TASKS:
            for place, (ranks, bandwidth) in PLACES.items():
                of_step = sent(shapes, tasks, ranks)
                lines.append(
                    {
                        "model": name,
                        "tasks": tasks,
                        "place": place,
                        "ranks": ranks,
                        "elements": elements,
                        "task_gradient_bytes": 4 * tasks * elements,
                        "sent_bytes": of_step,
                        "sent_bytes_bfloat16": sent(shapes, tasks, ranks, width=2),
                        "seconds": of_step["spread"] / bandwidth,
                        "share_of_step": of_step["spread"] / bandwidth / step_seconds(model),
                    }
                )
    return lines


def table(lines: Sequence[dict[str, Any]]) -> str:
    head = ["model, T, where", "LoRA elements", "task gradients", "DDP's .grad", "all-reduce", "sent", "sent, bf16"]
    head += ["seconds", "of a step"]
    rows = []
    for line in lines:
        figures = [line["sent_bytes"]["plain"], line["sent_bytes"]["whole"], line["sent_bytes"]["spread"]]
        figures.append(line["sent_bytes_bfloat16"]["spread"])
        rows.append(
            [f"{line['model']}, T = {line['tasks']}, {line['place']}", f"{line['elements'] / 1e6:.1f} M"]
            + [f"{line['task_gradient_bytes'] / 1e9:.2f} GB"]
            + [f"{figure / 1e9:.2f} GB" for figure in figures]
            + [f"{line['seconds']:.3f}", f"{100 * line['share_of_step']:.1f} %"]
        )
    return markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = compute()
    text = table(lines)
    print(text)
    if arguments.out:
        assumptions = {"rank": RANK, "places": PLACES, "flops_per_second": FLOPS, "tokens_per_rank_and_step": TOKENS}
        results = {"assumptions": assumptions, "lines": lines}
        save(
            arguments.out, f"python benchmarks/scaling.py --out benchmarks/results/{arguments.out.name}", results, text
        )


if __name__ == "__main__":
    main()
