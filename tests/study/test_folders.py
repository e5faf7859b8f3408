"""Where the runs of a study lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortholora.study.folders import adapter_to_try


@pytest.mark.parametrize(("judged", "expected"), [("ortho", "out/runs/ortho/seed-3"), (None, "out/runs/joint/seed-3")])
def test_the_adapter_to_try_is_the_judged_rules_or_else_joint_trainings(judged, expected):
    assert adapter_to_try(Path("out"), {"recovered_method": judged, "seeds": [3, 0]}) == Path(expected)
