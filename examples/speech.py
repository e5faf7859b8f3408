"""Ortho-LoRA on a speech model: a tiny random Whisper, two tasks, generated tones, no network.

    python examples/speech.py

As in Whisper itself, a token at the start of the answer says which task it is. With a model of your own,
`WhisperForConditionalGeneration.from_pretrained(...)` takes the place of the random one.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from ortholora import OrthoLora

TASKS = ["first", "loudest"]  # write the first of the tones; write the loudest one
ROWS_PER_TASK, MELS, TONES, FRAMES = 16, 8, 3, 4
PAD, BOS, EOS, FIRST_TASK, FIRST_TONE = 0, 1, 2, 3, 5


def make_model() -> torch.nn.Module:
    """A Whisper with LoRA on its attention and its feed-forward layers."""
    config = WhisperConfig(
        vocab_size=FIRST_TONE + MELS,
        num_mel_bins=MELS,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=TONES * FRAMES // 2,  # half as many as frames: the encoder's convolution has a stride of 2
        max_target_positions=8,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=FIRST_TASK,
        begin_suppress_tokens=None,
        init_std=0.2,
        dropout=0.0,
    )
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "out_proj", "fc1", "fc2"])
    return get_peft_model(WhisperForConditionalGeneration(config), lora)


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """One step's sound `[B, MELS, frames]`, what the decoder reads and writes `[B, 2]`, and the task of each row."""
    ids = [task for task in range(len(TASKS)) for _ in range(ROWS_PER_TASK)]
    tones = torch.randint(0, MELS, (len(ids), TONES), generator=generator)
    loudest = torch.randint(0, TONES, (len(ids),), generator=generator)
    sound = 0.1 * torch.randn(len(ids), MELS, TONES * FRAMES, generator=generator)
    for i in range(len(ids)):
        for place, tone in enumerate(tones[i].tolist()):
            sound[i, tone, place * FRAMES : (place + 1) * FRAMES] += 3.0 if place == int(loudest[i]) else 1.0
    of_task = torch.tensor(ids)
    answers = FIRST_TONE + torch.where(of_task == 0, tones[:, 0], tones[torch.arange(len(ids)), loudest])
    read = torch.stack([FIRST_TASK + of_task, answers], 1)
    written = torch.stack([answers, torch.full_like(answers, EOS)], 1)
    return sound, read, written, ids


def train(steps: int, rule: str = "ortho") -> list[list[float]]:
    """Train; returns each step's loss of every task, in nats a token."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = make_model()
    ortho = OrthoLora(model, TASKS, rule)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    history = []
    for _ in range(steps):
        sound, read, written, ids = draw(generator)
        with ortho.batch(ids):
            logits = model(input_features=sound, decoder_input_ids=read).logits
            rows = F.cross_entropy(logits.transpose(1, 2), written, reduction="none").mean(1)
            losses = torch.stack([rows[torch.tensor(ids) == task].mean() for task in range(len(TASKS))])
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
