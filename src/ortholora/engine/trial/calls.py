"""What a batch ran: every call of the model with its inputs, and the gradients that came back to its outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ortholora.engine.buffers import Slot


@dataclass(frozen=True)
class Autocast:
    """The autocast that was in force.

    Attributes:
        device: Type of the device.
        dtype: Its precision; None where there was none.
    """

    device: str
    dtype: torch.dtype | None

    @staticmethod
    def now(device: str) -> Autocast:
        """What is in force now."""
        enabled = torch.is_autocast_enabled(device)
        return Autocast(device, torch.get_autocast_dtype(device) if enabled else None)

    def __call__(self) -> AbstractContextManager[None]:
        """Enter it again."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype is not None)


@dataclass
class Level:
    """One module's part in a call: its inputs, and what came back to each of its outputs.

    Attributes:
        module: The module.
        args: Its positional arguments.
        kwargs: Its other arguments.
        autocast: Enters the autocast that was in force.
        outputs: Its output tensors that had a gradient to come, in order; empty unless they are watched.
        gradients: Position → gradient.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: Autocast
    outputs: dict[int, Tensor] = field(default_factory=dict)
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def watch(self, output: Any) -> None:
        """Keep what comes back to the output's tensors."""
        seen: set[int] = set()
        for position, tensor in enumerate(tensors_of(output)):
            if tensor.requires_grad and tensor.is_floating_point() and id(tensor) not in seen:
                seen.add(id(tensor))
                self.outputs[position] = tensor
                tensor.register_hook(partial(self._keep, position))

    def _keep(self, position: int, gradient: Tensor | None) -> None:
        if gradient is None:  # a Function of somebody's own that gives this output nothing back
            return
        gradient = gradient.detach()
        before = self.gradients.get(position)  # of an earlier backward over the same output
        self.gradients[position] = gradient if before is None else before + gradient

    def detached(self) -> Level:
        """The same inputs without the graph that they came from."""
        return Level(self.module, _detached(self.args), _detached(self.kwargs), self.autocast)

    def run(self) -> list[Tensor]:
        """Run the module once more; its output tensors in order."""
        with self.autocast():
            return list(tensors_of(self.module(*self.args, **self.kwargs)))


@dataclass
class Call:
    """One call of the model.

    Attributes:
        signature: Which inputs it got, as a number.
        levels: The modules that ran one inside of the other, outermost first.
        due: What of it was never tried out.
        counts: How often each matrix ran.
        before: How many captures each had seen when it ran first.
    """

    signature: int
    levels: list[Level] = field(default_factory=list)
    due: dict[Hashable, Slot] = field(default_factory=dict)
    counts: dict[Slot, int] = field(default_factory=dict)
    before: dict[Slot, int] = field(default_factory=dict)

    @property
    def returned_nothing(self) -> bool:
        """Whether no tensor was found in what it returned that a gradient could come back to."""
        return not any(level.outputs for level in self.levels)

    def captured(self, slot: Slot) -> bool:
        """Whether the matrix was captured since it ran."""
        return slot.captures > self.before[slot]

    def rows_of(self, has_rows: Callable[[Sequence[int]], bool]) -> tuple[Level, dict[int, Tensor]] | None:
        """The outermost module to whose rows a gradient came back, and those gradients by position.

        Args:
            has_rows: Whether an output of a shape has the batch's rows.
        """
        for level in self.levels:
            found = {i: gradient for i, gradient in level.gradients.items() if has_rows(gradient.shape)}
            if found:
                return level, found
        return None

    def outputs_with_rows(self, has_rows: Callable[[Sequence[int]], bool]) -> list[Tensor]:
        """The outputs of the outermost module that has any with the batch's rows."""
        found = ([t for t in level.outputs.values() if has_rows(t.shape)] for level in self.levels)
        return next((tensors for tensors in found if tensors), [])


def chain(model: nn.Module, layers: list[str]) -> list[nn.Module]:
    """The modules that contain all LoRA layers, from the PEFT model inwards.

    What a user calls is one of them, as a rule the first. The others count where the first returns no rows, or where
    somebody calls an inner one.

    Args:
        model: What OrthoLora was given.
        layers: Names of the LoRA layers in it.
    """
    split = [name.split(".") for name in layers]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    common = common[: min(len(parts) for parts in split)]
    found = [model]
    for name in common:
        found.append(getattr(found[-1], name))
    first = next((i for i, module in enumerate(found) if _is_peft(module)), 0)
    return [m for m in found[first:] if not isinstance(m, nn.ModuleList | nn.ModuleDict)]


def _is_peft(module: nn.Module) -> bool:
    return any(cls.__name__ == "PeftModel" for cls in type(module).__mro__)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in an output, in order: of tuples, mappings (transformers' outputs are) and data classes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for key in dataclasses.fields(value):
            yield from tensors_of(getattr(value, key.name))


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if type(value) in (list, tuple):
        return type(value)(_detached(part) for part in value)
    if type(value) is dict:
        return {key: _detached(part) for key, part in value.items()}
    return value


def signature_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """Which inputs there are; not their sizes, which differ from batch to batch."""
    return len(args), tuple(name for name, value in kwargs.items() if value is not None)
