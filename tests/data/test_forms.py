"""The forms of data: each has a reader, and every kind of task names one."""

from __future__ import annotations

from typing import get_args

import pytest

from ortholora.config.tasks.base import Form
from ortholora.config.tasks.union import KINDS
from ortholora.data.forms import FORMS


def test_every_form_has_a_reader() -> None:
    assert set(FORMS) == set(get_args(Form))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_names_a_form(kind: str) -> None:
    assert KINDS[kind].form in FORMS
