"""The page in an exported model's folder: what it is, and the lines that load it with plain transformers.

Names of tasks and labels come from data, so none is written into the page: `heads.json` has them.
"""

from __future__ import annotations

from ortholora.models.card import ModelCard, Pooling
from ortholora.models.page_head import counted, front_matter

_PAGE = """---
{front}
---
# A merged model
The LoRA adapter that [Ortho-LoRA](https://arxiv.org/abs/2601.09684) trained for {count} is merged into the weights.
Neither PEFT nor Ortho-LoRA is needed to use it.

{text}
```python
{snippet}```
"""
_ENCODER_TEXT = """`model.safetensors` is the encoder. It is no `AutoModelForSequenceClassification`: the classes of
transformers put layers of their own between encoder and labels, and the tasks were trained without them.
`heads.safetensors` has one linear layer for each task, and `heads.json` the tasks, their labels in the order of the
outputs, and how tokens are pooled. Run this in the folder:
"""
_ENCODER = """import json

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModel.from_pretrained("."{options}).eval()
heads, about = load_file("heads.safetensors"), json.load(open("heads.json", encoding="utf-8"))


def outputs(task, texts, seconds=None):
    \"\"\"Logits in the order of the labels, or values: one row for each text (or pair of texts).\"\"\"
    rows = tokenizer(texts, seconds, truncation=True, max_length=about["max_length"], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**rows).last_hidden_state
    mask = rows["attention_mask"]
{pooling}
    given = pooled @ heads[task + ".weight"].T + heads[task + ".bias"]
    of = about["tasks"][task]
    return given if of["labels"] else given * of["scale"] + of["shift"]


for task, of in about["tasks"].items():
    print(task, of["labels"], outputs(task, ["a text"], ["another"] if of["num_texts"] == 2 else None))
"""
_POOLING: dict[Pooling, str] = {
    "mean": "    weights = mask.unsqueeze(-1).float()\n    pooled = (states.float() * weights).sum(1) / weights.sum(1)",
    "cls": "    pooled = states[:, 0].float()",
    "last": "    last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(1)\n"
    "    pooled = states[torch.arange(len(states)), last].float()",
}
_LANGUAGE_TEXT = """Prompts are those of the training data, with the tokens that the tokenizer puts before a text;
messages of a chat go through the tokenizer's chat template. Run this in the folder:
"""
_LANGUAGE = """import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".").eval()
prompt = tokenizer("a prompt", return_tensors="pt", return_token_type_ids=False)
with torch.no_grad():
    tokens = model.generate(**prompt, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def export_page(card: ModelCard, *, with_heads: bool, options: str) -> str:
    """The page's Markdown.

    Args:
        card: The run's card.
        with_heads: Whether tasks have heads (an encoder).
        options: Further arguments of `from_pretrained`, from a comma on.
    """
    if with_heads:
        text = _ENCODER_TEXT
        snippet = _ENCODER.format(options=options, pooling=_POOLING[card.pooling])
    else:
        text, snippet = _LANGUAGE_TEXT, _LANGUAGE
    front = front_matter(card, "transformers", with_heads, [])
    return _PAGE.format(front=front, count=counted(card), text=text, snippet=snippet)
