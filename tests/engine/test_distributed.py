"""Law 4: N ranks under DDP are one rank on the joined batch."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from forked import in_ranks
from ortholora.engine import OrthoLora
from ortholora.trainers.task_losses import TaskLosses

from . import _models as models
from ._asserts import assert_close, assert_same, gradients

RANKS = 2
TASKS = ["a", "b", "c"]
CASES: list[tuple[str, Any]] = [
    ("ortho", "matrix"),
    ("ortho", "all"),
    ("sum", "matrix"),
    ("gradnorm(alpha=2, start=1)", "matrix"),
]

#: For each step: `.grad`, Gram, weights and the tasks that were present.
Result = list[tuple[dict[str, Tensor], Tensor, Tensor, Tensor]]

#: Rows of each rank's micro-batches, with their tasks: rank 1 never sees task 0, rank 0 never task 2,
#: and in the second step nobody sees task 1.
STEPS: list[list[list[list[int]]]] = [
    [[[0, 1, 0, 0]], [[2, 1, 1, 2]]],
    [[[0, 0, 0, 0]], [[2, 2, 2, 2]]],
    [[[0, 1], [1, 1, 0, 1]], [[2, 2, 2, 1], [1, 2]]],
]


def build() -> tuple[models.Sample, nn.Module]:
    torch.manual_seed(3)
    sample = models.bert(64, 3)
    return sample, sample.model


def rows_of(step: int, rank: int, part: int) -> slice:
    start = 16 * step + 8 * rank + 4 * part
    return slice(start, start + len(STEPS[step][rank][part]))


def loss_of(model: nn.Module, part: models.Sample, ids: list[int], seen: TaskLosses) -> Tensor:
    losses = models.token_losses(model, part)
    seen.add(losses.mean(1), ids)
    return losses.sum()


def train_ranks(rank: int, rule: str, block: Any) -> Result:
    sample, model = build()
    ortho = OrthoLora(model, TASKS, rule=rule, block=block)
    ddp, seen = DistributedDataParallel(model, find_unused_parameters=True), TaskLosses(TASKS, torch.device("cpu"))
    optimizer = torch.optim.SGD(models.lora_parameters(model).values(), lr=1e-2)
    result = []
    for step, ranks in enumerate(STEPS):
        parts = ranks[rank]
        for k, ids in enumerate(parts):
            ddp.require_backward_grad_sync = k == len(parts) - 1
            with ortho.batch(torch.tensor(ids)):
                loss_of(ddp, sample.rows(rows_of(step, rank, k)), ids, seen).backward()
        stats = ortho.resolve(losses=seen.take_step())
        result.append((gradients(model), stats.gram, stats.weights, stats.present))
        optimizer.step()
        optimizer.zero_grad()
    return result


def train_one(rule: str, block: Any) -> Result:
    sample, model = build()
    ortho, seen = OrthoLora(model, TASKS, rule=rule, block=block), TaskLosses(TASKS, torch.device("cpu"))
    optimizer = torch.optim.SGD(models.lora_parameters(model).values(), lr=1e-2)
    result = []
    for step, ranks in enumerate(STEPS):
        for rank, parts in enumerate(ranks):
            for k, ids in enumerate(parts):
                with ortho.batch(torch.tensor(ids)):
                    (loss_of(model, sample.rows(rows_of(step, rank, k)), ids, seen) / RANKS).backward()
        stats = ortho.resolve(losses=seen.take_step())
        result.append((gradients(model), stats.gram, stats.weights, stats.present))
        optimizer.step()
        optimizer.zero_grad()
    return result


class Branch(nn.Module):
    """Its second layer runs on some ranks only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        x = self.first(x)
        return self.second(torch.tanh(x)) if both else x


def branch() -> nn.Module:
    torch.manual_seed(5)
    return models.peft(Branch(), ["first", "second"])


def train_branch(rank: int) -> dict[str, Tensor]:
    model = branch()
    ortho = OrthoLora(model, TASKS[:2])
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    torch.manual_seed(6)
    x = torch.randn(RANKS, 4, 4)
    for _ in range(2):
        model.zero_grad()
        with ortho.batch([0, 1, 1, 0]):
            ddp(x[rank], both=rank == 1).square().sum().backward()
        ortho.resolve()
    return gradients(model)


def run_rank(folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank = dist.get_rank()
    try:
        results: dict[Any, Any] = {case: train_ranks(rank, *case) for case in CASES}
        results["branch"] = train_branch(rank)
        torch.save(results, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each rank computed, for all cases: starting the processes is what takes long."""
    folder = tmp_path_factory.mktemp("ranks")
    in_ranks(RANKS, run_rank, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranks_are_one_rank_on_the_joined_batch(ranks: list[dict[Any, Any]], case: tuple[str, Any]) -> None:
    expected = train_one(*case)
    for rank in ranks:
        for (written, gram, weights, present), one in zip(rank[case], expected, strict=True):
            assert_same(written, one[0], 1e-4)
            assert_close(gram, one[1], 1e-4)
            assert_close(weights, one[2], 1e-3)
            assert torch.equal(present, one[3])
    for first, second in zip(ranks[0][case], ranks[1][case], strict=True):
        # Bit for bit: no rank may decide alone.
        assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    conflicts = sum(int((gram < 0).sum()) for _, gram, _, _ in expected)
    assert [one[3].tolist() for one in expected] == [[True] * 3, [True, False, True], [True] * 3]
    assert conflicts > 0 or case[1] == "all"


@pytest.mark.slow
def test_a_layer_that_ran_on_one_rank_only(ranks: list[dict[Any, Any]]) -> None:
    """DDP then writes its gradient on the other rank, too: that is no uncaptured gradient."""
    model = branch()
    ortho = OrthoLora(model, TASKS[:2])
    torch.manual_seed(6)
    x = torch.randn(RANKS, 4, 4)
    for _ in range(2):
        model.zero_grad()
        for rank in range(RANKS):
            with ortho.batch([0, 1, 1, 0]):
                (model(x[rank], both=rank == 1).square().sum() / RANKS).backward()
        ortho.resolve()
    for found in ranks:
        assert len(found["branch"]) == 4
        assert_same(found["branch"], gradients(model), 1e-4)
