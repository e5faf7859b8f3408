"""What every rank of `test_ranks.py` does: train the same cases, in several ways."""

from __future__ import annotations

import datetime
import gc
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from engine import _models as models
from engine import _ranks as ranks
from ortholora.engine import OrthoLora, distributed
from ortholora.errors import CaptureError

#: Accelerate 1.6 brought it.
KNOWS_FSDP2 = "fsdp_version" in FullyShardedDataParallelPlugin.__dataclass_fields__


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=True)


def sharded(model: nn.Module, **options: Any) -> nn.Module:
    for layer in model.base_model.model.encoder.layer:  # type: ignore[union-attr]
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def sync_ddp(model: Any, last: bool) -> Any:
    return nullcontext() if last else model.no_sync()


def sync_fsdp(model: Any, last: bool) -> Any:
    model.set_requires_gradient_sync(last)
    return nullcontext()


class Traffic:
    """Counts the collectives that Python starts, and the bytes that a rank sends for them round a ring."""

    def __init__(self) -> None:
        self.steps: list[tuple[Counter[str], float]] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        calls: Counter[str] = Counter()
        sent = 0.0
        share = (dist.get_world_size() - 1) / dist.get_world_size()

        def counted(name: str, times: int, which: int) -> Any:
            original = getattr(dist, name)

            def call(*args: Tensor, **kwargs: Any) -> Any:
                nonlocal sent
                kind = name.replace("_tensor", "_single").replace("_into", "")
                calls[kind] += 1
                sent += times * share * args[which].numel() * args[which].element_size()
                return original(*args, **kwargs)

            return mock.patch.object(dist, name, call)

        scatter = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
        gather = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
        with counted("all_reduce", 2, 0), counted(scatter, 1, 1), counted(gather, 1, 0):
            yield
        self.steps.append((calls, sent))


def train(case: ranks.Case, **how: Any) -> tuple[list[ranks.Step], OrthoLora, nn.Module]:
    return ranks.train(case, dist.get_world_size(), range(dist.get_rank(), dist.get_rank() + 1), **how)


def steps_of(case: ranks.Case, **how: Any) -> list[ranks.Step]:
    return train(case, **how)[0]


def with_memory(case: ranks.Case) -> Any:
    steps, ortho, _ = train(case, wrap=ddp, sync=sync_ddp)
    return steps, ortho.state_dict()["means"]


def with_stage(case: ranks.Case, **how: Any) -> Any:
    steps, ortho, _ = train(case, **how)
    return steps, ortho.state_dict()["precondition"]


def counted(case: ranks.Case) -> Any:
    traffic = Traffic()
    steps, ortho, _ = train(case, wrap=ddp, sync=sync_ddp, around_resolve=traffic)
    shapes = [(len(group.matrices), group.numel) for group in ortho._groups]
    return steps, traffic.steps, shapes


def own_task_gradients(case: ranks.Case, wrap: Any) -> dict[str, Tensor]:
    """What the first step's rows of this rank gave, before any reduction."""
    sample = ranks.build(case)
    model = wrap(sample.model)
    ortho = ranks.attach(model, case)
    row = 0
    for rank, parts in enumerate(ranks.STEPS[dist.get_world_size()][0]):
        for ids in parts:
            rows, row = slice(row, row + len(ids)), row + len(ids)
            if rank == dist.get_rank():
                with ortho.batch(torch.tensor(ids)):
                    models.token_losses(model, sample.rows(rows)).sum().backward()
    return {name.removeprefix("module."): gradient.clone() for name, gradient in ortho.task_gradients().items()}


def message(call: Any) -> str:
    """The error that every rank must raise."""
    try:
        call()
    except CaptureError as error:
        return str(error)
    return "no error"


def leftover_gradient(wrap: Any) -> str:
    """A gradient that was not zeroed: the captured sum is not what `.grad` holds."""
    case = ranks.Case()
    sample = ranks.build(case)
    model = wrap(sample.model)
    ortho = ranks.attach(model, case)

    def step() -> None:
        with ortho.batch([0, 1, 2, 0]):
            models.token_losses(model, sample.rows(slice(0, 4))).sum().backward()
        ortho.resolve()

    step()
    return message(step)


def tried_out(wrap: Any) -> str:
    """The first rank has as many positions as rows; the others have one task each and nothing to try out."""
    torch.manual_seed(0)
    model = wrap(models.peft(models.Positions(), ["position", "out"]))
    ortho = OrthoLora(model, ranks.TASKS)

    def step() -> None:
        with ortho.batch([0, 1, 0, 1] if dist.get_rank() == 0 else 1):
            model(torch.randn(4, 4, 5)).square().sum().backward()
        ortho.resolve()

    return message(step)


def summary(case: ranks.Case) -> str:
    return ranks.attach(sharded(ranks.build(case).model), case).summary()


