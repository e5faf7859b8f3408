"""What a trial may find, as messages: what was expected, what was found, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ortholora.engine.layers import Matrix
from ortholora.engine.trial.calls import Call
from ortholora.errors import CaptureError

_PURE = "use task-pure micro-batches (ortho.batch(task_index) with rows of one task)"
_OFF = "if you know better, switch the trial off: OrthoLora(..., try_out=False)"


def strays(wrong: Sequence[tuple[Matrix, tuple[int, ...]]]) -> CaptureError:
    """Rows of a layer that are not those of the batch."""
    matrix, lead = wrong[0]
    sizes = ", ".join(map(str, lead))
    return CaptureError(
        f"The input of {matrix.name} cannot be split by row ({_layers([m for m, _ in wrong])})",
        expected="row i of its input to take part in the loss of row i alone",
        found=f"an input [{sizes}, k] whose rows take part in other rows' losses: a dimension is as long as the "
        "batch, and is something else (positions, images, labels, rows in another order)",
        todo=f"{_PURE}, or leave the module out of `target_modules`; {_OFF}",
    )


def placed_by_data(matrices: Sequence[Matrix]) -> CaptureError:
    """Layers whose rows go where a mask says."""
    return CaptureError(
        f"The input of {matrices[0].name} cannot be split by row ({_layers(matrices)})",
        expected="row i of its input to take part in the loss of row i alone, whatever the rows hold",
        found="outputs that are put into rows by a mask (as a text's images are): they fit in this batch, and need "
        "not in the next",
        todo=f"{_PURE}, or leave the module out of `target_modules` or in `exclude_modules`; {_OFF}",
    )


def outputs_not_by_row(matrix: Matrix, gradients: Mapping[int, Tensor]) -> CaptureError:
    """Outputs whose first dimension is something else."""
    shapes = [list(g.shape) for g in gradients.values()]
    return CaptureError(
        f"The input of {matrix.name} cannot be split by row: neither can the model's outputs",
        expected="outputs [rows, ...] whose row i comes from row i of what the model reads",
        found=f"outputs {shapes} in which another dimension is as long as the batch, and along the first one the "
        "model mixes what it reads (a model that runs time-first, say)",
        todo=f"{_PURE}, or give the model its batch first; {_OFF}",
    )


def no_rows(matrix: Matrix, call: Call) -> CaptureError:
    """A gradient that comes by no output whose rows are known."""
    shapes = [list(g.shape) for level in call.levels[:1] for g in level.gradients.values()]
    return CaptureError(
        f"{matrix.name} cannot be tried out: which rows its gradient comes from is not to be seen",
        expected="a model whose outputs have one row for each task id, and a loss computed from them",
        found=f"outputs of the shapes {shapes}" if shapes else "no output that has a gradient",
        todo=f"let the model return logits or states [rows, ...] and compute the loss from them; or {_PURE}; {_OFF}",
    )


def outside(matrix: Matrix) -> CaptureError:
    """A layer that somebody called by itself."""
    return CaptureError(
        f"{matrix.name} cannot be tried out: its layer ran outside of the model's forward",
        expected="calls of the model that OrthoLora was built on",
        found="a call of one of its parts",
        todo=f"call the whole model; or {_PURE}; {_OFF}",
    )


def not_the_same(matrix: Matrix) -> CaptureError:
    """A model that does something else with the same inputs and the same random numbers."""
    return CaptureError(
        f"{matrix.name} cannot be tried out: the model does not do the same twice",
        expected="the same layers for the same inputs and the same state of all random generators",
        found="a layer that ran in one of two forwards only",
        todo=f"{_PURE}; {_OFF}",
    )


def broke(matrix: Matrix, error: Exception) -> CaptureError:
    """A model that does not run again."""
    first = (str(error).splitlines() or [""])[0]
    return CaptureError(
        f"{matrix.name} cannot be tried out: the model does not run a second time with the same inputs",
        expected="a forward and a backward as in the batch before",
        found=f"{type(error).__name__}: {first}",
        todo=f"{_PURE}; {_OFF}",
    )


def loss_mixes_rows(calls: int) -> CaptureError:
    """A loss that is no sum over the tasks."""
    rows = "" if calls == 1 else f", and the {calls} calls of the model in this batch to hold the same rows"
    return CaptureError(
        "The loss mixes the rows of different tasks: their gradients cannot be told apart",
        expected=f"a loss that is a sum over rows or tokens{rows}",
        found="a row's gradient that depends on the outputs of another task's rows (contrastive negatives, texts of "
        "labels, statistics of the whole batch)",
        todo=f"compute it within each task, or {_PURE}, or run the other call under torch.no_grad(); {_OFF}",
    )


def loss_unclear(calls: int, found: str) -> CaptureError:
    """A loss of several calls that nothing can be said about."""
    return CaptureError(
        f"The model ran {calls} times in a mixed batch: whether the loss keeps the rows apart cannot be tried out",
        expected="loss.backward() on a loss that can be differentiated twice",
        found=found,
        todo=f"put all texts into one call of the model, with an id for each row; or {_PURE}; {_OFF}",
    )


def elsewhere() -> CaptureError:
    """What the other ranks say when one of them refuses."""
    return CaptureError(
        "Another rank refused the model",
        expected="rows that belong to one task each, on every rank",
        found="see its message",
        todo="see its message",
    )


def _layers(matrices: Sequence[Matrix]) -> str:
    others = len({m.layer for m in matrices}) - 1
    return f"and {others} more such layers" if others else "no other layer is such"
