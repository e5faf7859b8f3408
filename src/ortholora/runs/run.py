"""One run: build the model, train, evaluate, save. The same code for single, joint and every rule."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments

from ortholora.config.metric_names import ANSWER_METRICS
from ortholora.config.schema import Config
from ortholora.data.encoded import EncodedTask, encode_task
from ortholora.data.mixing import StepSampler, quotas
from ortholora.data.planner import Planner
from ortholora.data.task import TaskData
from ortholora.errors import UserError
from ortholora.metrics.answers import check_rouge
from ortholora.models.adapted import AdaptedModel
from ortholora.models.backbone import check_is_language_model, load_backbone, load_tokenizer
from ortholora.models.heads import HeadSpec
from ortholora.models.language import LanguageSpec
from ortholora.models.multitask import add_lora
from ortholora.models.saving import ModelCard, save_model, wrap
from ortholora.runs.arguments import training_arguments
from ortholora.runs.folder import claim_folder, describe, disclaim
from ortholora.runs.method import Method
from ortholora.runs.progress import Progress, ProgressCallback, Silent, Stopped
from ortholora.runs.provenance import fingerprint, provenance
from ortholora.text.prompts import answer_of
from ortholora.trainers import checkpoints
from ortholora.trainers.cost import peak_memory_bytes, reset_peak_memory
from ortholora.trainers.trainer import OrthoTrainer


@dataclass(frozen=True)
class RunResult:
    """What a finished run measured.

    Attributes:
        metrics: Task → its metric on dev.
        metric_names: Task → name of that metric.
        num_labels: Task → number of classes, None for regression.
        details: Task → every metric that fits it.
        targets: Task → dev targets.
        predictions: Task → dev predictions.
        step_seconds: Median seconds of an optimizer step.
        peak_memory_bytes: Peak of the run, 0 where unknown.
        padding: Share of the trained tokens that were padding.
        micro_batches: Mean number of micro-batches of a step.
        conflict: `ConflictTracker.report()`; None without capture.
        provenance: Versions, commit, hardware, data, configuration.
    """

    metrics: dict[str, float]
    metric_names: dict[str, str]
    num_labels: dict[str, int | None]
    details: dict[str, dict[str, float]]
    targets: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    step_seconds: float
    peak_memory_bytes: int
    padding: float
    micro_batches: float
    conflict: dict[str, Any] | None
    provenance: dict[str, Any]


class Workspace:
    """Tokenised tasks of a configuration, made once and shared by its runs."""

    def __init__(self, config: Config, tasks: Sequence[TaskData]) -> None:
        self.config, self.tasks = config, list(tasks)
        if config.is_language:
            check_is_language_model(config.backbone, config.revision)
        for task in tasks:
            if task.spec.metric == "rouge_l":
                check_rouge([answer_of(task.spec.kind, row) for row in task.dev.texts])
        self.tokenizer = load_tokenizer(config.backbone, config.revision)
        self._encoded: dict[str, EncodedTask] = {}

    def encoded(self, name: str) -> EncodedTask:
        """One task, tokenised on first use."""
        if name not in self._encoded:
            data = next(task for task in self.tasks if task.name == name)
            self._encoded[name] = encode_task(data, self.tokenizer, self.config.max_length)
        return self._encoded[name]

    def cut_rows(self) -> list[str]:
        """A sentence for every task with rows that are longer than `max_length`."""
        found = []
        for task in self.tasks:
            splits = self.encoded(task.name).train, self.encoded(task.name).dev
            cut, total = sum(split.cut for split in splits), sum(map(len, splits))
            if cut:
                count = f"all {total:,} rows are" if cut == total else f"{cut:,} of {total:,} rows are"
                limit = f"longer than {self.config.max_length} tokens (`max_length`)"
                found.append(f"{task.name}: {count} {limit} and are cut.")
        return found

    def quota(self) -> dict[str, int]:
        """Rows of each task in a step; decided over all tasks, also for runs of one of them."""
        mixing = self.config.mixing
        rows = mixing.rows_per_task * len(self.tasks)
        sizes = [len(task.train) for task in self.tasks]
        return dict(
            zip(
                [task.name for task in self.tasks],
                quotas(sizes, rows, mixing.quota, mixing.temperature),
                strict=True,
            )
        )


def train_run(
    workspace: Workspace,
    method: Method,
    names: Sequence[str],
    seed: int,
    out: Path,
    progress: Progress | None = None,
    label: str | None = None,
    base: Path | None = None,
) -> RunResult:
    """Train some tasks of a workspace with one method, or resume where a stopped run left off.

    Args:
        workspace: Configuration and tokenised tasks.
        method: Rule and block.
        names: The tasks to train (one for `single`).
        seed: Seed of weights, dropout, data order and visit orders.
        out: The run's folder; model, result and checkpoints go there.
        progress: Is told what happens.
        label: What to call the run there.
        base: Folder that relative data files start from; kept with the run for `evaluate`.

    Raises:
        UserError: Bad settings, a non-finite loss, a full disk, or a folder of another run.
        Stopped: `progress.stop_requested` was set; a checkpoint was written.
    """
    _check_one_process()
    progress = progress or Silent()
    config, label = workspace.config, label or method.name
    data = [workspace.encoded(name).data for name in names]
    mark = claim(workspace, method, names, seed, out)
    describe(out, mark, own_config(config, method, names, seed), base)
    reset_peak_memory()
    resume = _last_checkpoint(out)
    try:
        trainer = build_trainer(workspace, method, names, seed, out, progress)
        progress.start(label, config.training.steps, int(resume.name.split("-")[1]) if resume else 0)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except UserError:
        disclaim(out)
        raise
    if progress.stop_requested and trainer.state.global_step < trainer.state.max_steps:
        raise Stopped(label)
    peak = peak_memory_bytes() or 0
    scores = trainer.evaluate()
    with checkpoints.staging(out, "The model", kept_in=out / "checkpoints") as stage:
        save_model(stage, trainer._bare_model(), trainer.card)
        checkpoints.publish_files(stage, out)
    result = _result(trainer, scores, peak, provenance(config, data))
    if trainer.ortho is not None:
        trainer.ortho.detach()
    progress.finish(label, result.metrics)
    return result


def _check_one_process() -> None:
    """Runs write one folder each; several processes would write it together."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "A run is trained by one process",
            expected="`ortholora train` or `compare`, started as they are",
            found=f"WORLD_SIZE={os.environ['WORLD_SIZE']}: a start with torchrun or accelerate launch",
            todo="start it without them; or use OrthoTrainer in a script of your own, which runs under both",
        )


