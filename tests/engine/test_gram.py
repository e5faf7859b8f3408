"""The two touches of the task gradients against the obvious products, for many tasks and in half precision."""

from __future__ import annotations

import pytest
import torch

from ortholora.engine import gram

from ._asserts import assert_close


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 21, 32])
def test_inner_products_and_sums(size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "COPIED_ELEMENTS", 3 * size * 10)  # half precision: three matrices at a time
    stack = torch.randn(7, size, 10).to(dtype)
    exact = stack.double()
    found = gram.inner_products(stack)
    assert found.dtype == torch.float32
    assert_close(found, torch.einsum("nsk,ntk->nst", exact, exact), 1e-6)
    assert_close(found, found.transpose(1, 2), 1e-6)
    weights = torch.randn(7, size)
    summed = gram.weighted_sum(weights, stack)
    assert summed.dtype == torch.float32
    assert_close(summed, torch.einsum("ns,nsk->nk", weights.double(), exact), 1e-6)
