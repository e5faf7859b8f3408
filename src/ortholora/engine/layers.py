"""Which LoRA matrices a model has, and how each one's task gradients can be had.

A matrix is *one-pass* where its layer calls `lora_A` / `lora_B` as linear modules on inputs whose rows
(or tokens) belong to one task each. Everything else that trains is *task-pure*: exact as long as every
micro-batch holds rows of a single task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from peft.tuners.lora import layer as peft_lora
from torch import nn

from ortholora.errors import CaptureError

#: LoRA layers of PEFT that never call `lora_A` / `lora_B` as linear modules, with what they do instead.
TASK_PURE_LAYERS: dict[str, str] = {
    "Embedding": "LoRA on an embedding uses plain parameters",
    "MultiheadAttention": "LoRA on nn.MultiheadAttention merges the weights before it calls the base layer",
    "ParamWrapper": "`target_parameters` adds the update to the parameter itself",
    "_ConvNd": "LoRA on a convolution has no row-by-row product",
}


@dataclass(frozen=True, eq=False)
class Matrix:
    """One trainable LoRA matrix.

    Attributes:
        name: Qualified name of its parameter in the model.
        layer: Qualified name of the LoRA layer it belongs to.
        role: `"A"` (`[r, k]`) or `"B"` (`[d, r]`).
        owner: The module (or parameter dictionary) that holds the parameter.
        key: Attribute or key under which `owner` holds it.
        task_pure: Why it needs task-pure micro-batches; `None` where one pass is exact.
    """

    name: str
    layer: str
    role: Literal["A", "B"]
    owner: nn.Module
    key: str
    task_pure: str | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it is now. Looked up each time: `.to()` and casts may replace it."""
        if isinstance(self.owner, nn.ParameterDict):
            if self.key not in self.owner:
                raise CaptureError(
                    f"{self.name} is gone",
                    expected="the adapter that was there when OrthoLora was built",
                    found=f"adapters {sorted(self.owner)}",
                    todo="call ortho.detach() and build OrthoLora anew after delete_adapter",
                )
            return self.owner[self.key]
        return getattr(self.owner, self.key)


def find_matrices(model: nn.Module) -> list[Matrix]:
    """List the trainable LoRA matrices of the active adapters, in model order.

    Raises:
        CaptureError: The model has no trainable LoRA matrix, an adapter is merged, or a matrix is computed.
    """
    layers = list(_lora_layers(model))
    merging = tuple(f"{name}.base_layer." for name, layer in layers if _merges_inner_layers(layer))
    matrices = [m for name, layer in layers for m in _layer_matrices(name, layer, name.startswith(merging))]
    for matrix in matrices:
        _refuse_parametrised(matrix)
    trainable = [m for m in matrices if m.parameter.requires_grad]
    if not trainable:
        raise CaptureError(
            "The model has no trainable LoRA matrix",
            expected="a PEFT model with an active LoRA adapter whose lora_A / lora_B require gradients",
            found=f"{type(model).__name__} with {len(matrices)} LoRA matrices, all frozen" if matrices
            else f"{type(model).__name__} without LoRA layers",
            todo="wrap it with peft.get_peft_model(model, LoraConfig(...)), or load the adapter with "
            "is_trainable=True",
        )  # fmt: skip
    return trainable


def _refuse_parametrised(matrix: Matrix) -> None:
    if matrix.key not in matrix.owner._parameters:
        raise CaptureError(
            f"{matrix.name} is no parameter",
            expected="LoRA matrices that are trained themselves",
            found="one that is computed from other parameters (torch.nn.utils.parametrize, weight_norm, or the like)",
            todo="remove the parametrisation (torch.nn.utils.parametrize.remove_parametrizations), or leave the module "
            "out of `target_modules`",
        )


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, peft_lora.LoraLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, peft_lora.LoraLayer):
            if module.merged:
                raise CaptureError(
                    f"The adapter of {name} is merged into its base layer",
                    expected="an unmerged adapter (a merged one gets no gradient)",
                    found=f"merged adapters {module.merged_adapters}",
                    todo="call model.unmerge_adapter() first",
                )
            yield name, module


def _merges_inner_layers(layer: peft_lora.LoraLayer) -> bool:
    return any(cls.__name__ == "MultiheadAttention" for cls in type(layer).__mro__)


def _layer_matrices(name: str, layer: peft_lora.LoraLayer, merged_from_outside: bool) -> Iterator[Matrix]:
    for adapter in layer.active_adapters:
        why = TASK_PURE_LAYERS["MultiheadAttention"] if merged_from_outside else _why_task_pure(layer, adapter)
        for role, modules, parameters in (
            ("A", layer.lora_A, layer.lora_embedding_A),
            ("B", layer.lora_B, layer.lora_embedding_B),
        ):
            if adapter in modules and not isinstance(modules, nn.ParameterDict):
                module = modules[adapter]
                reason = why
                if reason is None and type(module) is not nn.Linear:
                    reason = f"its lora_{role} is a {type(module).__name__}, not a linear module"
                path = f"{name}.lora_{role}.{adapter}"
                yield Matrix(f"{path}.weight", name, role, module, "weight", reason)  # type: ignore[arg-type]
            elif adapter in parameters:
                path = f"{name}.lora_embedding_{role}.{adapter}"
                reason = why or "its matrices are plain parameters"
                yield Matrix(path, name, role, parameters, adapter, reason)  # type: ignore[arg-type]
            elif adapter in modules:  # AdaLoRA
                reason = why or "its matrices are plain parameters"
                yield Matrix(f"{name}.lora_{role}.{adapter}", name, role, modules, adapter, reason)  # type: ignore[arg-type]


def _why_task_pure(layer: peft_lora.LoraLayer, adapter: str) -> str | None:
    for cls in type(layer).__mro__:
        if cls.__name__ in TASK_PURE_LAYERS and cls.__module__.startswith("peft."):
            return TASK_PURE_LAYERS[cls.__name__]
    variant = getattr(layer, "lora_variant", {}).get(adapter)
    if variant is not None:
        return f"the variant {type(variant).__name__} computes with the raw matrices"
    return None
