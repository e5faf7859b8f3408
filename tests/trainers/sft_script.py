"""Started by `test_sft.py` with torchrun: trains the tiny Llama and writes down what came out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from trl import SFTConfig

from language import adapted, lora_weights, rows, settings, tokenizer
from ortholora.trl import OrthoSFTTrainer


def main(out: str, changes: str) -> None:
    torch.set_num_threads(1)
    arguments = SFTConfig(**settings(Path(out), **json.loads(changes)))
    trainer = OrthoSFTTrainer(
        adapted(attention="sdpa"), arguments, train_dataset=rows(12), processing_class=tokenizer()
    )
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    if arguments.process_index == 0:
        torch.save({"weights": lora_weights(model), "logs": trainer.state.log_history}, Path(out) / "result.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        os._exit(0)  # the teardown of gloo and DDP aborts or hangs now and then


if __name__ == "__main__":
    main(*sys.argv[1:])
