"""`OrthoTrainer`: a `transformers.Trainer` for one shared adapter and many tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader
from transformers import TrainingArguments

from ortholora.data.encoded import EncodedSplit, EncodedTask, MixedDataset
from ortholora.data.planner import Planner
from ortholora.engine import OrthoLora, Rule
from ortholora.engine.distributed import summed, world_size
from ortholora.engine.gram import Block
from ortholora.errors import NonFiniteLossError
from ortholora.models.adapted import AdaptedModel, Reading
from ortholora.models.card import ModelCard
from ortholora.models.collators import Collator
from ortholora.models.packed import is_packed
from ortholora.trainers import checkpoints
from ortholora.trainers.cost import StepTimer
from ortholora.trainers.loader import step_loader
from ortholora.trainers.planning import check_layout, complete, padding_multiple
from ortholora.trainers.resume import read_state
from ortholora.trainers.saving import SavingTrainer
from ortholora.trainers.scoring import Evaluation, score
from ortholora.trainers.selection import SCORE, Selection, TaskPatience, check_patience
from ortholora.trainers.sharded import check_arguments, environment_kept, prepare_sharding, run_sharded
from ortholora.trainers.task_losses import TaskLosses


class OrthoTrainer(SavingTrainer):
    """Trains a `MultiTaskModel` or a `LanguageModel` on mixed batches, resolving conflicts once per optimizer step.

    Works with ordinary `TrainingArguments`: bf16 / fp16, checkpoints and resume, logging, best model
    (`metric_for_best_model="average"`) and early stopping. A step's rows follow from `quota`, not from
    `per_device_train_batch_size`; `planner` cuts them into micro-batches inside of the step. With
    `gradient_accumulation_steps` above 1 it cuts exactly so many, and the Trainer accumulates them.

    A task's loss is the mean over its own rows in the whole step (all micro-batches; for a language model over their
    target tokens) times its weight, so that a weight means the same however the step is cut.

    Several processes (torchrun, accelerate launch: DDP or FSDP2) share out the rows of every step, which stays the
    same as in one process. FSDP1 and DeepSpeed are refused.

    Args:
        model: The shared encoder with its heads, or the shared language model.
        args: Training arguments.
        tasks: The tasks with their tokenised rows, in the order of the model's heads.
        tokenizer: Pads batches.
        card: What is saved beside the adapter.
        quota: Rows of each task in a step.
        rule: Conflict rule, or None for plain joint training without capture.
        block: What conflict is judged on.
        planner: Cuts a step into micro-batches. Default: what costs least on this device and model; one task
            in each micro-batch where the adapter needs that.
        fused, buffer_dtype, try_out: See `OrthoLora`.
        head_learning_rate: Learning rate of the heads, where it differs from the adapter's.
        selection: What `metric_for_best_model="selection/score"` stands for.
        patience_per_task: Evaluations without a better metric, after which a task's rows leave the steps; 0: never.
        kwargs: Further arguments of `Trainer` (callbacks, optimizers, …).

    Raises:
        ValueError: The tasks are not the model's. A `UserError`: under these settings task gradients would be wrong.
    """

    control: Any

    def __init__(
        self,
        model: AdaptedModel,
        args: TrainingArguments,
        *,
        tasks: Sequence[EncodedTask],
        tokenizer: Any,
        card: ModelCard,
        quota: Sequence[int],
        rule: str | Rule | None = "ortho",
        block: Block = "matrix",
        planner: Planner | None = None,
        fused: bool = True,
        buffer_dtype: torch.dtype = torch.float32,
        try_out: bool = True,
        head_learning_rate: float | None = None,
        selection: Selection | None = None,
        patience_per_task: int = 0,
        **kwargs: Any,
    ) -> None:
        _check_heads(model, tasks)
        check_arguments(args, "OrthoTrainer")
        self.tasks: list[EncodedTask] = list(tasks)
        self.quota: list[int] = list(quota)
        self.card: ModelCard = card
        self.head_learning_rate: float | None = head_learning_rate
        self.selection: Selection = selection or Selection()
        self.patience: TaskPatience = TaskPatience([task.data.name for task in tasks], patience_per_task)
        self.collator: Collator = model.collator(tokenizer, padding_multiple(args.device.type))
        self.timer: StepTimer = StepTimer()
        with environment_kept():
            super().__init__(
                model=model,
                args=args,
                train_dataset=MixedDataset([task.train for task in tasks]),
                eval_dataset=ConcatDataset([MixedDataset([task.dev]) for task in tasks]),
                data_collator=self.collator.step,
                **kwargs,
            )
        prepare_sharding(self.accelerator, args, model, "OrthoTrainer")
        self.add_callback(self.timer)
        if patience_per_task:
            check_patience(args, self.quota)
            self.add_callback(self.patience)
        # Our loss is normalised over the whole step already. Trainer must not divide it again: newer versions
        # ask this attribute, older ones whether there is a `compute_loss_func`.
        self.loss_is_scaled_for_ga: bool | None = True
        self.compute_loss_func = _never_called
        names = [task.data.name for task in self.tasks]
        if rule is not None:
            self.ortho: OrthoLora | None = OrthoLora(
                model,
                names,
                rule,
                block,
                args.seed,
                weights=[task.data.spec.weight for task in self.tasks],
                fused=fused,
                buffer_dtype=buffer_dtype,
                try_out=try_out,
            )
        self.planner: Planner = complete(planner or Planner(), model, args.device.type)
        if rule is not None:
            check_layout(self.planner.layout, model, len(tasks))
        if self.planner.layout == "padding-free":
            self.collator.packed = True
            model.find_packing_mode()  # a backbone that cannot do it is refused now
        self.evaluations: dict[str, Evaluation] = {}
        # Float64: its sums are already the means of steps, and its counts are steps.
        self.task_losses: TaskLosses = TaskLosses(names, args.device, torch.float64)
        self.tokens: np.ndarray[Any, Any] = np.zeros(3, dtype=np.int64)  # real, padded, micro-batches; of all ranks
        self._own_tokens = np.zeros(3, dtype=np.int64)  # of this rank, since they were last added up
        self.passed: np.ndarray[Any, Any] = np.zeros(2, dtype=np.int64)  # rows, real tokens of this process so far

    # ---- data ----------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One epoch of steps, each a fixed number of rows per task."""
        return step_loader(self.tasks, self.quota, self.planner, self.collator, self.args, self.patience.gone)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's optimizer, with parameter groups of their own for the heads where their rate differs."""
        made = super().create_optimizer(*args, **kwargs)
        if self.head_learning_rate is not None:
            heads = {id(weight) for weight in self._bare_model().extra_weights().values()}
            for group in list(made.param_groups):
                own = [p for p in group["params"] if id(p) in heads]
                group["params"] = [p for p in group["params"] if id(p) not in heads]
                if own:
                    made.add_param_group({**group, "params": own, "lr": self.head_learning_rate})
        return made

    # ---- the step ------------------------------------------------------------------------------------

    def micro_batches_of(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """A loader batch is a whole step."""
        return inputs["micro_batches"]

    def task_ids_of(self, inputs: dict[str, Any]) -> Any:
        """The batch's task ids, of tokens if it is packed; left in it, because the model needs them for its heads."""
        return _of_units(inputs["task_ids"], inputs)

    def halves_of(self, inputs: dict[str, Any]) -> Any:
        """The halves that the sampler chose, laid out like the task ids."""
        return _of_units(inputs["halves"], inputs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Count the step for the logs and the rule, with its last micro-batch."""
        if self.accelerator.sync_gradients and self.args.process_index == 0:  # counts are summed over the ranks
            self.task_losses.add_counts(
                torch.tensor([float(i not in self.patience.gone) for i in range(len(self.tasks))])
            )
        return super().training_step(*args, **kwargs)

    def forget_unfinished_step(self) -> None:
        """Drop its task gradients, its losses and its tokens."""
        super().forget_unfinished_step()
        self._own_tokens[:] = 0

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """`Σ_t w_t · (Σ of the task's losses here) / (its rows, or target tokens, in the step)`."""
        given = inputs["inputs"], inputs["task_ids"]
        outputs = run_sharded(self.accelerator, model, *given) if self.is_sharded else model(*given)
        losses = self._bare_model().sum_losses(outputs, inputs)
        losses = losses / inputs["weights"].to(losses.device).clamp_min(1)
        self._check_finite(losses.detach())
        if model.training:
            self.task_losses.add_losses(losses, torch.arange(len(losses)))
            self._own_tokens += np.asarray([*inputs["tokens"], 1])
            self.passed += np.asarray([len(inputs["task_ids"]), inputs["tokens"][0]])
        weights = losses.new_tensor([task.data.spec.weight for task in self.tasks])
        # DDP averages .grad over ranks; the normaliser above is already global.
        loss = (weights * losses).sum() * world_size()
        return (loss, outputs) if return_outputs else loss

    def _check_finite(self, losses: Tensor) -> None:
        if bool(losses.isfinite().all()):
            return
        task = self.tasks[int((~losses.isfinite()).nonzero()[0])].data.name
        step = self.state.global_step + 1
        kept = checkpoints.checkpoints(self._folder())
        raise NonFiniteLossError(
            f"The loss of task {task!r} became {float(losses[~losses.isfinite()][0])} in step {step}",
            expected="finite losses",
            found=f"a non-finite loss in step {step}; "
            + (f"{kept[-1]} is the last checkpoint and was kept" if kept else "no checkpoint was written yet"),
            todo="look at the task's rows; or, with another --out, lower `training.learning_rate` or use "
            "`dtype: float32`",
        )

    # ---- evaluation ----------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metric of every task on its dev rows, and their mean as `average`.

        Args:
            eval_dataset, ignore_keys: Not used: every task is evaluated on its own dev rows.
            metric_key_prefix: Prefix of the returned keys.

        Returns:
            `{prefix}_{task}` (the task's metric), `{prefix}_{task}/{metric}` for all that fit it, `{prefix}_average`
            and, where it is another, `{prefix}_selection/score`. Targets and predictions stay in `self.evaluations`.
        """
        result = self._ask(metric_key_prefix, [task.dev for task in self.tasks])
        main = [result[f"{metric_key_prefix}_{task.data.name}"] for task in self.tasks]
        result[f"{metric_key_prefix}_average"] = float(np.mean(main))
        if not self.selection.is_plain:
            names = [task.data.name for task in self.tasks]
            result[f"{metric_key_prefix}_{SCORE}"] = self.selection.score(dict(zip(names, main, strict=True)))
        self.log(dict(result))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, result)
        return result

    def evaluate_on_test(self) -> dict[str, float]:
        """Metric of every task on its test rows, for the tasks that have some; nothing is chosen by it.

        Returns:
            `test_{task}` and `test_{task}/{metric}`. Targets and predictions replace those of dev in
            `self.evaluations`.
        """
        result = self._ask("test", [task.test for task in self.tasks])
        if result:
            self.log(dict(result))
        return result

    def _ask(self, prefix: str, parts: Sequence[EncodedSplit | None]) -> dict[str, float]:
        """Let the model answer one part of each task; tasks without it are left out."""
        result: dict[str, float] = {}
        model = self.ready_to_answer()
        with model.evaluating():
            for index, (task, rows) in enumerate(zip(self.tasks, parts, strict=True)):
                if rows is None:
                    continue
                found = self._evaluation(model, index, rows)
                self.evaluations[task.data.name] = found
                key = f"{prefix}_{task.data.name}"
                result[key] = found.scores["main"]
                result |= {f"{key}/{name}": value for name, value in found.scores.items() if name != "main"}
        return result

    @torch.no_grad()
    def _evaluation(self, model: AdaptedModel, index: int, rows: EncodedSplit) -> Evaluation:
        task = self.tasks[index]
        reading = Reading(
            self.collator.tokenizer,
            self.card.max_length,
            self.planner.max_tokens,
            self.args.per_device_eval_batch_size,
            self.collator.multiple,
        )
        # A forward of a sharded model is a collective: all processes read the same rows, in the same batches.
        share = slice(None) if self.is_sharded else slice(self.args.process_index, None, self.args.world_size)
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            return score(model, index, task.data.spec, rows, reading, share, self._gather)

    def _gather(self, values: np.ndarray) -> np.ndarray:
        """Every row was predicted by one rank; it is zero on the others. Of a sharded model the first one's count."""
        if self.is_sharded and self.args.process_index > 0:
            values = np.zeros_like(values)
        return summed(torch.from_numpy(values), self.args.device).numpy()

    # ---- logs and checkpoints ------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add per-task losses and conflict figures to the ordinary logs."""
        self._add_up_tokens()
        super().log(logs, *args, **kwargs)

    def _add_up_tokens(self) -> None:
        """Add the ranks' counts. All ranks get here together: logs and checkpoints go by the step."""
        self.tokens += summed(torch.from_numpy(self._own_tokens), self.args.device).numpy()
        self._own_tokens[:] = 0

    def resume_state(self) -> dict[str, Any]:
        """Everything that a run needs to go on as if it had not stopped."""
        self._add_up_tokens()
        own = {"step_seconds": self.timer.seconds, "tokens": self.tokens.tolist()}
        return super().resume_state() | own | {"patience_per_task": self.patience.state_dict()}

    def _is_over(self, checkpoint: Path) -> bool:
        """Whether every task has stopped."""
        state = (read_state(checkpoint) or {}).get("patience_per_task", {"gone": {}})
        return len(state["gone"]) == len(self.tasks)

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Restore `resume_state()`."""
        if isinstance(state["task_losses"], tuple):  # an older checkpoint: the tasks' sums, and the number of steps
            losses, steps = state["task_losses"]
            total = torch.stack([losses, torch.full_like(losses, steps)])
            state = state | {"task_losses": {"tasks": self.task_losses.tasks, "total": total}}
        super().load_resume_state(state)
        self.timer.seconds = list(state["step_seconds"])
        if "patience_per_task" in state:  # not in checkpoints of earlier versions
            self.patience.load_state_dict(state["patience_per_task"])
        self.tokens = np.asarray(state["tokens"], dtype=np.int64)


def _check_heads(model: AdaptedModel, tasks: Sequence[EncodedTask]) -> None:
    names = [task.data.name for task in tasks]
    if model.task_names != names:
        raise ValueError(f"tasks should match the model's {model.task_names}. Found {names}.")


def _of_units(of_rows: list[int], inputs: dict[str, Any]) -> Any:
    """What is known of each row; if the batch is packed, of each token `[1, S]`."""
    if is_packed(inputs["inputs"]):
        return torch.repeat_interleave(torch.tensor(of_rows), torch.tensor(inputs["inputs"]["lengths"]))[None]
    return of_rows


def _never_called(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("OrthoTrainer computes its own loss")
