"""What a rule is: the Gram of the task gradients → weights.

A rule never sees a gradient. It gets, for N blocks at once, the inner products of the T task gradients
and answers with how much of each goes into the update. Everything it may decide by (which gradients
agree, which are large) is in there, and the cost does not depend on the size of the model.

A rule may be a plain function `rule(gram, context) -> weights`, or an object that also has

* `memory: float`: ask for a running mean of the task gradients with this decay; the Gram is then
  `[N, 2T, 2T]` over (current gradients, running means);
* `memory_factors(context) -> [T]`, beside `memory`: what each task's gradient is multiplied by on its way into the
  running mean (1 / loss, say, for the mean of the gradients of log losses); called once a step, before the rule;
* `halves = True`: ask for the rows of a step in two halves; the Gram is then `[N, 2T, 2T]` over (half a, half b), and
  weights are those of both halves of a task; see `ortholora.engine.halves`;
* `precondition`: an object that transforms the task gradients before the Gram, with state of its own; see
  `ortholora.engine.precondition`;
* `state_dict()` / `load_state_dict(state)`: state across steps, saved and resumed with the run;
* `scale_free_per_task = True`: a promise that multiplying one task's loss by a positive number changes the
  direction of no block's update. The contract test holds the rule to it. The tasks' weights, which could not act
  through the lengths of the gradients, are multiplied to its answer. With `keeps_weights = True` they are not: the rule
  divides by losses, which are without weights, and leaves lengths as they are;
* `needs_losses = True`: the rule wants `context.losses`. Whoever calls `resolve` must then give losses, and every
  step costs one more small collective and one synchronisation with an accelerator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class RuleContext:
    """What a rule may know besides the Gram.

    Attributes:
        tasks: Names of the T tasks.
        present: `[T]` bool on the CPU: the tasks that had rows in this step (on any rank).
        step: Optimizer steps resolved before this one.
        generator: The only source of randomness (CPU, seeded, saved with the run, equal on all ranks).
        losses: `[T]` float32 on the CPU: each task's mean loss in the whole step (all micro-batches, all ranks),
            before its weight; the same on all ranks, finite, and NaN for a task without a loss. None unless the
            rule `needs_losses`.
        halves: `[2, T]` float32 on the CPU: the units (rows, mostly) in each half of a task's share of the step, over
            all ranks. None unless the rule asks for `halves`.
    """

    tasks: tuple[str, ...]
    present: Tensor
    step: int
    generator: torch.Generator
    losses: Tensor | None = None
    halves: Tensor | None = None


@runtime_checkable
class Rule(Protocol):
    """A conflict rule."""

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Decide.

        Args:
            gram: `[N, S, S]` float32 inner products, each block divided by its trace (rules are invariant
                to scale). S = T, or 2T for a rule with `memory` or `halves`. Rows of absent tasks are zero.
            context: See `RuleContext`.

        Returns:
            Either weights `[N, S]` of the gradients in the update, or combinations `[N, T, S]`: row i is
            what replaces the gradient of task i, and the update is the sum of the rows. Combinations let
            the statistics say what was removed per pair of tasks. With `halves`, `[N, T]` or `[N, T, T]`.
        """
        ...


def memory_of(rule: Rule) -> float | None:
    """The decay of the running mean that the rule asks for, or None.

    Raises:
        ValueError: The decay is not in (0, 1).
    """
    decay = getattr(rule, "memory", None)
    if decay is not None and not 0 < decay < 1:
        raise ValueError(f"A rule's `memory` should be a decay in (0, 1). Found {decay!r}.")
    return decay


def factors_of(rule: Rule, context: RuleContext) -> Tensor | None:
    """What the task gradients are multiplied by on their way into the running means: `[T]` float32 on the CPU."""
    factors = getattr(rule, "memory_factors", None)
    return factors(context) if callable(factors) else None


def is_scale_free(rule: Rule) -> bool:
    """Whether the size of a task's loss changes no direction."""
    return bool(getattr(rule, "scale_free_per_task", False))


def loses_weights(rule: Rule) -> bool:
    """Whether task weights, which the gradients carry, have no effect under the rule, and must be heeded apart."""
    return is_scale_free(rule) and not getattr(rule, "keeps_weights", False)


def needs_losses(rule: Rule) -> bool:
    """Whether the rule looks at the tasks' losses."""
    return bool(getattr(rule, "needs_losses", False))


def state_of(rule: Rule) -> dict[str, Any]:
    """The rule's state across steps; empty for a rule without state."""
    save = getattr(rule, "state_dict", None)
    return save() if callable(save) else {}


def restore_state(rule: Rule, state: dict[str, Any]) -> None:
    """Give a rule its state back."""
    load = getattr(rule, "load_state_dict", None)
    if callable(load):
        load(state)
