"""Ortho-LoRA in a plain training loop with Accelerate: three small tasks, one adapter, no network.

    python examples/accelerate_loop.py                                        # one process
    accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py     # two: the same training

The lines that matter are marked with "(1)" to "(5)".
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel

from ortholora import OrthoLora

TASKS = ["has_5", "has_6", "starts_low"]
ROWS_PER_TASK, LENGTH, VOCABULARY = 8, 10, 24


class ManyTasks(nn.Module):
    """A shared encoder with an adapter, and a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = BertConfig(vocab_size=VOCABULARY, initializer_range=0.3, **sizes, **dropout)
        lora = LoraConfig(r=4, target_modules=["query", "value", "dense"])
        self.encoder = get_peft_model(BertModel(config, add_pooling_layer=False), lora)
        self.heads = nn.ModuleList(nn.Linear(32, 2) for _ in TASKS)

    def forward(self, tokens: Tensor, tasks: list[int]) -> Tensor:
        """Logits `[B, 2]`, each row's from its task's head."""
        states = self.encoder(input_ids=tokens).last_hidden_state.mean(1)
        return torch.stack([self.heads[task](state) for task, state in zip(tasks, states, strict=True)])


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


def collate(rows: list[tuple[Tensor, int, int]]) -> tuple[Tensor, Tensor, list[int]]:
    """A batch. Task ids stay a list: nobody needs them on the device."""
    tokens, labels, tasks = zip(*rows, strict=True)
    return torch.stack(tokens), torch.tensor(labels), list(tasks)


def task_losses(logits: Tensor, labels: Tensor, tasks: list[int]) -> Tensor:
    """Each task's mean over its own rows, `[T]`."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    ids = torch.tensor(tasks, device=losses.device)
    return torch.stack([losses[ids == task].mean() for task in range(len(TASKS))])


def main() -> None:
    """Train and print each task's loss and the conflicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches of a step, over all processes")
    parser.add_argument("--rule", default="ortho", help="ortho, or sum: plain joint training")
    parser.add_argument("--save", help="folder for the state after the last step")
    arguments = parser.parse_args()

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(gradient_accumulation_steps=max(1, arguments.accumulate // processes))
    torch.manual_seed(0)
    model = ManyTasks()
    rows = make_rows(ROWS_PER_TASK * len(TASKS) * arguments.accumulate * arguments.steps, seed=1)
    loader = DataLoader(rows, batch_size=ROWS_PER_TASK * len(TASKS), collate_fn=collate)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    # (1) After prepare(), which moves the model, and on the bare model.
    ortho = OrthoLora(accelerator.unwrap_model(model), TASKS, rule=arguments.rule)
    # (2) Saved and restored with accelerator.save_state() and load_state().
    accelerator.register_for_checkpointing(ortho)

    step, seen = 0, []
    for tokens, labels, tasks in loader:
        with accelerator.accumulate(model):
            # (3) Forward and backward inside.
            with ortho.batch(tasks):
                losses = task_losses(model(tokens, tasks), labels, tasks)
                accelerator.backward(losses.sum())
            seen.append(losses.detach())
            if accelerator.sync_gradients:
                # (4) Once a step, on every process, before clipping.
                stats = ortho.resolve()
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            step += 1
            if step % 20 == 0 or step == arguments.steps:
                means = accelerator.reduce(torch.stack(seen).mean(0), reduction="mean").tolist()
                seen = []
                text = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(TASKS, means, strict=True))
                accelerator.print(f"step {step}: {text}; removed {float(stats.removed.mean()):.4f} of the gradient")
    if arguments.save:
        accelerator.save_state(arguments.save)
    accelerator.print(f"{step} steps of {arguments.accumulate * ROWS_PER_TASK} rows a task with rule {arguments.rule}")
    # (5) The model is exactly as it was before: an ordinary PEFT model.
    ortho.detach()
    accelerator.end_training()


if __name__ == "__main__":
    main()
