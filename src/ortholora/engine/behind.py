"""Which micro-batch a forward or a gradient belongs to.

Mostly that is the one whose `with ortho.batch(...)` block is open. But a backward may run later than its forward:
after the block, or inside the block of another micro-batch. A product's own autograd Function keeps the grouping of
its forward. Two things happen in the backward itself, and need to be told: a layer that is recomputed (activation
checkpointing), and the gradient of a parameter that is taken whole. So the model's outputs carry a mark: a hook that
says, before the backward goes into the model, of which micro-batch the forward was.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Protocol

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from ortholora.engine.grouping import Grouping
from ortholora.errors import CaptureError


class Current(Protocol):
    """What the marks need of the micro-batch that is being run (`capture.CurrentBatch`)."""

    behind: Behind

    @property
    def now(self) -> Grouping | None:
        """What a forward belongs to that comes now."""
        ...


class Behind:
    """The micro-batches whose backward is running, as the marks tell.

    Attributes:
        groupings: Those of their forwards; None for a forward outside any batch.
    """

    def __init__(self) -> None:
        self.groupings: list[Grouping | None] = []

    def grouping(self, of_the_open_batch: Grouping | None) -> Grouping | None:
        """What a forward or a gradient belongs to that comes now; None where its forward ran outside any batch.

        Args:
            of_the_open_batch: The answer outside of a backward.
        """
        if not in_backward():
            return of_the_open_batch
        if not self.groupings:
            return None if of_the_open_batch is None else _Unmarked()
        first, *others = self.groupings
        return first if all(_same(first, other) for other in others) else _Several()

    @property
    def unfinished(self) -> bool:
        """A backward began and never came to its end. To be asked when none can be running."""
        return bool(self.groupings)

    def forget(self) -> None:
        """The backward is over, or was cut short."""
        self.groupings.clear()

    def enter(self, grouping: Grouping | None, _: Tensor) -> None:
        """A backward goes into a forward of this grouping."""
        if not self.groupings:
            torch.autograd.Variable._execution_engine.queue_callback(self.forget)
        if not any(known is grouping for known in self.groupings):
            self.groupings.append(grouping)


def in_backward() -> bool:
    """Whether a backward is running in this thread."""
    return torch._C._current_graph_task_id() != -1


class _Refused(Grouping):
    """Stands where a backward's grouping cannot be told. Refused where it matters, by any use of it."""

    #: What is wrong, what was expected and found, and what to do.
    message: ClassVar[tuple[str, str, str, str]]

    def __init__(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        """Refuse.

        Raises:
            CaptureError: Always.
        """
        what, expected, found, todo = self.message
        raise CaptureError(what, expected=expected, found=found, todo=todo)


class _Several(_Refused):
    """One backward runs through forwards of several micro-batches."""

    message = (
        "One backward runs through forwards of several micro-batches",
        "a loss.backward() of its own for each `with ortho.batch(task_ids):`, where layers are recomputed "
        "(reentrant checkpointing) or take task-pure micro-batches",
        "losses of several micro-batches in one backward",
        "call backward once for each micro-batch; gradients add up by themselves",
    )


class _Unmarked(_Refused):
    """A backward runs through a forward that carries no mark."""

    message = (
        "A backward recomputes a forward of which nobody knows the micro-batch",
        "calls of the model that OrthoLora was built on, where layers are recomputed (reentrant checkpointing)",
        "a call of one of its parts, or an output of a class in which no tensor was found",
        "call the whole model, or use checkpointing with use_reentrant=False",
    )


class OutputMarks:
    """Hooks that mark what a model returns.

    Args:
        modules: The modules through which the model may be called.
        current: The micro-batch that is being run.
    """

    def __init__(self, modules: Iterable[nn.Module], current: Current) -> None:
        mark = _Mark(current)
        self._handles = [module.register_forward_hook(mark) for module in modules]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def remove_leftover_marks(module: nn.Module) -> None:
    """Remove what came along with a copy of an attached model."""
    for key, hook in list(module._forward_hooks.items()):
        if isinstance(hook, _Mark) and hook.is_leftover:
            del module._forward_hooks[key]


class _Mark:
    """The forward hook. In a copy of the model it does nothing."""

    def __init__(self, current: Current | None) -> None:
        self._current = current

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._current is not None and torch.is_grad_enabled():
            _mark(output, self._current)

    @property
    def is_leftover(self) -> bool:
        return self._current is None

    def __deepcopy__(self, memo: Any) -> _Mark:
        return _Mark(None)

    def __reduce__(self) -> Any:
        return _Mark, (None,)


@torch.compiler.disable
def _mark(output: Any, current: Current) -> None:
    hook = functools.partial(current.behind.enter, current.now)
    for tensor in _tensors(output):
        if tensor.requires_grad and not tensor.is_leaf:  # a hook on a parameter would stay
            tensor.register_hook(hook)


def doors(model: nn.Module, others: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules through which a model may be called: itself, what PEFT wrapped, and others that are told.

    Args:
        model: What OrthoLora was given.
        others: Inner modules that somebody may call, and LoRA layers whose gradients are taken whole.
    """
    found = [model]
    for module in model.modules():
        if isinstance(module, PeftModel):
            found.append(module)
        elif isinstance(module, BaseTuner) and isinstance(module.model, nn.Module):
            found.append(module.model)
    return list({id(module): module for module in [*found, *others]}.values())


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors of a model's output, however it is packed; what caches hold is left out."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
    elif hasattr(output, "__dataclass_fields__"):
        for name in output.__dataclass_fields__:
            yield from _tensors(getattr(output, name))


def _same(one: Grouping | None, other: Grouping | None) -> bool:
    return one is other or (
        one is not None and other is not None and one.pure and one.tasks == other.tasks and other.pure
    )
