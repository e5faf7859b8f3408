"""Several optimizer steps in one mode, and how far two such runs are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import workspaces
from engine import _models as models
from ortholora.engine import OrthoLora, StepStats
from ortholora.runs.method import Method

TASKS = ("a", "b", "c")
ROWS, TOKENS = 8, 4


@dataclass
class Run:
    """What a run started from and ended with.

    Attributes:
        start: Trainable parameters before the first step.
        end: After the last.
        losses: One a step.
        conflicts: Pairs of tasks in conflict, over all steps and matrices; None where nothing was captured.
        skipped: Steps that the scaler, or the test, did not take.
    """

    start: dict[str, Tensor]
    end: dict[str, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    conflicts: int | None = None
    skipped: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Distance:
    """How far a run is from another, as shares of how far that one moved.

    Attributes:
        largest: Largest difference of any parameter's element: what rounding does to the worst of them.
        drift: Largest mean difference, with its sign, of any parameter: rounding averages out in it, a wrong
            scale or a lost row does not.
        losses: Largest relative difference of a step's loss.
    """

    largest: float
    drift: float
    losses: float


def distance(found: Run, expected: Run) -> Distance:
    """Compare the trained parameters and the losses of two runs that started alike."""
    assert found.end.keys() == expected.end.keys()
    assert all(torch.equal(found.start[name], value) for name, value in expected.start.items())
    moved = max(float((expected.end[name] - value).abs().max()) for name, value in expected.start.items())
    assert moved > 1e-3, "the run hardly trained: the comparison proves nothing"
    apart = {name: (found.end[name] - value).double() / moved for name, value in expected.end.items()}
    return Distance(
        largest=max(float(d.abs().max()) for d in apart.values()),
        drift=max(abs(float(d.mean())) for d in apart.values()),
        losses=max(abs(a - b) / abs(b) for a, b in zip(found.losses, expected.losses, strict=True)),
    )


def assert_same_run(
    found: Run, expected: Run, *, largest: float = 1e-5, drift: float = 1e-6, losses: float = 3e-6
) -> None:
    """Two modes trained the same, up to these shares; the message gives all three distances.

    The defaults are for float32 sums in another order, with a margin of about ten.
    """
    apart = distance(found, expected)
    allowed = Distance(largest, drift, losses)
    assert apart.largest <= largest, f"{apart}, allowed {allowed}"
    assert apart.drift <= drift, f"{apart}, allowed {allowed}"
    assert apart.losses <= losses, f"{apart}, allowed {allowed}"


# ---- a training loop around the engine -------------------------------------------------------------------


@dataclass
class Loop:
    """The loop of the README around a tiny model: six steps of eight rows, each task the mean over its own rows.

    The optimizer is SGD, because Adam would hide a gradient of a wrong scale.

    Attributes:
        build: `(rows, tokens, **options)` → `Sample`.
        options: Options of the adapter.
        rule: Conflict rule; None: plain joint training, without the engine.
        cuts: Rows of each micro-batch; they sum to eight.
        steps: Optimizer steps.
        clip: Largest gradient norm.
        prepare: Called with the model before the engine is attached.
        forward: Context in which the forward runs (autocast).
        scaler: Scales the losses and skips steps that overflowed.
        skip: Steps whose gradients are thrown away, as a scaler does.
        discard: Forget a skipped step with `ortho.discard()` instead of resolving it.
        device: Where to.
        after_resolve: Called in each step with the model and the step's statistics, before clipping.
    """

    build: Callable[..., models.Sample] = models.bert
    options: dict[str, Any] = field(default_factory=dict)
    rule: Any = "ortho"
    cuts: Sequence[int] = (ROWS,)
    steps: int = 6
    clip: float | None = None
    prepare: Callable[[nn.Module], None] | None = None
    forward: Callable[[], AbstractContextManager[Any]] = nullcontext
    scaler: torch.amp.GradScaler | None = None
    skip: Sequence[int] = ()
    discard: bool = False
    device: str = "cpu"
    after_resolve: Callable[[nn.Module, StepStats], None] | None = None

    def run(self) -> Run:
        """Train. Every run starts from the same weights and sees the same rows, whatever its mode."""
        torch.manual_seed(11)
        samples = [self._on_device(self.build(ROWS, TOKENS, **self.options)) for _ in range(self.steps)]
        model = samples[0].model
        if self.prepare is not None:
            self.prepare(model)
        ortho = None if self.rule is None else OrthoLora(model, TASKS, rule=self.rule, seed=5)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.2, momentum=0.9)
        run = Run(_weights(model), conflicts=None if ortho is None else 0)
        torch.manual_seed(12)  # of the dropout
        for step in range(self.steps):
            ids = torch.randint(len(TASKS), (ROWS,), generator=torch.Generator().manual_seed(step))
            data = models.Sample(model, samples[step].inputs, samples[step].target)
            run.losses.append(self._backward(data, ids, ortho))
            overflowed = self.scaler is not None and not _is_finite(model)
            if step in self.skip or overflowed:
                run.skipped.append(step)
            if ortho is not None and step in run.skipped and self.discard:
                ortho.discard()
            elif ortho is not None:
                stats = ortho.resolve()
                run.conflicts += int(stats.conflict_counts.sum())  # type: ignore[operator]
                if self.after_resolve is not None:
                    self.after_resolve(model, stats)
            if step in self.skip:
                optimizer.zero_grad()
            self._update(model, optimizer)
        run.end = _weights(model)
        return run

    def _on_device(self, sample: models.Sample) -> models.Sample:
        inputs = {name: tensor.to(self.device) for name, tensor in sample.inputs.items()}
        return models.Sample(sample.model.to(self.device), inputs, sample.target.to(self.device))

    def _backward(self, data: models.Sample, ids: Tensor, ortho: OrthoLora | None) -> float:
        rows_of_task = torch.bincount(ids, minlength=len(TASKS))
        total, stop = 0.0, 0
        for rows in self.cuts:
            start, stop = stop, stop + rows
            own = ids[start:stop]
            share = (1.0 / rows_of_task[own]).to(self.device)  # of the whole step: a cut must not change it
            with nullcontext() if ortho is None else ortho.batch(own):
                with self.forward():
                    losses = models.token_losses(data.model, data.rows(slice(start, stop)))
                loss = (losses.float().mean(1) * share).sum()
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            total += float(loss.detach())
        assert stop == ROWS
        return total

    def _update(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad()


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def _is_finite(model: nn.Module) -> bool:
    return all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


# ---- the trainer -----------------------------------------------------------------------------------------


def train(trainer: Any) -> Run:
    """Train an `OrthoTrainer` that logs every step."""
    run = Run(workspaces.weights(trainer))
    trainer.train()
    run.end = workspaces.weights(trainer)
    # Not `loss`, which older versions of the Trainer round.
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    run.losses = [sum(entry[f"loss/{name}"] for name in workspaces.TASKS) for entry in logs]
    assert len(run.losses) == trainer.state.global_step
    return run


def trainer_run(out: Path, method: Method = workspaces.ORTHO, **sections: Any) -> Run:
    """Train the tiny tasks without the heads' dropout, whose draws depend on the cut."""
    return train(trainer_of(out, method, **sections))


def trainer_of(out: Path, method: Method = workspaces.ORTHO, **sections: Any) -> Any:
    """A trainer of the tiny tasks that logs every step, with SGD and without clipping, which would hide a scale."""
    given = sections.pop("training", {})
    arguments = {"optim": "sgd", **given.pop("arguments", {})}
    training = {"log_every": 1, "save_every": 0, "max_grad_norm": 0.0, "learning_rate": 0.05, **given}
    training["arguments"] = arguments
    return workspaces.trainer(out, method, head_dropout=0.0, training=training, **sections)
