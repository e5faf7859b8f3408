"""Run a call of the model twice more, and judge by what arrives at its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ortholora.engine.buffers import Slot
from ortholora.engine.capture import CurrentBatch
from ortholora.engine.layers import Matrix
from ortholora.engine.trial import messages
from ortholora.engine.trial.calls import Call, Level
from ortholora.engine.trial.codes import Codes
from ortholora.engine.trial.isolation import no_trace
from ortholora.engine.trial.passes import Pass, speaks, strays
from ortholora.engine.trial.placed import reached
from ortholora.engine.trial.sources import Sources, first_is_the_batch, is_ambiguous


@dataclass(frozen=True)
class Twice:
    """What two runs of the same call told.

    Attributes:
        inverse: Each row's gradient divided by its power of two.
        coded: Each row's gradient multiplied by it.
        displaced: Nodes of the first run's graph that the outputs come from, and by no way of rows.
        first_is_the_batch: Nothing speaks against the first dimension of the outputs.
    """

    inverse: Pass
    coded: Pass
    displaced: set[Any]
    first_is_the_batch: bool


def run_twice(
    model: nn.Module,
    level: Level,
    gradients: Mapping[int, Tensor],
    codes: Codes,
    current: CurrentBatch,
    gather: Callable[[nn.Module], None] | None,
) -> Twice:
    """Forward and backward of a module with the inputs that it had, twice, without a trace.

    Args:
        model: The whole model.
        level: The module and its inputs.
        gradients: Position → gradient of an output that has rows.
        codes: The batch's codes.
        current: Where the layers ask what to do.
        gather: Where FSDP2 holds the parameters: makes whole what the modules around the level's hold.
    """
    sharded = gather is not None
    device = next(iter(gradients.values())).device
    passes = Pass(codes, device, inverse=True), Pass(codes, device)
    sources = tuple(
        Sources(codes, taking.probe, inverse) for taking, inverse in zip(passes, (True, False), strict=True)
    )
    ambiguous = any(is_ambiguous(gradient, codes) for gradient in gradients.values())
    displaced: set[Any] = set()
    with _unattended(current), no_trace(model, device, freeze=not sharded) as rewind, torch.enable_grad():
        for number, taking in enumerate(passes):
            rewind()
            if gather is not None:  # each time: a backward lets go of them
                gather(level.module)
            current.trying = taking
            given = [_given(codes, gradient, inverse=number == 0) for gradient in gradients.values()]
            again = level.detached()
            with sources[number].watched(again) if ambiguous else nullcontext(again) as watched:
                outputs = watched.run()
                roots = [outputs[position] for position in gradients]
                if number == 0:
                    displaced = reached(roots, by_mask=True) - reached(roots)
                # FSDP2's own parameters may not be frozen. Reentrant checkpointing knows no `inputs`.
                torch.autograd.backward(roots, given, inputs=[taking.probe] if sharded else None)
    return Twice(*passes, displaced, first_is_the_batch(*sources))


def run_along(
    model: nn.Module,
    level: Level,
    current: CurrentBatch,
    device: torch.device,
    gather: Callable[[nn.Module], None],
) -> None:
    """The same forwards and backwards for their collectives alone, where another rank has something to try out."""
    with _unattended(current), no_trace(model, device, freeze=False), torch.enable_grad():
        for _ in range(2):
            gather(level.module)
            current.trying = taking = Pass(None, device)
            output = next(t for t in level.detached().run() if t.requires_grad)
            torch.autograd.backward(output, torch.ones_like(output), inputs=[taking.probe])


@contextmanager
def _unattended(current: CurrentBatch) -> Iterator[None]:
    """Without anybody who takes notes of what runs."""
    note, current.note = current.note, None
    try:
        yield
    finally:
        current.trying = None
        current.note = note
        current.behind.forget()


def _given(codes: Codes, gradient: Tensor, inverse: bool) -> Tensor:
    code = codes.of_output(gradient.shape)
    assert code is not None
    return (code.inverse() if inverse else code).times(code.levelled(gradient))


def refuse_strays(found: Twice) -> None:
    """Refuse layers that capture would divide wrongly.

    Raises:
        CaptureError: Names the first, and how many there are.
    """
    wrong: list[tuple[Matrix, tuple[int, ...]]] = []
    by_data: list[Matrix] = []
    for slot, readings in found.inverse.readings.items():
        others = found.coded.readings.get(slot, [])
        if len(readings) != len(others):
            raise messages.not_the_same(slot.matrix)
        bad = next((r for r, other in zip(readings, others, strict=True) if strays(r, other)), None)
        if bad is not None:
            wrong.append((slot.matrix, bad.lead))
        elif any(node in found.displaced for node in found.inverse.nodes[slot]):
            by_data.append(slot.matrix)
    if wrong:
        raise messages.strays(sorted(wrong, key=lambda entry: entry[0].name))
    if by_data:
        raise messages.placed_by_data(by_data)


def was_seen(slot: Slot, found: Twice, call: Call, whole: bool) -> bool:
    """Whether a gradient arrived at a layer; zero ones tell nothing.

    Args:
        slot: The layer's matrix.
        found: What the runs told.
        call: The call.
        whole: The whole call was run, and not only an inner module.

    Raises:
        CaptureError: It has a gradient in training, and none came here: it comes by another way than the rows.
    """
    readings = found.inverse.readings.get(slot)
    if readings is not None:
        return speaks(readings)
    ran = slot in found.inverse.nodes  # else it was dropped by chance, or lies outside of the inner module
    if call.captured(slot) and (ran or not whole):
        raise messages.no_rows(slot.matrix, call)
    return False