def build_trainer(
    workspace: Workspace, method: Method, names: Sequence[str], seed: int, out: Path, progress: Progress
) -> OrthoTrainer:
    """Assemble model and trainer of a run."""
    config = workspace.config
    tasks = [workspace.encoded(name) for name in names]
    card = _card(config, tasks)
    quota = workspace.quota()
    rows = [quota[name] for name in names]
    arguments = training_arguments(config, out / "checkpoints", seed, sum(rows))
    if config.training.tensorboard:
        _log_to(out / "logs", arguments)
    trainer = OrthoTrainer(
        build_model(config, card, seed),
        arguments,
        tasks=tasks,
        tokenizer=workspace.tokenizer,
        card=card,
        quota=rows,
        rule=method.rule,
        block=method.block,
        planner=_planner(config, rows, len(workspace.tasks)),
        fused=config.capture.fused,
        buffer_dtype=getattr(torch, config.capture.buffer_dtype),
        head_learning_rate=config.training.head_learning_rate,
        callbacks=_callbacks(config, progress),
    )
    trainer.remove_callback(PrinterCallback)  # the command line shows progress in its own way
    return trainer


def check_settings(workspace: Workspace) -> None:
    """Build a run's model and arguments, and throw them away: a mistake shows before other runs' hours.

    Raises:
        UserError: The adapter does not go onto the backbone, or the training settings make no sense.
    """
    config = workspace.config
    training_arguments(config, Path("checkpoints"), 0, 1)
    build_model(config, _card(config, [workspace.encoded(task.name) for task in workspace.tasks]), 0)


def check_plans(workspace: Workspace) -> None:
    """Check that the steps of every run of the workspace can be cut as the configuration says.

    Raises:
        UserError: They cannot.
    """
    config = workspace.config
    names = [task.name for task in workspace.tasks]
    rows = workspace.quota()
    for together in [names, *([name] for name in names)]:
        lengths = [workspace.encoded(name).train.lengths for name in together]
        quota = [rows[name] for name in together]
        StepSampler(together, lengths, quota, 0, _planner(config, quota, len(names)))


def build_model(config: Config, card: ModelCard, seed: int) -> AdaptedModel:
    """Backbone, LoRA adapter and heads, all drawn from the seed."""
    lora = config.lora
    options = {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.target_modules,
        "use_rslora": lora.rslora,
        **lora.options,
    }
    dtype = getattr(torch, config.dtype)
    backbone = load_backbone(config.backbone, dtype, config.revision, language=config.is_language)
    task_type = "CAUSAL_LM" if config.is_language else "FEATURE_EXTRACTION"
    return wrap(add_lora(backbone, options, seed, task_type), card, config.head_dropout, seed)


def language_spec(data: TaskData) -> LanguageSpec:
    """What a language model needs to know of a task."""
    spec = data.spec
    assert spec.kind in ("completion", "chat")
    return LanguageSpec(data.name, spec.kind, data.labels, spec.metric, spec.max_new_tokens, spec.turns)


