"""Which layouts of sharded parameters are refused, and how a full gradient is cut; `test_ranks.py` has real ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ortholora.engine.distributed import share_of
from ortholora.engine.sharded import is_sharded, local, part_of, refuse_layouts
from ortholora.errors import CaptureError


class Shard:
    def __init__(self, dim: int) -> None:
        self.dim = dim

    def is_shard(self) -> bool:
        return True


class Replicate:
    def is_shard(self) -> bool:
        return False


class _StridedShard(Shard):
    """What FSDP2 over tensor parallelism makes."""


def parameter(placements: list[Any], ranks: tuple[int, ...], at: tuple[int, ...], **mesh: Any) -> Any:
    sizes = {"size": lambda dim=None: torch.Size(ranks).numel() if dim is None else ranks[dim]}
    made = {"device_type": "cpu", "get_local_rank": lambda dim: at[dim], **sizes, **mesh}
    return SimpleNamespace(placements=placements, device_mesh=SimpleNamespace(**made), device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("ranks", "rows"),
    [(1, [[0, 1, 2, 3, 4]]), (2, [[0, 1, 2], [3, 4]]), (3, [[0, 1], [2, 3], [4]]), (4, [[0, 1], [2, 3], [4], []])],
)
def test_a_full_gradient_is_cut_as_fsdp2_cuts(ranks: int, rows: list[list[int]]) -> None:
    full = torch.arange(5.0)[:, None].expand(5, 2)
    for rank, expected in enumerate(rows):
        part = part_of(full, parameter([Shard(0)], (ranks,), (rank,)))
        assert part.shape == (len(expected), 2)
        assert part[:, 0].tolist() == expected
        replicated = part_of(full, parameter([Replicate(), Shard(0)], (2, ranks), (1, rank)))
        assert torch.equal(replicated, part)


def test_plain_tensors_are_left_alone() -> None:
    x = torch.ones(3, 2)
    assert not is_sharded(x)
    assert local(x) is x
    assert part_of(x, torch.ones(3, 2)) is x


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (parameter([_StridedShard(0), Shard(0)], (1, 1), (0, 0)), "placements"),
        (parameter([Shard(0)], (2,), (0,)), "a mesh of 2 among 1 ranks"),
        (parameter([Shard(0)], (1,), (0,), device_type="cuda"), "the parameter on cpu, the products on cuda"),
    ],
)
def test_layouts_that_are_refused(found: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=f"weight is sharded in a way that is not supported(?s:.*){message}"):
        refuse_layouts([SimpleNamespace(name="weight", parameter=found)])  # type: ignore[list-item]
    refuse_layouts([SimpleNamespace(name="weight", parameter=parameter([Shard(0)], (1,), (0,)))])  # type: ignore[list-item]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 448])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64])
def test_every_matrix_is_decided(count: int, ranks: int) -> None:
    """The spread ones by one rank each, the others by all; parts are equal, as the collectives need them."""
    shares = [share_of(count, ranks, rank) for rank in range(ranks)]
    decided = [[row for rows in share.held for row in range(rows.start, rows.stop)] for share in shares]
    spread = shares[0].spread
    assert sorted(row for rows in decided for row in rows if row < spread) == list(range(spread))
    assert all([row for row in rows if row >= spread] == list(range(spread, count)) for rows in decided)
    assert len({len(rows) for rows in decided}) == 1
    assert count - spread < ranks or ranks == 1
