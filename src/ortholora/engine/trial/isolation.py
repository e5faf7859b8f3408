"""Run a model once more and leave no trace: random states, statistics, gradients."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def no_trace(model: nn.Module, device: torch.device, freeze: bool) -> Iterator[Callable[[], None]]:
    """Put back what running the model changes.

    Args:
        model: The model.
        device: Where it runs; that device's generator is kept, too.
        freeze: Let no parameter require a gradient meanwhile, so that no hook on one is called (DDP's, say).

    Yields:
        Sets the random generators back to where they were, for a second run with the same masks.
    """
    states = _random_states(device)
    buffers = [
        (module, name, tensor, tensor._version, tensor.clone())
        for module in model.modules()
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [p.grad for p in trained]
    for parameter in trained:
        parameter.grad = None
        if freeze:
            parameter.requires_grad_(False)
    try:
        yield lambda: _restore(states)
    finally:
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.requires_grad_(True)
            parameter.grad = gradient
        for module, name, tensor, version, copy in buffers:
            _put_back(module, name, tensor, tensor._version != version, copy)
        _restore(states)


def _put_back(module: nn.Module, name: str, tensor: Tensor, changed: bool, copy: Tensor) -> None:
    module._buffers[name] = tensor
    if changed:
        with torch.no_grad():
            tensor.copy_(copy)


def _random_states(device: torch.device) -> list[tuple[Callable[[Any], Any], Any]]:
    """How to restore each generator, and its state. Python's and NumPy's, too: some models draw layers from them."""
    states: list[tuple[Callable[[Any], Any], Any]] = [
        (random.setstate, random.getstate()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"].random
        states.append((numpy.set_state, numpy.get_state()))
    if device.type != "cpu":
        module = torch.get_device_module(device)
        states.append((lambda state: module.set_rng_state(state, device), module.get_rng_state(device)))
    return states


def _restore(states: list[tuple[Callable[[Any], Any], Any]]) -> None:
    for restore, state in states:
        restore(state)
