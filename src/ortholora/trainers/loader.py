"""The loader of `OrthoTrainer`: each of its batches is a whole step, a fixed number of rows of every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainingArguments

from ortholora.data.encoded import EncodedTask, MicroBatches, MixedDataset
from ortholora.data.mixing import StepSampler
from ortholora.data.planner import Planner
from ortholora.models.collators import Collator


class StepLoader(DataLoader[Any]):
    """Passes the epoch on to its sampler."""

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch."""
        sampler = self.batch_sampler
        assert isinstance(sampler, StepSampler)
        sampler.set_epoch(epoch)


def step_loader(
    tasks: Sequence[EncodedTask],
    quota: Sequence[int],
    planner: Planner,
    collator: Collator,
    args: TrainingArguments,
    gone: Mapping[int, int],
) -> StepLoader:
    """Make the loader of one rank: one epoch of steps.

    Not to be prepared by accelerate, which would deal whole batches to the ranks: the sampler deals out rows.

    Args:
        tasks: The tasks with their tokenised rows.
        quota: Rows of each task in a step, of all ranks.
        planner: Cuts a step into micro-batches.
        collator: Makes batches of rows.
        args: Seed, ranks and accumulation steps.
        gone: See `StepSampler`.
    """
    sampler = StepSampler(
        names=[task.data.name for task in tasks],
        lengths=[task.train.lengths for task in tasks],
        quota=quota,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        planner=planner,
        accumulate=args.gradient_accumulation_steps,
        rank=args.process_index,
        world_size=args.world_size,
        weights=[task.train.weights for task in tasks],
        gone=gone,
    )
    return StepLoader(
        MicroBatches(MixedDataset([task.train for task in tasks])),
        batch_sampler=sampler,
        collate_fn=collator.step,
        num_workers=args.dataloader_num_workers,
    )
