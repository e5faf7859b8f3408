"""`init_from`: a training that starts from a finished run, with tasks of old and new names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from stopping import StopAt, weights

import language_workspaces
import workspaces
from ortholora.errors import UserError
from ortholora.models.build import make_card
from ortholora.models.heads import HeadSpec
from ortholora.models.saving import ADAPTER, HEADS
from ortholora.models.starting import _in_units_of, digest_of
from ortholora.runs.build import make_model
from ortholora.runs.progress import Silent, Stopped
from ortholora.runs.record import read_record
from ortholora.runs.run import Run
from ortholora.runs.train import check_folder, ensure_record
from ortholora.runs.workspace import Workspace
from ortholora.study.compare import compare
from workspaces import ORTHO, TASKS


def few(space: Workspace, *names: str) -> Workspace:
    """The workspace of some of its tasks."""
    tasks = [task for task in space.config.tasks if task.name in names]
    config = space.config.model_copy(update={"tasks": tasks})
    return Workspace(config, [task for task in space.tasks if task.name in names])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two of the three tasks."""
    folder = tmp_path_factory.mktemp("source")
    space = few(workspaces.workspace(training={"steps": 3}), "topic", "score")
    ensure_record(Run(ORTHO, ("topic", "score"), 0, folder), space, Silent(), folder)
    return folder


def begun(space: Workspace) -> Any:
    return make_model(space.config, make_card(space.config, space.tasks), 1)


def test_adapter_and_heads_are_taken_and_a_new_task_has_a_new_head(source: Path) -> None:
    model = begun(workspaces.workspace(init_from=str(source)))
    new = begun(workspaces.workspace())
    saved, heads = load_file(source / ADAPTER), load_file(source / HEADS)
    adapter = get_peft_model_state_dict(model.peft_model)
    assert adapter.keys() == saved.keys()
    assert all(torch.equal(adapter[name], tensor) for name, tensor in saved.items())
    assert any(float(tensor.abs().max()) > 0 for name, tensor in adapter.items() if "lora_B" in name)
    for name, weight in model.extra_weights().items():
        assert torch.equal(weight, new.extra_weights()[name] if name.startswith("pair") else heads[name])


def test_a_task_is_added_and_the_record_says_to_what(source: Path, tmp_path: Path) -> None:
    """And a run that was stopped ends as one that was not."""
    space = workspaces.workspace(init_from=str(source))
    record = ensure_record(Run(ORTHO, TASKS, 0, tmp_path / "whole"), space, Silent(), None)
    assert record.provenance["init_from"] == {"run": str(source), "sha256": digest_of(source)}
    with pytest.raises(Stopped):
        ensure_record(Run(ORTHO, TASKS, 0, tmp_path / "cut"), space, StopAt(3), None)
    ensure_record(Run(ORTHO, TASKS, 0, tmp_path / "cut"), space, Silent(), None)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert "init_from" not in read_record(source).provenance


def test_a_folder_goes_on_from_the_same_adapter_only(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    space = workspaces.workspace(init_from=str(copy), training={"steps": 2, "save_every": 0})
    run = Run(ORTHO, TASKS, 0, tmp_path / "run")
    ensure_record(run, space, Silent(), None)
    check_folder(run, space)
    changed = {name: tensor + 1 for name, tensor in load_file(copy / ADAPTER).items()}
    save_file(changed, copy / ADAPTER)
    with pytest.raises(UserError) as caught:
        check_folder(run, space)
    assert f"another adapter in {copy}" in caught.value.found


def test_a_language_model(tmp_path: Path) -> None:
    """It has no heads: the adapter is all there is to take."""
    space = few(language_workspaces.workspace(training={"steps": 2, "save_every": 0}), "colour", "count")
    ensure_record(Run(ORTHO, ("colour", "count"), 0, tmp_path), space, Silent(), None)
    model = begun(language_workspaces.workspace(init_from=str(tmp_path)))
    saved, adapter = load_file(tmp_path / ADAPTER), get_peft_model_state_dict(model.peft_model)
    assert all(torch.equal(adapter[name], tensor) for name, tensor in saved.items())
    with pytest.raises(UserError, match="another model"):
        begun(workspaces.workspace(init_from=str(tmp_path)))


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"lora": {"r": 2}}, "r = 4 there, 2 here"),
        ({"lora": {"alpha": 3}}, "lora_alpha = 16.0 there, 3.0 here"),
        ({"lora": {"rslora": True}}, "use_rslora = False there, True here"),
        ({"lora": {"target_modules": ["query", "value"]}}, "other matrices, such as base_model"),
        ({"pooling": "cls"}, "pooling: mean"),
        ({"init_from": "nowhere"}, "no such folder"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_message(source: Path, changed: dict[str, Any], found: str) -> None:
    space = workspaces.workspace(**{"init_from": str(source), **changed})
    with pytest.raises(UserError) as caught:
        begun(space)
    assert found in caught.value.found


def test_a_task_with_other_labels_needs_another_name(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    card = json.loads((copy / "ortholora.json").read_text())
    card["tasks"][0]["labels"] = ["a", "b", "c"]
    (copy / "ortholora.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="another name") as caught:
        begun(workspaces.workspace(init_from=str(copy)))
    assert (caught.value.expected, caught.value.found) == (
        "a task of kind classification with the labels money, space, sport",
        "classification with the labels a, b, c",
    )


def test_a_number_keeps_its_units() -> None:
    """A head predicts the same numbers, whatever mean and deviation the new rows have."""
    old, new = (HeadSpec("x", "regression", None, *moments) for moments in ((3.0, 2.0), (-1.0, 5.0)))
    weight, bias, states = torch.randn(1, 4), torch.randn(1), torch.randn(6, 4)
    moved = _in_units_of(old, new, weight, bias)
    expected = old.predictions(states @ weight.T + bias)
    torch.testing.assert_close(new.predictions(states @ moved[0].T + moved[1]), expected)


def test_no_comparison_starts_from_it(source: Path, tmp_path: Path) -> None:
    space = workspaces.workspace(init_from=str(source))
    with pytest.raises(UserError, match="cannot be compared"):
        compare(space.config, space.tasks, tmp_path / "study")
    assert not (tmp_path / "study").exists()
