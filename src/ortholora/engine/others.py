"""Adapters that are in the model, but not captured: they must not be trained in the middle of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from ortholora.engine.layers import Matrix
from ortholora.errors import CaptureError


class OtherAdapters:
    """The LoRA matrices that were not trainable when OrthoLora was built, and those that came later.

    Args:
        model: The model.
        matrices: The captured matrices.
    """

    def __init__(self, model: nn.Module, matrices: Sequence[Matrix]) -> None:
        self._matrices = matrices
        layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
        self._containers = [(name, key, held) for name, layer in layers for key, held in _containers(layer)]
        self._held = [held for _, key, held in self._containers if key.endswith("_A")]  # each adapter has one
        self._count = -1
        self._parameters: list[tuple[str, nn.Parameter]] = []
        self._known: list[tuple[Tensor | None, int]] = []
        self._look()
        self._known = self._gradients()

    def held_by(self, parameters: Iterable[Any]) -> str | None:
        """The name of one of them that is among the parameters."""
        self._look()
        ids = {id(p) for p in parameters}
        return next((name for name, parameter in self._parameters if id(parameter) in ids), None)

    def check(self) -> None:
        """None of them may have got a gradient since the last call.

        Raises:
            CaptureError: Names the first that has.
        """
        self._look()
        before, self._known = self._known, self._gradients()
        for (name, _), (gradient, version), (old, old_version) in zip(
            self._parameters, self._known, before, strict=True
        ):
            if gradient is not None and (gradient is not old or version != old_version):
                raise trained(name, "a gradient that arrived since the last resolve()")

    def _look(self) -> None:
        count = sum(map(len, self._held))
        if count == self._count:
            return
        self._count = count
        ours = {id(m.parameter) for m in self._matrices}
        known = {id(p): seen for (_, p), seen in zip(self._parameters, self._known, strict=False)}
        self._parameters = [
            (f"{name}.{key}.{adapter}", parameter)
            for name, key, held in self._containers
            for adapter, value in held.items()
            for parameter in ([value] if isinstance(value, nn.Parameter) else _weights(value))
            if id(parameter) not in ours
        ]
        self._known = [known.get(id(p), (None, 0)) for _, p in self._parameters]

    def _gradients(self) -> list[tuple[Tensor | None, int]]:
        gradients = [parameter.grad for _, parameter in self._parameters]
        return [(g, 0 if g is None else g._version) for g in gradients]


def trained(name: str, found: str) -> CaptureError:
    """The error for an adapter that trains beside the captured one."""
    return CaptureError(
        f"{name} is trained in the middle of a step, and is not captured",
        expected="the adapter that was active when OrthoLora was built, from ortho.batch(...) to ortho.resolve()",
        found=found,
        todo="train the other adapter after resolve(), and zero its gradients before the next; or build OrthoLora anew "
        "while it is active",
    )


def _containers(layer: LoraLayer) -> list[tuple[str, Mapping[str, Any]]]:
    """The plain dictionaries under a layer's adapters."""
    found = [(key, getattr(layer, key)) for key in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")]
    return [(key, c._parameters if isinstance(c, nn.ParameterDict) else c._modules) for key, c in found]


def _weights(module: Any) -> list[nn.Parameter]:
    weight = getattr(module, "_parameters", {}).get("weight")
    return [] if weight is None else [weight]
