"""`OrthoTrainer`: a `transformers.Trainer` for one shared adapter and many tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from ortholora.data.encoded import EncodedTask, MicroBatches, MixedDataset
from ortholora.data.mixing import StepSampler
from ortholora.data.planner import Planner
from ortholora.engine import OrthoLora, Rule, StepStats
from ortholora.engine.distributed import barrier, summed, world_size
from ortholora.engine.gram import Block
from ortholora.engine.layers import find_matrices
from ortholora.errors import NonFiniteLossError, UserError
from ortholora.files import publish_folder
from ortholora.models.adapted import AdaptedModel, Reading
from ortholora.models.card import ModelCard
from ortholora.models.loading import load_weights
from ortholora.models.packed import has_flash_attention, is_packed
from ortholora.models.saving import save_model
from ortholora.trainers import checkpoints
from ortholora.trainers.conflicts import ConflictTracker
from ortholora.trainers.cost import StepTimer
from ortholora.trainers.launch_cost import launch_tokens
from ortholora.trainers.mixin import ResolveMixin
from ortholora.trainers.resume import STATE_FILE
from ortholora.trainers.scoring import Evaluation, score


class StepLoader(DataLoader[Any]):
    """Passes the epoch on to its sampler."""

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch."""
        sampler = self.batch_sampler
        assert isinstance(sampler, StepSampler)
        sampler.set_epoch(epoch)


