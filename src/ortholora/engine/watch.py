"""What may happen to a model after OrthoLora was built, noticed in the step in which it happens.

Looking for LoRA layers takes milliseconds on a large model, so in most steps only a signature of the known
layers is compared (microseconds a layer); the search runs when it differs, and in the checked steps.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft.tuners.lora.layer import LoraLayer
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from ortholora.engine.checks import check_same_matrices
from ortholora.engine.layers import Matrix, find_matrices
from ortholora.engine.zero import is_owned
from ortholora.errors import CaptureError


class Watch:
    """Notices adapters that were replaced, frozen or activated, and optimizers that hold other parameters.

    Args:
        model: The model.
        matrices: The matrices that are captured.
    """

    def __init__(self, model: nn.Module, matrices: Sequence[Matrix]) -> None:
        self._model, self._matrices = model, matrices
        self._layers = [(layer, _containers(layer)) for layer in model.modules() if isinstance(layer, LoraLayer)]
        self._signature = self._sign()
        self._parameters = [weakref.ref(m.parameter) for m in matrices]
        self._former: list[tuple[weakref.ref[nn.Parameter], Matrix]] = []
        self._stepped: set[int] = set()  # parameters in optimizers that took a step since the last resolve
        self._resolved = self._looked = False
        self._hook = register_optimizer_step_post_hook(_noter(weakref.ref(self)))
        weakref.finalize(self, self._hook.remove)

    def stop(self) -> None:
        """Let go of the optimizers."""
        self._hook.remove()

    def check(self, thoroughly: bool) -> None:
        """Look at the adapters and at the optimizers that stepped since the last call.

        Args:
            thoroughly: Search the model for LoRA layers even if the known ones look unchanged.

        Raises:
            CaptureError: A matrix was added, replaced or frozen, or an optimizer trains one that was replaced.
        """
        self._check_optimizers()
        signature = self._sign()
        if thoroughly or signature != self._signature:
            check_same_matrices(self._matrices, lambda: find_matrices(self._model))
            self._signature = signature

    def note(self, optimizer: Optimizer) -> None:
        """Remember what an optimizer that stepped holds."""
        self._stepped.update(id(p) for group in optimizer.param_groups for p in group["params"])

    def _sign(self) -> list[Any]:
        return [part for layer, containers in self._layers for part in _signature(layer, containers)]

    def _check_optimizers(self) -> None:
        for i, (matrix, known) in enumerate(zip(self._matrices, self._parameters, strict=True)):
            if known() is not matrix.owner._parameters.get(matrix.key):
                self._former.append((known, matrix))
                self._parameters[i] = weakref.ref(matrix.parameter)
        stepped, self._stepped = self._stepped, set()
        resolved, self._resolved = self._resolved, True
        if not stepped:
            return
        for reference, matrix in self._former:
            parameter = reference()
            if parameter is not None and id(parameter) in stepped:
                raise _stale(matrix)
        if self._looked or not resolved:
            return
        # One look is enough: an optimizer that held them once is told above when they are replaced. In a later step
        # another optimizer may step alone.
        self._looked = True
        if not any(id(m.parameter) in stepped or is_owned(m.parameter) for m in self._matrices):
            warnings.warn(
                f"An optimizer took a step, but none holds {self._matrices[0].name} or any other LoRA matrix: "
                "build it from the parameters that the model has now",
                stacklevel=6,  # the caller of resolve()
            )


def _noter(watch: weakref.ref[Watch]) -> Any:
    def note(optimizer: Optimizer, *_: Any) -> None:
        alive = watch()
        if alive is not None:
            alive.note(optimizer)

    return note


def _containers(layer: LoraLayer) -> list[Mapping[str, Any]]:
    """The plain dictionaries under a layer's adapters: `ModuleDict` and `ParameterDict` take ten times as long."""
    found = (layer.lora_A, layer.lora_B, layer.lora_embedding_A, layer.lora_embedding_B)
    return [c._parameters if isinstance(c, nn.ParameterDict) else c._modules for c in found]


def _signature(layer: LoraLayer, containers: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """What changes when an adapter is replaced, frozen, activated or merged; `.to()` and casts do not change it."""
    yield bool(layer.merged_adapters)
    for adapter in layer.active_adapters:
        yield adapter
        for container in containers:
            held = container.get(adapter)
            if isinstance(held, nn.Parameter):
                yield held.requires_grad
            elif held is not None:
                yield id(held)
                yield held._parameters["weight"].requires_grad


def _stale(matrix: Matrix) -> CaptureError:
    return CaptureError(
        f"{matrix.name} would never train: the optimizer holds the parameter that it was before",
        expected="an optimizer built from the parameters that the model has now",
        found="one built before the parameter was replaced (by a move to or from `meta`, or by loading with assign)",
        todo="build the optimizer after the model is on its device and its adapters are loaded",
    )
