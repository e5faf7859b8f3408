"""A whole training epoch, data included: rows per second of ours against a stock `Trainer`.

python benchmarks/epoch.py --data-dir path/to/glue --out benchmarks/results/epoch.json   (about ten minutes on 2 cores)

Five GLUE tasks with their real lengths, equally many rows of each, every row once. All lines train the same
model on the same rows with the same number of rows a step:

* `stock`: `transformers.Trainer` trained jointly on the shuffled union, each batch padded to its longest row;
* `stock by length`: the same with the Trainer's own grouping of rows by length (it then learns from batches of
  one length, which the others do not);
* `joint` and `ortho`: `OrthoTrainer` with its planner, without and with capture and the rule;
* `ortho, cut finer`: the same with a launch taken for 10 tokens: less than 5 % padding, more launches.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from writing import markdown, save

from ortholora.config.file import load_config
from ortholora.data.encoded import MixedDataset
from ortholora.data.read import read_tasks
from ortholora.models.collators import Collator
from ortholora.models.multitask import MultiTaskModel
from ortholora.runs.build import build_trainer
from ortholora.runs.method import Method
from ortholora.runs.progress import Silent
from ortholora.runs.run import Run
from ortholora.runs.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
TASKS = ["cola", "sst2", "mrpc", "rte", "stsb"]
ROWS_PER_TASK = 8


class StockTrainer(Trainer):
    """Joint training as one writes it with transformers alone: a loss over the batch, and nothing else."""

    heads: Any = None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        ids = torch.tensor(inputs["task_ids"])
        outputs = model(inputs["inputs"], ids)
        losses: list[Tensor] = []
        for task, out in outputs.items():
            losses.append(self.heads[task].row_losses(out, inputs["targets"][ids == task]).mean())
        return torch.stack(losses).sum()


def workspace(data_dir: Path, rows: int, dtype: str) -> Workspace:
    settings = load_config(ROOT / "examples" / "glue.yaml")
    chosen = [task.model_copy(update={"max_train_rows": rows}) for task in settings.tasks if task.name in TASKS]
    settings = settings.model_copy(update={"tasks": chosen, "dtype": dtype})
    settings.training.save_every = 0
    settings.training.steps = rows // ROWS_PER_TASK
    settings.training.warmup_steps = 0
    space = Workspace(settings, read_tasks(settings, base=None, data_dir=data_dir))
    for task in chosen:
        space.encoded(task.name)  # tokenised beforehand in every line
    return space


def ours(space: Workspace, method: Method, launch_tokens: float | None = None) -> tuple[Callable[[], Any], Any]:
    space.config.mixing.launch_tokens = launch_tokens
    trainer = build_trainer(Run(method, tuple(TASKS), 0, Path(tempfile.mkdtemp())), space, Silent())
    return trainer.train, trainer


def stock(space: Workspace, by_length: bool) -> tuple[Callable[[], Any], Any]:
    template = build_trainer(Run(Method("joint"), tuple(TASKS), 0, Path(tempfile.mkdtemp())), space, Silent())
    model = template._bare_model()
    assert isinstance(model, MultiTaskModel)
    rows = MixedDataset([space.encoded(name).train for name in TASKS])
    flat = [(task, row) for task, split in enumerate(rows.splits) for row in range(len(split))]
    # The Trainer takes lengths from `input_ids`; the collator does not look at the key.
    data = [{**rows[index], "input_ids": rows[index]["features"]["input_ids"]} for index in flat]
    grouping: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if by_length else {}
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=1,
        per_device_train_batch_size=ROWS_PER_TASK * len(TASKS),
        learning_rate=space.config.training.learning_rate,
        bf16=space.config.dtype == "bfloat16",
        use_cpu=not torch.accelerator.is_available(),
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **grouping,
    )
    counted = Counting(Collator(space.tokenizer, 1))
    trainer = StockTrainer(model=model, args=arguments, train_dataset=data, data_collator=counted)
    trainer.heads = template.card.tasks
    trainer.tokens = counted.tokens  # type: ignore[attr-defined]
    return trainer.train, trainer


class Counting:
    """A collator that counts real and padded tokens."""

    def __init__(self, collator: Collator) -> None:
        self.collator, self.tokens = collator, np.zeros(2, dtype=np.int64)

    def __call__(self, rows: Any) -> Any:
        batch = self.collator(rows)
        self.tokens += np.asarray(batch["tokens"])
        return batch


LINES: dict[str, Callable[[Workspace], tuple[Callable[[], Any], Any]]] = {
    "stock": lambda space: stock(space, False),
    "stock by length": lambda space: stock(space, True),
    "joint": lambda space: ours(space, Method("joint")),
    "ortho": lambda space: ours(space, Method("ortho", "ortho")),
    "ortho, cut finer": lambda space: ours(space, Method("ortho", "ortho"), 10),
}


def measure(space: Workspace, rounds: int) -> dict[str, Any]:
    rows = sum(len(space.encoded(name).train) for name in TASKS)
    seconds: dict[str, list[float]] = {name: [] for name in LINES}
    padding: dict[str, float] = {}
    for _ in range(rounds):
        for name, build in LINES.items():
            train, trainer = build(space)
            start = time.perf_counter()
            train()
            seconds[name].append(time.perf_counter() - start)
            padding[name] = float(1 - trainer.tokens[0] / trainer.tokens[1])
    base = seconds["stock"]
    return {
        name: {
            "rows_per_second": rows / statistics.median(values),
            "times_stock": statistics.median(b / s for s, b in zip(values, base, strict=True)),
            "ratios": [b / s for s, b in zip(values, base, strict=True)],
            "padding": padding[name],
            "rows": rows,
        }
        for name, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with CoLA/train.tsv, …")
    parser.add_argument("--rows", type=int, default=400, help="rows of each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = {}
    table = []
    for dtype in ("float32", "bfloat16"):
        results[dtype] = measure(workspace(arguments.data_dir, arguments.rows, dtype), arguments.rounds)
        for name, line in results[dtype].items():
            figures = [f"{line['rows_per_second']:.1f}", f"{line['times_stock']:.2f}", f"{line['padding']:.2f}"]
            table.append([f"{dtype}, {name}", *figures])
        print(markdown(["line", "rows a second", "times stock", "padding"], table), flush=True)
    text = "One epoch, data included:\n\n" + markdown(["line", "rows a second", "times stock", "padding"], table)
    if arguments.out:
        command = f"python benchmarks/epoch.py --data-dir GLUE --rows {arguments.rows} --rounds {arguments.rounds}"
        save(arguments.out, command, results, text)


if __name__ == "__main__":
    main()
