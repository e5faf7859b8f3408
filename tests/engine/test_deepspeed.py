"""Law 4 under DeepSpeed's ZeRO-1 and ZeRO-2, and what stands in for them where DeepSpeed is not installed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forked import in_ranks
from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_same, gradients
from ._deepspeed_each import WAYS, alone, work


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], list[dict[str, Any]]]:
    @functools.cache
    def started() -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("deepspeed")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DS_ACCELERATOR", "cpu")
            in_ranks(2, work, folder)
        return [torch.load(folder / f"{rank}.pt") for rank in range(2)]

    return started


needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


@pytest.fixture
def sample() -> models.Sample:
    return models.stack(6, 3, [5, 6, 4])


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:An optimizer took a step, but none holds")  # copies in float32
@pytest.mark.parametrize("name", WAYS)
def test_two_processes_are_one(of_two: Any, name: str) -> None:
    expected = alone(WAYS[name])
    tolerance = 1e-3 if WAYS[name][2] else 1e-5  # of bfloat16 they were the same bits
    for found in of_two():
        assert_same(found[name], expected, tolerance)


@needs_deepspeed
@pytest.mark.slow
def test_steps_that_cannot_be_resolved(of_two: Any) -> None:
    for found in of_two():
        assert "set_gradient_accumulation_boundary(True)" in found["refusals"]["no boundary"]
        assert "FSDP2 or DeepSpeed holds" in found["refusals"]["exception"]
        assert "stepped already" in found["refusals"]["accelerate"]  # which is why the trainers refuse DeepSpeed


class Zero:
    """Takes the gradients of a model as ZeRO's optimizer does, in one process."""

    def __init__(self, model: nn.Module) -> None:
        self.parts: dict[int, list[Tensor] | None] = {0: None}
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        for index, parameter in enumerate(self.parameters):
            mapping = SimpleNamespace(gradient_dict=self.parts, param_group_index=0, use_offload=False)
            methods = {
                "_hp_mapping": mapping,
                "get_full_hp_grad": MethodType(lambda p, i=index: self.kept()[i].float(), parameter),
                "set_full_hp_grad": MethodType(lambda p, value, i=index: self.kept()[i].copy_(value), parameter),
            }
            vars(parameter).update(methods)
            parameter.register_post_accumulate_grad_hook(lambda p: None)  # as DeepSpeed does, to reduce

    def step(self) -> None:
        """Of its optimizer, which holds copies of its own, and none of the matrices."""
        copies = [p.detach().clone().requires_grad_() for p in self.parameters]
        torch.optim.SGD(copies, lr=1.0).step()
        self.parts[0] = None

    def kept(self) -> list[Tensor]:
        assert self.parts[0] is not None
        return self.parts[0]

    def backward(self, loss: Tensor, boundary: bool = True) -> None:
        loss.backward()
        if boundary:
            self.parts[0] = [p.grad for p in self.parameters]  # type: ignore[misc]
            for parameter in self.parameters:
                parameter.grad = None


def halves(sample: models.Sample) -> list[tuple[list[int], models.Sample]]:
    return [([0, 1, 0], sample.rows(slice(0, 3))), ([1, 1, 0], sample.rows(slice(3, 6)))]


def loss_of(model: nn.Module, rows: models.Sample) -> Tensor:
    return models.token_losses(model, rows).sum()


def test_the_rule_is_written_where_the_optimizer_reads(sample: models.Sample) -> None:
    """The same in the next step; micro-batches before the boundary count."""
    ortho = OrthoLora(sample.model, ["a", "b"])
    for ids, rows in halves(sample):
        with ortho.batch(ids):
            loss_of(sample.model, rows).backward()
    ortho.resolve()
    expected = list(gradients(sample.model).values())
    ortho.detach()
    sample.model.zero_grad()

    ortho, zero = OrthoLora(sample.model, ["a", "b"]), Zero(sample.model)
    for _ in range(2):
        for k, (ids, rows) in enumerate(halves(sample)):
            with ortho.batch(ids):
                zero.backward(loss_of(sample.model, rows), boundary=k == 1)
        ortho.resolve()
        assert all(p.grad is None for p in zero.parameters)
        for found, one in zip(zero.kept(), expected, strict=True):
            assert torch.allclose(found, one, rtol=1e-6)
        zero.step()


def test_what_deepspeed_would_not_step_by(sample: models.Sample) -> None:
    """Each is refused by name."""
    ortho, zero = OrthoLora(sample.model, ["a", "b"]), Zero(sample.model)
    (ids, rows), last = halves(sample)

    def step(boundary: bool = True) -> None:
        with ortho.batch(ids):
            zero.backward(loss_of(sample.model, rows), boundary)

    step(boundary=False)
    with pytest.raises(CaptureError, match=r"not reduced yet(?s:.*)set_gradient_accumulation_boundary\(True\)"):
        ortho.resolve()
    with pytest.raises(KeyError), ortho.batch(last[0]):
        raise KeyError
    step()
    with pytest.raises(CaptureError, match=r"FSDP2 or DeepSpeed holds(?s:.*)discard\(\)"):
        ortho.resolve()
    ortho.discard()
    step()
    zero.parameters[0]._hp_mapping.use_offload = True  # type: ignore[attr-defined]
    with pytest.raises(CaptureError, match="offload of the optimizer"):
        ortho.resolve()
    zero.parameters[0]._hp_mapping.use_offload = False  # type: ignore[attr-defined]
    zero.parameters[0].use_muon = True  # type: ignore[attr-defined]
    with pytest.raises(CaptureError, match="Muon"):
        ortho.resolve()
    zero.parameters[0].use_muon = False  # type: ignore[attr-defined]
    zero.parameters[0]._hp_grad = torch.zeros(1)  # type: ignore[attr-defined]
    with pytest.raises(CaptureError, match="BF16_Optimizer"):
        ortho.resolve()
    del zero.parameters[0]._hp_grad  # type: ignore[attr-defined]
    zero.parameters[0].ds_id = 0  # type: ignore[attr-defined]
    with pytest.raises(CaptureError, match="ZeRO-3"):
        ortho.resolve()


def test_gradients_that_were_not_captured_are_seen(sample: models.Sample) -> None:
    ortho, zero = OrthoLora(sample.model, ["a", "b"]), Zero(sample.model)
    ids, rows = halves(sample)[0]
    with ortho.batch(ids):
        zero.backward(loss_of(sample.model, rows))
    for part in zero.kept():
        part.mul_(3)
    with pytest.raises(CaptureError, match="received a gradient that was not captured"):
        ortho.resolve()
