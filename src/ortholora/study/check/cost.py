"""What a training will cost on this machine: its memory, part by part, and its time, from a few real steps."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ortholora.engine.halves import wants_halves
from ortholora.engine.rules.base import memory_of
from ortholora.errors import UserError
from ortholora.study.check.plan import Plan, costs_of
from ortholora.trainers.cost import memory_bytes, peak_memory_bytes, reset_peak_memory
from ortholora.trainers.trainer import OrthoTrainer

#: Steps that are trained, and seconds after which no further one is begun. The first one is not timed: it allocates,
#: and tries the model out.
STEPS, SECONDS = 4, 30.0


@dataclass(frozen=True)
class Parts:
    """Bytes that can be worked out from the model; the optimizer's are those of AdamW."""

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    task_gradients: int

    @property
    def of_training(self) -> int:
        """What the first step allocates, and keeps."""
        return self.gradients + self.optimizer + self.task_gradients


def parts_of(trainer: OrthoTrainer, buffer_dtype: torch.dtype) -> Parts:
    """Work out what does not depend on the rows."""
    model = trainer.model
    assert isinstance(model, nn.Module)
    tensors = [*model.parameters(), *model.buffers()]
    trained = [tensor for tensor in tensors if tensor.requires_grad]
    of_trained = sum(tensor.nbytes for tensor in trained)
    return Parts(
        frozen=sum(tensor.nbytes for tensor in tensors) - of_trained,
        trained=of_trained,
        gradients=of_trained,
        optimizer=2 * of_trained,
        task_gradients=_of_task_gradients(trainer, buffer_dtype),
    )


def _of_task_gradients(trainer: OrthoTrainer, dtype: torch.dtype) -> int:
    """What `engine/buffers.py` keeps; as much again, in float32, for a rule with running means; halves count twice."""
    ortho = trainer.ortho
    if ortho is None:
        return 0
    columns = len(ortho.tasks) * (2 if wants_halves(ortho.rule) else 1)
    itemsize = dtype.itemsize + (0 if memory_of(ortho.rule) is None else 4)
    return sum(matrix.parameter.numel() for matrix in ortho.matrices) * columns * itemsize


@dataclass(frozen=True)
class Measured:
    """What a few steps showed.

    Attributes:
        steps: How many were trained.
        step_seconds: Of a step of the training, on average over its plan.
        before: Bytes in use before the first; None where the system does not tell.
        activations: Bytes for the rows of the largest micro-batch of the plan; None where the system does not tell.
    """

    steps: int
    step_seconds: float
    before: int | None
    activations: int | None


def measure_steps(trainer: OrthoTrainer, plan: Plan, parts: Parts) -> Measured:
    """Train a few steps. The trainer is of no use afterwards.

    Seconds go with padded tokens and launches of the model (`StepCost.work`), so those of a mean step follow from those
    of the steps that were timed. Activations go with the tokens of the largest micro-batch.

    Raises:
        UserError: A step cannot be trained: see `OrthoTrainer`; or it does not fit into memory.
    """
    trainer.add_callback(_Stops())
    reset_peak_memory()
    before = memory_bytes()
    try:
        trainer.train()
    except (MemoryError, RuntimeError) as error:
        raise _too_large(error) from error
    seconds = trainer.timer.seconds
    costs = costs_of(trainer, range(len(seconds)))
    timed = list(zip(seconds, costs, strict=True))
    speed = statistics.median(second / cost.work for second, cost in timed[1:] or timed)
    peak, activations = peak_memory_bytes(), None
    if before is not None and peak is not None:
        seen = max(0, peak - before - parts.of_training)
        activations = int(seen * max(1.0, plan.largest / max(cost.largest for cost in costs)))
    return Measured(len(seconds), speed * plan.work, before, activations)


class _Stops(TrainerCallback):
    """Ends the training when there is enough to go by."""

    def __init__(self) -> None:
        self._end = time.monotonic() + SECONDS

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One step to warm up, one to time, and more while there is time."""
        step = state.global_step
        control.should_training_stop |= step >= STEPS or (step >= 2 and time.monotonic() > self._end)


def _too_large(error: Exception) -> UserError:
    """Say that memory did not suffice; any other error is none of a user's, and goes on."""
    out_of_memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    if not (out_of_memory or "can't allocate memory" in str(error)):
        raise error
    return UserError(
        "A step does not fit into memory",
        expected="room for the model, its task gradients and the activations of a micro-batch",
        found=(str(error).splitlines() or [type(error).__name__])[0],
        todo="lower `mixing.max_tokens`, which makes smaller micro-batches (results stay the same); or use "
        "`dtype: bfloat16`, `capture.buffer_dtype: bfloat16` or a smaller `lora.r`",
    )
