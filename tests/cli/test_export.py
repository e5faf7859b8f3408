"""`export`: a merged model that plain transformers loads, with the outputs of the run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import Cli
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import ortholora
from ortholora.errors import UserError
from ortholora.models import export as exporting
from ortholora.models.card import ModelCard
from ortholora.models.export_page import export_page
from ortholora.models.heads import HeadSpec
from ortholora.models.language import LanguageModel
from tiny_language import language_config, write_language_model

#: After the page's own lines.
ASK = """
import sys
print(json.dumps({
    "topic": outputs("topic", ["the goal was fine", "bank"]).softmax(-1).tolist(),
    "pair": outputs("pair", ["the goal was fine"], ["yes indeed"]).softmax(-1).tolist(),
    "score": outputs("score", ["the goal was fine", "bank"]).squeeze(-1).tolist(),
}))
assert not {"peft", "ortholora"} & {name.partition(".")[0] for name in sys.modules}
"""


def snippet_of(page: str) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return found


def test_the_lines_of_the_page_give_the_outputs_of_the_run(cli: Cli, trained: Path, home: Path) -> None:
    shown = cli.ok("export", trained, "--out", "model")
    assert "heads of 3 tasks" in shown
    names = {path.name for path in (home / "model").iterdir()}
    assert names >= {"model.safetensors", "config.json", "heads.safetensors", "heads.json", "README.md"}
    assert not [name for name in names if name.startswith("adapter")]
    assert not list(home.glob(".*"))  # nothing half-made is left beside it
    code = snippet_of((home / "model" / "README.md").read_text(encoding="utf-8")) + ASK
    done = subprocess.run([sys.executable, "-c", code], cwd=home / "model", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "newly initialized" not in done.stderr
    there = json.loads(done.stdout.splitlines()[-1])
    run = ortholora.load(trained, "cpu")
    for task, texts in {"topic": ["the goal was fine", "bank"], "pair": [("the goal was fine", "yes indeed")]}.items():
        for row, answer in zip(there[task], run.predict(task, texts), strict=True):
            assert row == pytest.approx(
                [answer.scores[label] for label in run.card.tasks[run.card.index_of(task)].labels], abs=1e-5
            )
    values = [answer.value for answer in run.predict("score", ["the goal was fine", "bank"])]
    assert there["score"] == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_the_page_pools_as_the_model_does(pooling: str) -> None:
    from ortholora.models.multitask import pool

    states, mask = torch.randn(3, 4, 5), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 1]])
    card = ModelCard("a/b", None, "float32", pooling, 16, (HeadSpec("t", "classification", ("x", "y")),))
    lines = snippet_of(export_page(card, with_heads=True, options="")).splitlines()
    start, end = (next(i for i, line in enumerate(lines) if part in line) for part in ("mask = rows", "given ="))
    known = {"states": states, "mask": mask, "torch": torch}
    exec("\n".join(line.strip() for line in lines[start + 1 : end]), known)
    torch.testing.assert_close(known["pooled"], pool(states, mask, pooling))


def test_names_from_data_are_not_in_the_page() -> None:
    odd = HeadSpec("<script>", "classification", ("---\nlicense: mit", "``` x"))
    page = export_page(ModelCard("a/b", None, "float32", "mean", 16, (odd,)), with_heads=True, options="")
    assert "<script>" not in page
    assert "license" not in page
    assert "base_model: a/b" in page
    local = ModelCard("/home/me/secret", None, "float32", "mean", 16, (odd,))
    assert "secret" not in export_page(local, with_heads=True, options="")


def test_a_language_model(cli: Cli, home: Path) -> None:
    config = language_config(home, training={"steps": 3, "save_every": 0})
    cli.ok("train", config, "--out", home / "run")
    assert "AutoModelForCausalLM" in cli.ok("export", "run", "--out", "deep/model")
    folder = home / "deep" / "model"
    assert not (folder / "heads.json").exists()
    run = ortholora.load(home / "run", "cpu")
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)("sky in colour :", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        ours = run.model.peft_model(**batch).logits
        torch.testing.assert_close(plain(**batch).logits, ours, rtol=1e-4, atol=1e-5)
        with run.model.peft_model.disable_adapter():  # so that the comparison can fail
            assert not torch.allclose(run.model.peft_model(**batch).logits, ours, rtol=1e-4, atol=1e-5)
    namespace: dict[str, object] = {}
    code = snippet_of((folder / "README.md").read_text(encoding="utf-8"))
    exec(code.replace('from_pretrained(".")', f"from_pretrained({str(folder)!r})"), namespace)


def language_model(folder: Path, target: str) -> LanguageModel:
    base = AutoModelForCausalLM.from_pretrained(write_language_model(folder))
    base.config.tie_word_embeddings = True
    base.tie_weights()
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=[target], init_lora_weights=False))
    return LanguageModel(adapted, []).eval()


CARD = ModelCard("a/b", None, "float32", "mean", 16, ())


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_a_tied_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`lm_head`, whose weight another part"):
        exporting._merge(language_model(tmp_path, "lm_head"), CARD)
    exporting._merge(language_model(tmp_path, "q_proj"), CARD)


def test_outputs_that_change_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.get_delta_weight", lambda self, name: self.weight * 0.5)
    with pytest.raises(UserError, match="outputs that differ by"):
        exporting._merge(language_model(tmp_path, "q_proj"), CARD)


def test_a_weak_adapter_that_rounding_takes_away_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of it is no matter of how long the outputs are."""
    weak = language_model(tmp_path, "q_proj")
    with torch.no_grad():
        for name, weight in weak.named_parameters():
            if "lora_B" in name:
                weight.mul_(1e-2)
    card = replace(CARD, dtype="bfloat16")
    exporting._merge(deepcopy(weak), card)
    nothing = lambda layer, name: torch.zeros_like(layer.weight)  # noqa: E731 - as above
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.get_delta_weight", nothing)
    with pytest.raises(UserError, match="100% of what the adapter does is rounded away"):
        exporting._merge(weak, card)


def test_bad_input(cli: Cli, run: Path, home: Path) -> None:
    (home / "full").mkdir()
    (home / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    assert "`mine.txt`" in cli.complaint("export", run, "--out", "full")
    assert "a file" in cli.complaint("export", run, "--out", "tiny.yaml")
    assert "is no Ortho-LoRA run" in cli.complaint("export", home / "nothing", "--out", "model")
    (run / "heads.safetensors").write_bytes(b"x")
    cli.complaint("export", run, "--out", "model")
    assert not (home / "model").exists()
    assert [path.name for path in (home / "full").iterdir()] == ["mine.txt"]


def test_a_full_disk_leaves_nothing(cli: Cli, trained: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_write_heads", full)
    assert "No space left" in cli.complaint("export", trained, "--out", "model")
    assert not (home / "model").exists()
    assert not list(home.glob(".*"))
