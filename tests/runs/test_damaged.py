"""A file of a run that is cut off or damaged is named, and no folder with a good checkpoint is given up for it."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stopping import StopAt, weights

from ortholora.errors import UserError
from ortholora.models.loading import check_files, load_card, load_model
from ortholora.runs.progress import Silent
from ortholora.runs.run import Run
from ortholora.runs.train import check_folder, ensure_record
from ortholora.runs.workspace import Workspace
from ortholora.trainers.resumable import check_resumable
from workspaces import JOINT, TASKS


def complaint(path: Path, check: Callable[[], object], kept: Path | None = None) -> UserError:
    """The message about a damaged file: its name, and a way out that deletes neither the run nor a good checkpoint."""
    with pytest.raises(UserError) as caught:
        check()
    error = caught.value
    assert path.name in f"{error.what} {error.found}", error
    assert "settings" not in error.what, error
    assert not re.search(rf"(delete|move) (only )?{re.escape(str(kept or path.parent))}(?![/\w])", error.todo), error
    return error


def change(path: Path, key: str, value: Any) -> None:
    """Set a dotted key of a JSON file; `...` removes it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    *above, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    node = content
    for part in above:
        node = node[part]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("backbone", None),
        ("backbone", "a\0b"),
        ("dtype", "float16"),
        ("dtype", ["float32"]),
        ("pooling", "men"),
        ("max_length", "x"),
        ("max_length", True),
        ("max_length", 0),
        ("tasks", []),
        ("tasks", "topic"),
        ("tasks.0", None),
        ("tasks.0.name", 1.5),
        ("tasks.0.name", "pair"),
        ("tasks.0.kind", ["classification"]),
        ("tasks.0.kind", "chat"),
        ("tasks.0.kind", "regression"),
        ("tasks.0.labels", ...),
        ("tasks.0.labels", [1, 2, 3]),
        ("tasks.0.labels", ["a", "a", "b"]),
        ("tasks.0.nmae", "x"),
        ("tasks.1.num_texts", 3),
        ("tasks.2.labels", ["a", "b"]),
        ("tasks.2.scale", 0.0),
        ("tasks.2.scale", float("inf")),
        ("tasks.2.shift", None),
        ("tasks.2.shift", ...),
    ],
)
def test_the_metadata(finished: Run, key: str, value: Any) -> None:
    path = finished.folder / "ortholora.json"
    change(path, key, value)
    error = complaint(path, lambda: load_card(finished.folder))
    assert f"delete only {finished.folder / 'result.json'}" in error.todo


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "LOKR"),
        ("peft_type", ...),
        ("r", "4"),
        ("r", True),
        ("lora_alpha", None),
        ("lora_dropout", "0"),
        ("alpha_pattern", ""),
        ("rank_pattern", {"query": 0}),
        ("target_modules", [None]),
        ("target_modules", 5),
        ("bias", "some"),
        ("use_rslora", "no"),
        ("layers_to_transform", "all"),
    ],
)
def test_the_adapters_configuration(finished: Run, key: str, value: Any) -> None:
    path = finished.folder / "adapter_config.json"
    change(path, key, value)
    complaint(path, lambda: check_files(finished.folder))


@pytest.mark.parametrize(("key", "value"), [("target_modules", "("), ("target_modules", ["nothing"])])
def test_what_only_peft_finds_is_one_message(finished: Run, key: str, value: Any) -> None:
    change(finished.folder / "adapter_config.json", key, value)
    with pytest.raises(UserError, match=re.escape(str(finished.folder))):
        load_model(finished.folder)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"F32", b"F99", 1))


def nan(path: Path) -> None:
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, path, {"format": "pt"})


def whole_numbers(path: Path) -> None:
    save_file({name: tensor.to(torch.int32) for name, tensor in load_file(path).items()}, path, {"format": "pt"})


@pytest.mark.parametrize("damage", [cut, empty, header, nan, whole_numbers])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "heads.safetensors"])
def test_weights_are_checked_before_other_runs_start(
    finished: Run, space: Workspace, whole: Path, name: str, damage: Callable[[Path], None]
) -> None:
    path = finished.folder / name
    damage(path)
    error = complaint(path, lambda: check_folder(finished, space))
    if (name, damage) != ("heads.safetensors", cut):
        return
    # The way out of the message keeps the checkpoint and ends with the bytes of an undisturbed run.
    result = finished.folder / "result.json"
    assert f"delete only {result}" in error.todo
    result.unlink()
    ensure_record(finished, space, progress := StopAt(99), None)
    assert progress.began == 6
    assert weights(finished.folder) == weights(whole)


