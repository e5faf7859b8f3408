"""Law 4 with DDP, Accelerate and FSDP2: two and three ranks equal one process on the joined batch."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forked import in_ranks
from test_scaling import scaling

from . import _models as models
from . import _ranks as ranks
from ._asserts import assert_close, assert_same
from ._ranks_each import work

pytestmark = pytest.mark.slow

#: Everything that both numbers of ranks run; the second list, two ranks only.
WAYS = ["accelerate", "fsdp", "fsdp general path", "fsdp after"]
MORE_WAYS = ["accelerate fsdp", "fsdp kept", "fsdp checkpointing", "fsdp replicas", "fsdp never resharded"]


@functools.cache
def started(world: int, folder: Path) -> list[dict[str, Any]]:
    """What each rank computed: starting the processes is what takes long."""
    folder.mkdir()
    in_ranks(world, work, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def of_ranks(folder: Path) -> Any:
    return lambda world: started(world, folder / str(world))


@functools.cache
def alone(world: int, case: ranks.Case) -> tuple[list[ranks.Step], Any, Any]:
    return ranks.train_one(case, world)


def case_of(world: int, **settings: Any) -> ranks.Case:
    return ranks.Case(rank=2 if world == 3 else 3, **settings)


def assert_steps(found: list[ranks.Step], expected: list[ranks.Step], tolerance: float = 1e-4) -> None:
    for step, one in zip(found, expected, strict=True):
        assert_same(step.gradients, one.gradients, tolerance)
        assert_close(step.gram, one.gram, tolerance)
        assert_close(step.weights, one.weights, 10 * tolerance)
        assert torch.equal(step.present, one.present)


def assert_agree(of_ranks: list[list[ranks.Step]]) -> None:
    """Bit for bit: no rank may decide alone."""
    for steps in of_ranks[1:]:
        for step, first in zip(steps, of_ranks[0], strict=True):
            assert torch.equal(step.gram, first.gram)
            assert torch.equal(step.weights, first.weights)
            assert all(torch.equal(step.gradients[name], g) for name, g in first.gradients.items())


@pytest.mark.parametrize(("world", "way"), [*((w, way) for w in (2, 3) for way in WAYS), *((2, w) for w in MORE_WAYS)])
def test_ranks_are_one_rank_on_the_joined_batch(of_ranks: Any, world: int, way: str) -> None:
    if way == "accelerate fsdp" and way not in of_ranks(world)[0]:
        pytest.skip("this Accelerate has no FSDP2 yet")
    found = [rank[way] for rank in of_ranks(world)]
    expected = alone(world, case_of(world))[0]
    for steps in found:
        assert_steps(steps, expected)
    assert_agree(found)
    assert sum(int((step.gram < 0).sum()) for step in expected) > 20
    assert sorted(step.present.tolist() for step in expected)[:2] == [[False, True, True], [True, False, True]]


@pytest.mark.parametrize(
    ("way", "settings", "tolerance"),
    [
        ("all", {"block": "all"}, 1e-4),
        ("fsdp all", {"block": "all"}, 1e-4),
        ("sum", {"rule": "sum"}, 1e-4),
        ("halves", {"rule": "balanced-signal"}, 1e-4),
        ("fsdp halves", {"rule": "balanced-signal"}, 1e-4),
        ("bfloat16", {"buffer_dtype": torch.bfloat16}, 3e-2),
    ],
)
@pytest.mark.filterwarnings("ignore:The rule compares two halves")
def test_other_settings(of_ranks: Any, way: str, settings: dict[str, Any], tolerance: float) -> None:
    found = [rank[way] for rank in of_ranks(2)]
    for steps in found:
        assert_steps(steps, alone(2, ranks.Case(**settings))[0], tolerance)
    assert_agree(found)


def test_a_memory_is_whole_on_every_rank(of_ranks: Any) -> None:
    expected, ortho, _ = alone(2, ranks.Case(rule="engine._rules:Means"))
    for rank in of_ranks(2):
        steps, means = rank["memory"]
        assert_steps(steps, expected)
        for found, one in zip(means["sums"], ortho.state_dict()["means"]["sums"], strict=True):
            assert_close(found, one, 1e-4)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("way", ["adatask", "fsdp adatask"])
def test_a_preconditioner_is_whole_on_every_rank(of_ranks: Any, world: int, way: str) -> None:
    expected, ortho, _ = alone(world, case_of(world, rule="adatask"))
    one = ortho.state_dict()["precondition"]
    found = [rank[way] for rank in of_ranks(world)]
    for steps, state in found:
        assert_steps(steps, expected)
        assert state["squares"].keys() == one["squares"].keys()
        for index, squares in one["squares"].items():
            assert_close(state["squares"][index], squares, 1e-4)
            assert torch.equal(state["seen"][index], one["seen"][index])
            assert torch.equal(state["squares"][index], found[0][1]["squares"][index])
    assert_agree([steps for steps, _ in found])


@pytest.mark.parametrize("world", [2, 3])
def test_task_gradients_are_full_and_of_this_rank(of_ranks: Any, world: int) -> None:
    found = [rank["task gradients"] for rank in of_ranks(world)]
    of_ddp = [rank["ddp"] for rank in found]
    for rank in found:
        assert_same(rank["fsdp"], rank["ddp"])
    assert not any(g[2].any() for g in of_ddp[0].values())  # task c is on the second rank only
    assert any(g[2].any() for g in of_ddp[1].values())
    case = case_of(world)
    sample = ranks.build(case)
    ortho = ranks.attach(sample.model, case)
    row = 0
    for parts in ranks.STEPS[world][0]:
        for ids in parts:
            with ortho.batch(torch.tensor(ids)):
                models.token_losses(sample.model, sample.rows(slice(row, row + len(ids)))).sum().backward()
            row += len(ids)
    joined: dict[str, Tensor] = {name: sum(rank[name] for rank in of_ddp) for name in of_ddp[0]}  # type: ignore[misc]
    assert_same(joined, ortho.task_gradients(), 1e-4)


@pytest.mark.parametrize("world", [2, 3])
def test_one_reduction_per_step(of_ranks: Any, world: int) -> None:
    """However many micro-batches; and the bytes of benchmarks/scaling.py."""
    for rank in of_ranks(world):
        steps, traffic, shapes = rank["counted"]
        assert_steps(steps, alone(world, case_of(world))[0])
        tasks = len(ranks.TASKS)
        formula = scaling().sent(shapes, tasks, world)
        flags = scaling().flags(sum(n for n, _ in shapes), tasks, world)
        for k, (calls, sent) in enumerate(traffic):
            if k < 2:  # compared with `.grad`: everything everywhere
                assert calls == {"all_reduce": 1 + len(shapes)}
                assert sent == pytest.approx(formula["whole"] + flags)
                continue
            scattered, left = sum(n >= world for n, _ in shapes), sum(n % world > 0 for n, _ in shapes)
            assert scattered > 0
            assert (left > 0) == (world == 3)
            assert calls == {
                "all_reduce": 2 + left,  # flags, Gram, and the matrices that are left over
                "reduce_scatter_single": scattered,
                "all_gather_single": scattered,
            }
            assert sent == pytest.approx(formula["spread"] + flags)


def test_gloo_reduces_everything_everywhere(of_ranks: Any) -> None:
    """Its reduce-scatter sends as much as its all-reduce, so dealing matrices out would cost more, not less."""
    found = [rank["gloo"] for rank in of_ranks(2)]
    for steps, traffic, shapes in found:
        assert_steps(steps, alone(2, case_of(2))[0])
        assert [calls for calls, _ in traffic] == [{"all_reduce": 1 + len(shapes)}] * len(steps)
    assert_agree([steps for steps, _, _ in found])


def test_a_gradient_that_was_not_captured(of_ranks: Any) -> None:
    for rank in of_ranks(2):
        for found in rank["leftover"].values():
            assert re.search(r"received a gradient that was not captured(?s:.*)zero the gradients", found), found


def test_ranks_try_a_model_out_together(of_ranks: Any) -> None:
    """A forward is a collective under FSDP2: all run it, and all refuse what one refuses."""
    first, second = (rank["tried out"] for rank in of_ranks(2))
    assert re.search(r"position\.lora_[AB].* cannot be split by row", first)
    assert "Another rank refused the model" in second


def test_layers_are_fused_under_fsdp2(of_ranks: Any) -> None:
    assert all("10 layers fused, 0 by the general path" in rank["summary"] for rank in of_ranks(2))


def test_what_fsdp2_cannot_do_is_refused(of_ranks: Any) -> None:
    for rank in of_ranks(2):
        assert re.search(r"lora_embedding_A.* cannot be captured under FSDP2(?s:.*)train with DDP", rank["task-pure"])
        assert re.search(r"sharded in a way(?s:.*)a mesh of 1 among 2 ranks(?s:.*)one data-parallel mesh", rank["part"])
