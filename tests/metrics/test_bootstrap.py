"""The bootstrap over evaluation rows."""

from __future__ import annotations

import numpy as np
import pytest

from ortholora.metrics.bootstrap import draw_rows


@pytest.mark.parametrize(("rows", "resamples"), [(1, 3), (7, 100), (2_000_000, 1), (400_000, 5)])
def test_counts_sum_to_the_rows(rows, resamples):
    blocks = list(draw_rows(np.random.default_rng(0), rows, resamples))
    assert sum(block.shape[1] for block in blocks) == resamples
    for block in blocks:
        assert block.shape[0] == rows
        np.testing.assert_array_equal(block.sum(axis=0), rows)