def test_predictions_with_any_byte_changed(finished: Run, space: Workspace) -> None:
    path = finished.folder / "predictions.npz"
    whole = path.read_bytes()
    for position in range(0, len(whole), 101):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        with suppress(UserError):  # a byte that nobody reads changes nothing
            check_folder(finished, space)


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"topic/prediction": [3] * 48}, "3 to 3"),
        ({"topic/target": [-1] * 48}, "-1 to -1"),
        ({"score/prediction": ["1.5"] * 48}, "values of type <U3"),
    ],
)
def test_predictions_that_no_run_makes(finished: Run, space: Workspace, arrays: Any, found: str) -> None:
    path = finished.folder / "predictions.npz"
    with np.load(path) as archive:
        np.savez(path, **{**archive, **{name: np.array(values) for name, values in arrays.items()}})
    assert found in complaint(path, lambda: check_folder(finished, space)).found


@pytest.mark.parametrize(("key", "value"), [("seed", 1), ("method", "sum"), ("tasks", ["topic", "pair"])])
def test_a_result_of_another_run(finished: Run, space: Workspace, key: str, value: Any) -> None:
    path = finished.folder / "result.json"
    change(path, key, value)
    complaint(path, lambda: check_folder(finished, space))


def test_a_fingerprint_that_lost_a_letter_is_damage_and_no_other_setting(stopped: Run, space: Workspace) -> None:
    path = stopped.folder / "run.json"
    change(path, "fingerprint", "0" * 63)
    assert "is damaged" in complaint(path, lambda: check_folder(stopped, space)).what


def middle(path: Path) -> None:
    """Change a byte of the largest part of what `torch.save` wrote."""
    with zipfile.ZipFile(path) as archive:
        part = max(archive.infolist(), key=lambda info: info.file_size)
        inside = archive.read(part)
    content = path.read_bytes()
    position = content.index(inside) + len(inside) // 2
    path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])


def no_steps(path: Path) -> None:
    change(path, "global_step", "3")


def another_step(path: Path) -> None:
    change(path, "global_step", 2)


def unknown_key(path: Path) -> None:
    change(path, "no_such_key", 2)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.pt", cut),
        ("optimizer.pt", middle),
        ("optimizer.pt", Path.unlink),
        ("scheduler.pt", Path.unlink),
        ("rng_state.pth", empty),
        ("ortholora_state.pt", cut),
        ("ortholora_state.pt", Path.unlink),
        ("trainer_state.json", cut),
        ("trainer_state.json", Path.unlink),
        ("trainer_state.json", no_steps),
        ("trainer_state.json", another_step),
        ("trainer_state.json", unknown_key),
        ("adapter_model.safetensors", cut),
        ("adapter_model.safetensors", Path.unlink),
    ],
)
def test_a_checkpoint(stopped: Run, name: str, damage: Callable[[Path], None]) -> None:
    checkpoint = stopped.checkpoints / "checkpoint-3"
    check_resumable(checkpoint)
    damage(checkpoint / name)
    error = complaint(checkpoint / name, lambda: check_resumable(checkpoint), stopped.folder)
    assert "there is no other, so the run begins anew" in error.todo
    (stopped.checkpoints / "checkpoint-2").mkdir()
    error = complaint(checkpoint / name, lambda: check_resumable(checkpoint), stopped.folder)
    assert "checkpoint-2 is gone on from" in error.todo


def test_a_run_says_which_checkpoint_is_damaged(stopped: Run, space: Workspace) -> None:
    (stopped.checkpoints / "checkpoint-3" / "optimizer.pt").unlink()
    with pytest.raises(UserError, match=r"checkpoint-3 is damaged(.|\n)*optimizer.pt, which is not there"):
        ensure_record(stopped, space, Silent(), None)


@pytest.mark.parametrize(
    "name", ["ortholora.json", "adapter_config.json", "adapter_model.safetensors", "heads.safetensors"]
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(finished: Run, name: str) -> None:
    path = finished.folder / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"a pipe or a device|is no Ortho-LoRA run"):
        load_model(finished.folder)


def test_another_run_is_still_refused_for_its_settings(stopped: Run, space: Workspace) -> None:
    with pytest.raises(UserError, match="other settings"):
        check_folder(Run(JOINT, TASKS, 0, stopped.folder), space)
