"""500 mutated configurations, command lines, questions, run folders and data files; `mutate.py` does any number."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from judging import Case, judge
from mutate import KINDS, mutate, prepare

from ortholora.errors import UserError


def test_five_hundred_mutations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = prepare(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done, wrong = mutate(sources, 500, seed=0)
    assert done == dict.fromkeys(KINDS, 125)
    assert not wrong, "\n".join(wrong)


def refuse() -> None:
    raise UserError("what", expected="a", found="b", todo="c")


def endless() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        (Case("refused", refuse, nonsense=True), None),
        (Case("accepted", lambda: None), None),
        (Case("accepted", lambda: None, nonsense=True), "accepted nonsense"),
        (Case("a traceback", lambda: {}["x"]), "traceback: KeyError"),
        (Case("a hang", endless), "hang"),
    ],
)
def test_the_judge(case: Case, verdict: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judging.COMPUTING", 0.1)
    found = judge(case)
    assert found == verdict if verdict is None else str(found).startswith(verdict)


def test_the_same_seed_makes_the_same_mutations() -> None:
    seen: list[str] = []
    sources = {"any": [lambda draw: Case(str(draw.random()), lambda: None)] * 3}
    for seed in (1, 1, 2):
        mutate({"any": [lambda draw, s=source: _noted(seen, s(draw)) for source in sources["any"]]}, 5, seed)
    assert seen[:5] == seen[5:10] != seen[10:]
    assert random.Random("1/0").random() == random.Random("1/0").random()


def _noted(seen: list[str], case: Case) -> Case:
    seen.append(case.what)
    return case