class OrthoTrainer(ResolveMixin, Trainer):
    """Trains a `MultiTaskModel` or a `LanguageModel` on mixed batches, resolving conflicts once per optimizer step.

    Works with ordinary `TrainingArguments`: bf16 / fp16, checkpoints and resume, logging, best model
    (`metric_for_best_model="average"`) and early stopping. A step's rows follow from `quota`, not from
    `per_device_train_batch_size`; `planner` cuts them into micro-batches inside of the step. With
    `gradient_accumulation_steps` above 1 it cuts exactly so many, and the Trainer accumulates them.

    A task's loss is the mean over its own rows in the whole step (all micro-batches; for a language model over their
    target tokens) times its weight, so that a weight means the same however the step is cut.

    Several processes (torchrun, accelerate launch: DDP) share out the rows of every step, which stays the same as
    in one process. FSDP and DeepSpeed are refused.

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
        fused: See `OrthoLora`.
        buffer_dtype: See `OrthoLora`.
        head_learning_rate: Learning rate of the heads, where it differs from the adapter's.
        kwargs: Further arguments of `Trainer` (callbacks, optimizers, …).
    """

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
        head_learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        _check_heads(model, tasks)
        _check_wrappers(args)
        self.tasks, self.card, self.quota = list(tasks), card, list(quota)
        self.head_learning_rate = head_learning_rate
        self.collator = model.collator(tokenizer, padding_multiple(args))
        self.timer = StepTimer()
        super().__init__(
            model=model,
            args=args,
            train_dataset=MixedDataset([task.train for task in tasks]),
            eval_dataset=ConcatDataset([MixedDataset([task.dev]) for task in tasks]),
            data_collator=self.collator.step,
            **kwargs,
        )
        self.add_callback(self.timer)
        # Our loss is normalised over the whole step already. Trainer must not divide it again: newer versions
        # ask this attribute, older ones whether there is a `compute_loss_func`.
        self.loss_is_scaled_for_ga = True
        self.compute_loss_func = _never_called
        names = [task.data.name for task in self.tasks]
        if rule is not None:
            self.ortho = OrthoLora(model, names, rule, block, args.seed, fused=fused, buffer_dtype=buffer_dtype)
        self.planner = self._complete(planner or Planner(), model)
        if self.planner.layout == "padding-free":
            self.collator.packed = True
            model.find_packing_mode()  # a backbone that cannot do it is refused now
        self.conflicts = ConflictTracker(names)
        self.evaluations: dict[str, Evaluation] = {}
        self._task_losses = torch.zeros(len(names), dtype=torch.float64)  # of this rank
        self._task_losses_of_all = torch.zeros(len(names), dtype=torch.float64)
        self._loss_steps = 0
        self.tokens = np.zeros(3, dtype=np.int64)  # real, padded, micro-batches; of all ranks
        self._own_tokens = np.zeros(3, dtype=np.int64)  # of this rank, since they were last added up

    def _complete(self, planner: Planner, model: AdaptedModel) -> Planner:
        """Decide what the planner left open. Not by the rule: every method gets the same cuts."""
        layout = planner.layout
        if layout == "auto":
            layout = "by-length"
            if any(matrix.task_pure for matrix in find_matrices(model)):
                layout = "by-task"
            elif self.args.device.type != "cpu" and has_flash_attention(model.backbone):
                layout = "padding-free"
        launch = planner.launch_tokens
        if launch is None:
            launch = launch_tokens(model, self.args.device.type)
        return replace(planner, layout=layout, launch_tokens=launch, multiple=self.collator.multiple)

    # ---- data ----------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One epoch of steps, each a fixed number of rows per task."""
        sampler = StepSampler(
            names=[task.data.name for task in self.tasks],
            lengths=[task.train.lengths for task in self.tasks],
            quota=self.quota,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            planner=self.planner,
            accumulate=self.args.gradient_accumulation_steps,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            weights=[task.train.weights for task in self.tasks],
        )
        assert isinstance(self.train_dataset, MixedDataset)
        # Not prepared by accelerate, which would deal whole batches to the ranks: the sampler deals out rows.
        return StepLoader(
            MicroBatches(self.train_dataset),
            batch_sampler=sampler,
            collate_fn=self.collator.step,
            num_workers=self.args.dataloader_num_workers,
        )

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

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or go on; from a checkpoint of the last step nothing is trained any more.

        (The Trainer itself would take one step more there, unless an epoch ends with it.)
        """
        if isinstance(resume_from_checkpoint, str) and self._is_finished(Path(resume_from_checkpoint)):
            self._load_from_checkpoint(resume_from_checkpoint)
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
                self._load_best_model()
            return TrainOutput(self.state.global_step, 0.0, {})
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _is_finished(self, checkpoint: Path) -> bool:
        path = checkpoint / TRAINER_STATE_NAME
        if not path.is_file():
            return False
        state = TrainerState.load_from_json(str(path))
        if 0 < self.args.max_steps <= state.global_step:
            self.state = state
            self.state.max_steps = self.args.max_steps
            return True
        return False

    # ---- the step ------------------------------------------------------------------------------------

    def micro_batches_of(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """A loader batch is a whole step."""
        return inputs["micro_batches"]

    def task_ids_of(self, inputs: dict[str, Any]) -> Any:
        """The batch's task ids, of tokens if it is packed; left in it, because the model needs them for its heads."""
        ids = inputs["task_ids"]
        if is_packed(inputs["inputs"]):
            return torch.repeat_interleave(torch.tensor(ids), torch.tensor(inputs["inputs"]["lengths"]))[None]
        return ids

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Count the step for the logs when its last micro-batch is done."""
        loss = super().training_step(*args, **kwargs)
        self._loss_steps += int(self.accelerator.sync_gradients)
        return loss

    def forget_unfinished_step(self) -> None:
        """Drop its task gradients and its losses."""
        super().forget_unfinished_step()
        self._task_losses.zero_()
        self._own_tokens[:] = 0

    def on_resolved(self, stats: StepStats) -> None:
        """Keep the conflict figures for the logs and the result."""
        self.conflicts.add(stats)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """`Σ_t w_t · (Σ of the task's losses here) / (its rows, or target tokens, in the step)`."""
        outputs = model(inputs["inputs"], inputs["task_ids"])
        losses = self._bare_model().sum_losses(outputs, inputs)
        losses = losses / inputs["weights"].to(losses.device).clamp_min(1)
        self._check_finite(losses.detach())
        if model.training:
            self._task_losses += losses.detach().double().cpu()
            self._own_tokens += np.asarray([*inputs["tokens"], 1])
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
            eval_dataset: Not used: every task is evaluated on its own dev rows.
            ignore_keys: Not used.
            metric_key_prefix: Prefix of the returned keys.

        Returns:
            `{prefix}_{task}` (the task's metric), `{prefix}_{task}/{metric}` for all that fit it, and
            `{prefix}_average`. Targets and predictions stay in `self.evaluations`.
        """
        result: dict[str, float] = {}
        model = self._bare_model()
        was_training = model.training
        model.eval()
        for index, task in enumerate(self.tasks):
            found = self._evaluation(model, index)
            self.evaluations[task.data.name] = found
            key = f"{metric_key_prefix}_{task.data.name}"
            result[key] = found.scores["main"]
            result |= {f"{key}/{name}": value for name, value in found.scores.items() if name != "main"}
        model.train(was_training)
        main = [result[f"{metric_key_prefix}_{task.data.name}"] for task in self.tasks]
        result[f"{metric_key_prefix}_average"] = float(np.mean(main))
        self.log(dict(result))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, result)
        return result

    @torch.no_grad()
    def _evaluation(self, model: AdaptedModel, index: int) -> Evaluation:
        task = self.tasks[index]
        reading = Reading(
            self.collator.tokenizer,
            self.card.max_length,
            self.planner.max_tokens,
            self.args.per_device_eval_batch_size,
            self.collator.multiple,
        )
        share = slice(self.args.process_index, None, self.args.world_size)
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            return score(model, index, task.data.spec, task.dev, reading, share, self._gather)

    def _gather(self, values: np.ndarray) -> np.ndarray:
        """Every row was predicted by one rank; it is zero on the others."""
        return summed(torch.from_numpy(values), self.args.device).numpy()

    # ---- logs ----------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add per-task losses and conflict figures to the ordinary logs."""
        self._add_up()
        if "loss" in logs and self._loss_steps:
            names = [task.data.name for task in self.tasks]
            means = (self._task_losses_of_all / self._loss_steps).tolist()
            logs |= {f"loss/{name}": mean for name, mean in zip(names, means, strict=True)}
            logs |= self.conflicts.take_recent()
            self._task_losses_of_all.zero_()
            self._loss_steps = 0
        super().log(logs, start_time)

    def _add_up(self) -> None:
        """Add the ranks' counts and losses. All ranks get here together: logs and checkpoints go by the step."""
        self._task_losses_of_all += summed(self._task_losses, self.args.device)
        self._task_losses.zero_()
        self.tokens += summed(torch.from_numpy(self._own_tokens), self.args.device).numpy()
        self._own_tokens[:] = 0

    # ---- checkpoints ---------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        save_model(Path(output_dir) if output_dir else self._folder(), self._bare_model(), self.card)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Every rank writes its part into one staging folder; one of them moves it into its place."""
        folder = self._folder()
        name = f"checkpoint-{self.state.global_step}"
        main = self.args.should_save
        self._add_up()
        if not main:
            barrier()  # until the folder is there
        with checkpoints.staging(folder, f"The checkpoint of step {self.state.global_step}", owner=main) as stage:
            if main:
                barrier()
            self._staged_output_dir = str(stage)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                del self._staged_output_dir
            barrier()  # until every rank has written
            if main:
                self._correct_best(folder, name)
                self.state.save_to_json(str(stage / name / "trainer_state.json"))
                publish_folder(stage / name, folder / name)
        barrier()  # until it is in its place
        if main:
            checkpoints.rotate(folder, self.args.save_total_limit, self.state.best_model_checkpoint)
        else:
            self._correct_best(folder, name)

    def _get_output_dir(self, trial: Any) -> str:
        return getattr(self, "_staged_output_dir", None) or super()._get_output_dir(trial)

    def _correct_best(self, folder: Path, name: str) -> None:
        """The Trainer has just looked for the best checkpoint in the staging folder."""
        best = f"checkpoint-{self.state.best_global_step}" if self.state.best_global_step else None
        if best is not None and (best == name or (folder / best).is_dir()):
            self.state.best_model_checkpoint = str(folder / best)

    def resume_state(self) -> dict[str, Any]:
        """Everything that a run needs to go on as if it had not stopped."""
        return super().resume_state() | {
            "conflicts": self.conflicts.state_dict(),
            "step_seconds": self.timer.seconds,
            "tokens": self.tokens.tolist(),
            "task_losses": (self._task_losses_of_all, self._loss_steps),
            "patience": [callback.early_stopping_patience_counter for callback in self._early_stopping()],
        }

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Restore `resume_state()`."""
        super().load_resume_state(state)
        self.conflicts.load_state_dict(state["conflicts"])
        self.timer.seconds = list(state["step_seconds"])
        self.tokens = np.asarray(state["tokens"], dtype=np.int64)
        self._task_losses_of_all, self._loss_steps = state["task_losses"]
        # The Trainer restores callbacks only on request, and then its own control flow with them.
        for callback, counter in zip(self._early_stopping(), state["patience"], strict=True):
            callback.early_stopping_patience_counter = counter

    def _early_stopping(self) -> list[EarlyStoppingCallback]:
        return [c for c in self.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_weights(folder, self._bare_model())
        if not (folder / STATE_FILE).is_file():
            raise UserError(
                f"The checkpoint {folder} cannot be resumed",
                expected=f"a complete checkpoint with {STATE_FILE}",
                found="none (was it saved with `save_only_model`?)",
                todo=f"delete {folder} to go on from the checkpoint before it",
            )
        self.restore(folder)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        load_weights(Path(self.state.best_model_checkpoint), self._bare_model())

    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def _bare_model(self) -> AdaptedModel:
        model = self.accelerator.unwrap_model(self.model)
        assert isinstance(model, AdaptedModel)
        return model


def padding_multiple(args: TrainingArguments) -> int:
    """Matrix units of accelerators like multiples of 8; on a CPU they would only be padding."""
    return 1 if args.device.type == "cpu" else 8


def _check_heads(model: AdaptedModel, tasks: Sequence[EncodedTask]) -> None:
    names = [task.data.name for task in tasks]
    if model.task_names != names:
        raise ValueError(f"tasks should match the model's {model.task_names}. Found {names}.")


def _check_wrappers(args: TrainingArguments) -> None:
    """Refuse what the trainer would get wrong; and keep it from wrapping the model in DataParallel by itself."""
    found = [name for name, used in {"FSDP": bool(args.fsdp), "DeepSpeed": bool(args.deepspeed)}.items() if used]
    if found:
        raise UserError(
            "OrthoTrainer runs in one process, or in several under DDP",
            expected="a start with python, torchrun or accelerate launch, without FSDP and DeepSpeed",
            found=", ".join(found),
            todo="remove the setting; LoRA's gradients and optimizer states are small, so DDP is seldom too large",
        )
    if args.n_gpu > 1:
        args._n_gpu = 1


def _never_called(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("OrthoTrainer computes its own loss")
