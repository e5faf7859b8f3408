"""What a user is told before training: how each matrix is captured, and what is not projected at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from ortholora.engine.layers import Matrix


def capture_summary(model: nn.Module, matrices: Sequence[Matrix], fused: int, not_fused: Mapping[str, str]) -> str:
    """Say how every trainable parameter gets its gradient, one line a kind.

    Args:
        model: The model.
        matrices: Its captured matrices.
        fused: Layers that run fused.
        not_fused: Name → reason of the layers that take the general path.
    """
    pure = [m for m in matrices if m.task_pure]
    lines = [
        f"{len(matrices) - len(pure)} LoRA matrices in one pass: "
        f"{fused} layers fused, {len(not_fused)} by the general path"
    ]
    reasons = list(not_fused.values())
    lines += [f"general path: {reasons.count(why)} layers ({why})" for why in dict.fromkeys(reasons)]
    kinds: dict[str | None, list[str]] = {}
    for matrix in pure:
        kinds.setdefault(matrix.task_pure, []).append(matrix.name)
    lines += [f"task-pure micro-batches only: {_first_of(names)} ({why})" for why, names in kinds.items()]
    others = list(_other_parameters(model, matrices))
    if others:
        lines.append(f"plain joint gradient: {_first_of(others)} (trained, but neither a LoRA A nor B)")
    return "\n".join(lines)


def capture_by_layer(matrices: Sequence[Matrix], not_fused: Mapping[str, str]) -> dict[str, str]:
    """Say of each LoRA layer how its task gradients are captured; see `capture_summary` for the arguments."""
    found: dict[str, str] = {}
    for matrix in matrices:
        if matrix.task_pure is not None:
            found[matrix.layer] = f"task-pure micro-batches only ({matrix.task_pure})"
        elif matrix.layer not in found:
            why = not_fused.get(matrix.layer)
            found[matrix.layer] = "one pass, fused" if why is None else f"one pass, general path ({why})"
    return found


def _other_parameters(model: nn.Module, matrices: Sequence[Matrix]) -> Iterable[str]:
    ours = {id(m.parameter) for m in matrices}
    return (name for name, p in model.named_parameters() if p.requires_grad and id(p) not in ours)


def _first_of(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
