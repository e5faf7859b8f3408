"""Mutated folders of a finished and of a stopped run."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml
from judging import Case, Source, flip, paths, put

from ortholora.cli.reading import settings_of
from ortholora.models.loading import load_card, load_model
from ortholora.runs.hub_files import files_to_push
from ortholora.runs.record import read_record
from ortholora.runs.run import Run
from ortholora.runs.train import check_folder
from ortholora.runs.workspace import Workspace
from ortholora.study.statistics.conflict import conflict_sentences, summarise_conflict
from ortholora.trainers import checkpoints
from ortholora.trainers.resumable import check_resumable
from workspaces import ORTHO, TASKS

#: What a place in a JSON file may hold instead.
VALUES: list[Any] = [
    ...,
    None,
    True,
    0,
    1,
    -1,
    1.5,
    10**30,
    "",
    "x",
    "a\0b",
    [],
    {},
    [None],
    ["x"],
    [[]],
    {"x": None},
    float("nan"),
    "x" * 5000,
    [0.5],
    {"0": 1},
    -(10**12),
    "0",
    "1e999",
]
#: Files that cannot be cut or emptied without being noticed.
WHOLE = [
    "ortholora.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "heads.safetensors",
    "run.json",
    "result.json",
    "predictions.npz",
]
STATE = [
    "trainer_state.json",
    "optimizer.pt",
    "scheduler.pt",
    "ortholora_state.pt",
    "rng_state.pth",
    "adapter_model.safetensors",
]


def sources(finished: Path, stopped: Path, space: Workspace, scratch: Path) -> list[Source]:
    """The ways to mutate a folder; the two are copied to `scratch` first."""
    copies = {
        name: Path(shutil.copytree(folder, scratch / name))
        for name, folder in {"finished": finished, "stopped": stopped}.items()
    }
    (checkpoint,) = (copies["stopped"] / "checkpoints").iterdir()
    model = [path for path in copies["finished"].iterdir() if path.is_file() and not path.name.startswith(".")]
    state = [path for path in checkpoint.iterdir() if path.is_file()]
    whole = {path: path.read_bytes() for path in [*model, *state, copies["stopped"] / "run.json"]}

    def case(path: Path, what: str, content: bytes, nonsense: bool) -> Case:
        def run() -> None:
            path.write_bytes(content)
            try:
                _use_checkpoint(copies["stopped"], space) if path.parent != copies["finished"] else _use(
                    path.parent, space
                )
            finally:
                path.write_bytes(whole[path])

        return Case(f"{path.parent.name}/{path.name}: {what}", run, nonsense)

    def bytes_of(draw: random.Random) -> Case:
        path = draw.choice(list(whole))
        what, content = flip(draw, whole[path])
        return case(path, what, content, False)

    def cut(draw: random.Random) -> Case:
        folder = draw.choice([copies["finished"], checkpoint])
        path = folder / draw.choice(WHOLE if folder == copies["finished"] else STATE)
        content = whole[path][: draw.randrange(len(whole[path]) - 2)]
        return case(path, f"cut to {len(content)} bytes", content, True)

    def value(draw: random.Random) -> Case:
        path = draw.choice([path for path in whole if path.suffix in (".json", ".yaml")])
        content = yaml.safe_load(whole[path]) if path.suffix == ".yaml" else json.loads(whole[path])
        place, new = draw.choice(list(paths(content))), draw.choice(VALUES)
        text = (yaml.safe_dump if path.suffix == ".yaml" else json.dumps)(put(content, place, new))
        return case(path, f"{'.'.join(map(str, place))} = {new!r}"[:120], text.encode(), _is_nonsense(path, place, new))

    return [bytes_of, cut, value, value, value]


def _is_nonsense(path: Path, place: tuple[Any, ...], new: Any) -> bool:
    """Whether the value is of a wrong type in a place whose type is known to this test."""
    if path.parent.name.startswith("checkpoint") and path.name != "trainer_state.json":
        return False  # not read: a resumed run has the settings from its configuration
    numbers = {
        "ortholora.json": ["max_length"],
        "adapter_config.json": ["r", "lora_alpha"],
        "result.json": ["seed"],
        "trainer_state.json": ["global_step", "max_steps"],
    }
    texts = {
        "ortholora.json": ["name", "kind", "backbone", "pooling", "dtype"],
        "run.json": ["fingerprint"],
        "adapter_config.json": ["bias", "peft_type"],
        "result.json": ["method"],
    }
    if place[-1] in numbers.get(path.name, []) and len(place) == 1:
        return isinstance(new, bool | str | list | dict | None) or new != new or new in (-1, 0, -(10**12))
    if place[-1] in texts.get(path.name, []) and len(place) in (1, 3):
        return (new is not ... and not isinstance(new, str)) or new in ("", "a\0b")
    return False


def _use(folder: Path, space: Workspace) -> None:
    """All that `train`, `compare`, `evaluate`, `predict` and `push` read of a finished run."""
    check_folder(Run(ORTHO, TASKS, 0, folder), space)
    record = read_record(folder)
    conflict_sentences(summarise_conflict([record]))
    load_card(folder)
    settings_of(folder)
    files_to_push(folder)
    load_model(folder)


def _use_checkpoint(folder: Path, space: Workspace) -> None:
    check_folder(Run(ORTHO, TASKS, 0, folder), space)
    last = checkpoints.last(folder / "checkpoints")
    assert last is not None
    check_resumable(last)
