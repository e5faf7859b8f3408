"""Ortho-LoRA on an image classifier: a tiny random ViT, two tasks with their own heads, generated images, no network.

    python examples/image_classifier.py

With a model of your own, `ViTModel.from_pretrained(...)` takes the place of the random one.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from ortholora import OrthoLora

TASKS = ["red", "bright"]  # is the spot red, not blue? is it a bright one?
ROWS_PER_TASK, SIZE, PATCH, WIDTH = 16, 16, 4, 32


class Classifier(nn.Module):
    """A ViT with LoRA, and a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        config = ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=SIZE,
            patch_size=PATCH,
            initializer_range=0.2,
        )
        # Two names, because transformers 5 renamed these modules.
        lora = LoraConfig(r=8, target_modules=["query", "value", "q_proj", "v_proj"])
        self.vit = get_peft_model(ViTModel(config, add_pooling_layer=False), lora)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 2) for _ in TASKS)

    def forward(self, images: Tensor) -> Tensor:
        """Images `[B, 3, SIZE, SIZE]` → one vector for each, `[B, WIDTH]`."""
        return self.vit(pixel_values=images).last_hidden_state.mean(1)


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, list[int]]:
    """One step's images, their classes, and the task of each."""
    ids = [task for task in range(len(TASKS)) for _ in range(ROWS_PER_TASK)]
    images = 0.1 * torch.randn(len(ids), 3, SIZE, SIZE, generator=generator)
    places = torch.randint(0, SIZE // PATCH, (len(ids), 2), generator=generator)
    kinds = torch.randint(0, 2, (len(ids), len(TASKS)), generator=generator)
    for image, (row, column), (red, bright) in zip(images, places.tolist(), kinds.tolist(), strict=True):
        spot = image[0 if red else 2, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
        spot += 4 if bright else 1.5
    return images, kinds[torch.arange(len(ids)), torch.tensor(ids)], ids


def train(steps: int, rule: str = "ortho") -> list[list[float]]:
    """Train; returns each step's loss of every task."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Classifier()
    ortho = OrthoLora(model, TASKS, rule)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    history = []
    for _ in range(steps):
        images, classes, ids = draw(generator)
        of_task = torch.tensor(ids)
        with ortho.batch(ids):
            vectors = model(images)
            rows = [of_task == task for task in range(len(TASKS))]
            losses = torch.stack(
                [F.cross_entropy(model.heads[t](vectors[own]), classes[own]) for t, own in enumerate(rows)]
            )
            losses.sum().backward()
        ortho.resolve()  # once a step, before clipping
        optimizer.step()
        optimizer.zero_grad()
        history.append(losses.tolist())
    ortho.detach()
    return history


def main() -> None:
    """Train, and say what became of the losses."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=80)
    history = train(parser.parse_args().steps)
    for task, first, last in zip(TASKS, history[0], history[-1], strict=True):
        print(f"{task}: loss {first:.3f} -> {last:.3f}")


if __name__ == "__main__":
    main()
