"""Lets Accelerate shard on a CPU, which it does on accelerators only (`AcceleratorState.__init__`)."""

from __future__ import annotations

from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

#: As `fsdp_config` of TrainingArguments.
FSDP2 = {"version": 2, "reshard_after_forward": True}


def on_the_cpu() -> None:
    """From now on, in this process: the state is told that it shards."""
    build = AcceleratorState.__init__

    def built(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        build(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            # As Accelerate itself does it: every later look at the state begins with a copy of this one.
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = built  # type: ignore[method-assign]
