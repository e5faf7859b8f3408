"""`diagnose` on the tiny tasks: what it measures, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workspaces
from ortholora.data.read import read_tasks
from ortholora.errors import NonFiniteLossError, UserError
from ortholora.runs.progress import Silent, Stopped
from ortholora.runs.workspace import Workspace
from ortholora.study.diagnose import training
from ortholora.study.diagnose.diagnose import diagnose
from ortholora.study.diagnose.gradients import HeldOut
from ortholora.study.diagnose.rows import Groups, deal, hold_out
from ortholora.study.diagnose.training import gradient_points, points_of
from ortholora.study.diagnose.transfer import measure_transfer

STEPS, ROWS = 5, 24
GROUPS = Groups(8, 3)


def data(**sections: Any) -> tuple[Any, Any]:
    config = workspaces.config(**sections)
    return config, read_tasks(config, base=workspaces._folder(), data_dir=None)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """After three joint steps; the held-out rows are in the place of the dev rows. To be left as it is."""
    config, tasks = data(lora={"dropout": 0.1}, training={"steps": 3, "save_every": 0, "warmup_steps": 1})
    workspace = Workspace(config, hold_out(tasks, GROUPS, 0))
    run = workspaces.Run(workspaces.JOINT, workspaces.TASKS, 0, tmp_path_factory.mktemp("run"))
    made = workspaces.build_trainer(run, workspace, Silent())
    made.train()
    return made


def state_of(trainer: Any) -> list[torch.Tensor]:
    optimizer = trainer.optimizer.state_dict()
    numbers = [torch.as_tensor(v) for s in optimizer["state"].values() for v in s.values()]
    rates = [torch.tensor([g["lr"], *g["betas"]]) for g in optimizer["param_groups"]]
    now = [*workspaces.weights(trainer).values(), *numbers, *rates, torch.get_rng_state()]
    return [value.clone() for value in now]


@pytest.fixture(scope="module")
def measured(trainer: Any) -> Any:
    before = state_of(trainer)
    grads = {name: p.grad for name, p in trainer.model.named_parameters()}
    held = HeldOut(trainer, GROUPS)
    found = held.gradients()
    transfer = measure_transfer(held, found.halves)
    after = state_of(trainer)
    assert len(before) == len(after)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True)), "the training was changed"
    assert all(p.grad is grads[name] for name, p in trainer.model.named_parameters())
    assert "forward" not in vars(next(m for n, m in trainer.model.named_modules() if n.endswith("lora_A.default")))
    assert trainer.model.training
    return held, found, transfer


def own_gradients(trainer: Any, group: int) -> dict[str, torch.Tensor]:
    """Slowly: each task's mean loss over the micro-batch's rows, and `autograd.grad` of it."""
    model = trainer._bare_model().eval()
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if "lora_" in n), strict=True)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for task, entry in enumerate(trainer.tasks):
        rows = [
            {"features": entry.dev.row(i), "task": task, "target": float(entry.dev.targets[i])}
            for i in GROUPS.of(group)
        ]
        batch = trainer.collator(rows)
        loss = model.sum_losses(model(batch["inputs"], batch["task_ids"]), batch)[task] / GROUPS.rows
        for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
            found[name].append(gradient)
    model.train()
    return {name: torch.stack(values) for name, values in found.items()}


def test_one_backward_gives_what_separate_ones_give(trainer, measured):
    _, found, _ = measured
    slow = [own_gradients(trainer, k) for k in range(GROUPS.count)]
    for n, name in enumerate(found.names):
        gradients = torch.stack([part[name] for part in slow]).flatten(2).double().numpy()
        expected = np.einsum("kap,lbp->kalb", gradients, gradients)
        np.testing.assert_allclose(found.gram[n], expected, rtol=1e-3, atol=1e-5 * expected.max())
        for half, groups in enumerate(GROUPS.halves):
            mean = torch.stack([slow[k][name] for k in groups]).mean(0)
            torch.testing.assert_close(found.halves[name][half], mean, rtol=1e-3, atol=1e-5)
    assert {*found.roles} == {"A", "B"}


def test_losses_are_means_over_the_rows_of_a_micro_batch(measured):
    held, found, _ = measured
    np.testing.assert_allclose(found.losses, held.losses(), rtol=1e-4)
    np.testing.assert_allclose(held.losses([2, 5]), held.losses()[[2, 5]])


def test_a_step_is_a_real_one_and_first_order_predicts_it(trainer, measured):
    """The shorter the step, the closer is what happens to what the gradients say."""
    held, found, long = measured
    assert np.abs(long.changes.mean(0)).max() > 1e-2
    for group in trainer.optimizer.param_groups:
        group["lr"] = 3e-4  # the schedule of three steps has ended, and left 0
    transfer = measure_transfer(held, found.halves)
    for group in trainer.optimizer.param_groups:
        assert group["lr"] == 3e-4
        group["lr"] = 0.0
    changes = transfer.changes.mean(0)
    assert np.abs(changes).max() > 1e-4
    np.testing.assert_allclose(changes, transfer.predicted, rtol=0.1, atol=0.03 * np.abs(changes).max())


def test_measuring_on_the_way_changes_no_training(tmp_path):
    """The weights after the few steps are those of a training in which nobody looked."""
    config, tasks = data(training={"steps": 6, "save_every": 0})
    workspace = Workspace(config, hold_out(tasks, GROUPS, 0))
    seen = {}
    for name, points in (("looked", points_of(STEPS)), ("not", [STEPS])):
        run = workspaces.Run(workspaces.JOINT, workspaces.TASKS, 0, tmp_path / name)
        trainer = workspaces.build_trainer(run, workspace, Silent())
        held = HeldOut(trainer, GROUPS)

        def look(step: int, held: HeldOut = held, name: str = name) -> None:
            if name == "looked":
                measure_transfer(held, held.gradients().halves)

        trainer.add_callback(training._Looks(look, points, Silent()))
        trainer.train()
        assert trainer.state.global_step == STEPS
        seen[name] = workspaces.weights(trainer)
    assert all(torch.equal(value, seen["not"][key]) for key, value in seen["looked"].items())


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("diagnosed") / "out"
    config, tasks = data()
    return out, diagnose(config, tasks, out, STEPS, ROWS, compare=["ortholora", "compare", "my file.yaml"])


def test_all_figures_are_written(diagnosed):
    out, found = diagnosed
    stored = json.loads((out / "diagnosis.json").read_text(encoding="utf-8"))
    assert [point["step"] for point in stored["points"]] == gradient_points(STEPS) == [1, 3, 5]
    for point in stored["points"]:
        assert set(point["pairs"]) == {"topic~pair", "topic~score", "pair~score"}
        blocks = point["matrices"]["blocks"]
        assert (
            len(point["matrices"]["pairs"]["topic~pair"]["cosine"]) == len(blocks) == 2 * len(point["layers"]["blocks"])
        )
        assert point["parts"]["blocks"] == ["A", "B"]
        assert len(point["layers"]["noise_rows"]["pair"]) == len(point["layers"]["blocks"])
    assert stored["pace"]["topic"]["steps"] == [0, *gradient_points(STEPS)]
    assert stored["pace"]["topic"]["jointly"][0] == pytest.approx(stored["pace"]["topic"]["alone"][0])
    assert set(stored["transfer"]["topic"]) == set(found["tasks"])
    assert stored["verdict"]
    assert stored["settings"] | {"steps": STEPS, "count": 12, "rows": 2, "seed": 0} == stored["settings"]
    assert stored["next"].startswith("ortholora compare 'my file.yaml' --set 'study.methods=[")
    assert {"commit", "versions", "data", "config"} <= set(stored["provenance"])
    text = (out / "diagnosis.md").read_text(encoding="utf-8")
    assert all(sentence in text for sentence in found["verdict"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "in every layer after step 5" in page
    assert "rows are left out, because nothing is determined there" in page
    assert "<script" not in page
    assert page.count("<svg") == len(found["tasks"])
    assert not (out / ".saving").exists()
    assert not (out / ".lock").exists()


def test_finished_points_are_kept_and_the_rest_is_the_same(diagnosed, tmp_path, monkeypatch):
    _, found = diagnosed
    out = tmp_path / "out"
    config, tasks = data()

    class Impatient(Silent):
        stop_requested = False

        def step(self, done: int) -> None:
            self.stop_requested = done == 4  # after the points 0, 1 and 3

    with pytest.raises(Stopped, match="the joint training"):
        diagnose(config, tasks, out, STEPS, ROWS, Impatient())
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "points").glob("*.npz")}
    assert set(kept) == {"jointly-0.npz", "jointly-1.npz", "jointly-3.npz"}
    assert not (out / "diagnosis.json").exists()
    (out / "points" / "jointly-1.npz").write_bytes(b"damaged")
    patient, notes = Silent(), []
    monkeypatch.setattr(patient, "note", notes.append)
    again = diagnose(config, tasks, out, STEPS, ROWS, patient)
    assert notes[-1] == "jointly: 2 of 4 points are kept; its steps start anew."
    assert (out / "points" / "jointly-3.npz").stat().st_mtime_ns == kept["jointly-3.npz"]
    for name in ("points", "pace", "transfer", "verdict"):
        np.testing.assert_equal(again[name], found[name])
    monkeypatch.setattr(training, "build_trainer", None)  # a finished one trains nothing any more
    (out / "diagnosis.md").unlink()
    diagnose(config, tasks, out, STEPS, ROWS)
    assert (out / "diagnosis.md").is_file()


def test_the_start_as_it_is(tmp_path):
    config, tasks = data(training={"warmup_steps": 2})
    found = diagnose(config, tasks, tmp_path, 0, ROWS)
    assert [point["step"] for point in found["points"]] == [0]
    assert found["pace"] is None
    matrices = found["points"][0]["matrices"]
    for name, length in zip(matrices["blocks"], matrices["lengths"]["topic"], strict=True):
        assert "lora_B" in name or np.isnan(length)  # B = 0 hides A
    assert abs(found["transfer"]["topic"]["topic"]["change"]["value"]) > 0


def complaint(config: Any, tasks: Any, out: Path, *numbers: int) -> str:
    with pytest.raises(UserError) as caught:
        diagnose(config, tasks, out, *numbers)
    assert not (out / "diagnosis.json").exists()
    return str(caught.value)


def test_what_cannot_be_diagnosed(tmp_path):
    config, tasks = data()
    assert "--rows 8 or more" in complaint(config, tasks, tmp_path / "a", STEPS, 7)
    assert "use --rows 48" in complaint(config, tasks, tmp_path / "a", STEPS, 64)
    assert "--steps 7" in complaint(config, tasks, tmp_path / "a", 7, ROWS)
    alone = config.model_copy(update={"tasks": config.tasks[:1]})
    assert "two tasks or more" in complaint(alone, tasks[:1], tmp_path / "a", STEPS, ROWS)
    assert not (tmp_path / "a").exists()


def test_folders_of_others_are_left_alone(diagnosed, tmp_path):
    config, tasks = data()
    (tmp_path / "summary.json").write_text("{}")
    assert "of a run or a study" in complaint(config, tasks, tmp_path, STEPS, ROWS)
    (tmp_path / "file").write_text("")
    assert "a file" in complaint(config, tasks, tmp_path / "file", STEPS, ROWS)
    other = shutil.copytree(diagnosed[0], tmp_path / "other")
    (other / "diagnosis.json").unlink()
    assert "another fingerprint" in complaint(config, tasks, other, STEPS, ROWS - 2)


def test_one_class_in_a_half(tmp_path):
    config, tasks = data()
    rare = tasks[1]
    targets = [int(i < 3) for i in range(len(rare.train))]
    tasks[1] = dataclasses.replace(rare, train=dataclasses.replace(rare.train, targets=targets))
    message = complaint(config, tasks, tmp_path / "out", STEPS, 8)
    assert "'pair'" in message
    assert "raise --rows" in message


def test_a_loss_that_is_not_finite_is_named(trainer, monkeypatch):
    held = HeldOut(trainer, GROUPS)
    real = HeldOut._losses_of
    broken = torch.tensor([1.0, float("nan"), 1.0])
    monkeypatch.setattr(HeldOut, "_losses_of", lambda self, model, batch: real(self, model, batch) * broken)
    for measure in (held.losses, held.gradients):
        with pytest.raises(NonFiniteLossError, match="'pair'"):
            measure()


def test_rows_are_dealt():
    assert deal(192) == Groups(16, 12)
    assert deal(9) == Groups(8, 1)
    assert deal(24) == Groups(12, 2)
    assert deal(100) == Groups(10, 10)
    assert [list(half) for half in Groups(4, 2).halves] == [[0, 1], [2, 3]]
    assert list(Groups(4, 2).of(3)) == [6, 7]
    _, tasks = data()
    held = hold_out(tasks, Groups(8, 4), 0)
    for before, after in zip(tasks, held, strict=True):
        rows = [
            *zip(after.dev.texts, after.dev.targets, strict=True),
            *zip(after.train.texts, after.train.targets, strict=True),
        ]
        assert len(after.dev) == 32
        assert sorted(rows, key=repr) == sorted(zip(before.train.texts, before.train.targets, strict=True), key=repr)
