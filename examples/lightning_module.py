"""Ortho-LoRA in a LightningModule with automatic optimization: three small tasks, one adapter, no network.

    python examples/lightning_module.py

Lightning calls, for every micro-batch, `on_train_batch_start`, `training_step`, backward, `on_after_backward`; and for
every step `on_before_optimizer_step`, then clips, then steps. So the batch is open from the first of these hooks to
`on_after_backward`, and `resolve()` belongs into `on_before_optimizer_step`.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel

from ortholora import OrthoLora

TASKS = ["has_5", "has_6", "starts_low"]
ROWS_PER_TASK, LENGTH, VOCABULARY = 8, 10, 24
Batch = tuple[Tensor, Tensor, list[int]]


class OrthoModule(lightning.LightningModule):
    """The four hooks of Ortho-LoRA; inherit from it and call `attach` when the model is on its device."""

    ortho: OrthoLora | None = None

    def attach(self, tasks: list[str], rule: str) -> None:
        """Capture from now on."""
        if self.trainer.precision == "16-mixed":
            raise ValueError(
                "precision should be 32-true or bf16-mixed. Found 16-mixed: Lightning has unscaled the gradients "
                "before on_before_optimizer_step, and resolve() would write scaled ones over them."
            )
        if self.ortho is not None:  # fitted before
            self._open.close()
            self.ortho.detach()
        self.ortho, self._open = OrthoLora(self, tasks, rule), ExitStack()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Say which task each row belongs to; forward and backward follow."""
        self._open.close()  # of a batch without a backward: its training_step returned None
        self._open.enter_context(self.ortho.batch(batch[2]))

    def on_after_backward(self) -> None:
        """The micro-batch is done."""
        self._open.close()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Once a step, before Lightning clips."""
        self.stats = self.ortho.resolve()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Visit orders and the rule's memory."""
        checkpoint["ortho"] = self.ortho.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning loads before `on_fit_start`: keep it until `OrthoLora` is there."""
        self.saved = checkpoint["ortho"]


class ManyTasks(OrthoModule):
    """A shared encoder with an adapter, and a head for each task."""

    def __init__(self, rule: str = "ortho") -> None:
        super().__init__()
        self.rule = rule
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = BertConfig(vocab_size=VOCABULARY, initializer_range=0.3, **sizes, **dropout)
        lora = LoraConfig(r=4, target_modules=["query", "value", "dense"])
        self.encoder = get_peft_model(BertModel(config, add_pooling_layer=False), lora)
        self.heads = nn.ModuleList(nn.Linear(32, 2) for _ in TASKS)

    def on_fit_start(self) -> None:
        """The model is on its device now."""
        self.attach(TASKS, self.rule)
        if hasattr(self, "saved"):
            self.ortho.load_state_dict(self.saved)

    def task_losses(self, batch: Batch) -> Tensor:
        """Each task's mean over its own rows, `[T]`."""
        tokens, labels, tasks = batch
        states = self.encoder(input_ids=tokens).last_hidden_state.mean(1)
        logits = torch.stack([self.heads[task](state) for task, state in zip(tasks, states, strict=True)])
        losses = F.cross_entropy(logits, labels, reduction="none")
        ids = torch.tensor(tasks, device=losses.device)
        return torch.stack([losses[ids == task].mean() for task in range(len(TASKS))])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the tasks' means; Lightning divides it by the number of micro-batches."""
        losses = self.task_losses(batch)
        if batch_idx % 20 == 19:
            text = ", ".join(f"{name} {loss:.4f}" for name, loss in zip(TASKS, losses.tolist(), strict=True))
            self.print(f"micro-batch {batch_idx + 1}: {text}")
        return losses.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adapter and heads."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=3e-3)


def make_rows(count: int, seed: int) -> list[tuple[Tensor, int, int]]:
    """Tokens, label and task of `count` rows; row i is of task i mod 3, so every batch has as many of each."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        tokens = torch.randint(5, VOCABULARY, (LENGTH,), generator=generator)
        task = index % len(TASKS)
        if task < 2 and torch.rand((), generator=generator) < 0.3:
            tokens[3] = 5 + task
        label = int(tokens[0] < VOCABULARY // 2) if task == 2 else int((tokens == 5 + task).any())
        rows.append((tokens, label, task))
    return rows


def collate(rows: list[tuple[Tensor, int, int]]) -> Batch:
    """A batch. Task ids stay a list: nobody needs them on the device."""
    tokens, labels, tasks = zip(*rows, strict=True)
    return torch.stack(tokens), torch.tensor(labels), list(tasks)


def make_loader(batches: int) -> DataLoader[Any]:
    """So many micro-batches, each with `ROWS_PER_TASK` rows of every task."""
    size = ROWS_PER_TASK * len(TASKS)
    return DataLoader(make_rows(size * batches, seed=1), batch_size=size, collate_fn=collate)  # type: ignore[arg-type]


def main() -> None:
    """Train and print each task's loss and the conflicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rule", default="ortho", help="ortho, or sum: plain joint training")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = ManyTasks(arguments.rule)
    trainer = lightning.Trainer(
        max_steps=arguments.steps,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, make_loader(2 * arguments.steps))
    print(f"{trainer.global_step} steps with rule {arguments.rule}")
    print(f"removed {float(model.stats.removed.mean()):.4f} of the gradient in the last one")
    model.ortho.detach()


if __name__ == "__main__":
    main()
