"""What OrthoLora does to a model, in one object: find its matrices, take them over, watch them, give them back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from ortholora.engine.abandoned import StepGuard
from ortholora.engine.behind import OutputMarks, doors, remove_leftover_marks
from ortholora.engine.buffers import ShapeGroup, group_by_shape
from ortholora.engine.capture import CurrentBatch, PureHook, install, is_leftover, uninstall
from ortholora.engine.checks import (
    batch_norms,
    check_capture_is_complete,
    check_gradients_were_captured,
    check_outputs_reach_a_loss,
    check_rows_are_apart,
    check_something_captured,
    refuse_shared_storage,
    refuse_wrappers,
)
from ortholora.engine.early_step import EarlySteps
from ortholora.engine.fused import FusedLayer, why_not_fused
from ortholora.engine.grouping import Grouping
from ortholora.engine.layers import Matrix, find_matrices
from ortholora.engine.others import OtherAdapters
from ortholora.engine.sharded import gather_around, refuse_layouts, sharding_modules
from ortholora.engine.summary import capture_by_layer, capture_summary
from ortholora.engine.trial import Trial, remove_leftover_trials
from ortholora.engine.trial.calls import chain
from ortholora.engine.watch import Watch
from ortholora.engine.zero import is_owned, refuse_unready
from ortholora.errors import CaptureError


class Attachment:
    """A model whose LoRA matrices write their task gradients into buffers.

    Building it only looks at the model; `install` changes it, `detach` gives it back.

    Args:
        model: A PEFT model, or any module that contains one.
        num_tasks: T.
        buffer_dtype: Precision of the task gradients.
        try_out: Try the model out when it does something new (`engine/trial`).

    Attributes:
        matrices: The trainable LoRA matrices, in model order.
        groups: Their task gradients, one tensor a shape.

    Raises:
        CaptureError: The model has no trainable LoRA matrix, or nobody but its wrapper may write their gradients.
    """

    def __init__(self, model: nn.Module, num_tasks: int, buffer_dtype: torch.dtype, try_out: bool) -> None:
        refuse_wrappers(model)
        self._model = model
        self.matrices: list[Matrix] = find_matrices(model)
        refuse_shared_storage(self.matrices)
        refuse_layouts(self.matrices)
        self.groups: list[ShapeGroup]
        self.groups, self._slots = group_by_shape(self.matrices, num_tasks, buffer_dtype)
        self._norms = batch_norms(model)
        self._sharding: list[nn.Module] = []
        self._current = CurrentBatch()
        self._captured: list[nn.Linear] = []
        self._hooks: list[PureHook] = []
        self._fused: dict[str, FusedLayer] = {}
        self._not_fused: dict[str, str] = {}  # layers with one-pass matrices, and why
        self._watch = Watch(model, self.matrices)
        self._fsdp2: bool | None = None  # looked up at the first batch
        self._guard = StepGuard(self.groups, self._current.behind)
        self._others = OtherAdapters(model, self.matrices)
        self._early = EarlySteps(self.groups, self._others)
        self._marks: OutputMarks | None = None
        self._trial = Trial(model, self.matrices, self._current) if try_out else None

    def install(self, fused: bool) -> None:
        """Take the matrices over.

        Args:
            fused: Run whole LoRA layers in one autograd Function where that is possible.

        Raises:
            CaptureError: A matrix was taken over already, or cannot be captured. The model is as it was.
        """
        _release_copied(self._model)
        try:
            self._install_matrices()
        except CaptureError:
            self.detach()  # what was installed before the refusal must not stay behind
            raise
        self._fuse_layers(fused)
        if self._trial is not None:
            self._trial.install()

    def detach(self) -> None:
        """Give the model back exactly as it was."""
        self._watch.stop()
        self._early.stop()
        if self._marks is not None:
            self._marks.remove()
        if self._trial is not None:
            self._trial.uninstall()
        for module in self._captured:
            uninstall(module)
        for hook in self._hooks:
            hook.remove()
        for layer in self._fused.values():
            layer.uninstall()
        self._captured, self._hooks, self._fused = [], [], {}

    def was_abandoned(self) -> bool:
        """Whether what was captured is of a step that was given up, and must be forgotten before the next batch."""
        if self._fsdp2 is None and self._is_sharded():
            self.reshard(search=True)
        return self._guard.was_abandoned()

    def open(self, grouping: Grouping) -> AbstractContextManager[Any]:
        """Begin a micro-batch.

        Returns:
            What its forward and backward run in.

        Raises:
            CaptureError: One is open already, or its rows are mixed and something in the model needs them apart.
        """
        if self._current.grouping is not None:
            raise CaptureError(
                "ortho.batch(...) is open already",
                expected="one micro-batch at a time",
                found="a nested ortho.batch(...)",
                todo="close the first `with` block before the next micro-batch",
            )
        if not grouping.pure:
            self._refuse_mixed_rows(grouping)
            check_rows_are_apart(self._norms)
        for hook in self._hooks:
            hook.renew()
        self._guard.open()
        self._current.grouping = grouping
        inner = nullcontext() if self._trial is None else self._trial.open(grouping, self._is_sharded())
        return self._noticing_failure(inner) if self._is_sharded() or self._is_owned() else inner

    def settle(self) -> None:
        """After the backward of a micro-batch: try out what was new in it.

        Raises:
            CaptureError: Names a layer whose rows are not the batch's.
        """
        if self._trial is not None:
            self._trial.settle(self._is_sharded())

    def trial_is_due(self) -> bool | None:
        """Before a step is resolved: whether this rank has something to try out together with the others.

        None where each rank does it alone, and then this does what is left to do.

        Raises:
            CaptureError: Names a layer whose rows are not the batch's.
        """
        if self._trial is not None:
            self._trial.settle_step()
        return self._trial.is_due() if self._trial is not None and self._is_sharded() else None

    def try_together(self, due: bool) -> None:
        """Try out what is new on any rank. A collective where something is.

        Raises:
            CaptureError: A rank refuses.
        """
        if self._trial is None:
            return
        if due:
            self._trial.try_together(partial(gather_around, self._sharding))
            self.reshard(search=False)
        self._trial.drop_kept()

    @contextmanager
    def _noticing_failure(self, inner: AbstractContextManager[Any]) -> Iterator[None]:
        try:
            with inner:
                yield
        except BaseException:
            self._guard.fail()
            raise

    def close(self) -> None:
        """End the micro-batch."""
        self._current.grouping = None
        self._guard.close()
        if self._trial is not None:
            self._trial.close()

    def reshard(self, search: bool) -> None:
        """Let FSDP2's modules hold the matrices that the optimizer holds, and not the gathered ones.

        They still would after `set_reshard_after_backward(False)`. No communication, and nothing to do otherwise.

        Args:
            search: Look for such modules anew; `fully_shard` may have been called since.
        """
        if search:
            self._sharding = sharding_modules(self._model)
        for module in self._sharding:
            module.reshard()  # type: ignore[operator]
        if self._sharding:
            self._guard.hold()

    def check(self, thoroughly: bool) -> None:
        """A step must have been captured whole: what trains, what ran and what has a gradient.

        After the ranks agreed on what was touched: DDP writes `.grad` on ranks that did not run the layer, too.

        Args:
            thoroughly: Search the model for LoRA layers, even if the known ones look unchanged.

        Raises:
            CaptureError: Names a matrix that the capture did not see, or that would never train.
        """
        refuse_unready(self.matrices)
        self._guard.check()
        self._early.check()
        self._watch.check(thoroughly)
        self._others.check()
        check_something_captured(self.groups)
        incomplete = [group for group in self.groups if not all(group.touched)]  # in most steps none
        check_gradients_were_captured(incomplete)
        check_outputs_reach_a_loss(incomplete)

    def check_sums(self) -> None:
        """The reduced task gradients of each matrix must add up to its `.grad`. Costs a synchronisation.

        Raises:
            CaptureError: Names a matrix where they do not, or whose `.grad` could not be written.
        """
        refuse_layouts(self.matrices)
        check_capture_is_complete(self.groups)

    def summary(self) -> str:
        """How every trainable parameter gets its gradient, one line a kind."""
        return capture_summary(self._model, self.matrices, len(self._fused), self._not_fused)

    def by_layer(self) -> dict[str, str]:
        """LoRA layer → how its task gradients are captured."""
        return capture_by_layer(self.matrices, self._not_fused)

    def _is_sharded(self) -> bool:
        """Whether FSDP2 holds the model. Not by its parameters: between forward and backward they may lie whole."""
        if self._fsdp2 is None:
            self._fsdp2 = bool(sharding_modules(self._model))
        return self._fsdp2

    def _is_owned(self) -> bool:
        """Whether DeepSpeed holds the gradients; it may have come after OrthoLora."""
        return any(is_owned(matrix.parameter) for matrix in self.matrices)

    def _install_matrices(self) -> None:
        pure = {id(m.parameter) for m in self.matrices if m.task_pure}
        hooked: set[int] = set()
        for i, matrix in enumerate(self.matrices):
            if id(matrix.parameter) in pure:  # a tied parameter has one hook, which sees all its uses
                if id(matrix.parameter) not in hooked:
                    self._hooks.append(PureHook(self._slots[i], self._current))
                    self._hooks[-1].renew()
                    hooked.add(id(matrix.parameter))
            elif matrix.owner not in self._captured:
                assert isinstance(matrix.owner, nn.Linear)
                install(matrix.owner, self._slots[i], self._current)
                self._captured.append(matrix.owner)
        layers = [self._model.get_submodule(m.layer) for m in self.matrices if m.task_pure]
        inner = chain(self._model, [m.layer for m in self.matrices])
        self._marks = OutputMarks(doors(self._model, [*inner, *layers]), self._current)

    def _fuse_layers(self, wanted: bool) -> None:
        members: dict[str, list[int]] = {}
        for i, matrix in enumerate(self.matrices):
            if matrix.owner in self._captured:
                members.setdefault(matrix.layer, []).append(i)
        for name, indices in members.items():
            layer = self._model.get_submodule(name)
            why = why_not_fused(layer, [self.matrices[i] for i in indices]) if wanted else "switched off"
            if why is not None:
                self._not_fused[name] = why
                continue
            slot_a, slot_b = (self._slots[i] for i in sorted(indices, key=lambda i: self.matrices[i].role))
            adapter = layer.active_adapters[0]  # type: ignore[index]
            self._fused[name] = FusedLayer(layer, adapter, (slot_a, slot_b), self._current)  # type: ignore[arg-type]
            self._fused[name].install()

    def _refuse_mixed_rows(self, grouping: Grouping) -> None:
        if self._hooks:
            pure = [m for m in self.matrices if m.task_pure]
            raise CaptureError(
                f"{pure[0].name} cannot be split by row ({len(pure)} such matrices)",
                expected="task-pure micro-batches: all rows of one task",
                found=f"a micro-batch with {len(grouping.tasks)} tasks; {pure[0].task_pure}",
                todo="accumulate one micro-batch per task (ortho.batch(task_index)), or leave the module out "
                "of `target_modules`",
            )


def _release_copied(model: nn.Module) -> None:
    """Free a copy of an attached model from what came along with it."""
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if is_leftover(forward) or (isinstance(forward, FusedLayer) and forward.is_leftover):
            del module.__dict__["forward"]
        remove_leftover_marks(module)
        remove_leftover_trials(module)
