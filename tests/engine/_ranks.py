"""What `test_ranks.py` trains in one process and `_ranks_each.py` in several: the same rows, in unequal parts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ortholora.engine import OrthoLora

from . import _models as models

TASKS = ["a", "b", "c"]

#: Task ids of each rank's micro-batches: task c is on one rank only, nobody has b in step 1 or a in step 4, a
#: rank has a single row in step 3. The first two steps are checked (reduced whole), the others are not.
STEPS: dict[int, list[list[list[list[int]]]]] = {
    2: [
        [[[0, 1, 0, 0]], [[2, 1, 1, 2]]],
        [[[0, 0, 0, 0]], [[2, 2, 2, 2]]],
        [[[0, 1], [1, 1, 0, 1]], [[2, 2, 2, 1], [1, 2]]],
        [[[1]], [[0, 2, 1, 0, 2]]],
        [[[1, 1, 2]], [[1, 1, 1, 1]]],
    ],
    3: [
        [[[0, 1, 0, 0]], [[2, 1, 1]], [[1]]],
        [[[0, 0, 0, 0]], [[2, 2]], [[0, 0]]],
        [[[0, 1], [1, 1, 0, 1]], [[1, 0], [1]], [[2, 2, 2, 1], [1, 2]]],
        [[[1]], [[0, 2, 1, 0, 2]], [[0, 1, 0]]],
        [[[1, 1, 2]], [[1, 1, 1, 1]], [[1, 2]]],
    ],
}


@dataclass(frozen=True)
class Case:
    """One way to train: `rank` and `checkpointing` of the model, the rest as in `OrthoLora`."""

    rule: str = "ortho"
    block: Any = "matrix"
    rank: int = 3
    buffer_dtype: torch.dtype = torch.float32
    fused: bool = True
    checkpointing: bool = False


@dataclass
class Step:
    """What a step left behind; every tensor full, whatever the ranks hold."""

    gradients: dict[str, Tensor]
    gram: Tensor
    weights: Tensor
    present: Tensor


def build(case: Case) -> models.Sample:
    torch.manual_seed(3)
    sample = models.bert(96, 3, r=case.rank)
    if case.checkpointing:
        sample.model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    return sample


def attach(model: nn.Module, case: Case) -> OrthoLora:
    return OrthoLora(model, TASKS, case.rule, case.block, seed=5, fused=case.fused, buffer_dtype=case.buffer_dtype)


def full(tensor: Tensor) -> Tensor:
    """The whole of a DTensor (a collective); a plain tensor itself."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def train(
    case: Case,
    ranks: int,
    mine: range,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    late: Callable[[nn.Module], nn.Module] = lambda model: model,
    sync: Callable[[nn.Module, bool], Any] = lambda model, last: nullcontext(),
    around_resolve: Callable[[], Any] = nullcontext,
) -> tuple[list[Step], OrthoLora, nn.Module]:
    """Train the steps' rows of some ranks (`mine`) in this process.

    Args:
        case: The settings.
        ranks: Among how many ranks the rows are shared out.
        mine: The ranks whose rows this process takes.
        wrap: Makes the model distributed before OrthoLora is built; `late`, after it.
        late: See `wrap`.
        sync: Context of a micro-batch, given whether it is the last one of the step.
        around_resolve: Context of every resolve.
    """
    sample = build(case)
    model = wrap(sample.model)
    ortho = attach(model, case)
    model = late(model)
    optimizer = torch.optim.SGD(models.lora_parameters(model).values(), lr=1e-2)
    steps, row = [], 0
    for parts_of in STEPS[ranks]:
        for rank, parts in enumerate(parts_of):
            for k, ids in enumerate(parts):
                rows = slice(row, row + len(ids))
                row = rows.stop
                if rank not in mine:
                    continue
                with (
                    sync(model, k == len(parts) - 1),
                    ortho.batch(torch.tensor(ids), torch.arange(rows.start, rows.stop) % 2),
                ):
                    (models.token_losses(model, sample.rows(rows)).sum() / (ranks if len(mine) > 1 else 1)).backward()
        with around_resolve():
            stats = ortho.resolve()
        found = {name.removeprefix("module."): p for name, p in models.lora_parameters(model).items()}
        gradients = {name: full(p.grad) for name, p in found.items() if p.grad is not None}
        steps.append(Step(gradients, stats.gram, stats.weights, stats.present))
        optimizer.step()
        optimizer.zero_grad()
    return steps, ortho, model


def train_one(case: Case, ranks: int) -> tuple[list[Step], OrthoLora, nn.Module]:
    """One process on the joined batches of all ranks."""
    return train(case, ranks, range(ranks))
