"""When a model is tried out, and what is done about what comes to light."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ortholora.engine.buffers import Slot
from ortholora.engine.capture import CurrentBatch, not_compiled
from ortholora.engine.distributed import any_rank, largest_of
from ortholora.engine.grouping import Grouping
from ortholora.engine.layers import Matrix
from ortholora.engine.trial import messages
from ortholora.engine.trial.calls import Autocast, Call, Level, chain, signature_of
from ortholora.engine.trial.codes import HALF_SPAN, SPAN, Codes
from ortholora.engine.trial.loss import before_backward, mixes_rows
from ortholora.engine.trial.passes import in_backward
from ortholora.engine.trial.twice import refuse_strays, run_along, run_twice, was_seen
from ortholora.errors import CaptureError

#: Mixed batches after which everything is tried once more: what the data puts into place may have been so by chance.
AGAIN_AFTER = (10, 100, 1000, 10_000)
#: Numbers in the outputs of a model up to which its loss is differentiated twice without being asked for.
CHEAP = 2**20
#: Trials of a layer at which no gradient arrives, before it is left in peace.
ATTEMPTS = 3


class Trial:
    """Tries out what capture takes for granted: that the rows of every layer are the rows of the batch.

    A batch that holds something new (a layer that never ran, an input of another pattern, another set of inputs) is
    run twice more after its own backward, before anything is resolved. Later batches cost a look at the dimensions of
    every layer's input, on the host.

    Args:
        model: What OrthoLora was given.
        matrices: The captured matrices.
        current: The micro-batch that is being run.
    """

    def __init__(self, model: nn.Module, matrices: Sequence[Matrix], current: CurrentBatch) -> None:
        self._model, self._matrices, self._current = model, matrices, current
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._tried: set[Hashable] = set()
        self._attempts: dict[Hashable, int] = {}
        self._signatures: dict[Hashable, int] = {}  # numbered: a number is faster to look up in every layer
        self._batches = 0
        self._most_calls = 1  # of a batch whose loss was looked at
        self._unseen_losses = 0
        self._grouping: Grouping | None = None
        self._kept: tuple[Call, Codes] | None = None  # with FSDP2: the call of this step that resolve tries out
        self._waiting: list[tuple[Call, Codes]] = []  # calls of this step without a backward so far
        self._forget()

    def install(self) -> None:
        """Watch the model's calls."""
        for module in chain(self._model, [m.layer for m in self._matrices]):
            self._hooks.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._after, always_call=True))

    def uninstall(self) -> None:
        """Let go of the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __reduce__(self) -> Any:
        """What goes along with the hooks of a copied model: one that never has an open batch, and so does nothing."""
        return _leftover, ()

    @property
    def is_leftover(self) -> bool:
        """Whether this came along with a copy of an attached model."""
        return not hasattr(self, "_model")

    def open(self, grouping: Grouping, sharded: bool) -> AbstractContextManager[Any]:
        """Begin a micro-batch.

        Args:
            grouping: Its tasks. One of a single task is never tried out.
            sharded: FSDP2 holds the parameters.

        Returns:
            What its forward and backward run in: in the first batches the loss is looked at, too.
        """
        self._forget()
        if grouping.pure:
            self._grouping = grouping if sharded else None
            return nullcontext()
        self._grouping = grouping
        self._current.note = self._note
        self._batches += 1
        if self._batches in AGAIN_AFTER:
            self._tried, self._attempts, self._most_calls = set(), {}, 1
        self._looking = not self._tried or self._unseen_losses > 0
        # With FSDP2 a gradient of the outputs alone would start the model's backward, and collectives.
        return before_backward(self._look_at_loss) if self._looking and not sharded else nullcontext()

    def close(self) -> None:
        """End the micro-batch, and forget it."""
        self._forget()

    def settle(self, sharded: bool) -> None:
        """Try out what was new in the micro-batch; after its backward.

        With FSDP2 a forward is a collective: the ranks agree in resolve, and run it together.

        Args:
            sharded: FSDP2 holds the parameters.

        Raises:
            CaptureError: Names a layer whose rows are not the batch's.
        """
        for slot, before in self._outside:
            if slot.captures > before:
                raise messages.outside(slot.matrix)
        if self._count() > self._most_calls:
            unseen = "a backward that was not seen (torch.autograd.backward, say)"
            self._miss_loss("parameters that FSDP2 holds" if sharded else unseen)
        for call in self._calls:
            if sharded:
                if self._kept is None or (call.due and not self.is_due()):
                    self._kept = call, self._codes()
            elif call.due and not self._try(call, self._codes()):
                self._waiting.append((call, self._codes()))

    def settle_step(self) -> None:
        """Try out what had no backward yet when its micro-batch ended; before the step is resolved.

        Raises:
            CaptureError: Names a layer whose rows are not the batch's.
        """
        waiting, self._waiting = self._waiting, []
        for call, codes in waiting:
            self._try(call, codes)

    def is_due(self) -> bool:
        """Whether something new waits for the other ranks."""
        return self._kept is not None and bool(self._kept[0].due)

    def drop_kept(self) -> None:
        """Nothing is new on any rank."""
        self._kept = None

    def try_together(self, gather: Callable[[nn.Module], None]) -> None:
        """Try out what is new on this rank, or run along where it is another that asked. A collective.

        Args:
            gather: Makes whole what the modules around the given one hold.

        Raises:
            CaptureError: On all ranks, if one of them refuses.
        """
        assert self._kept is not None, "every rank ran the model in this step"
        (call, codes), self._kept = self._kept, None
        refused: CaptureError | None = None
        ready = None
        try:
            ready = self._ready(call, codes) if call.due else None
        except CaptureError as error:
            refused = error
        # All run the same module: the outermost whose outputs have rows (not so the losses of a packed batch).
        own = -1 if ready is None else next(i for i, level in enumerate(call.levels) if level is ready[0])
        depth = max(0, largest_of(own, self._device))
        try:
            if ready is not None and own != depth:
                ready = None
                raise messages.no_rows(next(iter(call.due.values())).matrix, call)
            if ready is not None:
                self._run(call, codes, *ready, gather=gather)
        except CaptureError as error:
            refused = error
        if ready is None:
            run_along(self._model, call.levels[depth], self._current, self._device, gather)
        if any_rank(refused is not None, self._device):
            raise refused or messages.elsewhere()

    # ---- watching ------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._grouping = None
        self._current.note = None
        self._stack: list[Level] = []
        self._calls: list[Call] = []
        self._outside: list[tuple[Slot, int]] = []  # ran where no call of the model was open
        self._looking = False

    def _count(self) -> int:
        """How often the adapted layers were gone through: a forward of the bare base is none of them."""
        return sum(bool(call.counts) for call in self._calls)

    @not_compiled
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        busy = self._grouping is None or self._current.trying is not None
        if busy or not torch.is_grad_enabled() or in_backward():
            return
        if not self._stack:
            signature = signature_of(args, kwargs)
            self._calls.append(Call(self._signatures.setdefault(signature, len(self._signatures))))
        level = Level(module, args, kwargs, Autocast.now(self._device.type))
        self._stack.append(level)
        self._calls[-1].levels.append(level)

    @not_compiled
    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._stack and self._stack[-1].module is module:
            level = self._stack.pop()
            if self._calls[-1].due or self._looking:
                level.watch(output)

    def _note(self, slot: Slot, x: Tensor) -> None:
        """A layer ran. Called in every step: nothing but the host's integers, and no look at the device."""
        if in_backward() or not x.numel():
            return  # recomputed, or nothing at all
        assert self._grouping is not None
        pattern = self._grouping.pattern(x.shape)
        if not self._stack:
            if torch.is_grad_enabled():
                self._outside.append((slot, slot.captures))
            return
        call = self._calls[-1]
        count = call.counts[slot] = call.counts.get(slot, 0) + 1
        key = (slot, pattern, min(count, 2), call.signature)
        if key not in self._tried:
            call.due[key] = slot
            call.before.setdefault(slot, slot.captures)

    # ---- trying out ----------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return self._matrices[0].parameter.device

    def _codes(self, by_task: bool = False) -> Codes:
        assert self._grouping is not None
        half = any(p.dtype == torch.float16 for p in self._model.parameters())
        half |= any(level.autocast.dtype == torch.float16 for call in self._calls for level in call.levels)
        return Codes(self._grouping, HALF_SPAN if half else SPAN, by_task)

    def _try(self, call: Call, codes: Codes) -> bool:
        """Try a call out; False where no gradient came back so far."""
        ready = self._ready(call, codes)
        if ready is not None:
            self._run(call, codes, *ready)
        return any(level.gradients for level in call.levels)

    def _ready(self, call: Call, codes: Codes) -> tuple[Level, dict[int, Tensor]] | None:
        """The module to run twice, and its outputs' gradients; None where there is nothing to learn now."""
        found = call.rows_of(lambda shape: codes.of_output(shape) is not None)
        if found is None:
            captured = next((slot for slot in call.due.values() if call.captured(slot)), None)
            # Of a call among several, whose outputs got no gradient, another one may have been captured.
            alone = self._count() == 1 or call.returned_nothing or any(level.gradients for level in call.levels)
            if captured is not None and alone:
                raise messages.no_rows(captured.matrix, call)
            return None  # no backward so far
        gradients = found[1].values()
        # A step that overflowed, or zero gradients, for which what was captured is right: the next batch tells.
        tells = all(bool(g.isfinite().all()) for g in gradients) and any(bool(g.any()) for g in gradients)
        return found if tells else None

    def _run(
        self,
        call: Call,
        codes: Codes,
        level: Level,
        gradients: dict[int, Tensor],
        gather: Callable[[nn.Module], None] | None = None,
    ) -> None:
        matrix = next(iter(call.due.values())).matrix
        try:
            told = run_twice(self._model, level, gradients, codes, self._current, gather)
        except CaptureError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise  # trainers look for it
            raise messages.broke(matrix, error) from error
        if not told.first_is_the_batch:
            raise messages.outputs_not_by_row(matrix, gradients)
        refuse_strays(told)
        whole = level is call.levels[0]
        for key, slot in call.due.items():
            self._attempts[key] = self._attempts.get(key, 0) + 1
            if was_seen(slot, told, call, whole) or self._attempts[key] >= ATTEMPTS:
                self._tried.add(key)

    def _look_at_loss(self, loss: Tensor) -> None:
        """Before a backward of one of the first batches: is the loss a sum over the tasks?

        After one call of the model it is asked if that is cheap, after several in any case.
        """
        count = self._count()
        if not loss.requires_grad or not count:
            return
        codes = self._codes(by_task=True)
        pairs = [
            (output, coded)
            for call in self._calls
            for output in call.outputs_with_rows(lambda shape: codes.of_output(shape) is not None)
            if (coded := codes.of_output(output.shape)) is not None
        ]
        if not pairs or (count == 1 and sum(output.numel() for output, _ in pairs) > CHEAP):
            return
        came_back = [(level, dict(level.gradients)) for call in self._calls for level in call.levels]
        try:
            mixed = mixes_rows(loss, pairs)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            if count == 1:
                return
            raise messages.loss_unclear(count, str(error).splitlines()[0]) from error
        finally:
            self._current.behind.forget()  # a derivative that failed is no backward that was cut short
            for level, gradients in came_back:  # what was just computed came by the same hooks
                level.gradients = gradients
        if mixed:
            raise messages.loss_mixes_rows(count)
        if count > self._most_calls:
            self._most_calls, self._unseen_losses = count, 0

    def _miss_loss(self, found: str) -> None:
        """A batch with more calls than any before, whose loss nobody looked at: the next one is looked at."""
        self._unseen_losses += 1
        if self._unseen_losses > 1:
            raise messages.loss_unclear(self._count(), found)


def _leftover() -> Trial:
    left = object.__new__(Trial)
    left._grouping, left._stack = None, []
    return left


def remove_leftover_trials(module: nn.Module) -> None:
    """Remove what came along with a copy of an attached model."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Trial) and owner.is_leftover:
                del hooks[key]
