"""What a trained run measured, as the record that is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ortholora.config.schema import Config
from ortholora.data.task import TaskData
from ortholora.runs.provenance import provenance
from ortholora.runs.record import Curve, RunRecord
from ortholora.runs.run import Run
from ortholora.trainers.cost import peak_memory_bytes
from ortholora.trainers.trainer import OrthoTrainer


def measure(run: Run, trainer: OrthoTrainer, config: Config, jobs: int) -> RunRecord:
    """Evaluate a trained run, and collect its figures.

    Args:
        run: The run.
        trainer: Its trainer, after the training.
        config: The configuration.
        jobs: Runs that shared the machine meanwhile.
    """
    peak_memory = peak_memory_bytes() or 0  # of the training alone
    curves = curves_of(trainer.state.log_history, run.tasks)
    trainer.evaluate()
    data = [task.data for task in trainer.tasks]
    on_dev = {name: found.scores["main"] for name, found in trainer.evaluations.items()}
    trainer.evaluate_on_test()
    found = trainer.evaluations
    real, padded, launches = (int(n) for n in trainer.tokens)
    return RunRecord(
        method=run.method.name,
        rule=run.method.rule,
        block=run.method.block if run.method.rule else None,
        seed=run.seed,
        tasks=run.tasks,
        metrics={name: evaluation.scores["main"] for name, evaluation in found.items()},
        metric_names={task.name: str(task.spec.metric) for task in data},
        targets={name: evaluation.targets for name, evaluation in found.items()},
        predictions={name: evaluation.predictions for name, evaluation in found.items()},
        num_labels={task.name: _num_labels(task) for task in data},
        step_seconds=trainer.timer.median,
        peak_memory_bytes=peak_memory,
        padding=1 - real / padded if padded else 0.0,
        micro_batches=launches / max(1, trainer.state.global_step),
        details={name: _details(evaluation.scores) for name, evaluation in found.items()},
        conflict=trainer.conflicts.report(),
        provenance={
            **provenance(config, data),
            **_how(trainer),
            "settings": run.method.overrides,
            "jobs": jobs,
            "processes": trainer.args.world_size,
        },
        curves=curves,
        scored_on={task.name: task.scored_on for task in data},
        stopped=trainer.patience.stopped,
        dev_metrics={task.name: on_dev[task.name] for task in data if task.test is not None},
    )


def curves_of(log_history: Iterable[Mapping[str, Any]], tasks: Sequence[str]) -> dict[str, dict[str, Curve]]:
    """The curves of every task out of a Trainer's log history, which a resumed run has from its beginning."""
    prefixes = {"loss": "loss/", "metric": "eval_"}
    entries = [entry for entry in log_history if "step" in entry]
    return {
        kind: {
            task: [(int(entry["step"]), float(entry[prefix + task])) for entry in entries if prefix + task in entry]
            for task in tasks
        }
        for kind, prefix in prefixes.items()
    }


def _how(trainer: OrthoTrainer) -> dict[str, Any]:
    """How gradients were captured and steps cut: of interest beside the result, no part of what decides it."""
    capture = "none" if trainer.ortho is None else trainer.ortho.summary()
    cut = {task.data.name: task.cut for task in trainer.tasks if task.cut}
    return {"capture": capture.splitlines(), "micro_batches": asdict(trainer.planner), "cut_rows": cut}


def _details(scores: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if name != "main"}


def _num_labels(data: TaskData) -> int | None:
    """Number of classes that the task's metric is about."""
    return None if data.labels is None or data.spec.measure.compares == "answers" else len(data.labels)
