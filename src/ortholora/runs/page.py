"""The page in a run's folder (`README.md`): what the adapter is for, how good it is, and the lines that load it.

The hub shows it, and reads the head of it. Names of tasks and labels come from data: every character of them that
Markdown or HTML could read is written as its number.
"""

from __future__ import annotations

from pathlib import PurePath

from ortholora.metrics.compute import FEWEST, row_interval
from ortholora.models.backbone import hub_id
from ortholora.models.card import ModelCard
from ortholora.models.page_head import counted, front_matter
from ortholora.models.spec import TaskSpec
from ortholora.runs.record import RunRecord

PAGE_FILE = "README.md"
#: More labels than this are counted, not named; a longer name is cut.
_MOST_LABELS, _LONGEST = 12, 60
#: The parts of a task's data, in the order of the record's counts.
_PARTS = ("train", "dev", "test")

_PAGE = """---
{front}
---
# A LoRA adapter for {count}
{how} by [Ortho-LoRA](https://arxiv.org/abs/2601.09684), seed {seed}.

| task | kind | labels | metric | value | rows |
|:--|:--|:--|:--|--:|--:|
{rows}

Values are in points. The intervals (95 %) are over the rows alone: another seed gives another adapter.
{data}
## Use
```python
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

backbone = {backbone}
model = PeftModel.from_pretrained({auto}.from_pretrained(backbone), ".").eval()   # "." is this folder
tokenizer = AutoTokenizer.from_pretrained(backbone)
```
{heads}"""
_DATA = """
## Data
| task | part | rows | source |
|:--|:--|--:|:--|
{rows}
"""
_HEADS = """
`heads.safetensors` has a linear layer for each task; `ortholora.load(".").predict(task, texts)` puts all together, and
`ortholora export` writes a model that needs neither PEFT nor Ortho-LoRA.
"""


def run_page(card: ModelCard, record: RunRecord, steps: int, with_heads: bool) -> str:
    """The page's Markdown.

    Args:
        card: What the model is.
        record: What the run left behind.
        steps: Optimizer steps; 0 for a merge of other adapters.
        with_heads: Whether tasks have heads (an encoder).
    """
    base = hub_id(card.backbone)
    return _PAGE.format(
        front=front_matter(card, "peft", with_heads, ["lora"], _hub_sets(record)),
        count=counted(card),
        how=_how(record, steps),
        seed=record.seed,
        rows="\n".join(_row(spec, record) for spec in card.tasks),
        data=_data(card, record),
        auto="AutoModel" if with_heads else "AutoModelForCausalLM",
        backbone=f'"{base}"' if base else "...  # the folder of the backbone that it was trained on",
        heads=_HEADS if with_heads else "",
    )


def _how(record: RunRecord, steps: int) -> str:
    if not steps:
        return "Merged out of adapters for single tasks, without training,"
    return f"Trained {f'with the rule {_plain(record.rule)}' if record.rule else 'jointly'} in {steps} steps"


def _row(spec: TaskSpec, record: RunRecord) -> str:
    name = spec.name
    low, high = (f"{100 * end:.1f}" for end in interval_of(record, name))
    value = f"{100 * record.metrics[name]:.1f} [{low}, {high}]"
    rows = f"{len(record.targets[name]):,} {record.scored_on.get(name, 'dev')}"
    return f"| {_plain(name)} | {spec.kind} | {_labels(spec.labels)} | {record.metric_names[name]} | {value} | {rows} |"


def _data(card: ModelCard, record: RunRecord) -> str:
    """What each task was trained, and scored, on; nothing for a record that does not know."""
    known = record.provenance.get("data", {})
    rows = [
        f"| {_plain(spec.name)} | {part} | {count:,} | {_plain(_place(known[spec.name][part]))} |"
        for spec in card.tasks
        if spec.name in known
        for part, count in zip(_PARTS, known[spec.name]["rows"], strict=False)
    ]
    return _DATA.format(rows="\n".join(rows)) if rows else ""


def _place(source: str) -> str:
    """A source without its hash, and without the folders of this machine."""
    name = source.rpartition(" sha256:")[0]
    path = PurePath(name)
    return path.name if path.is_absolute() or {"..", "~"} & set(path.parts) else name


def _hub_sets(record: RunRecord) -> list[str]:
    """The data sets on the hub that were read."""
    tasks = record.provenance.get("config", {}).get("tasks", [])
    named = {task["hub"]["path"]: task["name"] for task in tasks if task.get("hub")}
    data = record.provenance.get("data", {})
    return [path for path, task in named.items() if str(data.get(task, {}).get("train", "")).startswith(path)]


def _labels(labels: tuple[str, ...] | None) -> str:
    if not labels:
        return "–"
    if len(labels) > _MOST_LABELS:
        return f"{len(labels):,} labels"
    return ", ".join(_plain(label) for label in labels)


def interval_of(record: RunRecord, task: str) -> list[float]:
    """The 95 % interval of a task's metric, `[low, high]`: a percentile bootstrap over the rows it is scored on."""
    both = record.targets[task], record.predictions[task]
    return row_interval(record.metric_names[task], *both, record.num_labels[task], FEWEST)


def _plain(text: str) -> str:
    """A text of somebody else's as Markdown that shows it, and does nothing else."""
    text = " ".join(text.split())
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return "".join(c if c.isalnum() or c in " …" else f"&#{ord(c)};" for c in text)
