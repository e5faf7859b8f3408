"""`OrthoSFTTrainer`: TRL's `SFTTrainer` for one adapter and many tasks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from trl import SFTTrainer
from trl.data_utils import get_dataset_column_names, pack_dataset

from ortholora.engine import OrthoLora, Rule
from ortholora.engine.distributed import summed
from ortholora.engine.gram import Block
from ortholora.errors import UserError
from ortholora.models.adapted import evaluating
from ortholora.models.probes import packed_rows_keep_texts_apart
from ortholora.trainers.mixin import ResolveMixin
from ortholora.trainers.sharded import (
    check_arguments,
    check_only_lora,
    environment_kept,
    prepare_sharding,
    run_sharded,
    uses_fsdp2,
)
from ortholora.trainers.task_column import (
    TASK_IDS,
    TASK_TARGETS,
    TaskCollator,
    number_tasks,
    of_targets,
    spread_over_tokens,
    task_mean_weights,
)
from ortholora.trainers.task_losses import TaskLosses
from ortholora.trainers.whole_checkpoints import WholeAdapter


class OrthoSFTTrainer(ResolveMixin, WholeAdapter, SFTTrainer):
    """Supervised fine-tuning on a data set whose rows name their task, resolving conflicts once per step.

    Everything of `SFTTrainer` works as it does there: `SFTConfig`, the data set formats, `completion_only_loss`,
    packing, padding-free batches, checkpoints, DDP and FSDP2. What is added is a column (`task` or `channel`) in
    `train_dataset`.

    Args:
        model: A PEFT model, or a model or its name together with `peft_config`.
        args: An ordinary `SFTConfig`.
        train_dataset: Rows in one of TRL's formats, and the column that names their task.
        task_column: That column. Default: `task`, or else `channel`.
        tasks: Names of the tasks, in order. Default: all in the column, sorted; a streaming data set needs them.
        task_weights: `w_t` by name; 1 for a task that is not named.
        loss: `"task-mean"` (the paper): `Σ_t w_t L_t`, where `L_t` is the mean over the task's own target tokens in
            the whole step (all micro-batches, all ranks). `"token-mean"`: TRL's mean over all target tokens, in
            which a task weighs as much as it has tokens.
        rule: Conflict rule, or None: nothing is captured.
        block: What conflict is judged on.
        fused: See `OrthoLora`.
        buffer_dtype: See `OrthoLora`.
        try_out: See `OrthoLora`.
        kwargs: Further arguments of `SFTTrainer`.

    Raises:
        UserError: No task column; or a setting under which task gradients would be wrong.
        CaptureError: The model has no adapter.
    """

    # Left open by the base classes, or None until they are set.
    args: Any
    model: Any
    data_collator: Any
    loss_is_scaled_for_ga: Any
    _signature_columns: Any

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *,
        train_dataset: Any,
        task_column: str | None = None,
        tasks: Sequence[str] | None = None,
        task_weights: Mapping[str, float] | None = None,
        loss: Literal["task-mean", "token-mean"] = "task-mean",
        rule: str | Rule | None = "ortho",
        block: Block = "matrix",
        fused: bool = True,
        buffer_dtype: torch.dtype = torch.float32,
        try_out: bool = True,
        **kwargs: Any,
    ) -> None:
        self.tasks: list[str]
        train_dataset, self.tasks = number_tasks(train_dataset, task_column, tasks)
        self.task_loss = loss
        self._weights = _weights(self.tasks, task_weights, loss)
        if args is not None:
            check_arguments(args, "OrthoSFTTrainer")
        with environment_kept():
            super().__init__(model, args, train_dataset=train_dataset, **kwargs)
        self._check_settings()
        prepare_sharding(self.accelerator, self.args, self.model, "OrthoSFTTrainer")
        if uses_fsdp2(self.accelerator):
            check_only_lora(self.model)
        self.data_collator = TaskCollator(self.data_collator, len(self.tasks))
        if self.padding_free and len(self.tasks) > 1:
            self._check_packed_rows()
        if loss == "task-mean":
            # Ours is normalised over the whole step: the Trainer must not divide it by the number of micro-batches.
            # Newer versions ask the first attribute, older ones the second.
            self.loss_is_scaled_for_ga = True
            self.model_accepts_loss_kwargs = True
        if rule is not None:
            weights = self._weights.tolist()
            self.ortho: OrthoLora | None = OrthoLora(
                self.model,
                self.tasks,
                rule,
                block,
                self.args.seed,
                weights=weights,
                fused=fused,
                buffer_dtype=buffer_dtype,
                try_out=try_out,
            )
        self.task_losses: TaskLosses = TaskLosses(self.tasks, self.args.device)
        self._targets_in_step = torch.zeros(len(self.tasks), dtype=torch.int64)

    # ---- the task column -----------------------------------------------------------------------------

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """TRL's preparation; packing it drops all columns but its own, so rows with tasks are packed here."""
        columns = get_dataset_column_names(dataset)
        if not packing or args.max_length is None or TASK_IDS not in columns or "seq_lengths" in columns:
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        if args.packing_strategy == "wrapped" and len(self.tasks) > 1:
            raise UserError(
                "Packing with the strategy 'wrapped' lets texts of different tasks read each other",
                expected="packing_strategy='bfd' or 'bfd_split'",
                found=f"'wrapped' and {len(self.tasks)} tasks",
                todo="change the strategy in SFTConfig",
            )
        whole = copy.copy(args)
        whole.max_length = None  # packing cuts
        dataset = super()._prepare_dataset(dataset, processing_class, whole, False, formatting_func, dataset_name)
        dataset = dataset.select_columns(["input_ids", "labels", TASK_IDS]).map(spread_over_tokens)
        dataset = pack_dataset(dataset, args.max_length, args.packing_strategy)
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if TASK_IDS not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, TASK_IDS]

    # ---- the step ------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Fetch the micro-batches of a step and count each task's target tokens in all of them, on all ranks."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = torch.zeros(len(self.tasks), dtype=torch.int64)
        for batch in batches:
            own += torch.from_numpy(batch.pop(TASK_TARGETS))
        self.task_losses.add_counts(own)
        self._targets_in_step = summed(own, self.args.device)
        return batches, items

    def task_ids_of(self, inputs: dict[str, Any]) -> Any:
        """The batch's task ids; left in it for `compute_loss`."""
        return torch.from_numpy(inputs[TASK_IDS])

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """`Σ_t w_t · (Σ of the task's token losses here) / (its target tokens in the step)`, or TRL's own loss."""
        ids = inputs.pop(TASK_IDS, None)
        inputs.pop(TASK_TARGETS, None)
        if self.is_sharded:
            model = partial(run_sharded, self.accelerator, model)  # type: ignore[assignment]
        if ids is None or not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        seen: list[Any] = []

        def watched(**arguments: Any) -> Any:
            seen.append(model(**arguments))
            return seen[-1]

        loss = super().compute_loss(watched, inputs, num_items_in_batch=num_items_in_batch)  # and TRL's metrics
        losses = self._token_losses(seen[-1])
        of_token = torch.from_numpy(of_targets(ids, tuple(losses.shape)).copy())
        self.task_losses.add_losses(losses, of_token)
        if self.task_loss == "task-mean":
            weights = task_mean_weights(self._weights, self._targets_in_step)[of_token]
            # DDP averages .grad over ranks; the normaliser is already global.
            loss = (weights.to(losses.device) * losses).sum() * self.accelerator.num_processes
        return (loss, seen[-1]) if return_outputs else loss

    def _token_losses(self, outputs: Any) -> Tensor:
        """`[B, S - 1]` in float32; zero where there is no target."""
        log_probabilities = outputs.log_probs.float()
        if self.args.loss_type == "dft":
            return -log_probabilities * log_probabilities.exp().detach()
        return -log_probabilities

    # ---- what would be wrong -------------------------------------------------------------------------

    def _check_settings(self) -> None:
        own_loss = self.task_loss == "task-mean"
        refused = {
            "parallelism_config": getattr(self.accelerator, "parallelism_config", None) is not None,
            "a mixture-of-experts auxiliary loss, which no task owns (router_aux_loss_coef=0.0)": self.aux_loss_enabled,
            "compute_loss_func (loss='token-mean')": own_loss and self.compute_loss_func is not None,
            "label_smoothing_factor (loss='token-mean')": own_loss and self.label_smoother is not None,
        }
        found = [name for name, used in refused.items() if used]
        if found:
            raise UserError(
                "OrthoSFTTrainer cannot split this training by task",
                expected="one process, DDP or FSDP2, and a loss that is a sum over tokens",
                found=found[0].split(" (")[0],
                todo=f"set {found[0].split(' (')[1][:-1]}" if " (" in found[0] else f"train without {found[0]}",
            )

    def _check_packed_rows(self) -> None:
        model = self.model
        collator = self.data_collator.collator

        def run(texts: list[list[int]]) -> Tensor:
            batch = self._prepare_inputs(collator([{"input_ids": tokens} for tokens in texts]))
            with self.accelerator.autocast():
                return model(**batch, use_cache=False, fused_lm_head=True).log_probs[0]

        with evaluating(model):
            dtype = torch.bfloat16 if self.args.bf16 or self.args.fp16 else model.dtype
            apart = packed_rows_keep_texts_apart(run, dtype)
        if not apart:
            raise UserError(
                f"The model ({model.config.model_type}) lets the texts of a padding-free row read each other",
                expected="a model and an attention that keep them apart by position_ids (flash_attention_2 does)",
                found=f"attn_implementation={model.config._attn_implementation!r}",
                todo="set packing=False and padding_free=False in SFTConfig, or load the model with "
                "attn_implementation='flash_attention_2'",
            )


def _weights(tasks: Sequence[str], weights: Mapping[str, float] | None, loss: str) -> Tensor:
    if loss not in ("task-mean", "token-mean"):
        raise ValueError(f"loss should be 'task-mean' or 'token-mean'. Found {loss!r}.")
    given = dict(weights or {})
    unknown = given.keys() - set(tasks)
    if unknown or (given and loss == "token-mean"):
        raise UserError(
            "task_weights cannot be used",
            expected=f"names among {list(tasks)}, and loss='task-mean'",
            found=f"{sorted(given)} and loss={loss!r}",
            todo="correct the names, or leave task_weights out",
        )
    return torch.tensor([float(given.get(name, 1.0)) for name in tasks])
