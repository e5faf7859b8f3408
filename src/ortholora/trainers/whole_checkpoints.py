"""Trainers under FSDP2 whose checkpoints are those that one process writes: an optimizer's state, and a PEFT model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from ortholora.engine.sharded import sharding_modules
from ortholora.trainers.sharded import uses_fsdp2
from ortholora.trainers.whole import load_optimizer_state, load_sharded_adapter, whole_adapter, whole_optimizer_state


class WholeOptimizer(Trainer):
    """Writes and reads the state of optimizer and scheduler as one process does; without FSDP2 the Trainer does it."""

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP2 holds the model by now: the Trainer hands it over when training begins."""
        assert isinstance(self.model, nn.Module)
        return bool(sharding_modules(self.model))

    def shard(self) -> None:
        """Hand the model over to FSDP2 now, where it is to hold it and does not yet. A collective."""
        if uses_fsdp2(self.accelerator) and not self.is_sharded:
            self.create_optimizer()
            self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
            self.model_wrapped = self.model

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.lr_scheduler is not None
        state = whole_optimizer_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        saved = [
            torch.load(Path(checkpoint) / name, "cpu", weights_only=True) for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        ]
        assert self.lr_scheduler is not None
        load_optimizer_state(self.optimizer, saved[0])
        self.lr_scheduler.load_state_dict(saved[1])


class WholeAdapter(WholeOptimizer):
    """The same for a Trainer of a PEFT model, whose full adapter is written and read as well."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter and what the Trainer puts beside it; under FSDP2 all processes take part, and one writes."""
        if not self.is_sharded:
            super().save_model(output_dir, _internal_call)
            return
        state = whole_adapter(self._peft_model())
        if self.args.should_save:
            self._save(output_dir, state_dict=state)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own, which before training would hand FSDP2 the model without its optimizer, and fail."""
        self.shard()
        return super().evaluation_loop(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_sharded:
            load_sharded_adapter(Path(resume_from_checkpoint), self._peft_model())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.is_sharded:
            assert self.state.best_model_checkpoint is not None
            load_sharded_adapter(Path(self.state.best_model_checkpoint), self._peft_model())
        else:
            super()._load_best_model()

    def _peft_model(self) -> Any:
        return self.accelerator.unwrap_model(self.model)
