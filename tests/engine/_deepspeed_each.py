"""What `test_deepspeed.py` trains in one process, and what each of its two processes does under ZeRO."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from torch import Tensor, nn

from engine import _models as models
from engine import _ranks as ranks
from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

#: Stage of ZeRO, clipping, bfloat16, and settings of OrthoLora.
Way = tuple[int, float, bool, dict[str, Any]]
WAYS: dict[str, Way] = {
    "stage 1": (1, 0.0, False, {}),
    "stage 2": (2, 0.0, False, {}),
    "stage 1, clipped": (1, 0.02, False, {}),
    "stage 2, clipped": (2, 0.02, False, {"rule": "balanced-ortho", "block": "layer"}),
    "stage 1, bfloat16": (1, 0.0, True, {}),
    "stage 2, bfloat16": (2, 0.0, True, {}),
}


def built(way: Way) -> tuple[models.Sample, OrthoLora]:
    case = ranks.Case(**way[3])
    sample = ranks.build(case)
    return sample, ranks.attach(sample.model, case)


def optimizer_of(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def weights(sample: models.Sample) -> dict[str, Tensor]:
    return {name: p.detach().float().clone() for name, p in models.lora_parameters(sample.model).items()}


def step_of(rank: int, step: int) -> list[tuple[list[int], slice]]:
    """A rank's micro-batches in a step: task ids and rows."""
    found, row = [], 0
    for number, parts_of in enumerate(ranks.STEPS[2]):
        for owner, parts in enumerate(parts_of):
            for ids in parts:
                if (number, owner) == (step, rank):
                    found.append((ids, slice(row, row + len(ids))))
                row += len(ids)
    return found


def alone(way: Way) -> dict[str, Tensor]:
    """The weights after all steps in one process, on the joined batches; of bfloat16 there are copies in float32."""
    sample, ortho = built(way)
    if way[2]:
        sample.model.to(torch.bfloat16)
    own = list(models.lora_parameters(sample.model).values())
    steps = [p.detach().float().clone() for p in own] if way[2] else own
    optimizer = optimizer_of(steps)
    for step in range(len(ranks.STEPS[2])):
        for ids, rows in step_of(0, step) + step_of(1, step):
            with ortho.batch(torch.tensor(ids)):
                (models.token_losses(sample.model, sample.rows(rows)).sum() / 2).backward()
        ortho.resolve()
        if way[1]:
            nn.utils.clip_grad_norm_(own, way[1])
        if way[2]:
            for master, p in zip(steps, own, strict=True):
                master.grad = p.grad.float()  # type: ignore[union-attr]
        optimizer.step()
        with torch.no_grad():
            for master, p in zip(steps, own, strict=True):
                p.copy_(master)
                p.grad = None
    return weights(sample)


def begun(way: Way) -> tuple[models.Sample, OrthoLora, Any]:
    import deepspeed

    sample, ortho = built(way)
    optimizer = optimizer_of(models.lora_parameters(sample.model).values())
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": way[0]},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": way[1],
        "bf16": {"enabled": way[2]},
    }
    engine = deepspeed.initialize(model=sample.model, optimizer=optimizer, config=config)[0]
    return sample, ortho, engine


def backward(sample: models.Sample, ortho: OrthoLora, engine: Any, step: int, last: bool = True) -> None:
    """The backwards of a step, the last one at the boundary."""
    parts = step_of(torch.distributed.get_rank(), step)
    for k, (ids, rows) in enumerate(parts):
        engine.set_gradient_accumulation_boundary(last and k == len(parts) - 1)
        with ortho.batch(torch.tensor(ids)):
            engine.backward(models.token_losses(engine, sample.rows(rows)).sum(), scale_wrt_gas=False)


def trained(way: Way) -> dict[str, Tensor]:
    sample, ortho, engine = begun(way)
    for step in range(len(ranks.STEPS[2])):
        backward(sample, ortho, engine, step)
        ortho.resolve()
        engine.step()
    return weights(sample)


def refusals() -> dict[str, str]:
    """What is said of steps that cannot be resolved."""
    sample, ortho, engine = begun(WAYS["stage 2"])
    said = {}
    backward(sample, ortho, engine, 0, last=False)
    said["no boundary"] = message(ortho)
    ortho.discard()
    backward(sample, ortho, engine, 1)
    with suppress(KeyError), ortho.batch([0]):
        raise KeyError
    said["exception"] = message(ortho)
    ortho.discard()
    ids, rows = step_of(torch.distributed.get_rank(), 0)[0]
    with ortho.batch(torch.tensor(ids)):
        DeepSpeedEngineWrapper(engine).backward(models.token_losses(engine, sample.rows(rows)).sum())
    said["accelerate"] = message(ortho)
    return said


def message(ortho: OrthoLora) -> str:
    try:
        ortho.resolve()
    except CaptureError as error:
        return str(error)
    return "no error"


def work(folder: Path) -> None:
    import deepspeed

    deepspeed.ops.__compatible_ops__.clear()  # or it compiles an all-reduce over shared memory
    deepspeed.init_distributed("gloo")
    warnings.simplefilter("error", UserWarning)  # of ours: its optimizer holds no LoRA matrix
    found: dict[str, Any] = {name: trained(way) for name, way in WAYS.items()}
    torch.save(found | {"refusals": refusals()}, folder / f"{torch.distributed.get_rank()}.pt")