def task_pure(case: ranks.Case) -> str:
    torch.manual_seed(0)
    sample = models.embedding(4, 3)
    return message(lambda: ranks.attach(fully_shard(sample.model), case))


def part_of_the_ranks(case: ranks.Case) -> str:
    mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("a", "b"))
    return message(lambda: ranks.attach(sharded(ranks.build(case).model, mesh=mesh["b"]), case))


def never_resharded(case: ranks.Case) -> list[ranks.Step]:
    def wrap(model: nn.Module) -> nn.Module:
        model = sharded(model)
        for module in model.modules():
            if hasattr(module, "set_reshard_after_backward"):
                module.set_reshard_after_backward(False)
        return model

    return steps_of(case, wrap=wrap, sync=sync_fsdp)


def accelerated(case: ranks.Case) -> list[ranks.Step]:
    from accelerate import Accelerator, DistributedDataParallelKwargs

    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    return steps_of(case, wrap=accelerator.prepare, sync=sync_ddp)


def accelerated_fsdp2(case: ranks.Case) -> list[ranks.Step]:
    """Accelerate's own way to `fully_shard`, which it takes on GPUs only: its state is told so here."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    accelerator = Accelerator(cpu=True)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["BertLayer"],
        cpu_ram_efficient_loading=False,
    )
    with mock.patch.multiple(accelerator.state, distributed_type=DistributedType.FSDP, fsdp_plugin=plugin, create=True):

        def wrap(model: nn.Module) -> nn.Module:
            optimizer = torch.optim.SGD(models.lora_parameters(model).values())
            model, _ = accelerator.prepare(model, optimizer)
            assert {type(p).__name__ for p in models.lora_parameters(model).values()} == {"DTensor"}
            return model

        return steps_of(case, wrap=wrap, sync=sync_fsdp)


def results(world: int) -> dict[str, Any]:
    # Three ranks cut B's 8 rows into 3, 3 and 2, and A's 2 into 1, 1 and none; two cut A's 3 into 2 and 1.
    case = ranks.Case(rank=2 if world == 3 else 3)
    replicas = init_device_mesh("cpu", (world, 1), mesh_dim_names=("replicate", "shard"))
    found: dict[str, Any] = {"gloo": counted(case)}
    distributed.ALL_REDUCE_ONLY = set()  # from here on as with NCCL
    found |= {
        "counted": counted(case),
        "accelerate": accelerated(case),
        "fsdp": steps_of(case, wrap=sharded, sync=sync_fsdp),
        "fsdp general path": steps_of(ranks.Case(rank=case.rank, fused=False), wrap=sharded, sync=sync_fsdp),
        "fsdp after": steps_of(case, late=sharded, sync=sync_fsdp),
        "adatask": with_stage(ranks.Case(rule="adatask", rank=case.rank), wrap=ddp, sync=sync_ddp),
        "fsdp adatask": with_stage(ranks.Case(rule="adatask", rank=case.rank), wrap=sharded, sync=sync_fsdp),
        "task gradients": {"ddp": own_task_gradients(case, ddp), "fsdp": own_task_gradients(case, sharded)},
    }
    if world == 2:
        found |= {
            "all": steps_of(ranks.Case(block="all"), wrap=ddp, sync=sync_ddp),
            "fsdp all": steps_of(ranks.Case(block="all"), wrap=sharded, sync=sync_fsdp),
            "halves": steps_of(ranks.Case(rule="balanced-signal"), wrap=ddp, sync=sync_ddp),
            "fsdp halves": steps_of(ranks.Case(rule="balanced-signal"), wrap=sharded, sync=sync_fsdp),
            "sum": steps_of(ranks.Case(rule="sum"), wrap=ddp, sync=sync_ddp),
            "bfloat16": steps_of(ranks.Case(buffer_dtype=torch.bfloat16), wrap=ddp, sync=sync_ddp),
            "memory": with_memory(ranks.Case(rule="engine._rules:Means")),
            "fsdp kept": steps_of(case, wrap=lambda m: sharded(m, reshard_after_forward=False), sync=sync_fsdp),
            "fsdp checkpointing": steps_of(ranks.Case(checkpointing=True), wrap=sharded, sync=sync_fsdp),
            "fsdp replicas": steps_of(case, wrap=lambda m: sharded(m, mesh=replicas), sync=sync_fsdp),
            "fsdp never resharded": never_resharded(case),
            "leftover": {"ddp": leftover_gradient(ddp), "fsdp": leftover_gradient(sharded)},
            "tried out": tried_out(fully_shard),
            "summary": summary(case),
            "task-pure": task_pure(case),
            "part": part_of_the_ranks(case),
        }
    if world == 2 and KNOWS_FSDP2:
        found["accelerate fsdp"] = accelerated_fsdp2(case)
    return found


def work(folder: Path) -> None:
    """Do all, and write it down."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    torch.save(results(dist.get_world_size()), folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    gc.collect()  # DDP must go before its process group
    dist.destroy_process_group()
