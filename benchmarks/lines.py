"""The ways to take one multi-task LoRA step that `step.py` compares. All but `joint` give Ortho-LoRA's update."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from backbones import Batch, Case, build, make_batch, task_losses
from torch import Tensor

from ortholora.engine import OrthoLora


class Line:
    """One competitor: its own copy of the model, the shared batch, and an optimizer."""

    title = ""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, device
        self.model = build(case, device)
        self.batch = make_batch(case, device)
        self.names = [f"task{t}" for t in range(case.tasks)]
        self.lora = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.lora, lr=1e-5)

    def autocast(self) -> AbstractContextManager[None]:
        if not self.case.autocast:
            return nullcontext()
        return torch.autocast(self.device, getattr(torch, self.case.dtype))

    def losses(self, batch: Batch | None = None) -> list[Tensor]:
        with self.autocast():
            return task_losses(self.model, batch or self.batch)

    def gradients(self) -> None:
        """Forward, backward, and whatever makes `.grad` the update."""
        raise NotImplementedError

    def step(self) -> None:
        self.gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Joint(Line):
    """The base: plain PEFT, one backward of the summed losses."""

    title = "plain PEFT, joint"

    def gradients(self) -> None:
        torch.stack(self.losses()).sum().backward()


class _Ours(Line):
    fused = True

    def __init__(self, case: Case, device: str) -> None:
        super().__init__(case, device)
        self.ortho = OrthoLora(self.model, self.names, fused=self.fused)

    def gradients(self) -> None:
        with self.ortho.batch(self.batch.task_ids):
            torch.stack(self.losses()).sum().backward()
        self.ortho.resolve()


class General(_Ours):
    title = "Ortho-LoRA, general path"
    fused = False


class Fused(_Ours):
    title = "Ortho-LoRA, fused"


class TaskPure(_Ours):
    """A micro-batch for each task; gradients per task without any capture by row."""

    title = "T task-pure micro-batches"
    fused = False

    def gradients(self) -> None:
        for task in range(self.case.tasks):
            with self.ortho.batch(task):
                self.losses(self.batch.of_task(task))[0].backward()
        self.ortho.resolve()


class Retained(Line):
    """What public implementations do: T backwards over one retained graph, a loop over matrices and pairs."""

    title = "T backwards, Python loop"

    def gradients(self) -> None:
        losses = self.losses()
        per_task = []
        for i, loss in enumerate(losses):
            last = i == len(losses) - 1
            per_task.append(torch.autograd.grad(loss, self.lora, retain_graph=not last))
        for k, parameter in enumerate(self.lora):
            parameter.grad = project([gradients[k] for gradients in per_task])


def project(gradients: list[Tensor]) -> Tensor:
    """PCGrad of one matrix, as it is commonly written (without a host synchronisation)."""
    total = torch.zeros_like(gradients[0])
    squares = [g.pow(2).sum().clamp_min(1e-30) for g in gradients]
    for i, gradient in enumerate(gradients):
        h = gradient.clone()
        for j in torch.randperm(len(gradients)).tolist():
            if j != i:
                h -= ((h * gradients[j]).sum().clamp_max(0) / squares[j]) * gradients[j]
        total += h
    return total


class TorchJD(Line):
    """TorchJD: the Jacobian of all losses, then its PCGrad for every tensor."""

    title = "TorchJD, PCGrad per tensor"

    def gradients(self) -> None:
        from torchjd.aggregation import PCGrad
        from torchjd.autojac import backward, jac_to_grad

        backward(self.losses(), inputs=self.lora)
        for parameter in self.lora:
            jac_to_grad([parameter], PCGrad())


LINES: dict[str, type[Line]] = {
    "joint": Joint,
    "general": General,
    "fused": Fused,
    "task-pure": TaskPure,
    "retained": Retained,
    "torchjd": TorchJD,
}

#: Lines whose cost grows with T: timed in fewer rounds.
SLOW = ("retained", "torchjd")


def make(name: str, case: Case, device: str) -> Line:
    return LINES[name](case, device)


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()