def head_spec(data: TaskData) -> HeadSpec:
    """The head a task needs."""
    spec = data.spec
    shift, scale = 0.0, 1.0
    if spec.kind == "regression":
        values = np.asarray(data.train.targets, dtype=np.float64)
        shift, scale = float(values.mean()), float(values.std())
    num_texts = len(data.train.texts[0]) if len(data.train) else len(spec.columns[0])
    assert spec.kind in ("classification", "regression")
    return HeadSpec(data.name, spec.kind, data.labels, shift, scale, spec.metric, num_texts)


def _card(config: Config, tasks: Sequence[EncodedTask]) -> ModelCard:
    folder = Path(config.backbone)
    return ModelCard(
        # A relative folder would be another one where the run is used.
        backbone=str(folder.absolute()) if folder.is_dir() else config.backbone,
        revision=config.revision,
        dtype=config.dtype,
        pooling=config.pooling,
        max_length=config.max_length,
        tasks=tuple((language_spec if task.data.spec.is_language else head_spec)(task.data) for task in tasks),  # type: ignore[arg-type]
    )


def _planner(config: Config, quota: Sequence[int], all_tasks: int) -> Planner:
    """The planner of a run of the tasks with this quota."""
    mixing = config.mixing
    pieces = mixing.micro_batches
    if pieces is not None and len(quota) < all_tasks:
        # A run of few tasks has fewer rows in a step: cut it in proportion, and never below a row each.
        pieces = min(max(1, pieces * len(quota) // all_tasks), sum(quota))
    return Planner(mixing.layout, pieces, mixing.max_tokens, mixing.launch_tokens)


def _callbacks(config: Config, progress: Progress) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [ProgressCallback(progress)]
    if config.training.patience:
        callbacks.append(EarlyStoppingCallback(config.training.patience))
    return callbacks


def _log_to(folder: Path, arguments: TrainingArguments) -> None:
    """TensorBoard's folder: transformers 5 reads it from the environment only, transformers 4 from its arguments."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)
    if hasattr(arguments, "logging_dir"):
        arguments.logging_dir = str(folder)


def claim(workspace: Workspace, method: Method, names: Sequence[str], seed: int, out: Path) -> str:
    """Make the folder this run's own, or check that it is.

    Returns:
        The run's fingerprint.

    Raises:
        UserError: The folder holds a run with other settings or other data.
    """
    tasks = [task for task in workspace.tasks if task.name in names]
    extra = {"method": method.rule and [method.rule, method.block], "seed": seed, "quota": workspace.quota()}
    mark = fingerprint(workspace.config, tasks, extra)
    claim_folder(out, mark, own_config(workspace.config, method, names, seed))
    return mark


def own_config(config: Config, method: Method, names: Sequence[str], seed: int) -> Config:
    """The configuration with which `train` would repeat this run."""
    return config.model_copy(
        update={
            "tasks": [task for task in config.tasks if task.name in names],
            "rule": method.rule or "sum",
            "block": method.block,
            "seed": seed,
        }
    )


def _last_checkpoint(out: Path) -> Path | None:
    found = checkpoints.checkpoints(out / "checkpoints")
    if not found:
        return None
    checkpoints.check(found[-1])
    return found[-1]


def _result(trainer: OrthoTrainer, scores: dict[str, float], peak: int, origin: dict[str, Any]) -> RunResult:
    names = [task.data.name for task in trainer.tasks]
    evaluations = trainer.evaluations
    real, padded, launches = (int(n) for n in trainer.tokens)
    return RunResult(
        metrics={name: scores[f"eval_{name}"] for name in names},
        metric_names={t.data.name: str(t.data.spec.metric) for t in trainer.tasks},
        num_labels={t.data.name: _num_labels(t.data) for t in trainer.tasks},
        details={name: _details(scores, name) for name in names},
        targets={name: found.targets for name, found in evaluations.items()},
        predictions={name: found.predictions for name, found in evaluations.items()},
        step_seconds=trainer.timer.median,
        peak_memory_bytes=peak,
        padding=1 - real / padded if padded else 0.0,
        micro_batches=launches / max(1, trainer.state.global_step),
        conflict=trainer.conflicts.report(),
        provenance=origin | _how(trainer),
    )


def _how(trainer: OrthoTrainer) -> dict[str, Any]:
    """How gradients were captured and steps cut: of interest beside the result, no part of what decides it."""
    capture = "none" if trainer.ortho is None else trainer.ortho.summary()
    cut = {task.data.name: task.train.cut + task.dev.cut for task in trainer.tasks if task.train.cut + task.dev.cut}
    return {"capture": capture.splitlines(), "micro_batches": asdict(trainer.planner), "cut_rows": cut}


def _details(scores: dict[str, float], name: str) -> dict[str, float]:
    prefix = f"eval_{name}/"
    return {key.removeprefix(prefix): value for key, value in scores.items() if key.startswith(prefix)}


def _num_labels(data: TaskData) -> int | None:
    """Number of classes that the task's metric is about."""
    return None if data.labels is None or data.spec.metric in ANSWER_METRICS else len(data.labels)
