"""Who lags in company? Losses on the held-out rows, after the same steps on the same rows, alone and jointly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ortholora.study.diagnose.blocks import as_figure
from ortholora.study.diagnose.products import over_groups

#: A task that alone takes away less than this share of its loss has not begun to learn: nothing can be said of it.
BEGUN = 0.05
#: In company it stands still where it surely takes away less than this share of what it does alone, …
STILL = 0.25
#: … and lags where it is surely less than this.
BEHIND = 0.67


def figures_of_pace(
    jointly: dict[int, np.ndarray], alone: Sequence[dict[int, np.ndarray]], tasks: Sequence[str]
) -> dict[str, Any]:
    """Compare the losses.

    The micro-batches are the same in all trainings, so that differences are taken within each of them.

    Args:
        jointly: Step → mean losses `[M, T]`.
        alone: For every task, step → its mean losses `[M, 1]`.
        tasks: Names of the T tasks.

    Returns:
        Task → `steps`, its losses at these `jointly` and `alone`, the loss that each took away (`jointly_gain`,
        `alone_gain`), what company costs (`behind`: the joint loss minus the other, at the end), the `share` of its
        own gain that the task has in company, and the `case`: `still`, `behind`, `level`, `ahead`, or `unknown`
        where the task learned too little alone.
    """
    return {
        task: _of_task({s: v[:, i] for s, v in jointly.items()}, {s: v[:, 0] for s, v in alone[i].items()})
        for i, task in enumerate(tasks)
    }


def _of_task(jointly: dict[int, np.ndarray], alone: dict[int, np.ndarray]) -> dict[str, Any]:
    steps = sorted(jointly)
    start, end = steps[0], steps[-1]
    own, company = alone[start] - alone[end], jointly[start] - jointly[end]
    gains = over_groups(own), over_groups(company)
    begun = float(gains[0].low) > 0 and float(gains[0].value) >= BEGUN * float(jointly[start].mean())
    return {
        "steps": steps,
        "jointly": [as_figure(over_groups(jointly[step]), ()) for step in steps],
        "alone": [as_figure(over_groups(alone[step]), ()) for step in steps],
        "alone_gain": as_figure(gains[0], ()),
        "jointly_gain": as_figure(gains[1], ()),
        "behind": as_figure(over_groups(jointly[end] - alone[end]), ()),
        "share": float(company.mean() / own.mean()) if begun else None,
        "case": _case(own, company) if begun else "unknown",
    }


def _case(own: np.ndarray, company: np.ndarray) -> str:
    def surely_below(share: float) -> bool:
        return float(over_groups(company - share * own).high) < 0

    if surely_below(STILL):
        return "still"
    if surely_below(BEHIND):
        return "behind"
    return "ahead" if float(over_groups(company - own).low) > 0 else "level"
