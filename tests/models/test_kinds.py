"""The table of kinds: each line keeps its contract, and a new kind is one subclass and one line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import language_workspaces
import workspaces
from ortholora import load
from ortholora.config.tasks.union import KINDS as TASKS
from ortholora.models.adapter import add_lora
from ortholora.models.build import make_card, wrap
from ortholora.models.card import ModelCard
from ortholora.models.heads import HeadSpec
from ortholora.models.kinds import KINDS, Kind, card_file, card_from_file, encode_task, model_of, spec_of
from ortholora.models.multitask import MultiTaskModel
from ortholora.models.saving import save_model
from tiny import write_backbone

SPACES = {"encoder": workspaces.workspace, "language": language_workspaces.workspace}


@pytest.fixture(scope="module", params=SPACES)
def space(request: pytest.FixtureRequest) -> Any:
    return SPACES[request.param]()


def test_every_kind_is_tried_here() -> None:
    assert {task.spec.kind for make in SPACES.values() for task in make().tasks} == set(KINDS)


def test_a_spec_comes_back_from_json(space: Any) -> None:
    card = make_card(space.config, space.tasks)
    content = card_file().validate_json(json.dumps(card.to_json()), strict=True)
    assert card_from_file(content) == card
    for task, spec in zip(space.tasks, card.tasks, strict=True):
        assert type(spec) is KINDS[task.spec.kind].spec
        assert (spec.name, spec.kind, spec.labels) == (task.name, task.spec.kind, task.labels)
        assert spec.metric == task.spec.metric
        assert spec.num_texts == (2 if task.name == "pair" else 1)


def test_the_tasks_of_a_run_share_a_model(space: Any) -> None:
    card = make_card(space.config, space.tasks)
    assert {KINDS[spec.kind].model for spec in card.tasks} == {model_of(card)}


def test_the_configuration_keeps_apart_what_different_models_learn() -> None:
    pairs = {(cls.learner, KINDS[kind].model) for kind, cls in TASKS.items()}
    assert len(pairs) == len({learner for learner, _ in pairs}) == len({model for _, model in pairs})


def test_an_encoded_row_knows_its_length_weight_and_text(space: Any) -> None:
    for task in space.tasks:
        found = encode_task(task, space.tokenizer, 12).train
        assert len(found) == len(task.train) == len(found.texts) == len(found.targets)
        assert all(found.lengths[i] == len(found.row(i)["input_ids"]) <= 12 for i in range(len(found)))
        assert min(found.weights) >= 1


def test_a_part_of_the_rows() -> None:
    space = workspaces.workspace()
    rows = encode_task(space.tasks[0], space.tokenizer, 40).dev
    part = rows.take(slice(1, None, 3))
    assert len(part) == len(range(1, len(rows), 3))
    assert [part.row(i) for i in range(len(part))] == [rows.row(i) for i in range(1, len(rows), 3)]
    assert list(part.texts) == list(rows.texts)[1::3]
    assert list(part.targets) == list(rows.targets)[1::3]
    assert (part.lengths, part.weights) == (rows.lengths[1::3], rows.weights[1::3])


@dataclass(frozen=True)
class Stars(HeadSpec):
    """Whole numbers."""

    def row_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.squeeze(-1) - targets).abs()

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(-1).round() + 3


def test_a_new_kind_is_a_subclass_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "stars", Kind(Stars, MultiTaskModel))
    task = workspaces.workspace().tasks[2]  # numbers
    task = type(task)(task.spec.model_copy(update={"kind": "stars"}), task.labels, task.train, task.dev)
    backbone = write_backbone(tmp_path / "backbone")
    card = ModelCard(str(backbone), None, "float32", "mean", 40, (spec_of(task),))
    bare = model_of(card).load_backbone(card.backbone, torch.float32, None)
    model = wrap(add_lora(bare, {"r": 2, "target_modules": "all-linear"}, 0, model_of(card).task_type), card)
    save_model(tmp_path / "run", model, card)
    predictor = load(tmp_path / "run", "cpu")
    assert isinstance(predictor.card.tasks[0], Stars)
    value = predictor.predict(task.name, "a great day")[0].value
    assert value is not None
    assert value == round(value)
