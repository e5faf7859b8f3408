"""`torchjd:NAME`: the weightings of TorchJD (Quinton & Rey, arXiv 2406.16232) on our Grams, block after block.

They take one Gram at a time, so a step costs a Python loop over the N blocks.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ortholora.engine.rules.balanced import lengths
from ortholora.engine.rules.base import RuleContext
from ortholora.errors import RuleError, UserError, did_you_mean, listing

#: What a rule's name starts with.
PREFIX = "torchjd:"

#: The weightings that decide by one Gram, with the arguments that TorchJD leaves to its user.
WEIGHTINGS: dict[str, dict[str, float]] = {
    "AlignedMTL": {},
    "CAGrad": {"c": 0.5},
    "DualProj": {},
    "FairGrad": {"alpha": 1.0},
    "GradVac": {},
    "IMTLG": {},
    "Krum": {"n_byzantine": 0},
    "Mean": {},
    "MGDA": {},
    "PCGrad": {},
    "Random": {},
    "Sum": {},
    "UPGrad": {},
}

#: Weightings and aggregators that cannot be used, and why.
REFUSED = {
    "ConFIG": "it works on the gradients themselves",
    "Constant": "it needs weights by hand: give `tasks.<name>.weight` and take the rule `sum`",
    "CRMOGM": "it smooths the weights of another weighting and decides nothing itself",
    "ExcessMTL": "it works on the gradients themselves",
    "GradDrop": "it works on the gradients themselves",
    "MoDo": "it needs the inner products of two independent batches",
    "NashMTL": "TorchJD offers no weighting for it; `torchjd:FairGrad` with its α of 1 solves the same equation",
    "PCD": "its first task is the main one, so the order in which tasks are named would decide",
    "SDMGrad": "it needs the inner products of two independent batches",
    "TrimmedMean": "it works on the gradients themselves",
}

#: Fewer tasks than this get the mean. (Of three, the two nearest tie in Krum, and the first named would win.)
_FEWEST = {"Krum": 4}

#: Where a weighting keeps what it remembers of pairs of tasks.
_MEMORY = {"GradVac": "_phi_t"}


class TorchJD:
    """A weighting of TorchJD as a rule.

    Each block is weighed on its own, without the tasks whose gradient is absent or zero there. A single task
    keeps its plain gradient. Random draws come from the context's generator; torch's own is left as it was.

    Args:
        name: A key of `WEIGHTINGS`.
        arguments: For the weighting's constructor, over those of `WEIGHTINGS`.

    Raises:
        UserError: TorchJD, or what this weighting needs, is not installed; or the name takes no Gram.
    """

    def __init__(self, name: str, **arguments: Any) -> None:
        self.name = name
        self._weighting = _build(name, arguments)
        self._memory: Tensor | None = None  # [N, T, T]

    def __repr__(self) -> str:
        return f"TorchJD({self.name!r})"

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return the weighting's weights `[N, T]`, 0 for tasks that were left out."""
        seed = int(torch.randint(2**62, (), generator=context.generator))
        on_cpu = gram.detach().cpu()
        weights = torch.zeros(on_cpu.shape[:2], dtype=on_cpu.dtype)
        there = (lengths(on_cpu) > 0).tolist()
        if self.name in _MEMORY and self._memory is None:
            self._memory = torch.zeros_like(on_cpu)
        with torch.no_grad(), _drawing_from(seed):
            for block, present in enumerate(there):
                tasks = torch.tensor([t for t, is_there in enumerate(present) if is_there], dtype=torch.long)
                weights[block, tasks] = self._weigh(block, on_cpu[block][tasks][:, tasks], tasks)
        # A step that overflowed keeps its NaN in the gradients, for whoever skips it.
        weights[~on_cpu.isfinite().all(2).all(1)] = 1
        return weights.to(gram.device)

    def state_dict(self) -> dict[str, Any]:
        """The weighting's name, and what it remembers of every block."""
        return {"name": self.name, "memory": None if self._memory is None else self._memory.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state is that of another weighting.
        """
        if state["name"] != self.name:
            raise ValueError(f"The state should be for torchjd:{self.name}. Found torchjd:{state['name']}.")
        self._memory = None if state["memory"] is None else state["memory"].clone().cpu()

    def _weigh(self, block: int, gram: Tensor, tasks: Tensor) -> Tensor:
        count = len(tasks)
        if count < 2 or not bool(gram.isfinite().all()):
            return gram.new_ones(count)
        if count < _FEWEST.get(self.name, 2):
            return gram.new_full((count,), 1 / count)
        pairs = tasks.unsqueeze(1), tasks.unsqueeze(0)
        if self._memory is not None:
            self._remember(self._memory[block][pairs])
        try:
            answer = self._weighting(gram)
        except Exception as error:  # a solver of a third party
            raise RuleError(
                f"torchjd:{self.name} could not weigh block {block}",
                expected="weights for a finite Gram",
                found=f"{type(error).__name__}: {error}",
                todo="take another rule (docs/rules.md), and report the message to TorchJD",
            ) from error
        if self._memory is not None:
            self._memory[block][pairs] = getattr(self._weighting, _MEMORY[self.name])
        return answer

    def _remember(self, memory: Tensor) -> None:
        """Make the weighting believe that it saw this block, with these tasks, in the last step."""
        setattr(self._weighting, _MEMORY[self.name], memory)
        self._weighting._state_key = (len(memory), memory.dtype)


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, from which TorchJD draws, and give it back as it was."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would move the accelerators' generators as well
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def _build(name: str, arguments: dict[str, Any]) -> Any:
    what = f"The rule '{PREFIX}{name}' cannot be used"
    if name not in WEIGHTINGS:
        raise UserError(
            what,
            expected=f"{PREFIX}NAME, with one of {listing(WEIGHTINGS, len(WEIGHTINGS))}",
            found=f"{name!r}: {REFUSED.get(name, 'TorchJD knows no such weighting')}",
            todo=did_you_mean(name, WEIGHTINGS, "take one of those"),
        )
    try:
        weighting = getattr(importlib.import_module("torchjd.aggregation"), f"{name}Weighting")
        return weighting(**{**WEIGHTINGS[name], **arguments})
    except (ImportError, AttributeError) as error:
        raise UserError(
            what,
            expected="TorchJD 0.18 or newer, with what this weighting needs",
            found=str(error),
            todo="pip install torchjd"
            if isinstance(error, ModuleNotFoundError)
            else "install what is named above (`pip install 'torchjd[full]'` has all of it)",
        ) from error
